"""Which tokens of which sessions go into the next forward.

Pure: no sockets, clock or randomness.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol


class Work(Protocol):
    """What the scheduler needs to know of a session."""

    @property
    def uncached(self) -> int:
        """Committed tokens whose keys and values are not computed yet."""

    @property
    def waiting_draft(self) -> Sequence[int] | None:
        """The draft of the round that waits for its verdict; None when no round waits."""


@dataclass(frozen=True, slots=True)
class Share:
    """A session's part of the next forward: `committed` tokens not cached yet, then its draft if `verify`."""

    index: int
    committed: int
    verify: bool


def plan(work: Iterable[Work], *, budget: int, prefill_beside_rounds: int) -> list[Share]:
    """Divide one forward of about `budget` tokens.

    Every round that waits and whose committed text is (all but) cached is verified now: nobody waits for a batch to
    fill. What is left of the budget prefills sessions in the order given, in pieces; beside rounds at most
    `prefill_beside_rounds` tokens, so that a long prompt does not hold up the verdicts of others.

    Args:
        work: sessions, those whose round arrived first in front.
        budget: tokens in one forward; a round is never split, so the last may exceed it.
        prefill_beside_rounds: tokens of prefill in a forward that also carries rounds.
    """
    shares: list[Share] = []
    behind: list[tuple[int, int]] = []
    used = 0
    for index, session in enumerate(work):
        draft = session.waiting_draft
        if draft is not None and session.uncached <= prefill_beside_rounds:
            if used < budget:
                shares.append(Share(index, session.uncached, True))
                used += session.uncached + len(draft)
        elif session.uncached > (1 if draft is None else 0):
            # The last committed token is fed together with the next draft, so prefill may leave one out.
            behind.append((index, session.uncached - 1))
    left = min(budget - used, prefill_beside_rounds) if shares else budget
    for index, wanted in behind:
        if left <= 0:
            break
        piece = min(wanted, left)
        shares.append(Share(index, piece, False))
        left -= piece
    return shares
