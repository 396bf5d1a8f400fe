"""What peers have put into their memory for us: views of it, and telling them when nobody looks at it any more.

Who looks is known by `edgebus/shm/ledger.py`, the mappings by `edgebus/shm/mapper.py`. Sharing builds on this.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgebus import messages as m
from edgebus import shm
from edgebus.config import Limits
from edgebus.handed import places_of
from edgebus.sharing_pool import REPORT_S
from edgebus.sharing_puts import SharingPuts
from edgebus.shm.mapper import Place

if TYPE_CHECKING:
    from edgebus.attached import Attached
    from edgebus.near import NearLanes

REPORT_LEASES = 8
"""Leases that are given back are told together: after REPORT_S, or when there are so many, or much of the peer's
memory is theirs. Each report wakes a thread at both ends, which costs as much as a whole small message."""
TOLD_S = 0.1
TOLD_LEASES = 256
TOLD_WEIGHT = 0.125
"""The same where they stand on a board as well: the peer looks at it itself, if only at the oldest."""
REPORT_SHARE = 8  # of a segment of the peer's, this part given back and not told is much


class SharingViews(SharingPuts):
    """Views of the peers' memory.

    Attributes:
        near: what speaks of this memory may go by it; set by whoever has one.
        came_round: of whom a message is taken in that did not come by the near lane although there is one.
    """

    def __init__(self, limits: Limits, wake: Callable[[], None]) -> None:
        super().__init__(limits, wake)
        self.near: NearLanes | None = None
        self.came_round: Attached | None = None
        self._returned: deque[tuple[Attached, shm.Ledger, int]] = deque()  # the garbage collector only appends
        self._returned_share = 0.0  # of the segments they lie in, together
        self._num_untold = 0  # of them, those that stand on no board
        self._ledgers: dict[int, tuple[Attached, shm.Ledger]] = {}
        # What was looked up there last:
        self._lender: Attached | None = None
        self._its_ledger: shm.Ledger | None = None
        if self._pool is not None:
            self._mapper = shm.Mapper(4 * limits.share_bytes, limits.share_bytes * 2)

    def resolve(self, attached: Attached, header: m.Content) -> tuple[Any, ...] | None:
        """Views of the arrays of a message; None if they cannot be seen."""
        assert header.blocks is not None
        views = self.views(attached, places_of(header.blocks))
        return None if views is None else tuple(views)

    def views(self, attached: Attached, places: list[Place]) -> list[Any] | None:
        """The same of the places where they lie."""
        ledger, near = self._ledger(attached), attached.near
        board, leases = None if near is None else near.board, []
        views: list[Any] = []
        for place in places:
            lease = place.lease
            if board is not None and board.tells(lease):
                # A message in the middle of which a signal handler raised: its owner may use the memory by now.
                return None
            leases.append(lease)
        if self._pool is None or not ledger.admit(leases):
            attached.link.say(m.Seen(False))  # it shall use sockets
            return None
        try:
            for place in places:
                view = self._view(attached, place, ledger)
                if view is None:
                    break
                views.append(view)
        finally:  # a signal handler may have raised: they are admitted again with the message
            if len(views) < len(places):
                for left in places[len(views) :]:
                    self._give_back(attached, ledger, left)
        if len(views) < len(places):
            attached.link.say(m.Seen(False))
            return None
        if self.near is not None and self.came_round is attached and (report := ledger.report()) is not None:
            attached.link.say(m.Leases(*report))  # before the answer: what comes next may take the near lane again
            self.near.flush(attached)
        return views

    def view_board(self, attached: Attached, block: m.Block) -> memoryview | None:
        """The board of a peer; None if it cannot be seen."""
        if self._pool is None or block.size != shm.BOARD_BYTES:
            return None
        view = self._view(attached, places_of((block,))[0], None)
        return None if view is None else view.cast("Q")

    def take_back(self, now: float) -> list[Attached]:
        """Views have gone: if it is time, tell their owners, which may use the memory again. Returns the links told."""
        self._do_postponed()
        self._done_with_dropped()
        if now < self.report_at and not self._is_much():
            if self._returned:
                self._is_due_soon = True
                self.report_at = min(self.report_at, now + (REPORT_S if self._num_untold else TOLD_S))
            return []
        self._is_due_soon = False  # before anything is taken: what comes from now on wakes somebody again
        self.report_at = now + REPORT_S if self._postponed else math.inf
        self._returned_share, self._num_untold = 0.0, 0
        told: dict[int, tuple[Attached, shm.Ledger]] = {}
        while self._returned:
            attached, ledger, lease = self._returned.popleft()
            known = self._ledgers.get(id(attached))
            if known is not None and known[1] is ledger:  # else it was lent by an earlier life of the peer
                ledger.give_back(lease)
                told[id(attached)] = known
        for attached, ledger in told.values():
            if (report := ledger.report()) is not None:
                attached.link.say(m.Leases(*report))
        return [attached for attached, _ in told.values()]

    def _is_much(self) -> bool:
        return (
            self._num_untold >= REPORT_LEASES
            or self._returned_share * REPORT_SHARE >= 1.0
            or len(self._returned) >= TOLD_LEASES
        )

    def _give_back(self, attached: Attached, ledger: shm.Ledger, place: Place) -> None:
        """Nobody looks at a block any more; from the garbage collector, on any thread."""
        near = attached.near
        board = None if near is None else near.board
        known = self._ledgers.get(id(attached))
        if known is None or known[1] is not ledger:
            board = None  # lent by an earlier life of the peer: this one's numbers are others
        lease = place.lease
        if ledger._held.get(lease, 0) > 1:
            board = None  # a message that was taken in twice, as something was raised in it: others look at it still
        if board is not None:
            board.give_back(lease)
        self._returned.append((attached, ledger, lease))
        weight, sooner = TOLD_WEIGHT, False
        if board is None:
            sooner = not self._num_untold  # than what stands on boards
            self._num_untold += 1
            weight = 1.0
        self._returned_share += weight * place.size / max(1, place.segment_bytes)
        if sooner or not self._is_due_soon or self._is_much():
            self._wake()

    def _view(self, attached: Attached, place: Place, ledger: shm.Ledger | None) -> memoryview | None:
        on_release = _nothing if ledger is None else _Release(self, attached, ledger, place)
        try:
            return self._mapper.view_place(attached.peer_id, place, on_release)
        except shm.SegmentUnavailable:
            return None

    def _ledger(self, attached: Attached) -> shm.Ledger:
        if self._lender is attached and self._its_ledger is not None:
            return self._its_ledger
        known = self._ledgers.get(id(attached))
        if known is None:
            known = self._ledgers[id(attached)] = (attached, shm.Ledger())
        self._lender = None  # in this order: a signal handler may look up another one in between
        self._its_ledger = known[1]
        self._lender = attached
        return known[1]


def _nothing() -> None:
    """What happens when the view of a probe or a board is gone."""


class _Release:
    """What is called when nobody looks at a block any more; no closure, to be quick."""

    def __init__(self, sharing: SharingViews, attached: Attached, ledger: shm.Ledger, place: Place) -> None:
        self._sharing, self._attached, self._ledger, self._place = sharing, attached, ledger, place

    def __call__(self) -> None:
        self._sharing._give_back(self._attached, self._ledger, self._place)
