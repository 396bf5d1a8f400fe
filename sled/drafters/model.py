"""A small language model as a drafter, with its own cache and, if need be, its own vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import edgekernels
import numpy as np
from edgekernels import Bias, History
from numpy.typing import NDArray

from sled.errors import VocabularyMismatch
from sled.law import Laws, changed, law_of
from sled.messages import Described
from sled.types import Sampling, SparseLaw
from sled.window import Window

_NOTHING = History(np.empty(0, np.int32), np.array([0, 0]))


class LanguageModel(Protocol):
    """A causal language model with a cache of what it has read."""

    vocab_size: int
    max_positions: int

    def read(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Take in more tokens; the logits (1, vocab_size) of what follows them."""

    def forget(self, length: int) -> None:
        """Keep the first `length` tokens only."""


class ModelDrafter:
    """Drafts with the same rule, noise, bias and penalties as the target, so that agreement is as likely as can be.

    Under the rejection rule it samples from a law of 64 ids at most, and tells it.

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
        self._columns = np.full(target_vocab_size, -1, np.int32)  # of the target's ids; -1 is none
        self._columns[np.arange(self._vocab) if target_ids is None else target_ids] = np.arange(self._vocab)
        self.law: SparseLaw | None = None
        self._read: list[int] = []
        self.start(Sampling())

    def start(self, sampling: Sampling) -> None:
        """A new answer: forget the last text, remember how the target samples."""
        self._sampling = sampling
        self._num_prompt: int | None = None
        self.law = None
        added: dict[int, float] = {}
        for token, value in sampling.bias:
            if token < len(self._columns) and self._columns[token] >= 0:
                added[int(self._columns[token])] = added.get(int(self._columns[token]), 0.0) + value
        ids, values = np.array(list(added), np.int32), np.array(list(added.values()), np.float32)
        self._bias = Bias(ids, values, np.array([0, len(ids)]))
        self.model.forget(0)
        self._read = []

    def opened(self, num_prompt: int) -> None:
        """See SamplingDrafter."""
        self._num_prompt = num_prompt

    def draft(self, prefix: Sequence[int], limit: int, window: Window) -> list[int]:
        """Up to `limit` tokens, each sampled by the answer's rule at its own position."""
        drafts: list[int] = []
        self.law = None
        if not prefix or min(prefix) < 0 or max(prefix) >= len(self._own_ids):
            return drafts  # ids that the vocabulary lacks, by the server's mistake: it decides without drafts
        if self._num_prompt is None:
            self._num_prompt = len(prefix)
        self._roll_back(prefix)
        laws = Laws() if self._sampling.rule == "rejection" and self._sampling.temperature else None
        feed = list(prefix[len(self._read) :])
        while len(drafts) < limit and len(self._read) + len(feed) <= self.model.max_positions:
            logits = self.model.read(self._own_ids[feed])
            self._read += feed
            if logits.shape[1] != self._vocab:
                logits = np.ascontiguousarray(logits[:, : self._vocab])
            text = self._known([*prefix, *drafts]) if self._sampling.counts_tokens else _NOTHING
            position = len(prefix) + len(drafts)
            token = (
                self._choose(logits, text, position, window)
                if laws is None
                else self._pick(logits, text, position, window, laws)
            )
            if token is None:
                break
            drafts.append(token)
            feed = [token]
        self.law = laws.packed() if laws is not None else None
        return drafts

    def _known(self, text: Sequence[int]) -> History:
        """What penalties count: the columns of the text's tokens, without those the drafter has none for."""
        columns = self._columns[np.array(text, np.int64)]
        num_prompt = int((columns[: self._num_prompt] >= 0).sum())
        columns = columns[columns >= 0]
        return History(columns, np.array([0, len(columns)]), num_prompt)

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

    def _choose(self, logits: NDArray[np.float32], text: History, position: int, window: Window) -> int | None:
        """The token that the target would choose by the coupled rule; None if it is not worth sending."""
        s = self._sampling
        token = int(
            edgekernels.sample(
                logits,
                temperature=s.temperature,
                top_k=s.top_k,
                top_p=s.top_p,
                min_p=s.min_p,
                repetition_penalty=s.repetition_penalty,
                presence_penalty=s.presence_penalty,
                frequency_penalty=s.frequency_penalty,
                seed=s.seed,
                position=position,
                token_ids=self._target_ids,
                history=text if s.counts_tokens else None,
                bias=self._bias if s.bias else None,
            )[0]
        )
        return token if window.wants(self._confidence(logits[0], token) if window.confidence else 1.0) else None

    def _pick(
        self, logits: NDArray[np.float32], text: History, position: int, window: Window, laws: Laws
    ) -> int | None:
        """A sample of the law that is told; whether it is worth it is asked of the law, before there is a sample."""
        row, s = logits[0], self._sampling
        if s.bias or s.counts_tokens:
            ids, values, _ = self._bias
            row = changed(row, s, text=text.ids, num_prompt=text.num_prompt, bias_ids=ids, bias=values)
        law = law_of(row, s, self._target_ids)
        if not window.wants(float(law.probabilities.max())):
            return None
        laws.laws.append(law)
        return law.pick(s.seed, position)

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
