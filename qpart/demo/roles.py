"""What the demonstration runs: three devices, their requests, and one request that nobody can serve."""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec

from qpart.profile import Channel, DeviceProfile, Request, Weights

NUM_IMAGES = 1000
"""Held-out images that every device answers, one at a time."""
NETS = {"fc": (2500, 120), "resnet": (1500, 80)}
"""Nets, and with how many inputs and random patterns each is calibrated."""
NET_NAMES = {"fc": "fully connected net", "resnet": "residual net"}
HOPELESS_ACCURACY = 1e-5
CLOSER_ACCURACY = 0.01
"""What the first device asks for when it comes back, instead of its own."""


@dataclass(frozen=True, slots=True)
class Role:
    """One device of the demonstration."""

    name: str
    net: str
    about: str
    request: Request

    def asking(self, accuracy: float) -> Role:
        """The same device with another accuracy."""
        return replace(self, request=msgspec.structs.replace(self.request, accuracy=accuracy))

    def arguments(self, accuracy: float | None = None) -> list[str]:
        """Options that make up the request, perhaps with another accuracy."""
        r = self.request
        options = {
            "accuracy": accuracy or r.accuracy,
            "inferences": r.inferences,
            "device-macs-per-s": r.device.macs_per_s,
            "joules-per-mac": r.device.joules_per_mac,
            "memory-bytes": r.device.memory_bytes,
            "up-bits-per-s": r.channel.up_bits_per_s,
            "down-bits-per-s": r.channel.down_bits_per_s,
            "round-trip-s": r.channel.round_trip_s,
            "tx-watts": r.channel.tx_watts,
            "rx-watts": r.channel.rx_watts,
            "weight-time": r.weights.time,
            "weight-energy": r.weights.energy,
            "weight-price": r.weights.price,
        }
        flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        return [*flags, "--raw-input-stays"] if r.raw_input_stays else flags


ROLES = (
    Role(
        "camera",
        "resnet",
        "208 KiB of memory, behind 200 kbit/s, on a battery; images must not leave it; accuracy drop 3 %",
        Request(
            accuracy=0.03,
            device=DeviceProfile(macs_per_s=5e7, joules_per_mac=1e-9, memory_bytes=208 << 10),
            channel=Channel(up_bits_per_s=2e5, down_bits_per_s=1e6, round_trip_s=0.05, tx_watts=0.5, rx_watts=0.2),
            weights=Weights(time=1.0, energy=0.5),
            inferences=100_000,
            raw_input_stays=True,
        ),
    ),
    Role(
        "sensor",
        "fc",
        "a slow processor on a good 10 Mbit/s; images must not leave it; accuracy drop 2 %",
        Request(
            accuracy=0.02,
            device=DeviceProfile(macs_per_s=2e7, joules_per_mac=1e-9, memory_bytes=4 << 20),
            channel=Channel(up_bits_per_s=1e7, down_bits_per_s=1e7, round_trip_s=0.002, tx_watts=0.2, rx_watts=0.1),
            inferences=100_000,
            raw_input_stays=True,
        ),
    ),
    Role(
        "phone",
        "fc",
        "a fast processor, 50 ms away from the server; accuracy drop 1 %",
        Request(
            accuracy=0.01,
            device=DeviceProfile(macs_per_s=1e9, joules_per_mac=1e-9, memory_bytes=64 << 20),
            channel=Channel(up_bits_per_s=5e6, down_bits_per_s=2e7, round_trip_s=0.05, tx_watts=1.0, rx_watts=0.5),
            inferences=100_000,
        ),
    ),
)
