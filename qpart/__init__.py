"""For each request a cut and bit widths: the device runs a quantised head of the network, the server the tail.

from qpart import Channel, Device, DeviceProfile, Request

with Device("tcp://server:5555", server_key="server.key", keys="keys", model="resnet") as device:
    profile = DeviceProfile(macs_per_s=1e9, joules_per_mac=1e-10, memory_bytes=1 << 20)
    channel = Channel(up_bits_per_s=1e6, down_bits_per_s=4e6)
    device.prepare(Request(accuracy=0.01, device=profile, channel=channel, inferences=1000))
    logits = device.infer(images)  # float32 (n, channels, height, width)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qpart.drift import DriftLimits
    from qpart.errors import (
        ArtefactError,
        Infeasible,
        ProtocolError,
        QpartError,
        RequestError,
        SegmentRejected,
        ShapeMismatch,
        UnknownModel,
        UnknownOperation,
        UnsupportedModel,
    )
    from qpart.messages import Planned
    from qpart.plan import Plan
    from qpart.profile import Channel, DeviceProfile, Request, ServerProfile, Weights
    from qpart.run.aio import AsyncDevice
    from qpart.run.cache import PieceCache
    from qpart.run.device import Device
    from qpart.run.stream import InferStream
    from qpart.run.traffic import Traffic

_HOMES = {
    "qpart.drift": ("DriftLimits",),
    "qpart.errors": (
        "ArtefactError",
        "Infeasible",
        "ProtocolError",
        "QpartError",
        "RequestError",
        "SegmentRejected",
        "ShapeMismatch",
        "UnknownModel",
        "UnknownOperation",
        "UnsupportedModel",
    ),
    "qpart.messages": ("Planned",),
    "qpart.plan": ("Plan",),
    "qpart.profile": (
        "Channel",
        "DeviceProfile",
        "Request",
        "ServerProfile",
        "Weights",
    ),
    "qpart.run.cache": ("PieceCache",),
    "qpart.run.device": ("Device",),
    "qpart.run.stream": ("InferStream",),
    "qpart.run.traffic": ("Traffic",),
    "qpart.run.aio": ("AsyncDevice",),
}
_LAZY = {name: home for home, names in _HOMES.items() for name in names}
"""Loaded on first use: asyncio is dear, and the commands must set what OpenMP reads before anything loads it."""

__all__ = [
    "ArtefactError",
    "AsyncDevice",
    "Channel",
    "Device",
    "DeviceProfile",
    "DriftLimits",
    "Infeasible",
    "InferStream",
    "PieceCache",
    "Plan",
    "Planned",
    "ProtocolError",
    "QpartError",
    "Request",
    "RequestError",
    "SegmentRejected",
    "ServerProfile",
    "ShapeMismatch",
    "Traffic",
    "UnknownModel",
    "UnknownOperation",
    "UnsupportedModel",
    "Weights",
]


if not TYPE_CHECKING:  # so that type checkers report names which do not exist

    def __getattr__(name: str) -> Any:
        if name not in _LAZY:
            raise AttributeError(f"module 'qpart' has no attribute {name!r}")
        found = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
