"""Subscriptions to topics of small state: a table that keeps up with its publisher, and the changes as they come."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgebus import seconds, whole
from edgebus.balance import next_delay
from edgebus.errors import DeadlineExceeded, EdgebusError, LinkLost, PeerUnreachable, Refused, RemoteError
from edgebus.links import Link
from edgebus.payloads import decode, encode
from edgebus.replica import Changed, Event, Replica, ReplicaCounts
from edgebus.state import MAX_KEYS, MAX_TOPIC_BYTES, PART_BYTES, Part
from edgebus.topics import topic_service

if TYPE_CHECKING:
    from edgebus.stream import Stream

_TRANSIENT = frozenset({"busy", "closing", "unknown_service", "dropped", "forgotten"})
_WAIT_S = 3600.0  # at a time
_STREAM_S = 86_400.0  # the longest deadline there is; then the subscription asks anew from where it is
_WINDOW_BYTES = 4 * PART_BYTES
_MOST_EVENTS = 2 * MAX_KEYS
_BURST = 64  # parts taken in one go before the caller gets its answer


class BadState(RemoteError):
    """What a publisher sent is no state, or more of it than the subscription takes."""


class Subscription:
    """One topic of one publisher, kept up to date as long as somebody looks; made by subscribe().

    `get`, `snapshot` and the like first take in what has arrived. Changes wait here, the latest for each key, until
    they are iterated over; the publisher holds back what does not fit. When the link is lost or the publisher starts
    again it goes on from where it was. May be used from several threads.

    Attributes:
        topic: its name.
        num_forgotten: changes of keys dropped because nobody took 131,072 of them.
    """

    def __init__(self, link: Link, topic: str, *, max_keys: int = MAX_KEYS, max_bytes: int = MAX_TOPIC_BYTES) -> None:
        self.topic = topic
        self.num_forgotten = 0
        self._link = link
        self._service = topic_service(topic)
        self._replica = Replica(max_keys, max_bytes)
        self._events: dict[str, Event] = {}
        self._stream: Stream | None = None
        self._confirmed = False  # this stream has brought something
        self._delay_s, self._retry_at = 0.0, 0.0
        self._error: EdgebusError | None = None
        self._chance = random.Random()  # noqa: S311 - jitter, not a secret
        self._driving = threading.Lock()  # who waits on the stream
        self._lock = threading.Lock()  # the replica and the events; taken after _driving
        self._closed = threading.Event()

    @property
    def synced(self) -> bool:
        """True if it holds all that the publisher held a moment ago."""
        self._catch_up()
        return self._is_synced()

    @property
    def counts(self) -> ReplicaCounts:
        """What became of the parts that came: applied, stale, gaps, snapshots."""
        return self._replica.counts

    def get(self, key: str, default: bytes | None = None) -> bytes | None:
        """The value of a key as far as it has arrived.

        Raises:
            EdgebusError: the subscription cannot go on; the text says why.
        """
        self._catch_up()
        with self._lock:
            value = self._replica.get(key)
        return default if value is None else value

    def snapshot(self) -> dict[str, bytes]:
        """All keys and values as far as they have arrived; raises as get()."""
        self._catch_up()
        with self._lock:
            return self._replica.snapshot()

    def __len__(self) -> int:
        return len(self.snapshot())

    def __contains__(self, key: str) -> bool:
        return self.get(key) is not None

    def next(self, timeout_s: float | None = None) -> Event | None:
        """The next change: Changed(key, value, seq) or Removed(key).

        Args:
            timeout_s: seconds to wait; None waits until there is one.

        Returns:
            None after the timeout, or when the subscription is closed.

        Raises:
            EdgebusError: the subscription cannot go on.
        """
        until = time.monotonic() + seconds.wait(timeout_s)
        while True:
            with self._lock:
                if self._events:
                    return self._events.pop(next(iter(self._events)))
            left_s = until - time.monotonic()
            if not self._wait(min(max(0.0, left_s), _WAIT_S)) and (left_s <= 0 or self._closed.is_set()):
                return None

    def __iter__(self) -> Iterator[Event]:
        """Changes until the subscription is closed."""
        while (event := self.next()) is not None:
            yield event

    def wait_synced(self, timeout_s: float = 10.0) -> None:
        """Wait until it holds all that the publisher holds.

        Raises:
            DeadlineExceeded: not within timeout_s.
            EdgebusError: the subscription cannot go on.
        """
        timeout_s = seconds.wait(timeout_s)
        until = time.monotonic() + timeout_s
        while not self.synced:
            left_s = until - time.monotonic()
            if left_s <= 0 or self._closed.is_set():
                raise DeadlineExceeded(
                    f"{self.topic} at {self._link.endpoint} not synced after {timeout_s:.3g} s "
                    f"(link {self._link.health}): see that the server runs and publishes it"
                )
            self._wait(min(left_s, _WAIT_S))

    def close(self) -> None:
        """Stop; what has arrived stays readable. Closing twice is fine."""
        self._closed.set()
        stream = self._stream
        if stream is not None:
            stream.cancel()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _is_synced(self) -> bool:
        with self._lock:
            return self._confirmed and self._replica.synced and self._link.health != "down"

    def _catch_up(self) -> None:
        """Take in what has arrived, unless another thread is at it anyway."""
        if not self._driving.acquire(blocking=False):
            return
        try:
            for _ in range(_BURST):
                if not self._drive(0.0):
                    return
        finally:
            self._driving.release()

    def _wait(self, timeout_s: float) -> bool:
        """Wait for a part; True if there may be something new."""
        until = time.monotonic() + timeout_s
        if not self._driving.acquire(timeout=timeout_s):
            return False
        try:
            with self._lock:
                if self._events:
                    return True  # another thread took it in meanwhile
            return self._drive(max(0.0, until - time.monotonic()))
        finally:
            self._driving.release()

    def _drive(self, timeout_s: float) -> bool:
        """Take one part within timeout_s; True if one came. Only with _driving held."""
        if self._closed.is_set():
            return False
        if self._error is not None:
            raise self._error
        if self._stream is None:
            wait_s = self._retry_at - time.monotonic()
            if wait_s > 0 and (self._closed.wait(min(wait_s, timeout_s)) or wait_s > timeout_s):
                return False
            self._open()
        assert self._stream is not None
        part = self._stream.get(timeout_s)
        if part is None:
            if self._stream.ended and not self._closed.is_set():
                self._lost()
            return False
        self._take(part.payload)
        return True

    def _open(self) -> None:
        with self._lock:
            wanted = self._replica.subscribe()
            self._confirmed = False
        self._stream = self._link.stream(self._service, encode(wanted), timeout_s=_STREAM_S, window_bytes=_WINDOW_BYTES)
        if self._closed.is_set():  # close() ran in between and has not seen it
            self._stream.cancel()

    def _take(self, payload: bytes) -> None:
        try:
            part = decode(Part, payload)
            with self._lock:
                for event in self._replica.apply(part):
                    self._note(event)
                self._confirmed, self._delay_s = True, 0.0
        except ValueError as error:
            self._fail(BadState(f"{self.topic} at {self._link.endpoint}: {error}"))
        if self._replica.needs_repair:
            self._end_stream()

    def _note(self, event: Event) -> None:
        self._events.pop(event.key, None)  # the latest counts, and comes last
        if len(self._events) >= _MOST_EVENTS:
            del self._events[next(iter(self._events))]
            self.num_forgotten += 1
        self._events[event.key] = event

    def _lost(self) -> None:
        """The stream has ended: soon again, or never."""
        assert self._stream is not None
        try:
            self._stream.result()
        except Refused as error:
            if error.code not in _TRANSIENT:
                self._fail(error)
        except (DeadlineExceeded, LinkLost, PeerUnreachable):
            pass
        except EdgebusError as error:
            self._fail(error)
        self._end_stream()
        self._delay_s = next_delay(self._delay_s, self._chance)
        self._retry_at = time.monotonic() + self._delay_s

    def _end_stream(self) -> None:
        if self._stream is not None:
            self._stream.cancel()
        self._stream, self._confirmed = None, False

    def _fail(self, error: EdgebusError) -> None:
        self._end_stream()
        self._error = error
        raise error


def subscribe(
    link: Link,
    topic: str,
    timeout_s: float = 0.0,
    *,
    max_keys: int = MAX_KEYS,
    max_bytes: int = MAX_TOPIC_BYTES,
) -> Subscription:
    """Subscribe to a topic of the node at the other end of a link.

    Args:
        link: made by Node.connect; it must outlive the subscription.
        topic: at most 50 characters. One that is not published yet is waited for.
        timeout_s: wait so long until it is synced; 0 does not wait.
        max_keys: most keys it may have.
        max_bytes: most bytes of keys and values it may have.

    Raises:
        TypeError, ValueError: no link, no topic, or bounds that are no whole numbers.
        DeadlineExceeded: not synced within timeout_s.
        Refused: the publisher does not let us.
        BadState: what came is no state, or more than the bounds.
    """
    timeout_s = seconds.wait(timeout_s)
    if not isinstance(link, Link):
        raise TypeError(f"link must be what Node.connect returns, got {link!r}")
    max_keys, max_bytes = whole.number(max_keys, "max_keys", 0, 2**48), whole.number(max_bytes, "max_bytes", 0, 2**48)
    subscription = Subscription(link, topic, max_keys=max_keys, max_bytes=max_bytes)
    try:
        if timeout_s > 0:
            subscription.wait_synced(timeout_s)
    except BaseException:
        subscription.close()
        raise
    return subscription


__all__ = ["BadState", "Changed", "Event", "Subscription", "subscribe"]
