"""A link that a node dialled: requests, one-way messages and streams. Everything here may be called from any thread."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from edgebus import seconds
from edgebus.arrays import Array, checked_content, pack_content
from edgebus.calls import Pending, Reply
from edgebus.config import check_transport
from edgebus.dialling import Dialled
from edgebus.engine import Engine
from edgebus.errors import ConfigError, QueueFull
from edgebus.keys import is_key
from edgebus.link_states import Health
from edgebus.loans import Loan
from edgebus.messages import INLINE_BYTES, MAX_TIMEOUT_S, ONE_WAY, PLAIN, Block, Terms, stream_terms, terms_of
from edgebus.outcomes import Outcome, Settled
from edgebus.requests import Caller
from edgebus.stats import LinkStats, link_stats
from edgebus.stream import Stream
from edgebus.streams import Frames, Specs, content_bytes
from edgebus.wire import check_name, check_outgoing

if TYPE_CHECKING:
    from numpy.typing import DTypeLike


_MOST_CHECKED = 256


class Link:
    """A link this node dialled; made by Node.connect."""

    def __init__(self, engine: Engine, dialled: Dialled) -> None:
        self._engine = engine
        self._dialled = dialled
        self._attached = dialled.attached
        self._link = dialled.attached.link
        self._wait, self._do_small = engine.runner.wait, engine.runner.do_small
        self._express, self._request_whole = engine.express, engine.express.request_whole
        self._near = engine.near
        self._checked: set[str] = set()  # service names that travel

    @property
    def endpoint(self) -> str:
        """Where the other node is."""
        return self._dialled.endpoint

    @property
    def peer_name(self) -> str:
        """What the other node calls itself."""
        return self._link.peer_name

    @property
    def health(self) -> Health:
        """Whether the peer can be reached, and if its application looks at its requests."""
        return self._link.health(time.monotonic())

    def request(
        self,
        service: str,
        payload: bytes = b"",
        arrays: Sequence[Array] = (),
        timeout_s: float = 10.0,
        *,
        key: bytes = b"",
        sequence: tuple[int, int] | None = None,
        copy: bool = True,
    ) -> Reply:
        """Send a request and wait for its reply; see send_request and Pending.result for what it raises."""
        if _is_small(payload, arrays) and not key and sequence is None:
            pending = self._start_small(service, payload, timeout_s)
        elif type(arrays) is list and arrays and not key and sequence is None:
            pending = self._start(service, payload, arrays, timeout_s, None, copy)
        else:
            pending = self.send_request(service, payload, arrays, timeout_s, key=key, sequence=sequence, copy=copy)
        try:
            return pending.result()
        except BaseException:
            if not pending.done():  # a signal handler has raised, and nobody else has it
                pending.cancel()
            raise

    def send_request(
        self,
        service: str,
        payload: bytes = b"",
        arrays: Sequence[Array] = (),
        timeout_s: float = 10.0,
        *,
        key: bytes = b"",
        sequence: tuple[int, int] | None = None,
        copy: bool = True,
    ) -> Pending:
        """Send a request; its outcome is known after timeout_s seconds at the latest.

        While the link is down the request waits; it is resent until answered, and executed once.

        Args:
            service: what is asked for, at most 64 characters.
            payload: opaque bytes.
            arrays: tensors; from 64 KiB on they travel beside the small messages, not in front of them.
            timeout_s: deadline, 0 < timeout_s <= 86400.
            key: idempotency key, at most 64 bytes: the peer executes one request with it and gives its answer to every
                other one, also if this process has restarted meanwhile.
            sequence: (stream, position): of a stream only the highest position counts, a request at a lower one that
                still waits over there is refused "stale", unlooked at.
            copy: False sends arrays as they lie in memory; they are read-only until nothing of them is needed.

        Raises:
            MessageTooLarge: the peer does not accept that much; nothing was sent.
            QueueFull: too much waits for an outcome already, and Limits.on_full says refuse.
            NodeClosed: the node is closed, or this is a forked child.
            ValueError, TypeError: an argument that cannot travel.
        """
        if not _is_small(payload, arrays):
            payload, arrays = checked_content(payload, arrays)
        if not key and sequence is None and _is_small(payload, arrays):
            return self._start_small(service, payload, timeout_s)
        terms = None if not key and sequence is None else terms_of(PLAIN, key, sequence)
        return self._start(service, payload, arrays, timeout_s, terms, copy)

    def send(
        self,
        service: str,
        payload: bytes = b"",
        arrays: Sequence[Array] = (),
        timeout_s: float = 10.0,
        *,
        key: bytes = b"",
        sequence: tuple[int, int] | None = None,
        copy: bool = True,
    ) -> Pending:
        """Send a message that needs no answer; its outcome is "answered" once the application over there has taken it.

        Args and raises: as send_request. A peer of protocol version 1 has to answer it.
        """
        return self._start(service, payload, arrays, timeout_s, terms_of(ONE_WAY, key, sequence), copy)

    def stream(
        self,
        service: str,
        payload: bytes = b"",
        arrays: Sequence[Array] = (),
        timeout_s: float = MAX_TIMEOUT_S,
        *,
        from_pos: int = 0,
        window_bytes: int = 1 << 20,
        copy: bool = True,
    ) -> Stream:
        """Ask for a stream of parts; iterate over what is returned.

        Args:
            service, payload, arrays, copy: as send_request.
            timeout_s: deadline of the whole stream.
            from_pos: first part wanted; the handler over there is told.
            window_bytes: how far the server may be ahead of what has been taken here.

        Raises:
            As send_request; ConfigError if the peer speaks protocol version 1, which has no streams.
        """
        terms = stream_terms(from_pos, window_bytes)
        if self._link.version < 2 and self._link.num_ups:
            raise ConfigError(f"{self.endpoint} speaks protocol version 1, streams need 2: upgrade it")
        pending = self._start(service, payload, arrays, timeout_s, terms, copy)
        return Stream(pending, terms.from_pos, self._consume, self._engine.runner.wait, abandon=self._abandon)

    def loan(self, shape: int | tuple[int, ...], dtype: DTypeLike = "float32") -> Loan:
        """An array to be filled in place and sent over this link once: it is not copied then.

        It lies in memory that the peer sees, where the peer is on this host and shares memory; else in ordinary memory,
        which is sent as it lies. Its first content is arbitrary.

        Args:
            shape: at most 8 dimensions.
            dtype: one of those that travel, little-endian.

        Raises:
            TypeError, ValueError: a dtype or shape that does not travel.
        """
        return self._engine.loan(self._attached, shape, dtype)

    def has_room(self, num_bytes: int) -> bool:
        """True if a request of this size would be accepted now, see Limits.max_outstanding_bytes and on_full."""
        return self._link.caller.outstanding_bytes + num_bytes <= self._engine.limits.max_outstanding_bytes

    def stats(self) -> LinkStats:
        """Counters of this link."""
        return link_stats(self._dialled.attached, self.endpoint, time.monotonic())

    def move(self, endpoint: str, server_key: str | None = None) -> None:
        """Go on at another address: the peer has moved, or another one takes over. Outstanding requests go there.

        Args:
            endpoint: the new address.
            server_key: the public key over there; None is the same as before.

        Raises:
            ConfigError: the address cannot be dialled, or a key was given to a plaintext link.
            NodeClosed: the node or link is closed.
        """
        check_transport(endpoint)
        if (server_key is not None) and (self._dialled.server_key is None or not is_key(server_key)):
            raise ConfigError(f"server_key for {endpoint} must be 40 characters of Z85, on a link that is secure")
        self._engine.runner.call(self._engine.move, self._dialled, endpoint, server_key or self._dialled.server_key)

    def close(self, linger_s: float = 1.0) -> None:
        """Say goodbye and close; outstanding requests end as NodeClosed. Closing twice is fine.

        One-way messages that were not taken over there yet are given up, too, and that is logged: wait for what `send`
        returned before, or close the node, which lets them arrive.

        Args:
            linger_s: for what is on its way, in the background.
        """
        self._engine.runner.do_or_defer(self._engine.hang_up, self._dialled, seconds.lingering(linger_s))

    def __enter__(self) -> Link:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start_small(self, service: str, payload: bytes, timeout_s: float) -> Pending:
        if service not in self._checked:
            self._check(service)
        kind = type(timeout_s)
        if (kind is not float and kind is not int) or not 0 < timeout_s <= MAX_TIMEOUT_S:
            timeout_s = seconds.deadline(timeout_s)
        now = time.monotonic()
        pending = Pending(service, timeout_s, now + timeout_s, self._cancel, self._dialled.endpoint, self._wait)
        if self._express.ask(self._attached, service, payload, pending, now):
            return pending
        return self._start(service, payload, (), timeout_s, None, True)

    def _start(  # noqa: PLR0912 - the hot path
        self,
        service: str,
        payload: bytes,
        arrays: Sequence[Array],
        timeout_s: float,
        terms: Terms | None,
        copy: bool,
    ) -> Pending:
        payload, arrays = checked_content(payload, arrays)
        kind = type(timeout_s)
        if (kind is not float and kind is not int) or not 0 < timeout_s <= MAX_TIMEOUT_S:
            timeout_s = seconds.deadline(timeout_s)
        if service not in self._checked:
            self._check(service)
        engine = self._engine
        runner = engine.runner
        blocks: tuple[Block, ...] | None = None
        if not arrays:
            shared = None
        elif self._attached.near is not None and self._attached.sharing == "yes":
            shared = self._near.put(self._attached, payload, arrays)
        else:  # not for a signal handler that came in the middle of the node's work
            shared = None if runner.is_mine else engine.put_shared(self._attached, payload, arrays)
        if shared is not None:
            specs, blocks = shared
            if terms is None:
                now = time.monotonic()
                pending = Pending(service, timeout_s, now + timeout_s, self._cancel, self._dialled.endpoint, self._wait)
                try:
                    if self._near.ask(self._attached, service, payload, specs, blocks, pending, now):
                        return pending
                except BaseException:  # interrupted, perhaps before it was anybody's
                    if pending.request_id is None:
                        engine.drop_shared(self._dialled.attached, blocks)
                    raise
            frames: Frames = (bytes(payload),)
        else:
            specs, frames = pack_content(payload, arrays, copy)
            if (
                specs
                and terms is None
                and (started := self._start_whole(service, specs, frames, timeout_s)) is not None
            ):
                return started
        try:
            packed = self._start_packed(service, specs, frames, timeout_s, terms, blocks)
            if packed is None:  # the peer has begun another life since: by sockets
                specs, frames = pack_content(payload, arrays, copy)
                packed = self._start_packed(service, specs, frames, timeout_s, terms, None)
            assert packed is not None
            return packed
        except BaseException:  # refused, or interrupted: perhaps it is nobody's
            if blocks is not None and not self._link.caller.has(blocks):
                engine.drop_shared(self._dialled.attached, blocks)
            raise

    def _check(self, service: str) -> None:
        check_name("service", service)
        if len(self._checked) >= _MOST_CHECKED:  # names made up at run time
            self._checked.clear()
        self._checked.add(service)

    def _start_whole(self, service: str, specs: Specs, frames: Frames, timeout_s: float) -> Pending | None:
        """Send a large request in one message; None if it has to go the usual way."""
        limits = self._link.peer_limits
        if limits is None or self._engine.runner.is_mine:
            return None
        check_outgoing(frames, specs, limits)
        now = time.monotonic()
        pending = Pending(service, timeout_s, now + timeout_s, self._cancel, self._dialled.endpoint, self._wait)
        done = self._do_small(self._request_whole, self._attached, service, specs, frames, pending, now)
        return pending if done else None

    def _start_packed(
        self,
        service: str,
        specs: Specs,
        frames: Frames,
        timeout_s: float,
        terms: Terms | None,
        blocks: tuple[Block, ...] | None,
    ) -> Pending | None:
        """Start a request the usual way; None if its blocks have gone."""
        engine = self._engine
        runner = engine.runner
        if (limits := self._link.peer_limits) is not None:
            check_outgoing(frames, specs, limits)
        deadline_at = time.monotonic() + timeout_s
        pending = Pending(service, timeout_s, deadline_at, self._cancel, self.endpoint, runner.wait)
        if runner.is_mine:
            end = Settled(pending, Outcome.CANCELLED)
            runner.defer(
                engine.request_late, self._dialled, service, specs, frames, pending, terms,
                if_closed=lambda: pending.settle(end),
            )  # fmt: skip
            return pending
        try:
            started = runner.do(engine.request, self._dialled, service, specs, frames, pending, terms, blocks)
        except QueueFull:
            if engine.limits.on_full != "wait":
                raise
            started = self._start_when_room(service, specs, frames, pending, terms, blocks)
        except BaseException:  # interrupted, perhaps between its start and its sending: nobody waits for it
            runner.defer(engine.give_up, self._dialled, pending)
            raise
        return pending if started else None

    def _start_when_room(
        self,
        service: str,
        specs: Specs,
        frames: Frames,
        pending: Pending,
        terms: Terms | None,
        blocks: tuple[Block, ...] | None,
    ) -> bool:
        size_bytes, runner = content_bytes(frames), self._engine.runner
        room = _Room(self._link.caller, size_bytes)
        while True:
            if not runner.wait(room, pending.deadline_at):
                raise QueueFull(f"{pending.what}: no room for {size_bytes} B until its deadline, see Limits.on_full")
            try:
                return runner.do(self._engine.request, self._dialled, service, specs, frames, pending, terms, blocks)
            except QueueFull:
                continue  # another thread was quicker

    def _abandon(self, pending: Pending) -> None:
        """Give up a request from the garbage collector."""
        self._engine.runner.defer(self._engine.cancel, self._dialled, pending)

    def _consume(self, pending: Pending, pos: int) -> None:
        self._engine.runner.do_or_defer(self._engine.consume, self._dialled, pending, pos)

    def _cancel(self, pending: Pending) -> None:
        self._engine.runner.do_or_defer(self._engine.cancel, self._dialled, pending)


def _is_small(payload: bytes, arrays: Sequence[Array]) -> bool:
    return type(payload) is bytes and len(payload) <= INLINE_BYTES and type(arrays) is tuple and not arrays


class _Room(NamedTuple):
    """Room for a request, to wait for."""

    caller: Caller
    size_bytes: int

    @property
    def ready(self) -> bool:
        return self.caller.room_fault(self.size_bytes) is None

    def follow(self, wait_s: float) -> None:
        time.sleep(min(wait_s, 0.01))  # another thread drives, and does not know of us
