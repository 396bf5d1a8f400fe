"""A small language model as a drafter, with its own cache and, if need be, its own vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import edgekernels
import numpy as np
from edgekernels import Bias, History
from numpy.typing import NDArray

from sled.drafters.following import agreed
from sled.law import changed, law_of
from sled.proposal import LITTLE, Proposal, Reading, stated
from sled.types import Sampling

READ_TOKENS = 32  # at once: so long nobody hears of a verdict; a native decoder reads no faster in larger pieces
_NOTHING = History(np.empty(0, np.int32), np.array([0, 0]))


class LanguageModel(Protocol):
    """A causal language model with a cache of what it has read.

    One that reads far faster in larger pieces than `READ_TOKENS` says so by an attribute `read_tokens`.
    """

    vocab_size: int
    max_positions: int

    def read(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Take in more tokens; the logits (1, vocab_size) of what follows them."""

    def forget(self, length: int) -> None:
        """Keep the first `length` tokens only; with 0 whatever a read that failed has left is gone too."""


def piece_of(model: LanguageModel) -> int:
    """Tokens that it reads at once."""
    return int(getattr(model, "read_tokens", READ_TOKENS))


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
        self._read: list[int] = []
        self._turn = 0
        self.start(Sampling(), 0)

    def start(self, sampling: Sampling, num_prompt: int) -> None:
        """A new answer: remember how the target samples; what the cache holds serves as far as the texts agree."""
        self._sampling, self._num_prompt = sampling, num_prompt
        self._is_new = True
        self._turn += 1
        added: dict[int, float] = {}
        for token, value in sampling.bias:
            if token < len(self._columns) and self._columns[token] >= 0:
                added[int(self._columns[token])] = added.get(int(self._columns[token]), 0.0) + value
        ids, values = np.array(list(added), np.int32), np.array(list(added.values()), np.float32)
        self._bias = Bias(ids, values, np.array([0, len(ids)]))

    def unread(self, text: Sequence[int]) -> int:
        """How many tokens of a text would have to be read before the first draft; 0 of one that is too long."""
        return len(text) - self._kept(text) if len(text) <= self.model.max_positions else 0

    def draft(self, text: Sequence[int], limit: int) -> Iterator[Proposal | Reading]:
        """Tokens sampled by the answer's rule, each at its own position; a long text is read in pieces before."""
        self._turn += 1
        turn = self._turn
        keep = self._roll_back(text)
        feed = list(text[keep:])
        if not feed or min(feed) < 0 or max(feed) >= len(self._own_ids):
            return  # ids that the vocabulary lacks, by the server's mistake: it decides without drafts
        if limit > 0 and LITTLE < len(feed) <= self.model.max_positions - keep:
            piece = piece_of(self.model)
            while len(feed) > LITTLE:
                yield Reading(len(feed))
                if turn != self._turn:
                    return
                size = min(piece, len(feed) - 1)
                self._take_in(feed[:size])
                del feed[:size]
            yield Reading(len(feed))
        counts = self._sampling.counts_tokens
        by_law = self._sampling.rule == "rejection" and self._sampling.temperature > 0
        for _ in range(limit):
            if turn != self._turn or len(self._read) + len(feed) > self.model.max_positions:
                return  # somebody has gone on without us, or the model's context is full
            logits = self._take_in(feed)
            position = len(self._read)
            known = self._known(self._read) if counts else _NOTHING
            proposal = self._pick(logits, known, position) if by_law else self._choose(logits, known, position)
            yield proposal
            feed = [proposal.token]

    def _take_in(self, feed: list[int]) -> NDArray[np.float32]:
        """The logits of what follows when the model has read these too."""
        try:
            logits = self.model.read(self._own_ids[feed])
        except BaseException:  # whatever it is, the cache may hold a part of them
            self._read.clear()
            self.model.forget(0)
            raise
        self._read += feed
        return logits if logits.shape[1] == self._vocab else np.ascontiguousarray(logits[:, : self._vocab])

    def _known(self, text: Sequence[int]) -> History:
        """What penalties count: the columns of the text's tokens, without those the drafter has none for."""
        columns = self._columns[np.array(text, np.int64)]
        num_prompt = int((columns[: self._num_prompt] >= 0).sum())
        columns = columns[columns >= 0]
        return History(columns, np.array([0, len(columns)]), num_prompt)

    def _roll_back(self, text: Sequence[int]) -> int:
        """Keep of the cache what agrees with the text, and leave at least its last token to feed; how much is kept."""
        keep = self._kept(text)
        if keep < len(self._read):
            self.model.forget(keep)
            del self._read[keep:]
        self._is_new = False
        return keep

    def _kept(self, text: Sequence[int]) -> int:
        return min(agreed(self._read, text, whole=self._is_new), max(0, len(text) - 1))

    def _choose(self, logits: NDArray[np.float32], text: History, position: int) -> Proposal:
        """The token that the target would choose by the coupled rule."""
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
        return Proposal(token, self._confidence(self._shaped(logits[0], text), token))

    def _pick(self, logits: NDArray[np.float32], text: History, position: int) -> Proposal:
        """A sample of the law that is told; how sure it is is asked of the law, before there is a sample."""
        law = law_of(self._shaped(logits[0], text), self._sampling, self._target_ids)
        return Proposal(law.pick(self._sampling.seed, position), stated(float(law.probabilities.max())), law)

    def _shaped(self, row: NDArray[np.float32], text: History) -> NDArray[np.float32]:
        """Logits after the answer's bias and penalties."""
        if not (self._sampling.bias or self._sampling.counts_tokens):
            return row
        ids, values, _ = self._bias
        return changed(row, self._sampling, text=text.ids, num_prompt=text.num_prompt, bias_ids=ids, bias=values)

    def _confidence(self, logits: NDArray[np.float32], token: int) -> float:
        """The drafter's probability of the token it chose, at the answer's temperature (1 when greedy)."""
        own = int(self._own_ids[token])
        with np.errstate(over="ignore"):  # far likelier ones than the chosen: confidence 0
            odds = np.exp((logits - logits[own]) * np.float32(1 / (self._sampling.temperature or 1.0)))
            return stated(float(1 / odds.sum(dtype=np.float64)))
