"""The speculative tokens behind the committed text, and the rounds of them that are in flight.

    committed text | d1 d2 d3 h | d5 d6 h | d8 ...
                     round in flight, and the token hoped for as the target's own; the next round; what is drafted ahead

A round of k drafts hopes for k + 1 tokens: its drafts, and that the target's own token is the drafter's next guess. The
next round begins behind that. What the target commits either agrees with the chain, which then only gets shorter, or it
does not: then everything behind the first difference is gone, and with it the rounds that hung on it.

Pure: no sockets, clock or randomness.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from sled.proposal import Proposal


@dataclass(frozen=True, slots=True)
class Flight:
    """A round on its way.

    Args:
        base: length of the text it continues.
        drafts: what it proposes.
        hoped: confidences of the speculative tokens before it when it was sent; none if it followed committed text.
    """

    base: int
    drafts: tuple[Proposal, ...]
    hoped: tuple[float, ...]


class Chain:
    """Speculative tokens behind a text.

    Attributes:
        proposals: the tokens, those of rounds in flight first.
        flights: rounds in flight, oldest first.
        cuts: how often text and chain together became another text than before: what continues it begins anew then.

    >>> chain = Chain(10)
    >>> chain.proposals += [Proposal(1), Proposal(2), Proposal(3), Proposal(4)]
    >>> chain.send(2).base, chain.send(1).base  # 3 is hoped for as the target's own token
    (10, 13)
    >>> chain.commit([1, 2, 3]), len(chain.flights), chain.proposals[0].token
    (3, 1, 4)
    >>> chain.commit([7]), len(chain.flights), chain.proposals
    (0, 0, [])
    """

    def __init__(self, length: int = 0) -> None:
        self.length = length
        self.proposals: list[Proposal] = []
        self.flights: deque[Flight] = deque()
        self.cuts = 0

    @property
    def next_base(self) -> int:
        """Length of the text that the next round continues, if all hopes come true."""
        return self.flights[-1].base + len(self.flights[-1].drafts) + 1 if self.flights else self.length

    @property
    def start(self) -> int:
        """Where the next round's drafts begin in `proposals`; behind its end while the token hoped for is missing."""
        return self.next_base - self.length

    def hoped(self) -> list[float]:
        """Confidences of everything the next round hangs on."""
        return [proposal.confidence for proposal in self.proposals[: self.start]]

    def send(self, size: int) -> Flight:
        """The next round, of the first `size` tokens that are in no other one."""
        start = self.start
        assert size >= 0
        assert start + size <= len(self.proposals), "a round of tokens that are not there"
        flight = Flight(self.next_base, tuple(self.proposals[start : start + size]), tuple(self.hoped()))
        self.flights.append(flight)
        return flight

    def commit(self, tokens: Sequence[int]) -> int:
        """The target has committed these tokens; returns how many of the first ones agree with the chain.

        A round whose base was reached or passed is over; those that follow what came true are still in flight.
        """
        agreed = 0
        for token, proposal in zip(tokens, self.proposals, strict=False):
            if token != proposal.token:
                break
            agreed += 1
        if agreed < len(tokens):
            self.clear()
        else:
            del self.proposals[:agreed]
        self.length += len(tokens)
        while self.flights and self.flights[0].base < self.length:
            self.flights.popleft()
        if self.flights and self.flights[0].base != self.length:
            self.flights.clear()
        return agreed

    def abandon(self) -> None:
        """The rounds in flight have no verdict; their tokens are as good as before."""
        self.flights.clear()

    def clear(self) -> None:
        """Forget all tokens, and the rounds of them but the oldest one, whose verdict is being read."""
        self.cuts += 1
        self.proposals.clear()
        while len(self.flights) > 1:
            self.flights.pop()
