"""What happens to an answer, as its user may watch it: `Stream.events()`.

Text is shown in one of three ways: committed (`Token`: final), speculative (`Speculative`: may change with the next
verdict) and unverified (`Unverified`: shown because no server could be asked, until it is verified or retracted).

Pure.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from sled.types import FinishReason, Token


class Opened(msgspec.Struct, frozen=True, tag=True):
    """A server holds the answer: at the beginning, after a takeover, and when it was lost and is back.

    `committed` is the text's length in tokens, prompt included.
    """

    server: str
    num_prompt: int
    committed: int
    window_limit: int
    at_s: float


class Speculative(msgspec.Struct, frozen=True, tag=True):
    """What is drafted behind the committed text now, as a whole: it replaces what was told before; empty is none."""

    from_pos: int
    tokens: tuple[int, ...]
    text: str


class RoundSent(msgspec.Struct, frozen=True, tag=True):
    """A round went to the server; `hoped` if it hangs on others still in flight. Times count from the start."""

    base: int
    drafted: int
    hoped: bool
    at_s: float


class RoundEnded(msgspec.Struct, frozen=True, tag=True):
    """A round has its verdict, or, with no tokens, none: its hope failed, or its server was lost."""

    base: int
    drafted: int
    accepted: int
    tokens: int
    window_limit: int
    batch: int
    sent_s: float
    at_s: float


class ServerLost(msgspec.Struct, frozen=True, tag=True):
    """The server could not be asked; what is done about it depends on `on_loss`."""

    server: str
    reason: str
    at_s: float


class Unverified(msgspec.Struct, frozen=True, tag=True):
    """One drafted token that is shown though nobody has verified it."""

    id: int
    pos: int
    text: str


class Retracted(msgspec.Struct, frozen=True, tag=True):
    """The unverified tokens from this position on were wrong; what is right follows as `Token`s."""

    from_pos: int


class Finished(msgspec.Struct, frozen=True, tag=True):
    """The answer is over; `reason` is empty where its end is unverified."""

    reason: FinishReason
    unverified: int
    at_s: float


Event: TypeAlias = (
    Opened | Speculative | RoundSent | RoundEnded | ServerLost | Unverified | Retracted | Token | Finished
)
