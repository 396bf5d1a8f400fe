"""Puts recorded messages whose content travelled as chunks together again. Pure, bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import msgspec

from edgebus.messages import Chunk, Content, Drop
from edgebus.recorder import Traffic

MAX_HELD_BYTES = 256 * 1024 * 1024
MAX_HELD = 1024


@dataclass(slots=True)
class _Partial:
    record: Traffic
    header: Content
    content: bytearray


class Assembler:
    """Takes records in order and gives each message once its content is there.

    Args:
        max_held_bytes: announced bytes of messages that are not whole; above that the oldest are given without content.
    """

    def __init__(self, max_held_bytes: int = MAX_HELD_BYTES) -> None:
        self._most = max_held_bytes
        self._held: OrderedDict[tuple[str, str, int], _Partial] = OrderedDict()
        self._bytes = 0

    def feed(self, record: Traffic, header: Any) -> list[tuple[Traffic, Any]]:
        """Messages that are complete now, or that will never be; chunks themselves are not among them.

        Args:
            record: as recorded.
            header: its header, decoded; None if that is not possible.
        """
        if isinstance(header, Content) and header.transfer is not None:
            return self._begin(record, header)
        if isinstance(header, Chunk):
            return self._fill((record.peer_id, record.direction, header.transfer), record, header.offset)
        if isinstance(header, Drop):
            return self._give_up((record.peer_id, record.direction, header.transfer))
        return [(record, header)]

    def rest(self) -> list[tuple[Traffic, Any]]:
        """What was never completed, without content."""
        return [given for token in list(self._held) for given in self._give_up(token)]

    def _begin(self, record: Traffic, header: Content) -> list[tuple[Traffic, Any]]:
        assert header.transfer is not None
        token = (record.peer_id, record.direction, header.transfer.id)
        total = sum(header.transfer.sizes)
        held = self._held.get(token)
        if held is not None and not record.frames and held.record.header == record.header:
            return []  # announced again
        if record.frames and sum(map(len, record.frames)) == total:
            if held is not None and held.header.id == header.id and type(held.header) is type(header):
                del self._held[token]  # announced before
                assert held.header.transfer is not None
                self._bytes -= sum(held.header.transfer.sizes)
                return [(record, header)]
            return [*self._give_up(token), (record, header)]  # it came whole
        given = self._give_up(token)
        if total > self._most:
            return [*given, (record, header)]
        while self._held and (self._bytes + total > self._most or len(self._held) >= MAX_HELD):
            given += self._give_up(next(iter(self._held)))
        # Grows as chunks come: what is announced is not allocated before it is there.
        self._held[token] = _Partial(record, header, bytearray())
        self._bytes += total
        return given if total else [*given, *self._finish(token)]

    def _fill(self, token: tuple[str, str, int], record: Traffic, offset: int) -> list[tuple[Traffic, Any]]:
        partial = self._held.get(token)
        if partial is None or len(record.frames) != 1:
            return []
        assert partial.header.transfer is not None
        piece, total = record.frames[0], sum(partial.header.transfer.sizes)
        # A gap stays one until it is sent again; what comes twice is the same.
        if offset > len(partial.content) or offset + len(piece) > total:
            return []
        partial.content[offset : offset + len(piece)] = piece
        return self._finish(token) if len(partial.content) == total else []

    def _finish(self, token: tuple[str, str, int]) -> list[tuple[Traffic, Any]]:
        partial = self._held.pop(token)
        assert partial.header.transfer is not None
        sizes = partial.header.transfer.sizes
        self._bytes -= sum(sizes)
        frames, at = [], 0
        for size in sizes:
            frames.append(bytes(partial.content[at : at + size]))
            at += size
        return [(msgspec.structs.replace(partial.record, sizes=sizes, frames=tuple(frames)), partial.header)]

    def _give_up(self, token: tuple[str, str, int]) -> list[tuple[Traffic, Any]]:
        partial = self._held.pop(token, None)
        if partial is None:
            return []
        assert partial.header.transfer is not None
        self._bytes -= sum(partial.header.transfer.sizes)
        return [(partial.record, partial.header)]
