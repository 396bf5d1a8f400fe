"""What a process of the same host lies about: where its memory and its pipes are, and what it still uses of ours."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import gc
import os
import socket
import tempfile
from collections.abc import Iterator
from itertools import pairwise

from edgebus import shm
from edgebus.shm.board import PLACES
from edgebus.shm.pipes import PipeNames
from tests.fuzz.source import Source

SIZE = 1 << 16
NONCE = b"n" * 16
BOUNDS = ((4 * SIZE, 16), (SIZE + SIZE // 2, 16), (4 * SIZE, 1))  # of bytes and segments: for all, or for one
MOST = 2**63 - 8192  # a compiled mapper takes no more
_SEALED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
MAX_BYTES, SEGMENT_BYTES = 1 << 19, 1 << 17
MOST_HELD = 4


def _memory_file(seals: int, nonce: bytes = NONCE, magic: bytes = b"EDGESHM1", size: int = SIZE) -> int:
    fd = os.memfd_create("other", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    os.pwrite(fd, magic + nonce, 0)
    os.pwrite(fd, b"content", 4096)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


@functools.cache
def _descriptors() -> tuple[list[int], shm.Pipes, PipeNames]:
    """The first is a segment as it should be; then what is none, of every kind; and pipes made here."""
    made = shm.make_pipes()
    assert made is not None
    with tempfile.TemporaryFile() as file:
        file.truncate(SIZE)
        ordinary = os.dup(file.fileno())
    wrong = [
        _memory_file(0), _memory_file(fcntl.F_SEAL_GROW), _memory_file(fcntl.F_SEAL_SHRINK),
        _memory_file(_SEALED, b"m" * 16), _memory_file(_SEALED, magic=b"EDGESHM0"), _memory_file(_SEALED, size=4096),
        ordinary, *os.pipe(), os.open("/", os.O_RDONLY), os.open("/dev/zero", os.O_RDWR), os.eventfd(0),
        *(end.detach() for end in socket.socketpair()),
    ]  # fmt: skip
    return [_memory_file(_SEALED), *wrong], *made


def lies(data: bytes) -> None:
    """Places of memory and of pipes: refused by name, or just what is there; nothing stays open or mapped."""
    descriptors, pipes, names = _descriptors()
    source, bounds, before = Source(data), BOUNDS[len(data) % len(BOUNDS)], len(os.listdir("/proc/self/fd"))
    mapper, held = shm.Mapper(bounds[0], max_segments=bounds[1]), []
    for _ in range(12):
        if not source:
            break
        pid = (os.getpid(), os.getpid(), os.getpid(), 1, 0, -1, 2**31, source.number())[source.below(8)]
        fd = descriptors[source.below(len(descriptors))] if source.below(8) else source.number() - 1
        if source.below(4) == 0:
            _find(pid, fd, source, names)
            continue
        size = (SIZE, SIZE, SIZE, SIZE - 1, 4096, 2 * SIZE, -1, source.number())[source.below(8)]
        nonce = (NONCE, NONCE, NONCE, b"m" * 16, source.blob())[source.below(5)]
        offset = 4096 if source.below(2) else min(64 * source.number(), MOST) + source.below(2)
        wanted = (7, 0, SIZE - 4096, source.number())[source.below(4)]
        info = shm.SegmentInfo(pid, fd, size, nonce)
        try:
            view = mapper.view("liar", info, offset, wanted, lambda: None)
        except shm.SegmentUnavailable:
            pass
        else:
            assert info[:3] in ((os.getpid(), descriptors[0], SIZE), (os.getpid(), descriptors[4], SIZE))
            assert nonce == (NONCE if fd == descriptors[0] else b"m" * 16), "memory that is not what was announced"
            assert view.readonly
            assert view.tobytes() == (bytes(4096) + b"content").ljust(SIZE, b"\0")[offset : offset + wanted]
            held.append(view)
            del view
        stats = mapper.stats()
        assert stats.mapped_bytes <= bounds[0]
        assert stats.segments <= bounds[1]
    held.clear()
    mapper.forget("liar")
    if mapper.stats().mapped_bytes:
        gc.collect()
    assert (mapper.stats().mapped_bytes, mapper.stats().views) == (0, 0)
    assert len(os.listdir("/proc/self/fd")) == before
    assert pipes.read_fd == names.read_fd


def _find(pid: int, fd: int, source: Source, names: PipeNames) -> None:
    """Look for pipes: only those that were made here for others to find are found."""
    inode = os.fstat(fd).st_ino if source.below(2) and 0 <= fd < 64 and _is_open(fd) else source.number()
    said = PipeNames(
        names.written_fd if source.below(2) else fd,
        names.written_inode if source.below(4) else inode,
        names.read_fd if source.below(2) else fd,
        names.read_inode if source.below(4) else inode,
    )
    try:
        found = shm.find_pipes(pid, said)
    except shm.SegmentUnavailable:
        return
    found.close()
    assert said == names


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


class _Owner:
    """A peer as its owner sees it: what it was lent, under which numbers, and what lies there."""

    def __init__(self, name: str, pool: shm.Pool) -> None:
        self.name, self.pool = name, pool
        self.numbers = shm.Numbers()
        self.lent: dict[int, bytes] = {}  # by lease

    def put(self, content: bytes, keep: bool) -> int | None:
        """Lend and send; the number it goes by."""
        blocks = self.pool.put([content], self.name, keep=keep)
        if blocks is None:
            return None
        self.lent[blocks[0].lease_id] = content
        number = self.numbers.number(blocks[0].lease_id)
        if not keep:
            self.free([], self.numbers.done([blocks[0].lease_id]))
        return number

    def free(self, unused: list[int], done: list[int]) -> None:
        """As Sharing does it."""
        self.pool.release(unused + done, self.name)
        for lease in unused + done:
            self.lent.pop(lease, None)

    def done(self) -> None:
        """The oldest is not sent again."""
        if self.lent:
            leases = [next(iter(self.lent))]
            unused = self.numbers.done(leases)
            self.pool.done(leases, self.name)
            self.free(unused, [])


def leases(data: bytes) -> None:
    """Reports and boards of a liar: it gets its own memory back wrongly, another peer's content stays as it was."""
    source, pool = Source(data), shm.Pool(MAX_BYTES, SEGMENT_BYTES)
    honest, liar, board = _Owner("honest", pool), _Owner("liar", pool), [0] * PLACES
    ledger, in_use = shm.Ledger(), []
    try:
        for step in range(60):
            if not source:
                break
            match source.below(9):
                case 0 | 1:
                    number = honest.put(bytes([step + 1]) * (1 + source.below(4) * 3000), False)
                    if number is not None:
                        assert ledger.admit([number])
                        in_use.append(number)
                case 2 | 3:
                    liar.put(bytes(1 + source.below(4) * 30_000), source.below(2) == 1)
                case 4:
                    held = [source.number() for _ in range(source.below(4))]
                    liar.free(liar.numbers.settle(source.number() - 1, held), [])
                case 5:
                    for _ in range(source.below(8)):
                        board[source.below(64)] = source.number()
                    liar.free(liar.numbers.read(board), [])
                case 6:
                    liar.done()
                case 7 if in_use:
                    ledger.give_back(in_use.pop(source.below(min(256, len(in_use)))))
                    report = ledger.report()
                    assert report is not None
                    honest.free(honest.numbers.settle(*report), [])
                case _:
                    pool.release([source.number() for _ in range(source.below(4))], "liar")
                    pool.settle("liar", source.number(), [source.number()])
            _check(pool, honest, len(in_use))
        pool.retire("liar", dead=True)
        _check(pool, honest, len(in_use))
    finally:
        pool.close()
    stats = pool.stats()
    assert (stats.in_use_bytes, stats.committed_bytes, stats.leases, stats.orphan_segments) == (0, 0, 0, 0)


def _check(pool: shm.Pool, honest: _Owner, num_in_use: int) -> None:
    """Memory within its bound, blocks that do not overlap, and an honest peer that finds what it was sent."""
    assert len(honest.lent) == num_in_use
    for lease, content in honest.lent.items():
        assert pool.read(lease, len(content)) == content, "somebody else wrote there"
    stats = pool.stats()
    assert 0 <= stats.in_use_bytes <= stats.committed_bytes <= MAX_BYTES
    places = sorted(
        (id(lease.segment), lease.offset, lease.offset + lease.span)
        for account in pool._accounts.values()
        for lease in account.leases.values()
    )
    for (one, _, end), (other, start, _) in pairwise(places):
        assert one != other or end <= start
    assert stats.in_use_bytes == sum(end - start for _, start, end in places)


def ledgers(data: bytes) -> None:
    """Leases that a peer says it lent, in any order: what is held and told of them is what the specification says."""
    source, ledger, board = Source(data), shm.Ledger(MOST_HELD), shm.Board()
    counts: dict[int, int] = {}
    floor = highest = -1
    places: dict[int, int] = {}
    try:
        for _ in range(100):
            if not source:
                break
            match source.below(5):
                case 0 | 1:
                    said = [source.number() for _ in range(1 + source.below(3))]
                    is_late = any(number not in counts and number <= floor for number in said)
                    assert ledger.admit(said) == (not is_late and len({*counts, *said}) <= MOST_HELD)
                    if not is_late and len({*counts, *said}) <= MOST_HELD:
                        counts |= {number: counts.get(number, 0) + said.count(number) for number in said}
                        highest = max(highest, *said)
                case 2 if counts:
                    number = sorted(counts)[source.below(len(counts))]
                    ledger.give_back(number)
                    counts[number] -= 1
                    if not counts[number]:
                        del counts[number]
                        board.give_back(number)
                        places[number % PLACES] = number
                case 3:
                    number = source.number()
                    if number not in counts:
                        with contextlib.suppress(ValueError):
                            ledger.give_back(number)
                            raise AssertionError("what is not held was given back")
                    assert board.tells(number) == (places.get(number % PLACES) == number)
                case _:
                    assert ledger.report() == (None if highest < 0 else (highest, tuple(sorted(counts))))
                    floor = highest
            assert ledger.num_held == len(counts) <= MOST_HELD
    finally:
        board.close()


def lie_seeds() -> Iterator[bytes]:
    """Everything right, each thing wrong in turn, two segments within bounds for both and for one, and pipes."""
    right, other = bytes([0, 0, 1, 0, 1, 0, 0, 0, 0, 1, 0, 0]), bytes([0, 0, 1, 4, 1, 0, 0, 0, 3, 1, 0, 0])
    yield right * 6
    for place in range(len(right)):
        yield b"".join(
            right[:place] + bytes([value]) + right[place + 1 :] for value in range(13) if value != right[place]
        )
    both = right + other + right
    yield from (both + other[: (size - len(both)) % len(BOUNDS)] for size in range(len(BOUNDS)))
    yield bytes([0, 0, 1, 0, 0, 0, 0, 1, 1, 1, 1]) * 3


def lease_seeds() -> Iterator[bytes]:
    """Loans, reports and boards in turn."""
    for first in range(4):
        yield bytes((first + 5 * n + n // 7) % 256 for n in range(200))
    yield bytes([0, 1, 2, 3, 1, 2, 3, 0, 4, 1, 3, 15, 5, 4, 0, 1, 1, 2, 2, 3, 3, 4, 7, 0, 8, 1, 0, 4, 5, 6]) * 4


def ledger_seeds() -> Iterator[bytes]:
    """Leases in order and out of it, given back, reported, and said again afterwards."""
    yield bytes([0, 0, 1, 4, 0, 0, 1, 2, 0, 4, 0, 0, 1, 0, 0, 2, 3, 1])
    yield bytes([0, 1, 5, 5, 2, 0, 4, 0, 0, 5, 2, 0, 2, 0, 3, 5, 0, 0, 5, 0, 0, 3, 0, 0, 6, 4])
    yield bytes([0, 2, 1, 2, 3, 0, 0, 4, 0, 0, 5, 4, 2, 0, 0, 0, 5, 0, 0, 15, 4, 0, 0, 14, 2, 3, 3, 15])


TARGETS = {"lies": lies, "leases": leases, "ledgers": ledgers} if shm.available() else {}
SEEDS = {"lies": lie_seeds, "leases": lease_seeds, "ledgers": ledger_seeds}
