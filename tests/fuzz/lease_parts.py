"""What a process of the same host lies about: what it still uses of our memory, and what it lent us."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import pairwise

from edgebus import shm
from edgebus.shm.board import PLACES
from tests.fuzz.source import Source

MAX_BYTES, SEGMENT_BYTES = 1 << 19, 1 << 17
MOST_HELD = 4


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


class _Honest(_Owner):
    """A peer that keeps to the rules, with the numbers of messages that are on their way to it and in use there."""

    def __init__(self, name: str, pool: shm.Pool) -> None:
        super().__init__(name, pool)
        self.ledger, self.board = shm.Ledger(), [0] * 8  # so few that places are written over
        self.lease_of: dict[int, int] = {}  # by number
        self.flying: list[int] = []
        self.in_use: list[int] = []
        self.undone: list[int] = []
        self.untold: list[int] = []  # given back, and written over on the board before the owner looked
        self.floor = -1

    def send(self, content: bytes) -> None:
        """Lend it; the message is on its way, and may be sent again."""
        number = self.put(content, True)
        if number is not None:
            self.flying.append(number)
            self.lease_of[number] = lease = next(reversed(self.lent))
            self.undone.append(lease)

    def send_again(self, source: Source) -> None:
        """Under another number."""
        if self.undone:
            lease = self.undone[source.below(len(self.undone))]
            number = self.numbers.number(lease)
            self.flying.append(number)
            self.lease_of[number] = lease

    def finish(self, source: Source) -> None:
        """One is not sent again."""
        if self.undone:
            lease = self.undone.pop(source.below(len(self.undone)))
            unused = self.numbers.done([lease])
            self.pool.done([lease], self.name)
            self.free(unused, [])

    def arrive(self, source: Source) -> None:
        """One of those on their way, or one that was overtaken by a report."""
        if self.flying:
            number = self.flying.pop(source.below(len(self.flying)))
            assert self.ledger.admit([number])
            self.in_use.append(number)
        for late in self.lease_of.keys() - {*self.flying, *self.in_use}:
            assert late > self.floor or not self.ledger.admit([late]), "its memory may be in use for something else"

    def give_back(self, source: Source) -> None:
        """One or two, by the board, and now and then by a report: what is on its way below that will not be taken."""
        for _ in range(1 + source.below(2)):
            if self.in_use:
                number = self.in_use.pop(source.below(len(self.in_use)))
                self.ledger.give_back(number)
                self.board[number % len(self.board)] = number + 1
                self.untold.append(number)
        self.free(self.numbers.read(self.board, source.below(2) == 1), [])
        self.untold = [number for number in self.untold if number + 1 not in self.board]
        if source.below(2) and (report := self.ledger.report()) is not None:
            self.floor = report[0]
            self.flying = [number for number in self.flying if number > self.floor]
            self.untold.clear()
            self.free(self.numbers.settle(*report), [])

    def check(self) -> None:
        """It has what it uses, what is on its way to it, and what may be sent again; and nothing else."""
        used = {self.lease_of[number] for number in (*self.flying, *self.in_use, *self.untold)}
        assert self.lent.keys() == used | set(self.undone)
        for lease, content in self.lent.items():
            assert self.pool.read(lease, len(content)) == content, "somebody else wrote there"


def leases(data: bytes) -> None:
    """Reports and boards of a liar: it gets its own memory back wrongly, another peer's content stays as it was."""
    source, pool = Source(data), shm.Pool(MAX_BYTES, SEGMENT_BYTES)
    honest, liar, board = _Honest("honest", pool), _Owner("liar", pool), [0] * PLACES
    try:
        for step in range(60):
            if not source:
                break
            match source.below(12):
                case 0 | 1:
                    honest.send(bytes([step + 1]) * (1 + source.below(4) * 3000))
                case 7 | 8 | 9 | 10 as choice:
                    (honest.give_back, honest.arrive, honest.arrive, honest.finish)[choice - 7](source)
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
                case _:
                    honest.send_again(source)
                    pool.release([source.number() for _ in range(source.below(4))], "liar")
                    pool.settle("liar", source.number(), [source.number()])
            _check(pool, honest)
        pool.retire("liar", dead=True)
        _check(pool, honest)
    finally:
        pool.close()
    stats = pool.stats()
    assert (stats.in_use_bytes, stats.committed_bytes, stats.leases, stats.orphan_segments) == (0, 0, 0, 0)


def _check(pool: shm.Pool, honest: _Honest) -> None:
    """Memory within its bound, blocks that do not overlap, and an honest peer that finds what it was sent."""
    honest.check()
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


def lease_seeds() -> Iterator[bytes]:
    """Loans, reports and boards in turn; messages that arrive, go again, are overtaken, and come back."""
    for first in range(4):
        yield bytes((first + 5 * n + n // 7) % 256 for n in range(200))
    yield bytes([0, 1, 2, 3, 1, 2, 3, 0, 4, 1, 3, 15, 5, 4, 0, 1, 1, 2, 2, 3, 3, 4, 7, 0, 0, 0, 0, 11, 0, 0, 4, 5]) * 4
    yield bytes([0, 1, 8, 0, 10, 0, 7, 0, 0, 0, 1]) * 4  # each in turn
    yield bytes([0, 1, 11, 0, 0, 0, 0, 8, 0, 8, 0, 10, 0, 7, 0, 0, 0, 0, 7, 0, 0, 0, 1]) * 3  # twice under way
    yield bytes([0, 1, 0, 2, 8, 0, 10, 0, 10, 0, 7, 0, 0, 0, 1, 0, 3, 8, 0, 2, 3, 0])  # one on its way at a report
    many = [0, 1, 8, 0, 10, 0] * 9  # more than there are places
    yield bytes([*many, 7, 1, 0, 7, 0, 1, *many, 7, 0, 8, 0, 0, 7, 0, 0, 0, 1])


def ledger_seeds() -> Iterator[bytes]:
    """Leases in order and out of it, given back, reported, and said again afterwards."""
    yield bytes([0, 0, 1, 4, 0, 0, 1, 2, 0, 4, 0, 0, 1, 0, 0, 2, 3, 1])
    yield bytes([0, 1, 5, 5, 2, 0, 4, 0, 0, 5, 2, 0, 2, 0, 3, 5, 0, 0, 5, 0, 0, 3, 0, 0, 6, 4])
    yield bytes([0, 2, 1, 2, 3, 0, 0, 4, 0, 0, 5, 4, 2, 0, 0, 0, 5, 0, 0, 15, 4, 0, 0, 14, 2, 3, 3, 15])


TARGETS = {"leases": leases, "ledgers": ledgers} if shm.available() else {}
SEEDS = {"leases": lease_seeds, "ledgers": ledger_seeds}
