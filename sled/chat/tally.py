"""The figures of an answer while it comes. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from sled.events import Event, Finished, Opened, RoundEnded, ServerLost, Unverified
from sled.types import Token

_SEPARATOR = " · "


@dataclass(slots=True)
class Tally:
    """Counts what the events of an answer tell.

    Attributes:
        server: endpoint of the server that holds the answer.
        state: "opening", "up", "lost" or "done".
        num_bytes: that its link has carried, as it was told last.
    """

    server: str
    state: str = "opening"
    tokens: int = 0
    unverified: int = 0
    drafted: int = 0
    accepted: int = 0
    rounds: int = 0
    decided: int = 0
    batch: int = 0
    round_trip_s: float = 0.0
    num_bytes: int = 0
    reason: str = ""
    first_at_s: float = field(default=-1.0)

    def apply(self, event: Event, *, now_s: float) -> None:
        """What has happened; `now_s` counts from the beginning of the answer."""
        match event:
            case Token():
                self.tokens += 1
                if self.first_at_s < 0:
                    self.first_at_s = now_s
            case Opened():
                self.server, self.state, self.reason = event.server, "up", ""
            case ServerLost():
                self.state, self.reason = "lost", event.reason
            case RoundEnded(drafted=drafted, accepted=accepted, tokens=tokens) if tokens:
                self.rounds += 1
                self.decided += tokens
                self.drafted += drafted
                self.accepted += accepted
                self.batch = event.batch
                took_s = event.at_s - event.sent_s
                self.round_trip_s += (took_s - self.round_trip_s) * (0.2 if self.round_trip_s else 1.0)
            case Unverified():
                self.unverified += 1
            case Finished():
                self.state = "done"
            case _:
                pass

    def line(self, now_s: float, width: int) -> str:
        """As many of the figures as fit, the most telling ones first."""
        rate = self.tokens / now_s if now_s > 0 else 0.0
        where = {"opening": "asking", "up": "up", "lost": "LOST", "done": "up"}[self.state]
        parts = [(0, f"{rate:.1f} tokens/s")]  # (what goes in first has the lowest number, text)
        if self.drafted:
            parts.append((2, f"{self.accepted / self.drafted:.0%} accepted"))
        if self.rounds:
            parts.append((4, f"{self.decided / self.rounds:.1f} a round"))
        if self.tokens and self.num_bytes:
            parts.append((6, f"{self.num_bytes / self.tokens:.0f} B a token"))
        if self.round_trip_s:
            parts.append((5, f"{self.round_trip_s * 1e3:.0f} ms"))
        parts.append((1 if self.state == "lost" else 3, f"{self.server.removeprefix('tcp://')} {where}"))
        chosen: set[int] = set()
        for number, _ in sorted(parts):
            if len(_SEPARATOR.join(text for each, text in parts if each in chosen | {number})) <= width:
                chosen.add(number)
        parts = [(number, text) for number, text in parts if number in chosen]
        return _SEPARATOR.join(text for _, text in parts)
