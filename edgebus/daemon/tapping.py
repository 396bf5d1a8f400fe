"""The service `edgebus.tap`: what a node sends and receives, as a stream to whoever may see it.

Memory is bounded per tap: where the reader, or the way to it, is slower than the traffic, messages are left out,
counted, and the next part says how many. Links that tap are not shown, else two taps would feed each other.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, Protocol

import msgspec
from msgspec import Meta

from edgebus import serving
from edgebus.errors import EdgebusError
from edgebus.messages import Content, Header, encode_header
from edgebus.payloads import Payload, decode
from edgebus.recorder import MAX_FRAMES, Lost, Traffic, encode_records

TAP_SERVICE = "edgebus.tap"
MAX_TAPS = 4
BUFFER_BYTES = 4 << 20
PART_BYTES = 256 << 10
_RECORD_BYTES = 256  # what a record costs besides its frames, about
_MAX_FOLLOWED = 4096
_log = logging.getLogger("edgebus.node")


class TapRequest(Payload, frozen=True):
    """What to show: services by pattern ("*" is everything, also what belongs to no service), contents or not."""

    pattern: Annotated[str, Meta(min_length=1, max_length=64)] = "*"
    content_bytes: Annotated[int, Meta(ge=0, le=BUFFER_BYTES // 4)] = 0
    """Contents of messages up to this size; 0 shows headers and sizes alone."""


class Seen(Protocol):
    """A TapEvent of the node."""

    at: float
    direction: Literal["in", "out"]
    peer_id: str
    peer_key: str | None
    peer_name: str
    lane: Literal["control", "bulk"]
    header: Header
    sizes: tuple[int, ...]
    frames: tuple[Any, ...]


class Stream(Protocol):
    """The part of a Request that a tap uses."""

    def push(self, payload: bytes = b"", arrays: Sequence[Any] = (), timeout_s: float | None = None) -> int: ...


def to_record(event: Seen, content_bytes: int) -> Traffic:
    """What was seen, with all frames if they have content_bytes at most together, else none.

    A payload that travels inside its header is taken out of it: a record without contents has none.
    """
    header: Any = event.header
    if getattr(header, "inline", None) is not None:
        header = msgspec.structs.replace(header, inline=None)
    frames, sizes = event.frames, _sizes(header, event.sizes)
    shown = 0 < content_bytes >= sum(sizes) and tuple(map(_len, frames)) == sizes and len(sizes) <= MAX_FRAMES
    return Traffic(
        event.at,
        event.direction,
        event.peer_id,
        event.peer_key or "",
        event.peer_name,
        event.lane,
        encode_header(header),
        sizes[:MAX_FRAMES],
        tuple(map(bytes, frames)) if shown else (),
    )


class Tap:
    """One reader: what it asked for, what waits for it.

    Args:
        wanted: its request.
        buffer_bytes: bound of what waits.
    """

    def __init__(self, wanted: TapRequest, buffer_bytes: int = BUFFER_BYTES) -> None:
        self._wanted = wanted
        self._most = buffer_bytes
        self._filled = threading.Condition()
        self._waiting: deque[Traffic] = deque()
        self._bytes = 0
        self._lost = 0
        self._closed = False
        self._followed: OrderedDict[tuple[str, str, str, int], None] = OrderedDict()

    def offer(self, event: Seen) -> None:
        """Take a message, or count it as lost (the node's driving thread: never waits for long)."""
        if not self._wants(event):
            return
        record = to_record(event, self._wanted.content_bytes)
        cost = _cost(record)
        with self._filled:
            if self._closed:
                return
            if self._bytes + cost > self._most:
                self._lost += 1
                return
            self._waiting.append(record)
            self._bytes += cost
            self._filled.notify()

    def take(self, timeout_s: float | None = None) -> list[Traffic | Lost]:
        """The next part: what waits, oldest first, up to PART_BYTES, then what was lost. Empty after close."""
        with self._filled:
            self._filled.wait_for(lambda: self._waiting or self._lost or self._closed, timeout_s)
            part: list[Traffic | Lost] = []
            size = 0
            while self._waiting and size < PART_BYTES and not self._closed:
                record = self._waiting.popleft()
                size += _cost(record)
                self._bytes -= _cost(record)
                part.append(record)
            if self._lost and not self._waiting:  # they came after everything that waited
                part.append(Lost(self._lost))
                self._lost = 0
            return part

    def close(self) -> None:
        """End take()."""
        with self._filled:
            self._closed = True
            self._waiting.clear()
            self._filled.notify_all()

    def serve(self, stream: Stream) -> None:
        """Push parts until nobody wants them any more; the first is empty: from now on nothing is missed."""
        stream.push(encode_records(()))
        while part := self.take():
            stream.push(encode_records(part))

    def _wants(self, event: Seen) -> bool:
        pattern = self._wanted.pattern
        if pattern == "*":
            return True
        header = event.header
        service, number = getattr(header, "service", None), getattr(header, "id", None)
        transfer = getattr(header, "transfer", None)
        if isinstance(transfer, int):  # a chunk, its credit or its end
            return self._follows("transfer", event, transfer)
        if service is not None and number is not None:
            if not fnmatchcase(service, pattern):
                return False
            self._follow("request", event, number)
        elif number is None or not self._follows("request", event, number):
            return False
        if transfer is not None:
            self._follow("transfer", event, transfer.id)
        return True

    def _follow(self, what: str, event: Seen, number: int) -> None:
        self._followed[what, event.peer_id, event.direction, number] = None
        if len(self._followed) > _MAX_FOLLOWED:
            self._followed.popitem(last=False)

    def _follows(self, what: str, event: Seen, number: int) -> bool:
        # An answer or credit goes the other way than what it belongs to, a cancel and a chunk the same way.
        return any((what, event.peer_id, way, number) in self._followed for way in ("in", "out"))


class TapService:
    """Serves edgebus.tap on a node: a thread per reader, at most MAX_TAPS of them.

    Args:
        tap_node: Node.tap.
        contents: False shows headers and sizes alone, whatever is asked for.
    """

    def __init__(self, tap_node: Callable[[Callable[[Any], None]], Callable[[], None]], *, contents: bool) -> None:
        self._tap_node = tap_node
        self._contents = contents
        self._lock = threading.Lock()
        self._taps: dict[Tap, tuple[str, threading.Thread]] = {}
        self._closed = False

    def handle(self, request: Any) -> None:
        """Take a request for the stream (Node.handle)."""
        if not request.is_stream:
            serving.refuse(request, "not_a_stream", f"{TAP_SERVICE} answers as a stream: link.stream, or edgebus tap")
            return
        try:
            wanted = decode(TapRequest, bytes(request.payload))
        except ValueError as error:
            serving.refuse(request, "malformed", str(error)[:500])
            return
        if not self._contents and wanted.content_bytes:
            serving.refuse(request, "no_contents", 'this node shows headers only: tap = "content" in its settings')
            return
        tap = Tap(wanted)
        with self._lock:
            if self._closed or len(self._taps) >= MAX_TAPS:
                serving.refuse(request, "busy", f"{len(self._taps)} taps are open, {MAX_TAPS} are served: end one")
                return
            thread = threading.Thread(target=self._serve, args=(tap, request), name="edgebus-tap", daemon=True)
            self._taps[tap] = (request.peer.id, thread)
        thread.start()
        _log.info("tap opened", extra={"peer": request.peer.name, "peer_key": request.peer.key or ""})

    def close(self, timeout_s: float = 2.0) -> None:
        """End all taps; the node has to be closing, so that pushes end too."""
        with self._lock:
            self._closed = True
            threads = [thread for _, thread in self._taps.values()]
            for tap in self._taps:
                tap.close()
        until = time.monotonic() + timeout_s
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _serve(self, tap: Tap, request: Any) -> None:
        # From this thread, not from handle(): that one is not to wait for the node it drives.
        remove = self._tap_node(lambda event: self._offer(tap, event))
        try:
            with contextlib.suppress(EdgebusError):  # nobody wants it any more, or the node is closed
                tap.serve(request)
                request.refuse("closing", "the node is closing")
        finally:
            remove()
            with self._lock:
                del self._taps[tap]

    def _offer(self, tap: Tap, event: Seen) -> None:
        if all(event.peer_id != peer_id for peer_id, _ in tuple(self._taps.values())):
            tap.offer(event)


def _cost(record: Traffic) -> int:
    return _RECORD_BYTES + len(record.header) + sum(map(len, record.frames))


def _sizes(header: Any, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Of all content, also what follows in chunks or lies in shared memory and is not in this message."""
    if isinstance(header, Content) and header.transfer is not None:
        return header.transfer.sizes
    blocks = getattr(header, "blocks", None) or ()
    return (*sizes, *(block.size for block in blocks))


def _len(frame: Any) -> int:
    return memoryview(frame).nbytes
