"""The server's side of the verification protocol as a state machine, pure: no sockets, models or clocks."""

from __future__ import annotations

from sled.server.counts import Gauges, Totals
from sled.server.limits import Refusal, ServerLimits, TargetShape
from sled.server.machine import Server
from sled.server.session import Answer, Form, Session, Step
from sled.server.windows import FixedWindow, WindowPolicy

__all__ = [
    "Answer",
    "FixedWindow",
    "Form",
    "Gauges",
    "Refusal",
    "Server",
    "ServerLimits",
    "Session",
    "Step",
    "TargetShape",
    "Totals",
    "WindowPolicy",
]
