"""Large contents as a peer sends them that keeps to nothing: docs/spec/bus-bulk.md, sections 2 and 3."""

from __future__ import annotations

from collections.abc import Iterator

from edgebus import messages as m
from edgebus.bulk import MAX_PARTIAL
from edgebus.bulk_receiver import BulkReceiver
from tests.fuzz.source import Source

MAX_BYTES, WINDOW_BYTES, CHUNK_BYTES = 8000, 3000, 3000
CONTENT = bytes(n % 251 for n in range(4 * CHUNK_BYTES))  # of every transfer, as far as it goes
SIZES = (0, 1, 500, 2000, CHUNK_BYTES)


class _Receiver:
    """Contents on their way in as a link puts them together, and those that wait in the application."""

    def __init__(self) -> None:
        self.machine = BulkReceiver(MAX_BYTES, WINDOW_BYTES)
        self.waiting: list[int] = []  # bytes of each

    def take(self, message: m.Message | None) -> None:
        """One that is whole is what was sent, at the places where it was cut."""
        if message is None:
            return
        header, frames = message
        assert isinstance(header, m.Reply)
        sizes = (header.num_parts, *(spec.shape[0] for spec in header.arrays))
        assert header.transfer is None
        assert tuple(map(len, frames)) == sizes
        assert b"".join(map(bytes, frames)) == CONTENT[: sum(sizes)]
        self.waiting.append(sum(sizes))

    def admit(self) -> None:
        """As a link does it, whenever something has changed."""
        self.machine.admit(sum(self.waiting))
        while whole := self.machine.take_admitted():
            for message in whole:
                self.take(message)
            self.machine.admit(sum(self.waiting))

    def check(self) -> None:
        """The bounds of the specification."""
        partial = self.machine._partial.values()
        assert max(len(partial), len(self.machine._asked), len(self.machine._later)) <= MAX_PARTIAL
        admitted = [each.total for each in partial if each.admitted]
        assert len(admitted) < 2 or sum(admitted) + sum(self.waiting) <= MAX_BYTES
        assert sum(each.received for each in partial if not each.admitted) <= WINDOW_BYTES + CHUNK_BYTES
        assert all(0 <= each.credited <= each.received <= each.total <= MAX_BYTES for each in partial)
        for header, frames in self.machine.headers_to_send():
            assert isinstance(header, m.Credit)
            assert (0 <= header.received <= len(CONTENT), frames) == (True, ())


def _content(source: Source, number: int) -> tuple[m.Reply, tuple[int, ...]]:
    sizes = tuple(SIZES[source.below(len(SIZES))] for _ in range(1 + source.below(3)))
    return _header(source.below(8), number, sizes), sizes


def _header(request_id: int, number: int, sizes: tuple[int, ...]) -> m.Reply:
    specs = tuple(m.ArraySpec("u1", (size,)) for size in sizes[1:])
    return m.Reply(request_id, specs, None, sizes[0], m.Transfer(number, sizes))


def _cut(sizes: tuple[int, ...]) -> tuple[bytes, ...]:
    ends = [sum(sizes[: place + 1]) for place in range(len(sizes))]
    return tuple(CONTENT[end - size : end] for end, size in zip(ends, sizes, strict=True))


def _chunk(receiver: _Receiver, source: Source, number: int, now: float) -> None:
    known = receiver.machine._partial.get(number)
    received, rest = (0, 0) if known is None else (known.received, 0)
    if known is not None and len(known.frames) < len(known.sizes):
        rest = known.sizes[len(known.frames)] - known.filled
    offset = (received, received, received, received + 1, max(0, received - 1), 0, source.number())[source.below(7)]
    size = (rest, rest, 1, 500, rest + 1, 0)[source.below(6)]
    frame = CONTENT[offset:][: min(size, CHUNK_BYTES)]
    receiver.take(receiver.machine.receive(m.Chunk(number, offset), frame, now=now))
    if known is not None and offset == received and not 0 < len(frame) <= rest:
        assert number not in receiver.machine._partial, "it is over its bounds, and goes on"


def bulks(data: bytes) -> None:
    """Announcements, pieces and whole contents: put together as they were sent or not at all, within the bounds."""
    source, receiver, now = Source(data), _Receiver(), 0.0
    machine, num_floods = receiver.machine, 0
    for _ in range(100):
        if not source:
            break
        number = source.below(6)
        match source.below(12):
            case 0 | 1 | 2:
                header, sizes = _content(source, number)
                if sum(sizes) > MAX_BYTES:
                    machine.refuse(header)
                else:
                    receiver.take(machine.announce(header))
            case 3:
                header, sizes = _content(source, number)
                if sum(sizes) <= MAX_BYTES:
                    receiver.take(machine.receive_whole(header, _cut(sizes), sum(receiver.waiting), now=now))
            case 4 | 5 | 6 | 7:
                _chunk(receiver, source, number, now)
            case 8:
                (machine.drop, machine.answered)[source.below(2)](number)
            case 9:
                now += source.below(3) * 0.003
                machine.credit_due(now, lambda _: bool(source.below(2)))
            case 10:
                (receiver.waiting.clear, machine.greeted, machine.clear)[source.below(3)]()
            case _ if num_floods < 2:  # they take long
                num_floods += 1
                _flood(machine, source.below(2) == 1)
        receiver.admit()
        receiver.check()


def _flood(machine: BulkReceiver, is_known: bool) -> None:
    """More transfers than are kept, or pieces of as many that nobody has announced."""
    for number in range(1000, 1002 + MAX_PARTIAL):
        if is_known:
            machine.announce(_header(number, number, (2,)))
        else:
            machine.receive(m.Chunk(2 * number, 0), b"x", now=0.0)


def bulk_seeds() -> Iterator[bytes]:
    """Contents in pieces and whole, one that has no room, late ones, and floods."""
    begin = [0, 0, 1, 2, 4, 0]  # number 0: 500 and 3000 bytes
    rest, byte, some, too_much, nothing = ([0, 4, 0, 0, size] for size in (0, 2, 3, 4, 5))
    yield bytes([*begin, *rest, *rest])
    yield bytes([*begin, *byte, *rest, *some, *rest])
    yield bytes([*begin, *rest, *some, 0, 4, 0, 4, 3, *rest])  # again, from one byte before
    yield bytes([*begin, *rest, *some, 0, 4, 0, 3, 3, *rest])  # behind a gap
    yield bytes([*begin, *too_much, *begin, *rest, *some, *too_much])
    yield bytes([*begin, *nothing, *begin, *rest, *nothing])
    many = [each for number in range(5) for each in (number, 0, 1, 4, 4, number)]  # the first is admitted
    yield bytes([*many, *(each for number in range(5) for each in (number, 4, 0, 0, 3))])
    yield bytes([*many, *(each for number in (1, 2, 3, 4, 1, 2) for each in (number, 4, 0, 0, 0))])
    yield bytes([*many, *(each for number in (4, 3, 2, 4, 4, 3) for each in (number, 4, 0, 0, 3)), 0, 10, 0, 0, 9, 1])
    yield bytes([each for number in range(5) for each in (number, 3, 1, 4, 4, number)] + [0, 10, 0, 0, 9, 2, 1])
    yield bytes([0, 11, 0, 0, 11, 1, 0, 10, 1, 1, 0, 0, 2, 1, 0, 10, 2])


TARGETS = {"bulks": bulks}
SEEDS = {"bulks": bulk_seeds}
