"""A node: one process on the bus. Everything here may be called from any thread."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from edgebus.arrays import Array, pack_content
from edgebus.calls import FATAL, Pending, Reply
from edgebus.config import Limits
from edgebus.engine import Dialled, Engine, Handle
from edgebus.errors import ConfigError, InsecureError, NodeClosed, PeerUnreachable, QueueFull, WrongServerKey
from edgebus.hub import Judge, TapEvent
from edgebus.inbox import Inbox
from edgebus.keys import AllowList, Keys, is_key
from edgebus.link import Health
from edgebus.messages import INLINE_BYTES, MAX_TIMEOUT_S, ONE_WAY, PLAIN, STREAM, Block, Terms
from edgebus.policy import Policy
from edgebus.requests import Caller
from edgebus.stats import LinkStats, NodeStats, link_stats
from edgebus.stream import Stream
from edgebus.streams import Frames, Specs, content_bytes
from edgebus.wire import check_name, check_outgoing

if TYPE_CHECKING:
    from edgebus.topics import Publisher


_log = logging.getLogger("edgebus")


AnyInbox = TypeVar("AnyInbox", bound=Inbox)
MakeInbox = Callable[[Sequence[str], int, Callable[[Inbox], None]], AnyInbox]


class Link:
    """A link this node dialled; made by Node.connect."""

    def __init__(self, engine: Engine, dialled: Dialled) -> None:
        self._engine = engine
        self._dialled = dialled
        self._link = dialled.attached.link
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
        return self.send_request(service, payload, arrays, timeout_s, key=key, sequence=sequence, copy=copy).result()

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
        if not arrays and not key and sequence is None and type(payload) is bytes and len(payload) <= INLINE_BYTES:
            return self._start_small(service, payload, timeout_s)
        terms = None if not key and sequence is None else _terms(PLAIN, key, sequence)
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
        return self._start(service, payload, arrays, timeout_s, _terms(ONE_WAY, key, sequence), copy)

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
        if from_pos < 0 or window_bytes < 1:
            raise ValueError(f"from_pos must be >= 0 and window_bytes >= 1, got {from_pos} and {window_bytes}")
        if self._link.version < 2 and self._link.num_ups:
            raise ConfigError(f"{self.endpoint} speaks protocol version 1, streams need 2: upgrade it")
        terms = Terms(STREAM, from_pos=from_pos, window_bytes=window_bytes)
        pending = self._start(service, payload, arrays, timeout_s, terms, copy)
        return Stream(pending, from_pos, self._consume, self._engine.runner.wait)

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
        _check_transport(endpoint)
        if (server_key is not None) and (self._dialled.server_key is None or not is_key(server_key)):
            raise ConfigError(f"server_key for {endpoint} must be 40 characters of Z85, on a link that is secure")
        self._engine.runner.call(self._engine.move, self._dialled, endpoint, server_key or self._dialled.server_key)

    def close(self, linger_s: float = 1.0) -> None:
        """Say goodbye and close; outstanding requests end as NodeClosed. Closing twice is fine."""
        self._engine.runner.do_unless_closed(self._engine.hang_up, self._dialled, linger_s)

    def __enter__(self) -> Link:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start_small(self, service: str, payload: bytes, timeout_s: float) -> Pending:
        if service not in self._checked:
            check_name("service", service)
            self._checked.add(service)
        if 0 < timeout_s <= MAX_TIMEOUT_S:
            runner = self._engine.runner
            now = time.monotonic()
            pending = Pending(service, timeout_s, now + timeout_s, self._cancel, self.endpoint, runner.wait)
            if runner.do_small(self._engine.express.request, self._dialled.attached, service, payload, pending, now):
                return pending
        return self._start(service, payload, (), timeout_s, None, True)

    def _start(
        self,
        service: str,
        payload: bytes,
        arrays: Sequence[Array],
        timeout_s: float,
        terms: Terms | None,
        copy: bool,
    ) -> Pending:
        if not 0 < timeout_s <= MAX_TIMEOUT_S:
            raise ValueError(f"timeout_s must be in (0, {MAX_TIMEOUT_S:.0f}], got {timeout_s!r}")
        check_name("service", service)
        engine = self._engine
        runner = engine.runner
        blocks: tuple[Block, ...] | None = None
        shared = engine.put_shared(self._dialled.attached, arrays) if arrays else None
        if shared is not None:
            specs, blocks = shared
            frames: Frames = (bytes(payload),)
        else:
            specs, frames = pack_content(payload, arrays, copy)
        if (limits := self._link.peer_limits) is not None:
            check_outgoing(frames, specs, limits)
        deadline_at = time.monotonic() + timeout_s
        pending = Pending(service, timeout_s, deadline_at, self._cancel, self.endpoint, runner.wait)
        try:
            runner.do(engine.request, self._dialled, service, specs, frames, pending, terms, blocks)
        except QueueFull:
            if engine.limits.on_full != "wait":
                raise
            self._start_when_room(service, specs, frames, pending, terms, blocks)
        return pending

    def _start_when_room(
        self,
        service: str,
        specs: Specs,
        frames: Frames,
        pending: Pending,
        terms: Terms | None,
        blocks: tuple[Block, ...] | None,
    ) -> None:
        size_bytes, runner = content_bytes(frames), self._engine.runner
        room = _Room(self._link.caller, size_bytes)
        while True:
            if not runner.wait(room, pending.deadline_at):
                raise QueueFull(f"{pending.what}: no room for {size_bytes} B until its deadline, see Limits.on_full")
            try:
                runner.do(self._engine.request, self._dialled, service, specs, frames, pending, terms, blocks)
            except QueueFull:
                continue  # another thread was quicker
            return

    def _consume(self, pending: Pending, pos: int) -> None:
        self._engine.runner.do_unless_closed(self._engine.consume, self._dialled, pending, pos)

    def _cancel(self, pending: Pending) -> None:
        self._engine.runner.do_unless_closed(self._engine.cancel, self._dialled, pending)


class _Room(NamedTuple):
    """Room for a request, to wait for."""

    caller: Caller
    size_bytes: int

    @property
    def ready(self) -> bool:
        return self.caller.room_fault(self.size_bytes) is None

    def follow(self, wait_s: float) -> None:
        time.sleep(min(wait_s, 0.01))  # another thread drives, and does not know of us


class _Settled(NamedTuple):
    """A link that is being dialled, to wait for."""

    event: threading.Event

    @property
    def ready(self) -> bool:
        return self.event.is_set()

    def follow(self, wait_s: float) -> None:
        self.event.wait(wait_s)


def _terms(kind: int, key: bytes, sequence: tuple[int, int] | None) -> Terms:
    if len(key) > 64:
        raise ValueError(f"an idempotency key has at most 64 bytes, got {len(key)}")
    stream, pos = (-1, 0) if sequence is None else sequence
    if sequence is not None and not (0 <= stream < 2**63 and 0 <= pos < 2**63):
        raise ValueError(f"sequence is (stream, position), both in [0, 2**63), got {sequence!r}")
    return Terms(kind, bytes(key), stream, pos)


class Node:
    """One process on the bus: it listens, dials, or both. Use as a context manager, or close() it.

    Args:
        name: told to peers, at most 64 characters.
        keys: this node's key pair, from load_keys.
        allow: who may connect; None means nobody.
        insecure: True for plaintext without authentication, which excludes keys and allow.
        limits: bounds of memory and patience.

    Raises:
        ConfigError: arguments that contradict each other.
        ValueError: a name that is not UTF-8.

    >>> with Node("a", insecure=True) as a, Node("b", insecure=True) as b:
    ...     link = b.connect(a.bind("tcp://127.0.0.1:0"))
    ...     link.request("edgebus.ping", b"hello").payload
    b'hello'
    """

    def __init__(
        self,
        name: str = "node",
        keys: Keys | None = None,
        allow: AllowList | None = None,
        insecure: bool = False,
        limits: Limits | None = None,
    ) -> None:
        if insecure and (keys is not None or allow is not None):
            raise ConfigError(
                "insecure=True sends plaintext, keys and allow would have no effect: give one or the other"
            )
        if not 0 < len(name) <= 64:
            raise ConfigError(f"name must have 1..64 characters, got {len(name)}")
        check_name("name", name)
        self._name = name
        self._keys = keys
        self._allow = allow
        self._insecure = insecure
        self._limits = limits or Limits()
        self._inboxes: list[Inbox] = []
        self._lock = threading.Lock()
        self._closed = False
        self._publisher: Publisher | None = None
        # Plaintext peers are strangers all alike: whoever says insecure opens the guarded services too.
        policy = Policy(allow) if not insecure else None
        judge = None if policy is None else _judge(policy)
        self._engine = Engine(name, self._limits, keys, allow, judge)

    def bind(self, endpoint: str) -> str:
        """Listen at an endpoint such as tcp://127.0.0.1:0; returns the real one, port filled in.

        Raises:
            InsecureError: no keys, and not insecure=True.
            ConfigError: keys but no allow-list, so nobody could connect; or an unknown transport.
            BindError: the endpoint is taken.
        """
        _check_transport(endpoint)
        if not self._insecure and self._keys is None:
            raise InsecureError(
                f"{endpoint} would be plaintext: give keys=load_keys(DIR) and "
                "allow=AllowList.from_file(...), or insecure=True"
            )
        if not self._insecure and self._allow is None:
            raise ConfigError(
                f"{endpoint} has keys but no allow-list, so nobody could connect: give "
                "allow=AllowList.from_file(...) or AllowList.any()"
            )
        return self._engine.runner.call(self._engine.bind, endpoint)

    def serve(self, *services: str, depth: int = 1024) -> Inbox:
        """Take requests for these services into an inbox of at most `depth`; one peer fills at most half of it.

        Raises:
            ConfigError: no service, a name over 64 characters, or one that is served already.
            ValueError: a name that is not UTF-8.
            NodeClosed: the node is closed.
        """
        runner = self._engine.runner

        def make(services: Sequence[str], depth: int, unregister: Callable[[Inbox], None]) -> Inbox:
            return Inbox(services, depth, unregister, runner.wait, runner.nudge)

        return self.open_inbox(make, services, depth)

    def open_inbox(self, make: MakeInbox[AnyInbox], services: Sequence[str], depth: int) -> AnyInbox:
        """Like serve, for another kind of inbox.

        Args:
            make: called with services, depth and what unregisters the inbox that it returns.
        """
        if not services or depth < 1 or not all(0 < len(service) <= 64 for service in services):
            raise ConfigError(f"serve needs service names of 1..64 characters and depth >= 1, got {services}, {depth}")
        for service in services:
            check_name("service", service)
        inbox = make(services, depth, self._unserve)
        taken = self._engine.runner.do(self._engine.serve, inbox)
        if taken is not None:
            raise ConfigError(f"service {taken!r} is served already on this node: close its inbox first")
        with self._lock:
            if not self._closed:
                self._inboxes.append(inbox)
                return inbox
        inbox.shut()  # close() ran in between and has not seen it
        raise NodeClosed("the node was closed meanwhile: make a new Node")

    def handle(self, service: str, function: Handle) -> None:
        """Have a function called with each request for a service: for small services that answer at once or later.

        It is called on whichever thread drives the node, one call at a time, so it must be quick; requests that take
        their time belong into an inbox (serve). A request it raises on is refused "internal".

        Raises:
            ConfigError: the service is served already.
            ValueError: a name that cannot travel.
            NodeClosed: the node is closed.
        """
        check_name("service", service)
        if not self._engine.runner.do(self._engine.handle, service, function):
            raise ConfigError(f"service {service!r} is served already on this node")

    @property
    def name(self) -> str:
        """What it calls itself."""
        return self._name

    @property
    def limits(self) -> Limits:
        """Its bounds."""
        return self._limits

    @property
    def key(self) -> str | None:
        """Its public key, None if it is insecure."""
        return None if self._keys is None else self._keys.public

    @property
    def publisher(self) -> Publisher:
        """The topics of this node."""
        with self._lock:
            if self._publisher is None:
                from edgebus.topics import Publisher

                self._publisher = Publisher(self)
            return self._publisher

    def publish(self, topic: str, key: str, value: bytes) -> None:
        """Give a key of a topic of small state a value; peers follow it with edgebus.subscribe.

        Args and raises: as edgebus.topics.Publisher.publish.
        """
        self.publisher.publish(topic, key, value)

    def unpublish(self, topic: str, key: str) -> None:
        """Remove a key of a topic; nothing happens if it is not there."""
        self.publisher.unpublish(topic, key)

    def services(self) -> list[str]:
        """What is served here, sorted."""
        return self._engine.runner.do(self._engine.services)

    def busy(self, seconds: float, why: str = "") -> None:
        """Say that the application will not look at its requests for so long; 0 ends it.

        Peers see Health.BUSY instead of WEDGED, wait with resends, and do not take silence for the end.

        Args:
            seconds: 0..86400 from now.
            why: for this node's log.
        """
        if not 0 <= seconds <= MAX_TIMEOUT_S:
            raise ValueError(f"seconds must be in [0, {MAX_TIMEOUT_S:.0f}], got {seconds!r}")
        if why:
            _log.info("busy for %.1f s: %s", seconds, why)
        self._engine.runner.do(self._engine.busy, seconds)

    def tap(self, callback: Callable[[TapEvent], None]) -> Callable[[], None]:
        """Have a function called with every message in and out; returns what ends that.

        It is called in the middle of the node's work: it must be quick and must not call the node.
        """
        self._engine.runner.do(self._engine.tap, callback)
        return lambda: self._engine.runner.do_unless_closed(self._engine.untap, callback)

    def connect(self, endpoint: str, server_key: str | Sequence[str] | None = None, timeout_s: float = 5.0) -> Link:
        """Dial a node and wait until both have greeted.

        Args:
            endpoint: tcp://HOST:PORT, ipc://PATH, or inproc://NAME for a node of this process.
            server_key: its public key, 40 characters, or several that are tried in order (while it changes its key);
                None only if this node is insecure.
            timeout_s: seconds to wait; a wrong key is reported as soon as it shows.

        Raises:
            PeerUnreachable: nobody there, or it does not answer.
            KeyNotAllowed: the server's allow-list lacks our key.
            WrongServerKey: the server holds another key, or one side is plaintext.
            VersionMismatch: no common protocol version.
            InsecureError, ConfigError: the arguments do not fit the node, or max_peers links are open.
        """
        _check_transport(endpoint)
        server_keys = [server_key] if server_key is None or isinstance(server_key, str) else list(server_key)
        for each in server_keys:
            self._check_server_key(endpoint, each)
        if not server_keys:
            raise ConfigError(f"no server_key for {endpoint}: the list is empty, see read_public_keys")
        until = time.monotonic() + timeout_s
        for each in server_keys[:-1]:
            try:
                return self._connect(endpoint, each, max(0.0, until - time.monotonic()), timeout_s)
            except WrongServerKey:
                continue
        return self._connect(endpoint, server_keys[-1], max(0.0, until - time.monotonic()), timeout_s)

    def _connect(self, endpoint: str, server_key: str | None, wait_s: float, timeout_s: float) -> Link:
        runner = self._engine.runner
        dialled = runner.call(self._engine.dial, endpoint, server_key)
        runner.wait(_Settled(dialled.settled), time.monotonic() + wait_s)
        if dialled.failure is None and dialled.settled.is_set() and not self._closed:
            return Link(self._engine, dialled)
        why = dialled.watch.describe()
        runner.do_unless_closed(self._engine.hang_up, dialled, 0.0)
        if self._closed:
            raise NodeClosed(f"the node was closed while it connected to {endpoint}")
        if dialled.failure is not None:
            raise FATAL[dialled.failure.code](dialled.failure.detail)
        raise PeerUnreachable(f"no link after {timeout_s:.3g} s: {why}")

    def stats(self) -> NodeStats:
        """Totals, per peer, and what was turned away."""
        return self._engine.runner.do(self._engine.stats)

    def close(self, linger_s: float = 1.0) -> None:
        """Refuse what waits, cancel what is outstanding, say goodbye. Takes linger_s + 2 s at most."""
        if not self._engine.runner.is_own_process:
            return  # before the lock: another thread may have held it at the fork
        with self._lock:
            if self._closed:
                return
            self._closed = True
            inboxes = list(self._inboxes)
        for inbox in inboxes:
            inbox.shut()
        runner = self._engine.runner
        if runner.is_mine:  # a signal handler that came in the middle of something
            runner.defer(self._engine.shut_down, linger_s)
            return
        runner.look()  # answers that are here count, and who is gone is not waited for
        runner.do_unless_closed(self._engine.shut_down, linger_s)
        runner.join(linger_s + 2.0)

    def __enter__(self) -> Node:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _unserve(self, inbox: Inbox) -> None:
        with self._lock:
            self._inboxes = [each for each in self._inboxes if each is not inbox]
        self._engine.runner.do_unless_closed(self._engine.unserve, inbox)

    def _check_server_key(self, endpoint: str, server_key: str | None) -> None:
        if self._insecure:
            if server_key is not None:
                raise ConfigError("server_key given, but the node is insecure=True and would send plaintext: drop one")
            return
        if server_key is None:
            raise InsecureError(f"no server_key for {endpoint}: give the public key of the server, or insecure=True")
        if self._keys is None:
            raise InsecureError(f"no keys to prove who we are to {endpoint}: give keys=load_keys(DIR)")
        if not is_key(server_key):
            raise ConfigError(f"server_key must be 40 characters of Z85, got {len(server_key)}: see read_public_key")


def _judge(policy: Policy) -> Judge:
    def judge(key: str | None, service: str, num_bytes: int, now: float) -> tuple[str, str] | None:
        denial = policy.check(key, service, num_bytes, now=now, wall=time.time())
        return None if denial is None else (denial.code, denial.detail)

    return judge


def _check_transport(endpoint: str) -> None:
    if not endpoint.startswith(("tcp://", "ipc://", "inproc://")):
        raise ConfigError(f"endpoint {endpoint!r} is not tcp://HOST:PORT, ipc://PATH or inproc://NAME")
