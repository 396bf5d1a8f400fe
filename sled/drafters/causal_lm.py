"""A small causal language model as a drafter, with its own cache and, if need be, its own vocabulary."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import edgekernels
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from transformers import DynamicCache

from sled.errors import UnknownModel, VocabularyMismatch
from sled.messages import Described
from sled.targets.causal_lm import load_causal_lm
from sled.types import Sampling
from sled.vocabulary import vocabulary_hash
from sled.window import Window


class CausalLMDrafter:
    """Drafts with the same rule and the same noise as the target, so that agreement is as likely as can be.

    Args:
        model: a causal language model.
        name: what users call it.
        target_ids: (draft vocab,) int32, the target's id of every token of the drafter; None if they are the same.
        target_vocab_size: ids the target knows.
    """

    def __init__(self, model: Any, *, name: str, target_ids: NDArray[np.int32] | None, target_vocab_size: int) -> None:
        self.name = name
        self._model = model
        self._target_ids = target_ids
        own_size = model.config.get_text_config().vocab_size
        self._own_ids = np.arange(target_vocab_size)
        if target_ids is not None:
            self._own_ids = np.zeros(target_vocab_size, np.int64)
            self._own_ids[target_ids] = np.arange(len(target_ids))
        self._own_ids[self._own_ids >= own_size] = 0
        self._vocab = min(own_size, target_vocab_size) if target_ids is None else len(target_ids)
        self._max_positions = model.config.get_text_config().max_position_embeddings
        self._sampling = Sampling()
        self._cache = DynamicCache(config=model.config)
        self._cached: list[int] = []

    def start(self, sampling: Sampling) -> None:
        """A new answer: forget the cache, remember how the target samples."""
        self._sampling = sampling
        self._cache = DynamicCache(config=self._model.config)
        self._cached = []

    @torch.inference_mode()
    def draft(self, prefix: Sequence[int], limit: int, window: Window) -> list[int]:
        """Up to `limit` tokens, each sampled by the coupled rule at its own position."""
        drafts: list[int] = []
        self._roll_back(prefix)
        feed = list(prefix[len(self._cached) :])
        while len(drafts) < limit and len(self._cached) + len(feed) <= self._max_positions:
            logits = self._logits(feed)
            token = self._choose(logits, len(prefix) + len(drafts))
            if not window.wants(self._confidence(logits, token) if window.confidence else 1.0):
                break
            drafts.append(token)
            feed = [token]
        return drafts

    def _roll_back(self, prefix: Sequence[int]) -> None:
        """Keep of the cache what agrees with the committed text, and leave at least its last token to feed."""
        keep = 0
        for have, want in zip(self._cached, prefix[:-1], strict=False):
            if have != want:
                break
            keep += 1
        surplus = len(self._cached) - keep
        if surplus:
            self._cache.crop(-surplus)
            del self._cached[keep:]

    def _logits(self, feed: list[int]) -> NDArray[np.float32]:
        own = torch.from_numpy(self._own_ids[feed])[None]
        out = self._model(input_ids=own, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cached += feed
        row: NDArray[np.float32] = out.logits[0, -1:, : self._vocab].float().contiguous().numpy()
        return row

    def _choose(self, logits: NDArray[np.float32], position: int) -> int:
        s = self._sampling
        token = edgekernels.sample(
            logits,
            temperature=s.temperature,
            top_k=s.top_k,
            top_p=s.top_p,
            seed=s.seed,
            position=position,
            token_ids=self._target_ids,
        )
        return int(token[0])

    def _confidence(self, logits: NDArray[np.float32], token: int) -> float:
        """The drafter's probability of the token it chose, at the answer's temperature (1 when greedy)."""
        scaled = logits[0].astype(np.float64) / (self._sampling.temperature or 1.0)
        own = int(self._own_ids[token])
        return float(1.0 / np.exp(scaled - scaled[own]).sum())


def load_drafter(
    path: Path, target: Described, *, name: str, progress: Callable[[float], None] | None = None
) -> CausalLMDrafter:
    """A drafter from a GGUF file or a model directory, checked against the target's vocabulary.

    A directory may hold `draft_to_target` (int32, one target id per draft id) in its safetensors file when the
    drafter has a smaller vocabulary of its own, and then names the target's vocabulary by `target_vocab_hash`.

    Raises:
        UnknownModel: the files hold no model we can load.
        VocabularyMismatch: its ids are not the target's.
    """
    model, codec = load_causal_lm("gguf" if path.is_file() else "directory", path, torch.float32, progress)
    own_hash = vocabulary_hash(codec.vocabulary()) if codec else None
    target_ids = None
    if path.is_dir():
        config = json.loads((path / "config.json").read_text())
        own_hash = bytes.fromhex(config.get("target_vocab_hash", "")) or own_hash
        target_ids = _read_map(path, model, target)
    if own_hash is None:
        raise UnknownModel(f"{path} has neither tokenizer.json nor target_vocab_hash in config.json; add one of them")
    if own_hash != target.vocab_hash:
        raise VocabularyMismatch(
            f"drafter {name!r} has vocabulary {own_hash.hex()[:8]}, the target {target.name!r} has "
            f"{target.vocab_hash.hex()[:8]}; use a drafter made for this target, or ngram"
        )
    return CausalLMDrafter(model.eval(), name=name, target_ids=target_ids, target_vocab_size=target.vocab_size)


def _read_map(path: Path, model: Any, target: Described) -> NDArray[np.int32] | None:
    file = path / "model.safetensors"
    if not file.is_file():
        return None
    with safe_open(file, framework="numpy") as tensors:
        if "draft_to_target" not in tensors.keys():  # noqa: SIM118 - not a dict
            return None
        ids = np.ascontiguousarray(tensors.get_tensor("draft_to_target"), dtype=np.int32)
    size = model.config.get_text_config().vocab_size
    if ids.shape != (size,) or ids.min() < 0 or ids.max() >= target.vocab_size:
        raise VocabularyMismatch(
            f"{file}: draft_to_target has shape {ids.shape} and ids up to {ids.max()}; "
            f"{size} ids under {target.vocab_size} are needed"
        )
    return ids
