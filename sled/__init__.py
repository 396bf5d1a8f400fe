"""Speculative decoding across the network: devices draft, one shared server verifies; exactly the target's output.

import sled
with sled.Device("tcp://server:5555", server_key="server.key", keys="keys", drafter="ngram") as device:
    for token in device.generate("Why is the sky blue?"):
        print(token.text, end="", flush=True)
"""

from __future__ import annotations

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
from sled.run.device import Answer, Device, Stream
from sled.stats import Stats
from sled.types import Constraint, Logprob, Sampling, Token
from sled.window import Window

__all__ = [
    "Answer",
    "AnswerIncomplete",
    "Constraint",
    "Device",
    "Logprob",
    "ParameterError",
    "PromptTooLong",
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
