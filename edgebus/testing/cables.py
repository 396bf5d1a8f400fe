"""What becomes of one message on its way, by the faults in force. Pure: chance and time are arguments."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from math import prod
from typing import NamedTuple

from edgebus.testing import faults as f


class Flight(NamedTuple):
    """One copy of a message: when it arrives, its frames, and whether later ones may overtake it."""

    at: float
    frames: Sequence[bytes]
    is_held_back: bool


class Cables:
    """All cables of a network.

    Args:
        chance: where everything random comes from.
        delay_s: least and greatest delay of a sound cable.

    Attributes:
        counts: sent, lost, duplicated, corrupted, held_back.
    """

    def __init__(self, chance: random.Random, delay_s: tuple[float, float]) -> None:
        self._chance = chance
        self._delay_s = delay_s
        self._in_force: list[f.CableFault] = []
        self._busy_until: dict[tuple[str, str], float] = {}
        self.counts: Counter[str] = Counter()

    def add(self, fault: f.CableFault) -> None:
        """From now on."""
        self._in_force.append(fault)

    def remove(self, fault: f.CableFault) -> None:
        """No longer; one that was healed meanwhile is gone already."""
        for index, item in enumerate(self._in_force):
            if item is fault:  # an equal one may have been put into force twice
                del self._in_force[index]
                return

    def heal(self, a: str | None, b: str | None) -> None:
        """All faults of the cable between exactly these ends are over."""
        self._in_force = [item for item in self._in_force if {item.a, item.b} != {a, b}]

    def is_cut(self, source: str, target: str) -> bool:
        """Whether nothing arrives that way."""
        cuts = (f.partition, f.half_open)
        return any(isinstance(item, cuts) and item.covers(source, target) for item in self._in_force)

    def send(self, source: str, target: str, frames: Sequence[bytes], *, now: float) -> list[Flight]:
        """Put a message on its way; returns its copies, none if it is lost."""
        in_force = [item for item in self._in_force if item.covers(source, target)]
        self.counts["sent"] += 1
        leaves_at = self._leaves_at(in_force, (source, target), frames, now)
        if self._happens(item.probability for item in in_force if isinstance(item, f.loss)):
            self.counts["lost"] += 1
            return []
        copies = 1
        if self._happens(item.probability for item in in_force if isinstance(item, f.duplicate)):
            self.counts["duplicated"] += 1
            copies = 2
        return [self._flight(in_force, frames, leaves_at) for _ in range(copies)]

    def delay(self) -> float:
        """That of a message on a sound cable."""
        return self._chance.uniform(*self._delay_s)

    def _flight(self, in_force: list[f.CableFault], frames: Sequence[bytes], leaves_at: float) -> Flight:
        at = leaves_at + self.delay()
        is_held_back = False
        for item in in_force:
            match item:
                case f.delay():
                    at += self._chance.uniform(item.least_s, item.most_s)
                case f.reorder() if self._chance.random() < item.probability:
                    self.counts["held_back"] += 1
                    is_held_back = True
                    at += item.by_s
                case f.corrupt() if self._chance.random() < item.probability:
                    self.counts["corrupted"] += 1
                    frames = corrupted(frames, self._chance, anywhere=item.anywhere)
        return Flight(at, frames, is_held_back)

    def _leaves_at(
        self, in_force: list[f.CableFault], way: tuple[str, str], frames: Sequence[bytes], now: float
    ) -> float:
        """When its last byte is on the cable: at once, unless that is slow."""
        rates = [item.bytes_per_s for item in in_force if isinstance(item, f.bandwidth)]
        if not rates:
            return now
        starts_at = max(now, self._busy_until.get(way, 0.0))
        self._busy_until[way] = starts_at + sum(memoryview(frame).nbytes for frame in frames) / min(rates)
        return self._busy_until[way]

    def _happens(self, probabilities: Iterable[float]) -> bool:
        chance = 1 - prod(1 - probability for probability in probabilities)
        return self._chance.random() < chance


def corrupted(frames: Sequence[bytes], chance: random.Random, *, anywhere: bool) -> list[bytes]:
    """A copy with flipped bits: in the first byte so that no header decodes, or in one to four bytes anywhere.

    A header is a msgpack array, whose first byte has its top bit set; without it, it is a small integer.
    """
    copies = [bytearray(frame) for frame in frames]
    if not anywhere:
        copies[0][0] = chance.getrandbits(7)
        return [bytes(copy) for copy in copies]
    for _ in range(chance.randint(1, 4)):
        pos = chance.randrange(sum(map(len, copies)))
        for copy in copies:
            if pos < len(copy):
                copy[pos] ^= chance.randint(1, 255)
                break
            pos -= len(copy)
    return [bytes(copy) for copy in copies]
