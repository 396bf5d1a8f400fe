"""What the peers call our leases, and which of them they have given back, as far as their boards tell.

A lease gets its number when its message leaves: `edgebus/shm/numbers.py`. Sharing builds on this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from edgebus import messages as m
from edgebus import shm
from edgebus.config import Limits
from edgebus.sharing_pool import SharingPool

if TYPE_CHECKING:
    from edgebus.attached import Attached

_replace = msgspec.structs.replace


class SharingNumbers(SharingPool):
    """Numbers of leases, by link."""

    def __init__(self, limits: Limits, wake: Callable[[], None]) -> None:
        super().__init__(limits, wake)
        self._numbers: dict[int, tuple[Attached, shm.Numbers]] = {}
        # What was looked up there last:
        self._named: Attached | None = None
        self._its_names: shm.Numbers | None = None

    def number(self, attached: Attached, header: m.Content) -> tuple[m.Content, bool]:
        """A message is about to leave: its header with the leases as this link calls them from now on.

        Returns: the header, and whether the message may go by the near lane: it leaves for the first time, and would
            overtake nothing.
        """
        assert header.blocks is not None
        names = self._names(attached)
        if not names.in_order():
            self.collect(attached)  # perhaps it is then
        near, blocks = attached.near is not None and names.in_order(), []
        for block in header.blocks:
            if names.was_sent(block.lease):
                near = False
        for block in header.blocks:
            blocks.append(_replace(block, lease=names.number(block.lease)))
        if not near:
            names.went_round()
        return _replace(header, blocks=tuple(blocks)), near

    def in_order(self, attached: Attached) -> bool:
        """Whether a message with blocks may go by the near lane and overtake nothing."""
        names = self._names(attached)
        return names.in_order()

    def number_new(self, attached: Attached, blocks: Sequence[m.Block]) -> int:
        """Like number, for a message that leaves by the near lane for the first time, where `in_order` says it may.

        Returns: what the first of them is called; the others follow.
        """
        names = self._names(attached)
        first = names.upcoming()
        for block in blocks:
            names.number(block.lease)
        return first

    def went_round(self, attached: Attached) -> None:
        """A message that has its numbers goes by the control lane."""
        names = self._names(attached)
        names.went_round()

    def collect(self, attached: Attached, thorough: bool = False) -> bool:
        """Take the memory back that the peer's board says it does not use; True, as whoever calls this expects."""
        near = attached.near
        if near is not None and near.peer_board is not None:
            names = self._names(attached)
            free = names.read(near.peer_board, thorough)
            if free:
                self._give_free(attached, free, [])
        return True

    def collect_all(self) -> bool:
        """The same of all peers, since there is no room: each reports late what stands on its board."""
        for attached, _ in list(self._numbers.values()):
            self.collect(attached, True)
        return True

    def _names(self, attached: Attached) -> shm.Numbers:
        if self._named is attached and self._its_names is not None:
            return self._its_names
        known = self._numbers.get(id(attached))
        if known is None:
            known = self._numbers[id(attached)] = (attached, shm.Numbers())
        self._named = None  # in this order, likewise
        self._its_names = known[1]
        self._named = attached
        return known[1]
