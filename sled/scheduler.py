"""Which tokens of which sessions go into the next forward.

Pure: no sockets, clock or randomness.
"""

from __future__ import annotations

from collections.abc import Sequence
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

    @property
    def prefill_ahead(self) -> bool:
        """Whether its text is computed although no round waits for it."""


@dataclass(frozen=True, slots=True)
class Share:
    """A session's part of the next forward: `committed` tokens not cached yet, then its draft if `verify`."""

    index: int
    committed: int
    verify: bool


def plan(work: Sequence[Work], *, budget: int, prefill_beside_rounds: int) -> list[Share]:
    """Divide one forward of about `budget` tokens.

    Every round that waits and whose committed text is (all but) cached is verified now: nobody waits for a batch to
    fill. Sessions whose text is behind are prefilled in pieces, those with a waiting round first. Beside rounds they
    get `prefill_beside_rounds` tokens: no more, so that a long prompt does not hold up the verdicts of others, and no
    less, so that busy devices do not shut out a new one.

    Args:
        work: sessions, those whose round arrived first in front.
        budget: tokens in one forward; a round is never split, so the last may exceed it.
        prefill_beside_rounds: tokens of prefill in a forward that also carries rounds.
    """
    ready, behind = [], []
    for index, session in enumerate(work):
        draft = session.waiting_draft
        if draft is not None and session.uncached <= prefill_beside_rounds:
            ready.append((index, session.uncached + len(draft)))
        elif session.uncached > 1 and (draft is not None or session.prefill_ahead):
            # The last committed token is fed together with the next draft, so prefill leaves it out.
            behind.append((index, session.uncached - 1))
    shares, used = [], 0
    for index, size in ready:
        if used >= max(1, budget - (prefill_beside_rounds if behind else 0)):
            break
        shares.append(Share(index, work[index].uncached, True))
        used += size
    left = prefill_beside_rounds if shares else budget
    for index, wanted in behind:
        if left <= 0:
            break
        piece = min(wanted, left)
        shares.append(Share(index, piece, False))
        left -= piece
    return shares
