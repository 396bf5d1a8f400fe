"""One token that a drafter proposes, and how sure it is of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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


def as_proposals(drafts: Iterable[int | Proposal]) -> list[Proposal]:
    """Plain ids as certain proposals.

    >>> as_proposals([7])[0].confidence
    1.0
    """
    return [draft if isinstance(draft, Proposal) else Proposal(int(draft)) for draft in drafts]


def law_of_round(proposals: Sequence[Proposal]) -> SparseLaw | None:
    """What the drafts of a round were sampled from, as it travels; None if all of them count as certain."""
    if all(proposal.law is None for proposal in proposals):
        return None
    return packed([proposal.law or certain(proposal.token) for proposal in proposals])
