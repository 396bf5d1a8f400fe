"""What a drafter says: tokens that it proposes and how sure it is of each, and what it has to read before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from sled.law import Law, certain, packed
from sled.types import SparseLaw


class Proposal(NamedTuple):
    """A drafted token.

    Args:
        token: the target's id.
        confidence: the drafter's own probability that it is right, 0 .. 1. Under the rejection rule it is known before
            the sample is taken and does not depend on it: whether a token is sent must not depend on what it is.
        law: what the token was sampled from under the rejection rule; None counts it as certain.
    """

    token: int
    confidence: float = 1.0
    law: Law | None = None


class Reading(NamedTuple):
    """No proposal yet: a drafter has to read before it can draft, and may be left alone or asked to go on.

    Args:
        left: tokens of the text that it has not read.
        busy: it is at work on another thread; asked again it is waited for a little more.
    """

    left: int
    busy: bool = False


SURE = 1.0 - 2.0**-24
"""The most that a drafter states which knows probabilities: exactly 1 is what bare tokens have, and says nothing."""

LITTLE = 8
"""So many unread tokens are read with the first draft; more are read by themselves."""


def stated(probability: float) -> float:
    """A probability as a confidence: rounded to 1 it would be taken for a bare token's.

    >>> stated(1.0) < 1.0, stated(0.5)
    (True, 0.5)
    """
    return min(probability, SURE)


def proposals(drafts: Iterable[int | Proposal | Reading]) -> Iterator[Proposal]:
    """The proposals alone, one after the other; plain ids count as certain.

    >>> next(proposals([Reading(40), 7])).confidence
    1.0
    """
    return (as_proposal(draft) for draft in drafts if not isinstance(draft, Reading))


def as_proposal(draft: int | Proposal) -> Proposal:
    """A plain id as a certain proposal."""
    return draft if isinstance(draft, Proposal) else Proposal(int(draft))


def law_of_round(proposals: Sequence[Proposal]) -> SparseLaw | None:
    """What the drafts of a round were sampled from, as it travels; None if all of them count as certain."""
    if all(proposal.law is None for proposal in proposals):
        return None
    return packed([proposal.law or certain(proposal.token) for proposal in proposals])
