"""Replays a recording: its requests are sent again, and the answers are held against the recorded ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from edgebus.arrays import view_arrays
from edgebus.assembly import Assembler
from edgebus.errors import EdgebusError, LocalError, Refused
from edgebus.messages import ONE_WAY, STREAM, Refusal, Reply, Request, decode_header
from edgebus.recorder import Lost, Traffic
from edgebus.wire import arrays_fault

if TYPE_CHECKING:
    from edgebus.calls import Pending
    from edgebus.links import Link

MAX_OUTSTANDING = 256
_KEPT_DIFFERENCES = 100


@dataclass(slots=True)
class Tally:
    """What became of a replay.

    Attributes:
        sent: requests sent again.
        same: answers equal to the recorded ones: reply byte for byte, or a refusal with the same code.
        different: answers that are not; the first 100 are described in `differences`.
        uncompared: requests whose recorded answer is not there.
        skipped: requests not sent, by reason.
        lost: messages that the recording says it lacks.
    """

    sent: int = 0
    same: int = 0
    different: int = 0
    uncompared: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    differences: list[str] = field(default_factory=list)

    def skip(self, reason: str) -> None:
        """Count a request that cannot be sent."""
        self.skipped[reason] = self.skipped.get(reason, 0) + 1


class Replay:
    """Sends requests in the order and, if wanted, at the pace of the recording.

    Args:
        link: where to.
        pattern: only services that fit; the bus's own are never sent.
        speed: 1.0 is the recorded pace, 2.0 twice that; inf does not wait.
        direction: "in" replays what the recorded node was asked, "out" what it asked others.
        timeout_s: for each answer.
        clock, sleep: of the pace.
    """

    def __init__(
        self,
        link: Link,
        *,
        pattern: str = "*",
        speed: float = 1.0,
        direction: Literal["in", "out"] = "in",
        timeout_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._link = link
        self._pattern = pattern
        self._speed = speed
        self._direction = direction
        self._timeout_s = timeout_s
        self._clock = clock
        self._sleep = sleep
        self._origin: tuple[float, float] | None = None  # recorded and real time of the first request
        self._assembler = Assembler()
        self._waiting: dict[tuple[str, int], tuple[str, Pending]] = {}  # by peer and request id, oldest first
        self.tally = Tally()

    def run(self, records: Iterable[Traffic | Lost]) -> Tally:
        """Everything; the answers that the recording lacks are waited for too."""
        for record in records:
            if isinstance(record, Lost):
                self.tally.lost += record.count
                continue
            for each in self._assembler.feed(record, _header(record)):
                self._take(*each)
        for each in self._assembler.rest():
            self._take(*each)
        while self._waiting:
            self._give_up_oldest()
        return self.tally

    def _take(self, record: Traffic, header: Any) -> None:
        if isinstance(header, Request) and record.direction == self._direction:
            self._request(record, header)
        elif isinstance(header, Reply | Refusal) and record.direction != self._direction:
            self._answer(record, header)

    def _request(self, record: Traffic, header: Request) -> None:
        token = (record.peer_id, header.id)
        kind = header.terms.kind if header.terms is not None else 0
        if header.service.startswith("edgebus.") or not fnmatchcase(header.service, self._pattern):
            return
        if token in self._waiting:
            return  # the same request once more: its caller had waited too long
        if kind == STREAM:
            self.tally.skip("streams")
        elif (
            not record.is_whole
            or len(record.sizes) != 1 + len(header.arrays)
            or arrays_fault(header.arrays, record.frames[1:])
        ):
            self.tally.skip("without contents")
        else:
            self._pace(record.at)
            if len(self._waiting) >= MAX_OUTSTANDING:
                self._give_up_oldest()
            send = self._link.send if kind == ONE_WAY else self._link.send_request
            arrays = view_arrays(header.arrays, record.frames[1:])
            try:
                pending = send(header.service, record.frames[0], arrays, self._timeout_s)
            except LocalError as error:
                self._differ(header.service, f"could not be sent: {error}")
                return
            self.tally.sent += 1
            self._waiting[token] = (header.service, pending)

    def _answer(self, record: Traffic, header: Reply | Refusal) -> None:
        found = self._waiting.pop((record.peer_id, header.id), None)
        if found is None:
            return
        service, pending = found
        if isinstance(header, Reply) and not record.is_whole:
            self._settle(pending)
            self.tally.uncompared += 1
            return
        then = (header.code, ()) if isinstance(header, Refusal) else ("answered", tuple(record.frames))
        now = self._settle(pending)
        if then == now:
            self.tally.same += 1
        else:
            self._differ(service, _difference(then, now))

    def _settle(self, pending: Pending) -> tuple[str, tuple[bytes, ...]]:
        """How the request ended now: "answered" and its frames, or a code."""
        try:
            reply = pending.result()
        except Refused as error:
            return error.code, ()
        except EdgebusError as error:
            return type(error).__name__, ()
        return "answered", (bytes(reply.payload), *(array.tobytes() for array in reply.arrays))

    def _give_up_oldest(self) -> None:
        """A request whose recorded answer has not come: whatever it gets now cannot be compared."""
        token = next(iter(self._waiting))
        _, pending = self._waiting.pop(token)
        self._settle(pending)
        self.tally.uncompared += 1

    def _pace(self, at: float) -> None:
        if self._speed == float("inf"):
            return
        if self._origin is None:
            self._origin = (at, self._clock())
        due = self._origin[1] + (at - self._origin[0]) / self._speed
        wait_s = due - self._clock()
        if wait_s > 0:
            self._sleep(min(wait_s, 3600.0))  # a recording's times are not to be trusted with the afternoon

    def _differ(self, service: str, what: str) -> None:
        self.tally.different += 1
        if len(self.tally.differences) < _KEPT_DIFFERENCES:
            self.tally.differences.append(f"request {self.tally.sent} {service}: {what}")


def _header(record: Traffic) -> Any:
    try:
        return decode_header(record.header)
    except (msgspec.MsgspecError, RecursionError, ValueError, OverflowError):
        return None


def _difference(then: tuple[str, Sequence[bytes]], now: tuple[str, Sequence[bytes]]) -> str:
    if then[0] != now[0]:
        return f"was {then[0]}, is {now[0]}"
    if len(then[1]) != len(now[1]):
        return f"the answer had {len(then[1])} frames, has {len(now[1])}"
    for index, (old, new) in enumerate(zip(then[1], now[1], strict=True)):
        if old != new:
            at = next(
                (pos for pos, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]),
                min(len(old), len(new)),
            )
            return f"frame {index} differs from byte {at} on ({len(old)} B then, {len(new)} B now)"
    return "the same"
