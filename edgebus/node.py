"""A node: one process on the bus. Everything here may be called from any thread."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext, suppress
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from edgebus import whole
from edgebus.calls import FATAL
from edgebus.config import Limits, check_transport
from edgebus.engine import Engine
from edgebus.engine_delivering import Handle
from edgebus.errors import ConfigError, InsecureError, NodeClosed, PeerUnreachable, WrongServerKey
from edgebus.inbox import Inbox
from edgebus.keys import AllowList, Keys, is_key
from edgebus.links import Link
from edgebus.policy import Policy
from edgebus.seconds import deadline, lingering
from edgebus.stats import NodeStats
from edgebus.taps import TapEvent
from edgebus.wire import check_name

if TYPE_CHECKING:
    from edgebus.dialling import Dialled
    from edgebus.topics import Publisher


_log = logging.getLogger("edgebus")
_MOST_WAITING = 2**31 - 1


AnyInbox = TypeVar("AnyInbox", bound=Inbox)
MakeInbox = Callable[[Sequence[str], int, Callable[[Inbox], None]], AnyInbox]


class _Delivered(NamedTuple):
    """One-way messages that somebody can still take, to wait for."""

    engine: Engine

    @property
    def ready(self) -> bool:
        return not self.engine.has_undelivered()

    def follow(self, wait_s: float) -> None:
        time.sleep(min(wait_s, 0.01))  # another thread drives, and does not know of us


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
        TypeError: an argument of another type than said here.
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
        if not isinstance(insecure, bool):  # "false" out of a file or the environment would send plaintext
            raise TypeError(f"insecure must be True or False, got {insecure!r}")
        if limits is not None and not isinstance(limits, Limits):
            raise TypeError(f"limits must be Limits(...) or None, got {limits!r}")
        if keys is not None and not isinstance(keys, Keys):
            raise TypeError(f"keys must be what load_keys(DIR) returns, got {type(keys).__name__}")
        if allow is not None and not isinstance(allow, AllowList):
            raise TypeError(f"allow must be AllowList.from_file(...) or AllowList.any(), got {allow!r}")
        if insecure and (keys is not None or allow is not None):
            raise ConfigError(
                "insecure=True sends plaintext, keys and allow would have no effect: give one or the other"
            )
        if isinstance(name, str) and not 0 < len(name) <= 64:
            raise ConfigError(f"name must have 1..64 characters, got {len(name)}")
        check_name("name", name)
        self._name = name
        self._keys = keys
        self._allow = allow
        self._insecure = insecure
        self._limits = limits or Limits()
        self._inboxes: list[Inbox] = []
        self._lock = threading.RLock()  # a signal handler may close in the middle of it
        self._closed = False
        self._publisher: Publisher | None = None
        # Plaintext peers are strangers all alike: whoever says insecure opens the guarded services too.
        policy = Policy(allow, wall=time.time) if not insecure else None
        judge = None if policy is None else policy.judge
        self._engine = Engine(name, self._limits, keys, allow, judge)

    def bind(self, endpoint: str) -> str:
        """Listen at an endpoint such as tcp://127.0.0.1:0; returns the real one, port filled in.

        Raises:
            InsecureError: no keys, and not insecure=True.
            ConfigError: keys but no allow-list, so nobody could connect; or an unknown transport.
            BindError: the endpoint is taken.
        """
        check_transport(endpoint)
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
        runner = self._engine.runner
        socket_id = runner.sockets.reserve(endpoint)
        try:
            return runner.call(self._engine.bind, endpoint, socket_id)
        except BaseException:  # of a signal handler: nobody knows that it listens
            runner.do_or_defer(self._engine.unbind, socket_id)
            raise

    def serve(self, *services: str, depth: int = 1024) -> Inbox:
        """Take requests for these services into an inbox of at most `depth`; one peer fills at most half of it.

        Raises:
            ConfigError: no service, a name over 64 characters, or one that is served already.
            TypeError: a name that is no string, or a depth that is no whole number.
            ValueError: a name that is not UTF-8, or a depth over 2**31 - 1.
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
        depth = whole.number(depth, "depth", -_MOST_WAITING, _MOST_WAITING)
        if not services or depth < 1 or not all(0 < len(each) <= 64 for each in services if isinstance(each, str)):
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
        _check_callable("function", function)
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
        seconds = deadline(seconds, "seconds", zero=True)
        if why:
            _log.info("busy for %.1f s: %s", seconds, why)
        self._engine.runner.do(self._engine.busy, seconds)

    def tap(self, callback: Callable[[TapEvent], None]) -> Callable[[], None]:
        """Have a function called with every message in and out; returns what ends that.

        It is called in the middle of the node's work: it must be quick and must not call the node.
        """
        _check_callable("callback", callback)
        self._engine.runner.do(self._engine.tap, callback)
        return lambda: self._engine.runner.do_unless_closed(self._engine.untap, callback)

    def connect(self, endpoint: str, server_key: str | Sequence[str] | None = None, timeout_s: float = 5.0) -> Link:
        """Dial a node and wait until both have greeted.

        Args:
            endpoint: tcp://HOST:PORT, ipc://PATH, or inproc://NAME for a node of this process.
            server_key: its public key, 40 characters, or several that are tried in order (while it changes its key),
                now and whenever a link that was up finds another key there; None only if this node is insecure.
            timeout_s: seconds to wait; a wrong key is reported as soon as it shows.

        Raises:
            PeerUnreachable: nobody there, or it does not answer.
            KeyNotAllowed: the server's allow-list lacks our key.
            WrongServerKey: the server holds another key, or one side is plaintext.
            VersionMismatch: no common protocol version.
            InsecureError, ConfigError: the arguments do not fit the node, or max_peers links are open.
        """
        check_transport(endpoint)
        timeout_s = deadline(timeout_s, zero=True)
        if not (server_key is None or isinstance(server_key, str | Iterable)):
            raise TypeError(f"server_key must be a string, or several, got {server_key!r}")
        server_keys = [server_key] if server_key is None or isinstance(server_key, str) else list(server_key)
        for each in server_keys:
            self._check_server_key(endpoint, each)
        if not server_keys:
            raise ConfigError(f"no server_key for {endpoint}: the list is empty, see read_public_keys")
        until = time.monotonic() + timeout_s
        dialled: list[Dialled] = []
        try:
            for index, each in enumerate(server_keys):
                others = tuple(str(other) for other in (*server_keys[index + 1 :], *server_keys[:index]))
                with suppress(WrongServerKey) if index < len(server_keys) - 1 else nullcontext():
                    return self._connect(endpoint, each, others, until, timeout_s, dialled.append)
        except BaseException:  # Ctrl-C: nobody has the link
            for other in dialled:
                self._engine.runner.do_or_defer(self._engine.hang_up, other, 0.0)
            raise
        raise AssertionError("a link or an error")

    def _connect(
        self,
        endpoint: str,
        server_key: str | None,
        others: tuple[str, ...],
        until: float,
        timeout_s: float,
        keep: Callable[[Dialled], object],
    ) -> Link:
        runner = self._engine.runner
        wait_s = max(0.0, until - time.monotonic())
        dialled = runner.call(self._engine.dial, endpoint, server_key, others, keep)
        runner.wait(dialled.settled, time.monotonic() + wait_s)
        if dialled.failure is None and dialled.settled.ready and not self._closed:
            return Link(self._engine, dialled)
        told = dialled.attached.link.goodbye
        why = f"{endpoint} sent us away with {told!a}" if told else dialled.watch.describe()
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
        """Let one-way messages arrive, refuse what waits, cancel what is outstanding, say goodbye.

        One-way messages that nobody has taken by then, or whose link is down, are given up, and that is logged.

        Args:
            linger_s: for one-way messages, and again for what is on its way; all in all 2 linger_s + 2 s at most.
        """
        if not self._engine.runner.is_own_process:
            return  # before the lock: another thread may have held it at the fork
        linger_s = lingering(linger_s)
        mine = False
        try:
            with self._lock:
                if self._closed:
                    return
                self._closed = mine = True
            self._close(linger_s)
        except BaseException:  # Ctrl-C while it waits: nobody will close it again
            if mine:
                self._engine.runner.defer(self._engine.shut_down, linger_s)
            raise

    def _close(self, linger_s: float) -> None:
        with self._lock:
            inboxes = list(self._inboxes)
        for inbox in inboxes:
            inbox.shut()
        runner = self._engine.runner
        if runner.is_mine:  # a signal handler that came in the middle of something
            runner.defer(self._engine.shut_down, linger_s)
            return
        runner.look()  # answers that are here count, and who is gone is not waited for
        if linger_s > 0 and not runner.closed:
            runner.wait(_Delivered(self._engine), time.monotonic() + linger_s)
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

    def _check_server(self, endpoint: str, server_key: str | None) -> None:
        """Raise what connect would for these, before it dials."""
        check_transport(endpoint)
        self._check_server_key(endpoint, server_key)

    def _check_server_key(self, endpoint: str, server_key: str | None) -> None:
        if server_key is not None and not isinstance(server_key, str):
            raise TypeError(f"server_key must be a string of 40 characters of Z85, got {server_key!r}")
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


def _check_callable(name: str, value: object) -> None:
    if not callable(value):
        raise TypeError(f"{name} must be something to call, got {value!r}")
