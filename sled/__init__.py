"""Speculative decoding across the network: devices draft, one shared server verifies; exactly the target's output.

import sled
with sled.Device("tcp://server:5555", server_key="server.key", keys="keys", drafter="ngram") as device:
    for token in device.generate("Why is the sky blue?"):
        print(token.text, end="", flush=True)

What needs numpy or asyncio is loaded on first use: `import sled` costs milliseconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sled.errors import (
    AnswerIncomplete,
    ParameterError,
    PromptTooLong,
    ProtocolError,
    ServerBusy,
    SessionUnknown,
    StaleBase,
    TargetChanged,
    UnknownModel,
    VocabularyMismatch,
)
from sled.types import Constraint, Logprob, Message, Sampling, Token
from sled.window import Window

if TYPE_CHECKING:
    from sled.proposal import Proposal
    from sled.run.aio import AsyncDevice, AsyncStream
    from sled.run.device import Answer, Device, Stream
    from sled.stats import Stats

_LAZY = {
    "Answer": "sled.run.device",
    "AsyncDevice": "sled.run.aio",
    "AsyncStream": "sled.run.aio",
    "Device": "sled.run.device",
    "Proposal": "sled.proposal",
    "Stats": "sled.stats",
    "Stream": "sled.run.device",
}

__all__ = [
    "Answer",
    "AnswerIncomplete",
    "AsyncDevice",
    "AsyncStream",
    "Constraint",
    "Device",
    "Logprob",
    "Message",
    "ParameterError",
    "PromptTooLong",
    "Proposal",
    "ProtocolError",
    "Sampling",
    "ServerBusy",
    "SessionUnknown",
    "StaleBase",
    "Stats",
    "Stream",
    "TargetChanged",
    "Token",
    "UnknownModel",
    "VocabularyMismatch",
    "Window",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'sled' has no attribute {name!r}")
    found = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
