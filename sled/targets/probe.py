"""Refuse, at load, what would not compute the same over our paged batches as by itself.

State-space layers, convolutions, attention sinks and the like do not go through the attention interface, and would
leave something out or mix sessions without a word.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sled.errors import UnknownModel
from sled.messages import Vocabulary
from sled.targets.attention import Layer
from sled.types import Chunk

log = logging.getLogger("sled.server")

_NUM_TOKENS = 24
_REST = 4
_LONGEST = 256  # windows up to here are tried; beyond, it must do that the layers ask for them
_TOLERANCE = {torch.float32: 1e-3}
_COARSE = 0.1  # half precision, through some tens of layers; what is left out or mixed shows as about 1
_LAYER_TYPES = {"full_attention", "sliding_attention"}


def check_kind(model: Any) -> None:
    """Refuse what cannot work, by name.

    Raises:
        UnknownModel: no decoder of text, or layers that are not plain attention.
    """
    config = model.config.get_text_config()
    kind = config.model_type
    if not getattr(config, "max_position_embeddings", None):
        raise UnknownModel(f"{kind} states no context length, so it is no transformer; use another target")
    if model.config.is_encoder_decoder or model.get_output_embeddings() is None:
        raise UnknownModel(f"{kind} is no decoder-only language model; use another target")
    other = set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES
    if other:
        raise UnknownModel(f"{kind} has layers of {', '.join(sorted(other))}, not supported yet; use another target")


def sayable(model: Any, vocabulary: Vocabulary, stop_ids: Sequence[int]) -> tuple[Vocabulary, list[int]]:
    """The vocabulary and the tokens that end an answer, without what the model never says: ids beyond its logits.

    Tokenizers may have a few more, such as one for padding, and settings of generation name what they were made with.
    A prompt with such an id is refused when it comes.
    """
    size, pieces = model.config.get_text_config().vocab_size, vocabulary.pieces
    usable = [stop for stop in stop_ids if 0 <= stop < size]
    if len(usable) < len(stop_ids):
        outside = ", ".join(str(stop) for stop in stop_ids if stop not in usable)
        log.warning(
            "tokens that end an answer are outside the vocabulary, and never come",
            extra={"outside": outside, "vocab_size": size, "left": len(usable)},
        )
    if len(pieces) > size:
        log.warning("the tokenizer has ids that the model has not", extra={"ids": len(pieces), "vocab_size": size})
        vocabulary = Vocabulary(pieces[:size], [special for special in vocabulary.special_ids if special < size])
    return vocabulary, usable


def check_windows(model: Any, layers: Sequence[Layer]) -> None:
    """Insist that the layers which should slide ask for it.

    Raises:
        UnknownModel: they do not.
    """
    config = model.config.get_text_config()
    types = getattr(config, "layer_types", None) or ()
    wanted = [
        (config.sliding_window or 0) if kind == "sliding_attention" else 0
        for kind in (types if len(types) == len(layers) else ())
    ]
    asked = [layer.terms.window for layer in layers]
    if wanted and asked != wanted:
        raise UnknownModel(f"{config.model_type} says {wanted} of its windows and attends with {asked}; use another")


def max_positions(model: Any) -> int:
    """The context length for which a token's rotation does not depend on the longest text beside it.

    Rotary frequencies of some models change once any text of the batch is longer than those they were trained on.
    """
    config = model.config.get_text_config()
    longest = int(config.max_position_embeddings)
    rope = getattr(config, "rope_parameters", None) or {}
    for entry in rope.values() if all(isinstance(value, dict) for value in rope.values()) else [rope]:
        if entry.get("rope_type") in ("dynamic", "longrope"):
            longest = min(longest, int(entry.get("original_max_position_embeddings") or longest))
    return longest


class Probe:
    """The model's own forward over two texts; made before its attention is replaced, checked after."""

    def __init__(self, model: Any, layers: Sequence[Layer]) -> None:
        windows = [layer.terms.window for layer in layers if 0 < layer.terms.window <= _LONGEST]
        vocab = model.config.get_text_config().vocab_size
        longest = min(max([_NUM_TOKENS, *(window + 8 for window in windows)]), max_positions(model))
        self._model = model
        self._texts = [
            [(i * step + step) % vocab for i in range(length)]
            for step, length in ((7919, longest), (104729, min(_NUM_TOKENS, longest)))
        ]
        before = model.config._attn_implementation
        model.set_attn_implementation("eager")  # the one that leaves nothing out: SDPA knows no softcap
        try:
            self._right = np.stack([self._own(text) for text in self._texts])
        finally:
            model.set_attn_implementation(before)

    def _own(self, text: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
        with torch.inference_mode():
            logits = self._model(input_ids=torch.tensor([text], device=self._model.device), use_cache=False).logits
        return np.asarray(logits[0, -_REST:].float().cpu().numpy())

    def _tolerance(self) -> float:
        """Of the largest logit; quantised products may round each batch otherwise."""
        quantised = getattr(self._model.config, "quantization_config", None) is not None
        return _COARSE if quantised else _TOLERANCE.get(self._model.dtype, _COARSE)

    def num_pages(self, page_tokens: int) -> int:
        """Pages the check needs."""
        return sum(-(-len(text) // page_tokens) for text in self._texts)

    def check(self, compute: Callable[[Sequence[Chunk]], Tensor], page_tokens: int) -> None:
        """Two sessions in two forwards, against the model's own.

        Args:
            compute: chunks to logits (rows, vocab).
            page_tokens: positions in a page.

        Raises:
            UnknownModel: the results are not numbers, or differ by more than rounding.
        """
        kind, first, parts = self._model.config.model_type, 0, []
        for text in self._texts:
            count = -(-len(text) // page_tokens)
            parts.append((text, tuple(range(first, first + count))))
            first += count
        for rest in (False, True):
            chunks = []
            for number, (text, pages) in enumerate(parts):
                cut = len(text) - _REST
                tokens = text[cut:] if rest else text[:cut]
                chunks.append(Chunk(b"%d" % number, tuple(tokens), cut * rest, _REST * rest, pages))
            ours = compute(chunks)
        found = ours.float().cpu().numpy().reshape(self._right.shape)
        error = float(np.abs(found - self._right).max() / np.abs(self._right).max())
        if not np.isfinite(self._right).all():
            raise UnknownModel(f"{kind} gives logits that are no numbers; use weights that are whole, or another dtype")
        if not error < self._tolerance():
            raise UnknownModel(
                f"{kind} computes something besides plain attention (batched logits are off by {error:.1%}), "
                "which is not supported yet; use another target"
            )
