"""Blocks of a pool as messages name them, and as they are announced while they are being filled (ahead.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgebus import shm
from edgebus.messages import Block
from edgebus.port import switches
from edgebus.streams import Specs

if TYPE_CHECKING:
    from edgebus.ahead import Ahead
    from edgebus.attached import Attached


class Telling:
    """Announces blocks of a pool while they are being filled, once.

    Attributes:
        told: the blocks that are being filled; None before anybody may have heard of them.
        blocks: the same as messages name them, once they are announced.
    """

    def __init__(self, ahead: Ahead, attached: Attached, specs: Specs) -> None:
        self._ahead, self._attached, self._specs = ahead, attached, specs
        self.told: list[shm.Block] | None = None
        self.blocks: tuple[Block, ...] | None = None
        self._switches = 0

    def tell(self) -> None:
        """Announce them."""
        assert self.told is not None
        self.blocks = tuple([to_wire(block) for block in self.told])
        self._switches = switches()
        self._ahead.tell(self._attached, self._specs, self.blocks)

    def ended(self) -> None:
        """All is copied."""
        assert self.blocks is not None
        self._ahead.told(self._attached, self.blocks, switches() == self._switches)


def to_wire(block: shm.Block) -> Block:
    """A block of a pool as messages name it, by the pool's number."""
    info = block.segment
    return Block(block.lease_id, info.pid, info.fd, info.size, info.nonce, block.offset, block.size)
