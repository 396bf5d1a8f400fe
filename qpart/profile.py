"""What a device, its channel and a server can do, what they cost, and what is asked for.

These values travel: a number out of its range is refused when the value is made, so when it is decoded too.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from qpart.errors import RequestError
from qpart.network import MAX_NODES
from qpart.tables import WIDTHS

MAX_CACHED = MAX_NODES * len(WIDTHS)
LayerTimes = Annotated[tuple[float, ...], msgspec.Meta(max_length=MAX_NODES)]
"""Seconds of every node of one network, for one sample."""
MAX_LAYER_S = 3600.0


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # not a number is out of every range
        raise RequestError(f"{name} is {value}, give {low:g} to {high:g}")


def _check_layers(layer_s: tuple[float, ...]) -> None:
    if len(layer_s) > MAX_NODES:
        raise RequestError(f"layer_s has {len(layer_s)} entries, give at most {MAX_NODES}")
    if not all(0.0 <= seconds <= MAX_LAYER_S for seconds in layer_s):  # not a number is out of every range
        raise RequestError(f"layer_s has times out of range, give seconds from 0 to {MAX_LAYER_S:g}")


class DeviceProfile(msgspec.Struct, frozen=True, kw_only=True):
    """A device's speed, its energy, and the memory it gives to its part.

    Attributes:
        macs_per_s: multiply-accumulates per second, where no layer was measured.
        joules_per_mac: energy of one of them.
        memory_bytes: what the device gives.
        watts: power while it computes beyond what it draws anyway; counts beside `joules_per_mac`.
        layer_s: measured seconds of every node of the network that is asked for; () where none was measured.

    Raises:
        RequestError: a number is out of range.
    """

    macs_per_s: float
    joules_per_mac: float
    memory_bytes: int
    watts: float = 0.0
    layer_s: LayerTimes = ()

    def __post_init__(self) -> None:
        _check("watts", self.watts, 0.0, 1e6)
        _check_layers(self.layer_s)
        _check("macs_per_s", self.macs_per_s, 1.0, 1e18)
        _check("joules_per_mac", self.joules_per_mac, 0.0, 1.0)
        _check("memory_bytes", self.memory_bytes, 1, 1 << 50)

    @classmethod
    def from_clock(cls, *, clock_hz: float, cycles_per_mac: float, kappa: float, memory_bytes: int) -> DeviceProfile:
        """The analytic model: gamma MACs / f seconds and kappa f^2 gamma MACs joules.

        Args:
            clock_hz: f.
            cycles_per_mac: gamma.
            kappa: effective capacitance of the chip, joules per cycle and Hz^2.
            memory_bytes: what the device gives.

        Source: arXiv 2506.23934.
        """
        _check("clock_hz", clock_hz, 1.0, 1e12)
        _check("cycles_per_mac", cycles_per_mac, 1e-6, 1e6)
        _check("kappa", kappa, 0.0, 1.0)
        return cls(
            macs_per_s=clock_hz / cycles_per_mac,
            joules_per_mac=kappa * clock_hz**2 * cycles_per_mac,
            memory_bytes=memory_bytes,
        )


class Channel(msgspec.Struct, frozen=True, kw_only=True):
    """The way between device and server: rates, round trip, and the device's radio power.

    Raises:
        RequestError: a number is out of range.
    """

    up_bits_per_s: float
    down_bits_per_s: float
    round_trip_s: float = 0.0
    tx_watts: float = 0.0
    rx_watts: float = 0.0

    def __post_init__(self) -> None:
        _check("up_bits_per_s", self.up_bits_per_s, 1.0, 1e15)
        _check("down_bits_per_s", self.down_bits_per_s, 1.0, 1e15)
        _check("round_trip_s", self.round_trip_s, 0.0, 3600.0)
        _check("tx_watts", self.tx_watts, 0.0, 1e6)
        _check("rx_watts", self.rx_watts, 0.0, 1e6)


class ServerProfile(msgspec.Struct, frozen=True, kw_only=True):
    """A server's speed and what a second of it costs.

    Attributes:
        macs_per_s: multiply-accumulates per second, where no layer was measured.
        price_per_s: of a second.
        layer_s: measured seconds of every node of the network that it serves; () where none was measured.

    Raises:
        RequestError: a number is out of range.
    """

    macs_per_s: float
    price_per_s: float = 0.0
    layer_s: LayerTimes = ()

    def __post_init__(self) -> None:
        _check_layers(self.layer_s)
        _check("macs_per_s", self.macs_per_s, 1.0, 1e18)
        _check("price_per_s", self.price_per_s, 0.0, 1e9)


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """What a second, a joule and a unit of money count in the objective: omega, tau and eta.

    Raises:
        RequestError: one is out of range, or all are 0.
    """

    time: float = 1.0
    energy: float = 0.0
    price: float = 0.0

    def __post_init__(self) -> None:
        for name in ("time", "energy", "price"):
            _check(f"weight of {name}", getattr(self, name), 0.0, 1e9)
        if self.time == self.energy == self.price == 0:
            raise RequestError("all weights are 0, give at least one above 0")


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a device asks for.

    Attributes:
        accuracy: largest accuracy drop it accepts, a share in (0, 1).
        device: what it can do.
        channel: how it is reached.
        weights: what it minds.
        inferences: over how many inferences the download counts.
        raw_input_stays: the input must not travel, in whatever shape.
        cached: (node, bits) of the pieces it has already.

    Raises:
        RequestError: a number is out of range.
    """

    accuracy: float
    device: DeviceProfile
    channel: Channel
    weights: Weights = Weights()
    inferences: int = 1
    raw_input_stays: bool = False
    cached: Annotated[frozenset[tuple[int, int]], msgspec.Meta(max_length=MAX_CACHED)] = frozenset()

    def __post_init__(self) -> None:
        if not 0.0 < self.accuracy < 1.0:
            raise RequestError(f"accuracy is {self.accuracy}, give a share of predictions above 0 and below 1")
        _check("inferences", self.inferences, 1, 10**12)
        if len(self.cached) > MAX_CACHED:
            raise RequestError(f"{len(self.cached)} cached pieces are named, give at most {MAX_CACHED}")
        for node, bits in self.cached:
            _check("node of a cached piece", node, 0, MAX_NODES - 1)
            if bits not in WIDTHS:
                raise RequestError(f"a cached piece has {bits} bits, give one of {WIDTHS}")
