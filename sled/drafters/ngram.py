"""Drafts by looking up where the last few tokens stood before and what followed them; no model.

Source: prompt lookup decoding (A. Saxena, 2023); the index is that of LZ77's hash chains, which forget as easily as
they learn; drafting by the longest earlier match is also what suffix decoding does (arXiv 2411.04975).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sled.drafters.following import agreed
from sled.proposal import Proposal
from sled.types import Sampling

SIZES = (2, 5, 16)  # lengths of the contexts that are indexed
_CHAIN = 8  # earlier places of a context that are looked at, the latest first
_LONGEST = 32  # matches are measured up to here
_CLASS = (0, 0, 0, 1, 2, 2, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 5)  # of a match's length, up to 16
_PRIOR = (0.42, 0.58, 0.67, 0.8, 0.92, 0.97)  # how often what followed a match of each class follows again
_PRIOR_WEIGHT = 6.0  # tries that the prior counts for
_SAME, _DIVIDED = 4.0, 0.4  # how the odds change where earlier places agree, or do not agree, on what follows


class Match(NamedTuple):
    """What stood before: `token` followed the longest match, of `length`; `odds` is what other places say about it."""

    token: int
    length: int
    odds: float


class TextIndex:
    """Where each context of a growing text stood: learns a token, and unlearns the last one, at a constant cost."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._tables = [(size, dict[int, int](), list[int]()) for size in SIZES]  # size, latest place, the one before

    def push(self, token: int) -> None:
        """The text grows by a token."""
        tokens, end = self.tokens, len(self.tokens)
        for size, latest, before in self._tables:
            if end < size:
                before.append(-1)
                continue
            key = hash(tuple(tokens[end - size :]))
            before.append(latest.get(key, -1))
            latest[key] = end
        tokens.append(token)

    def pop(self) -> int:
        """The text loses its last token, which is returned."""
        token = self.tokens.pop()
        tokens, end = self.tokens, len(self.tokens)
        for size, latest, before in self._tables:
            earlier = before.pop()
            if end < size:
                continue
            key = hash(tuple(tokens[end - size :]))
            if earlier < 0:
                del latest[key]
            else:
                latest[key] = earlier
        return token

    def find(self) -> Match | None:
        """The longest end of the text that stood earlier in it, the latest of several, and what followed."""
        end = len(self.tokens)
        places = list[tuple[int, list[int], int]]()
        for size, latest, before in self._tables:
            at = latest.get(hash(tuple(self.tokens[end - size :])), -1) if end > size else -1
            if at < 0:
                break  # what is not there is not there in a longer context
            places.append((at, before, size))
        found = None
        while places and found is None:
            found = self._best_of(*places.pop())
        return found

    def _best_of(self, at: int, before: list[int], size: int) -> Match | None:
        """The longest match among the latest places of a context."""
        tokens, length, token = self.tokens, 0, -1
        followers = list[int]()
        while at >= 0 and len(followers) < _CHAIN:
            matched = self._matched(at) if length < _LONGEST else 0
            if matched > length:
                length, token = matched, tokens[at]
            followers.append(tokens[at])
            at = before[at]
        if length < size:
            return None  # two contexts of one hash
        others = len(followers) - 1
        return Match(token, length, 1.0 if not others else _SAME if followers.count(token) > others else _DIVIDED)

    def _matched(self, at: int) -> int:
        """How many tokens before `at` are those at the end."""
        tokens, end = self.tokens, len(self.tokens)
        length, most = 0, min(at, _LONGEST)
        if tokens[at - most : at] == tokens[end - most :]:
            return most
        while length < most and tokens[at - 1 - length] == tokens[end - 1 - length]:
            length += 1
        return length


class NgramDrafter:
    """Prompt lookup: the longest end of the text that stood earlier in it says what comes next.

    The confidence of a token comes from the length of its match and from how often matches of such a length held so
    far in the answer; before there is experience, from what a small model's answers to a hundred prompts showed.

    >>> drafter = NgramDrafter()
    >>> drafter.start(Sampling(), 5)
    >>> [proposal.token for proposal in drafter.draft([1, 2, 3, 4, 9, 1, 2], 3)]
    [3, 4, 9]
    """

    name = "ngram"

    def __init__(self) -> None:
        self._index = TextIndex()
        self._expected: list[Match | None] = []  # what the index said before it learned each token of the answer
        self._turn = 0
        self.start(Sampling(), 0)

    def start(self, sampling: Sampling, num_prompt: int) -> None:
        """Another answer: what was indexed of a text that begins alike serves, what held before does not."""
        self._turn += 1
        self._is_new, self._num_prompt = True, num_prompt
        self._num_judged = 0  # tokens of the text of which is known whether what was expected held
        self._held, self._tried = [0] * len(_PRIOR), [0] * len(_PRIOR)

    def draft(self, text: Sequence[int], limit: int) -> Iterator[Proposal]:
        """What followed the longest earlier match, token by token; ends where there is none."""
        self._turn += 1
        turn = self._turn
        self._follow(text)
        for _ in range(limit):
            found = self._index.find()
            if found is None:
                return
            self._learn(found.token, found)  # if it does not stand, the next call unlearns it
            yield Proposal(found.token, self._confidence(found))
            if turn != self._turn:
                return  # somebody has gone on without us

    def _follow(self, text: Sequence[int]) -> None:
        keep = agreed(self._index.tokens, text, whole=self._is_new)
        while len(self._index.tokens) > keep:
            self._unlearn()
        if self._is_new:  # what was expected of an earlier answer is no experience with this one
            self._expected[: self._num_prompt] = [None] * min(self._num_prompt, keep)
        self._judge(keep)
        for token in text[keep:]:
            self._learn(token, self._index.find() if len(self._expected) >= self._num_prompt else None)
            self._judge(len(self._expected))
        self._is_new = False

    def _learn(self, token: int, expected: Match | None) -> None:
        self._index.push(token)
        is_answer = len(self._expected) >= self._num_prompt  # what a prompt's tokens do says nothing of the answer's
        self._expected.append(expected if is_answer else None)

    def _unlearn(self) -> None:
        token, expected = self._index.pop(), self._expected.pop()
        if len(self._expected) < self._num_judged:
            self._num_judged -= 1
            self._count(token, expected, -1)

    def _judge(self, length: int) -> None:
        """So much of the text stands: count what was expected of it."""
        while self._num_judged < length:
            self._count(self._index.tokens[self._num_judged], self._expected[self._num_judged], 1)
            self._num_judged += 1

    def _count(self, token: int, expected: Match | None, by: int) -> None:
        if expected is not None:
            number = _CLASS[min(expected.length, 16)]
            self._tried[number] += by
            self._held[number] += by * (expected.token == token)

    def _confidence(self, match: Match) -> float:
        number = _CLASS[min(match.length, 16)]
        held, tried = self._held[number] + _PRIOR_WEIGHT * _PRIOR[number], self._tried[number] + _PRIOR_WEIGHT
        odds = match.odds * held / (tried - held)
        return odds / (1 + odds)
