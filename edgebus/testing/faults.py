"""Faults as values: what may happen to a cable, a node or a clock. SimNetwork makes them happen.

Those of a cable last while they are in force and add up; the others happen at an instant. A cable is named by its
two ends: both None is every cable, `b` None every cable of `a`. All of them print as what they are written as.

>>> loss(0.3, "device", "server", one_way=True)
loss(0.3, 'device', 'server', one_way=True)
"""

# ruff: noqa: N801 - they are words of a small language, and read as such in a script
from __future__ import annotations

from dataclasses import MISSING, dataclass, fields


class Fault:
    """Anything that may happen."""

    def __post_init__(self) -> None:
        for item in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            value = getattr(self, item.name)
            what = f"{type(self).__name__}: {item.name}"
            if (value is None and item.default is None) or item.name in ("a", "b"):
                continue
            if item.name == "probability" or item.name.endswith("_s") or item.name == "drift":
                if not isinstance(value, int | float):
                    raise TypeError(f"{what} must be a number, got {value!r}")
                if fault := _fault_of(item.name, value):
                    raise ValueError(f"{what} must be {fault}, got {value!r}")

    def __repr__(self) -> str:
        words, by_position = [], True
        for item in fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            by_position &= value != item.default and (item.default is MISSING or item.name in ("a", "b"))
            if value != item.default:
                words.append(repr(value) if by_position else f"{item.name}={value!r}")
        return f"{type(self).__name__}({', '.join(words)})"


def _fault_of(name: str, value: float) -> str | None:
    if name == "probability":
        return None if 0 <= value <= 1 else "0..1"
    if not abs(value) < float("inf"):
        return "finite"
    if name in ("bytes_per_s", "drift"):
        return None if value > 0 else "above 0"
    return None if value >= 0 or name in ("skew_s", "jump_s") else "0 or more"


# -- of a cable, while it lasts -------------------------------------------------------------------------


class CableFault(Fault):
    """Something that is wrong with the cable between two nodes while it is in force."""

    a: str | None
    b: str | None
    one_way: bool = False

    def covers(self, source: str, target: str) -> bool:
        """Whether a message from one node to the other suffers from it."""
        forward = self.a in (None, source) and self.b in (None, target)
        return forward or (not self.one_way and self.a in (None, target) and self.b in (None, source))


@dataclass(frozen=True, repr=False)
class loss(CableFault):
    """Messages vanish."""

    probability: float
    a: str | None = None
    b: str | None = None
    one_way: bool = False


@dataclass(frozen=True, repr=False)
class duplicate(CableFault):
    """Messages come twice."""

    probability: float
    a: str | None = None
    b: str | None = None
    one_way: bool = False


@dataclass(frozen=True, repr=False)
class delay(CableFault):
    """Messages take longer, by a time between the two."""

    least_s: float
    most_s: float
    a: str | None = None
    b: str | None = None
    one_way: bool = False


@dataclass(frozen=True, repr=False)
class reorder(CableFault):
    """Messages are held back and overtaken by later ones, also on a network that keeps the order otherwise."""

    probability: float
    by_s: float
    a: str | None = None
    b: str | None = None
    one_way: bool = False


@dataclass(frozen=True, repr=False)
class bandwidth(CableFault):
    """Messages queue up behind each other, each direction for itself."""

    bytes_per_s: float
    a: str | None = None
    b: str | None = None
    one_way: bool = False


@dataclass(frozen=True, repr=False)
class corrupt(CableFault):
    """Bytes flip. In the first byte of the header, where the receiver must notice and count it malformed, or anywhere.

    `anywhere` may turn a message into another valid one, which no receiver without a checksum can notice: over
    CURVE it cannot happen, and in plaintext a bus promises no more than not to break.
    """

    probability: float
    a: str | None = None
    b: str | None = None
    one_way: bool = False
    anywhere: bool = False


@dataclass(frozen=True, repr=False)
class partition(CableFault):
    """The cable is cut: messages vanish, those on their way too, and nobody is told."""

    a: str | None = None
    b: str | None = None


@dataclass(frozen=True, repr=False)
class half_open(CableFault):
    """One direction is dead: what `a` sends vanishes, what `b` sends arrives."""

    a: str | None
    b: str | None = None
    one_way = True


# -- at an instant --------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class heal(Fault):
    """Every fault of the cable between exactly these two ends is over."""

    a: str | None = None
    b: str | None = None


@dataclass(frozen=True, repr=False)
class reset(Fault):
    """Connections between two nodes break, both ends are told, and the dialling one dials again."""

    a: str
    b: str


@dataclass(frozen=True, repr=False)
class crash(Fault):
    """A node loses all memory and is away; `told` False is a power cut: peers hear of it when it is back.

    Without `down_s` it stays away until a `restart`.
    """

    node: str
    down_s: float | None = None
    told: bool = True


@dataclass(frozen=True, repr=False)
class restart(Fault):
    """A node starts without memory, after crashing if it was there."""

    node: str


@dataclass(frozen=True, repr=False)
class freeze(Fault):
    """A node stops as by SIGSTOP: it does nothing, its timers do not run, messages queue up; its clock goes on."""

    node: str
    for_s: float


@dataclass(frozen=True, repr=False)
class clock(Fault):
    """A node's clock is set so far ahead of the true one, goes at another rate, or jumps.

    At time 0 of a script it is so before the node does anything.
    """

    node: str
    skew_s: float | None = None
    drift: float | None = None
    jump_s: float = 0.0


FAULTS: tuple[type[Fault], ...] = (
    loss, duplicate, delay, reorder, bandwidth, corrupt, partition, half_open,
    heal, reset, crash, restart, freeze, clock,
)  # fmt: skip
"""Every word of the language."""
