"""A small language model as a drafter, with its own cache and, if need be, its own vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import edgekernels
import numpy as np
from numpy.typing import NDArray

from sled.errors import VocabularyMismatch
from sled.messages import Described
from sled.types import Sampling
from sled.window import Window


class LanguageModel(Protocol):
    """A causal language model with a cache of what it has read."""

    vocab_size: int
    max_positions: int

    def read(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Take in more tokens; the logits (1, vocab_size) of what follows them."""

    def forget(self, length: int) -> None:
        """Keep the first `length` tokens only."""


class ModelDrafter:
    """Drafts with the same rule and the same noise as the target, so that agreement is as likely as can be.

    Args:
        model: a causal language model, fresh.
        name: what users call it.
        target_ids: (draft vocab,) int32, the target's id of every token of the drafter; None if they are the same.
        target_vocab_size: ids the target knows.
    """

    def __init__(
        self, model: LanguageModel, *, name: str, target_ids: NDArray[np.int32] | None, target_vocab_size: int
    ) -> None:
        self.name = name
        self.model = model
        self._target_ids = target_ids
        self._own_ids = np.arange(target_vocab_size)
        if target_ids is not None:
            self._own_ids = np.zeros(target_vocab_size, np.int64)
            self._own_ids[target_ids] = np.arange(len(target_ids))
        self._own_ids[self._own_ids >= model.vocab_size] = 0
        self._vocab = min(model.vocab_size, target_vocab_size) if target_ids is None else len(target_ids)
        self._sampling = Sampling()
        self._read: list[int] = []

    def start(self, sampling: Sampling) -> None:
        """A new answer: forget the last text, remember how the target samples."""
        self._sampling = sampling
        self.model.forget(0)
        self._read = []

    def draft(self, prefix: Sequence[int], limit: int, window: Window) -> list[int]:
        """Up to `limit` tokens, each sampled by the coupled rule at its own position."""
        drafts: list[int] = []
        if not prefix or min(prefix) < 0 or max(prefix) >= len(self._own_ids):
            return drafts  # ids that the vocabulary lacks, by the server's mistake: it decides without drafts
        self._roll_back(prefix)
        feed = list(prefix[len(self._read) :])
        while len(drafts) < limit and len(self._read) + len(feed) <= self.model.max_positions:
            logits = self.model.read(self._own_ids[feed])
            self._read += feed
            if logits.shape[1] != self._vocab:
                logits = np.ascontiguousarray(logits[:, : self._vocab])
            token = self._choose(logits, len(prefix) + len(drafts))
            if not window.wants(self._confidence(logits[0], token) if window.confidence else 1.0):
                break
            drafts.append(token)
            feed = [token]
        return drafts

    def _roll_back(self, prefix: Sequence[int]) -> None:
        """Keep of the cache what agrees with the committed text, and leave at least its last token to feed."""
        keep = 0
        for have, want in zip(self._read, prefix[:-1], strict=False):
            if have != want:
                break
            keep += 1
        if keep < len(self._read):
            self.model.forget(keep)
            del self._read[keep:]

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
        own = int(self._own_ids[token])
        with np.errstate(over="ignore"):  # far likelier ones than the chosen: confidence 0
            odds = np.exp((logits - logits[own]) * np.float32(1 / (self._sampling.temperature or 1.0)))
            return float(1 / odds.sum(dtype=np.float64))


def check_vocabulary(name: str, own_hash: bytes, target: Described) -> None:
    """Insist on the target's vocabulary.

    Raises:
        VocabularyMismatch: the hash of the drafter's is another.
    """
    if own_hash != target.vocab_hash:
        raise VocabularyMismatch(
            f"drafter {name!r} has vocabulary {own_hash.hex()[:8]}, the target {target.name!r} has "
            f"{target.vocab_hash.hex()[:8]}; use a drafter made for this target, or ngram"
        )


def check_map(where: object, ids: NDArray[np.int32], vocab_size: int, target: Described) -> NDArray[np.int32]:
    """Insist on one id of the target for each of the drafter's.

    Raises:
        VocabularyMismatch: another number of ids, or one which the target does not have.
    """
    if ids.shape != (vocab_size,) or ids.min() < 0 or ids.max() >= target.vocab_size:
        raise VocabularyMismatch(
            f"{where}: draft_to_target has shape {ids.shape} and ids up to {ids.max(initial=0)}; "
            f"{vocab_size} ids under {target.vocab_size} are needed"
        )
    return ids
