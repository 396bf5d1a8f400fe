"""Any causal language model of transformers as a target."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM

from sled.errors import UnknownModel
from sled.messages import MAX_TOKENS, MAX_WINDOW, Described
from sled.server import TargetShape
from sled.targets.catalog import ModelFiles
from sled.targets.gguf_llama import load_gguf_llama
from sled.targets.ragged import IMPLEMENTATION, SessionKV, Span
from sled.targets.text import TextCodec, codec_from_directory
from sled.types import Chunk
from sled.vocabulary import vocabulary_hash

_LOADING = threading.Lock()
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class CausalLMTarget:
    """A transformers model that computes ragged batches over the sessions' own keys and values.

    Args:
        model: a causal language model on its device.
        codec: its tokenizer.
        name: what devices are told.
        max_window: drafts per round that devices may send, at most 64.
    """

    def __init__(self, model: Any, codec: TextCodec, *, name: str, max_window: int = 16) -> None:
        assert 0 <= max_window <= MAX_WINDOW
        _check_kind(model)
        self.model, self.codec = model.eval(), codec
        probe = _Probe(self.model)
        model.set_attn_implementation(IMPLEMENTATION)
        self.vocabulary = codec.vocabulary()
        config = model.config.get_text_config()
        self.described = Described(
            name=name,
            dtype=str(model.dtype).removeprefix("torch."),
            vocab_size=config.vocab_size,
            vocab_hash=vocabulary_hash(self.vocabulary),
            max_positions=min(config.max_position_embeddings, MAX_TOKENS),
            max_window=max_window,
            stop_ids=codec.stop_ids,
            target_id=_target_id(model, vocabulary_hash(self.vocabulary)),
        )
        self.shape = TargetShape(
            config.vocab_size,
            self.described.max_positions,
            max_window,
            frozenset(codec.stop_ids),
            self.described.target_id,
        )
        self._num_layers = config.num_hidden_layers
        self._sessions: dict[bytes, SessionKV] = {}
        probe.check(self)

    @torch.inference_mode()
    def forward(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """See `sled.targets.Target.forward`; one packed forward for all chunks."""
        device = self.model.device
        spans, positions, wanted, start = [], [], [], 0
        for chunk in chunks:
            kv = self._sessions.setdefault(chunk.session, SessionKV(self._num_layers))
            stop = start + len(chunk.tokens)
            spans.append(Span(kv, start, stop, chunk.past))
            positions.append(torch.arange(chunk.past, chunk.past + len(chunk.tokens)))
            wanted.append(torch.arange(stop - chunk.num_logits, stop))
            start = stop
        tokens = torch.tensor([token for chunk in chunks for token in chunk.tokens])
        logits = self.model(
            input_ids=tokens[None].to(device),
            position_ids=torch.cat(positions)[None].to(device),
            use_cache=False,
            logits_to_keep=torch.cat(wanted).to(device),
            spans=spans,
        ).logits[0]
        result: NDArray[np.float32] = logits.float().cpu().numpy()
        return result

    def drop(self, session: bytes) -> None:
        """Free a session's keys and values."""
        self._sessions.pop(session, None)


def _check_kind(model: Any) -> None:
    """Refuse what cannot work, by name."""
    config = model.config.get_text_config()
    if getattr(config, "attn_logit_softcapping", None):
        raise UnknownModel(f"{config.model_type} caps attention logits, which is not supported yet; use another target")
    if not getattr(config, "max_position_embeddings", None):
        raise UnknownModel(f"{config.model_type} states no context length, so it is no transformer; use another target")
    if config.is_encoder_decoder or not hasattr(model, "lm_head"):
        raise UnknownModel(f"{config.model_type} is no decoder-only language model; use another target")


class _Probe:
    """Finds out whether a model computes the same over our ragged batches as by itself.

    State-space layers, convolutions, attention sinks and the like do not go through the attention interface, and
    would leave something out or mix sessions without a word. Made before the attention is replaced, checked after.
    """

    _NUM_TOKENS = 24
    _REST = 4

    def __init__(self, model: Any) -> None:
        vocab = model.config.get_text_config().vocab_size
        self._texts = [[(i * step + step) % vocab for i in range(self._NUM_TOKENS)] for step in (7919, 104729)]
        with torch.inference_mode():
            ids = torch.tensor(self._texts, device=model.device)
            self._right = model(input_ids=ids, use_cache=False).logits[:, -self._REST :].float().cpu().numpy()

    def check(self, target: CausalLMTarget) -> None:
        """Two sessions, two rounds, against the model's own forward.

        Raises:
            UnknownModel: the results differ by more than rounding.
        """
        first = self._NUM_TOKENS - self._REST
        names = [bytes([255, i]) for i in range(2)]
        for start, stop, wanted in ((0, first, 0), (first, self._NUM_TOKENS, self._REST)):
            parts = zip(names, self._texts, strict=True)
            ours = target.forward([Chunk(name, tuple(text[start:stop]), start, wanted) for name, text in parts])
        for name in names:
            target.drop(name)
        error = float(np.abs(ours - self._right.reshape(ours.shape)).max() / np.abs(self._right).max())
        if not error < (1e-3 if target.model.dtype == torch.float32 else 4e-2):
            raise UnknownModel(
                f"{target.model.config.model_type} computes something besides plain attention (batched logits are off "
                f"by {error:.1%}), which is not supported yet; use another target"
            )


def _target_id(model: Any, vocab_hash: bytes) -> bytes:
    """16 bytes that differ where the vocabulary, the arithmetic or (a sample of) the weights do."""
    digest = hashlib.blake2b(vocab_hash + str(model.dtype).encode(), digest_size=16)
    for name, weight in model.named_parameters():
        flat = weight.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 997)].float().cpu().numpy()
        digest.update(name.encode() + str(tuple(weight.shape)).encode() + sample.tobytes())
    return digest.digest()


def load_target(
    files: ModelFiles,
    *,
    dtype: str = "float32",
    max_window: int = 16,
    progress: Callable[[float], None] | None = None,
) -> CausalLMTarget:
    """Load a target from a GGUF file or a model directory.

    Args:
        files: from `catalog.find_model`.
        dtype: float32 (exact) or bfloat16.
        max_window: drafts per round that devices may send.
        progress: called with the share done, 0 .. 1.

    Raises:
        UnknownModel: the files hold no model we can load.
    """
    model, codec = load_causal_lm(files.kind, files.path, DTYPES[dtype], progress)
    if codec is None:
        raise UnknownModel(f"{files.path} has no tokenizer; a target needs tokenizer.json beside its weights")
    return CausalLMTarget(model, codec, name=files.name, max_window=max_window)


def load_causal_lm(
    kind: str, path: Path, dtype: torch.dtype, progress: Callable[[float], None] | None = None
) -> tuple[Any, TextCodec | None]:
    """A causal language model and, where its files have one, its tokenizer.

    Raises:
        UnknownModel: the files hold no model we can load.
    """
    if kind == "gguf":
        return load_gguf_llama(path, dtype, progress)
    try:
        # transformers loads under process-wide switches: two threads at once leave weights out.
        with _LOADING:
            config = AutoConfig.from_pretrained(path, local_files_only=True)
            model, info = AutoModelForCausalLM.from_pretrained(
                path,
                config=config,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnknownModel(f"cannot load a causal language model from {path}: {reason}") from None
    if info["missing_keys"] or info["mismatched_keys"]:
        wrong = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
        raise UnknownModel(f"{path}: {len(wrong)} weights missing or of another shape, first {wrong[0]}; copy it again")
    if progress:
        progress(1.0)
    codec = codec_from_directory(path) if (path / "tokenizer.json").is_file() else None
    return model, codec
