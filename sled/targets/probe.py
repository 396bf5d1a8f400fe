"""Refuse, at load, what would not compute the same over our paged batches as by itself.

State-space layers, convolutions, attention sinks and the like do not go through the attention interface, and would
leave something out or mix sessions without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sled.errors import UnknownModel
from sled.targets.attention import Layer
from sled.targets.trial import COARSE, EXACT, NUM_TOKENS, REST, compare, pages_of, texts_of
from sled.types import Chunk

_LONGEST = 256  # windows up to here are tried; beyond, it must do that the layers ask for them
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
        longest = min(max([NUM_TOKENS, *(window + 8 for window in windows)]), max_positions(model))
        self._model = model
        self._texts = texts_of(vocab, longest)
        before = model.config._attn_implementation
        model.set_attn_implementation("eager")  # the one that leaves nothing out: SDPA knows no softcap
        try:
            self._right = np.stack([self._own(text) for text in self._texts])
        finally:
            model.set_attn_implementation(before)

    def _own(self, text: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
        with torch.inference_mode():
            logits = self._model(input_ids=torch.tensor([text], device=self._model.device), use_cache=False).logits
        return np.asarray(logits[0, -REST:].float().cpu().numpy())

    def _tolerance(self) -> float:
        """Of the largest logit; quantised products may round each batch otherwise."""
        quantised = getattr(self._model.config, "quantization_config", None) is not None
        return EXACT if self._model.dtype == torch.float32 and not quantised else COARSE

    def num_pages(self, page_tokens: int) -> int:
        """Pages the check needs."""
        return pages_of(self._texts, page_tokens)

    def check(self, compute: Callable[[Sequence[Chunk]], Tensor], page_tokens: int) -> None:
        """Two sessions in two forwards, against the model's own.

        Args:
            compute: chunks to logits (rows, vocab).
            page_tokens: positions in a page.

        Raises:
            UnknownModel: the results are not numbers, or differ by more than rounding.
        """

        def computed(chunks: Sequence[Chunk]) -> Any:
            return compute(chunks).float().cpu().numpy()

        compare(self._model.config.model_type, self._texts, self._right, computed, page_tokens, self._tolerance())
