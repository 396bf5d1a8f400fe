"""What bounds the server: the target's shape, the operator's limits, and how a request is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sled.errors import ParameterError


class Refusal(Exception):
    """A request is answered with this code and sentence.

    Args:
        code: see docs/spec/sled-protocol.md.
        detail: one line for the user.
        info: the committed length (stale_base), or seconds after which to try again (busy, draining).
    """

    def __init__(self, code: str, detail: str, info: float | None = None) -> None:
        super().__init__(detail)
        self.code, self.detail, self.info = code, detail, info


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Bounds on what devices can make the server hold or do.

    Args:
        max_sessions: sessions held, over all devices.
        max_sessions_per_owner: sessions held for one device.
        max_waiting: rounds and streams that wait for a forward; beyond, requests are refused as busy.
        idle_s: a session without a request for so many seconds is forgotten.
        spare_s: and after so many, where there is no room for a new one else; its device opens it again if it lives.
        batch_tokens: tokens in one forward.
        prefill_beside_rounds: tokens of prefill in a forward that also carries rounds, where its cost is not known.
        share: whose texts share pages: "all" devices', those of one "owner", or "none". Whether a text was computed
            before shows in the time its first round takes, so devices of "all" can find out what others asked.
        rate: tokens per second promised to a session that names no rate.
        max_rate: the highest rate a session can ask for.
        max_promised_rate: sum of the rates promised; beyond, sessions are refused as busy. 0 is no bound.
        rejected_per_s: drafts per second that a device may have rejected for long; beyond, it is not verified drafts.
        rejected_burst: drafts that it may have rejected at once.

    Raises:
        ParameterError: a bound that lets nothing through.
    """

    max_sessions: int = 256
    max_sessions_per_owner: int = 32
    max_waiting: int = 1024
    idle_s: float = 600.0
    spare_s: float = 10.0
    batch_tokens: int = 512
    prefill_beside_rounds: int = 128
    share: Literal["all", "owner", "none"] = "all"
    rate: float = 10.0
    max_rate: float = 100.0
    max_promised_rate: float = 0.0
    rejected_per_s: float = 250.0
    rejected_burst: int = 1000

    def __post_init__(self) -> None:
        names = ("max_sessions", "max_sessions_per_owner", "max_waiting", "idle_s", "spare_s", "batch_tokens")
        for name in (*names, "prefill_beside_rounds", "rate", "max_rate", "rejected_burst"):
            if not getattr(self, name) > 0:
                raise ParameterError(f"{name} is {getattr(self, name)}, give more than 0")
        for name in ("max_promised_rate", "rejected_per_s"):
            if not getattr(self, name) >= 0:
                raise ParameterError(f"{name} is {getattr(self, name)}, give 0 or more")
        if self.share not in ("all", "owner", "none"):
            raise ParameterError(f"share is {self.share!r}, give all, owner or none")


@dataclass(frozen=True, slots=True)
class TargetShape:
    """What the machine must know of the target.

    Args:
        vocab_size: width of the logits.
        max_positions: context length.
        max_window: drafts per round that devices may send.
        stop_ids: tokens that end an answer.
        target_id: see `sled.messages.Described`.
        pieces: the bytes of every id, for stop texts; empty bytes for control tokens.
        page_tokens: positions in one page of keys and values.
        num_pages: pages there are.
        page_bytes: memory of one page over all layers.
    """

    vocab_size: int
    max_positions: int
    max_window: int
    stop_ids: frozenset[int]
    target_id: bytes = b""
    pieces: Sequence[bytes] = ()
    page_tokens: int = 16
    num_pages: int = 4096
    page_bytes: int = 0

    @property
    def pool_tokens(self) -> int:
        """Positions of all pages."""
        return self.num_pages * self.page_tokens
