"""Plain requests whose arrays lie in shared memory, as they go by the near lane: messages.Request with C fields.

Compiled (`_handed`) their headers are written and read without the objects in between; what is not as plain as that is
left to msgspec, which says what is allowed. Both write the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgebus.messages import Block, Header, Request, encode_header
from edgebus.shm.mapper import Place, place
from edgebus.streams import Specs

MOST_ARRAYS = 8  # of a message that goes the short way: its header fits a packet


class Handed:
    """A request with inline payload and arrays in shared memory, and nothing special."""

    id: int
    service: str
    ttl_ms: int
    settled_below: int
    specs: Specs
    payload: bytes
    places: list[Place]

    def header(self) -> Request:
        """The same as a header, without the places."""
        return Request(self.id, self.service, self.ttl_ms, self.settled_below, self.specs, self.payload)


def as_handed(header: Header) -> Handed | None:
    """A decoded header, None if it is anything else."""
    if type(header) is not Request or header.blocks is None or header.inline is None:
        return None
    if header.terms is not None or header.transfer is not None or len(header.blocks) != len(header.arrays):
        return None
    if len(header.blocks) > MOST_ARRAYS:
        return None
    handed = Handed.__new__(Handed)
    handed.id, handed.service = header.id, header.service
    handed.ttl_ms, handed.settled_below = header.ttl_ms, header.settled_below
    handed.specs, handed.payload, handed.places = header.arrays, header.inline, places_of(header.blocks)
    return handed


def places_of(blocks: Sequence[Block]) -> list[Place]:
    """Blocks with C fields."""
    return [
        place(block.lease, block.pid, block.fd, block.segment_bytes, block.nonce, block.offset, block.size)
        for block in blocks
    ]


class PlainWriter:
    """Writes the headers of one near lane."""

    def write(
        self,
        request_id: int,
        service: str,
        ttl_ms: int,
        settled_below: int,
        specs: Specs,
        payload: bytes,
        blocks: Sequence[Block],
        number: int,
    ) -> bytes:
        """A header whose blocks are called `number` and following."""
        numbered = tuple(
            [
                Block(number + index, each.pid, each.fd, each.segment_bytes, each.nonce, each.offset, each.size)
                for index, each in enumerate(blocks)
            ]
        )
        return encode_header(Request(request_id, service, ttl_ms, settled_below, specs, payload, None, None, numbered))


class PlainReader:
    """Reads the headers of one near lane."""

    def read(self, frame: bytes) -> Handed | None:
        """A request, None if it is something else or has to be looked at by msgspec."""
        return None
