"""A node: one process on the bus. Everything here may be called from any thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import TracebackType

from edgebus.arrays import Array, pack_arrays
from edgebus.calls import FATAL, Pending, Reply
from edgebus.config import Limits
from edgebus.engine import Dialled, Engine
from edgebus.errors import ConfigError, InsecureError, NodeClosed, PeerUnreachable
from edgebus.inbox import Inbox
from edgebus.keys import AllowList, Keys, is_key
from edgebus.messages import MAX_TIMEOUT_S
from edgebus.requests import Outcome, Settled
from edgebus.stats import LinkStats, NodeStats, link_stats
from edgebus.wire import check_name, check_outgoing


class Link:
    """A link this node dialled; made by Node.connect."""

    def __init__(self, engine: Engine, dialled: Dialled, endpoint: str) -> None:
        self._engine = engine
        self._dialled = dialled
        self.endpoint = endpoint

    @property
    def peer_name(self) -> str:
        """What the other node calls itself."""
        return self._dialled.attached.link.peer_name

    def request(
        self, service: str, payload: bytes = b"", arrays: Sequence[Array] = (), timeout_s: float = 10.0
    ) -> Reply:
        """Send a request and wait for its reply; see send_request and Pending.result for what it raises."""
        return self.send_request(service, payload, arrays, timeout_s).result()

    def send_request(
        self, service: str, payload: bytes = b"", arrays: Sequence[Array] = (), timeout_s: float = 10.0
    ) -> Pending:
        """Send a request; its outcome is known after timeout_s seconds at the latest.

        While the link is down the request waits; it is resent until answered, and executed once.

        Args:
            service: what is asked for, at most 64 characters.
            payload: opaque bytes.
            arrays: copied here, the caller may overwrite them at once.
            timeout_s: deadline, 0 < timeout_s <= 86400.

        Raises:
            MessageTooLarge: the peer does not accept that much; nothing was sent.
            NodeClosed: the node is closed, or this is a forked child.
            ValueError, TypeError: an argument that cannot travel.
        """
        if not 0 < timeout_s <= MAX_TIMEOUT_S:
            raise ValueError(f"timeout_s must be in (0, {MAX_TIMEOUT_S:.0f}], got {timeout_s!r}")
        check_name("service", service)
        specs, array_frames = pack_arrays(arrays)
        frames = (bytes(payload), *array_frames)
        if (limits := self._dialled.attached.link.peer_limits) is not None:
            check_outgoing(frames, specs, limits)
        pending = Pending(f"{service} at {self.endpoint}", timeout_s, time.monotonic() + timeout_s, self._cancel)
        self._engine.runner.submit(
            self._engine.request,
            self._dialled,
            service,
            specs,
            frames,
            pending,
            if_closed=lambda: pending.settle(Settled(pending, Outcome.CANCELLED)),
        )
        return pending

    def stats(self) -> LinkStats:
        """Counters of this link."""
        return link_stats(self._dialled.attached)

    def close(self, linger_s: float = 1.0) -> None:
        """Say goodbye and close; outstanding requests end as NodeClosed. Closing twice is fine."""
        self._engine.runner.submit_unless_closed(self._engine.hang_up, self._dialled, linger_s)

    def __enter__(self) -> Link:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _cancel(self, pending: Pending) -> None:
        self._engine.runner.submit_unless_closed(self._engine.cancel, self._dialled, pending)


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
        self._engine = Engine(name, self._limits, keys, allow)

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
        if not services or depth < 1 or not all(0 < len(service) <= 64 for service in services):
            raise ConfigError(f"serve needs service names of 1..64 characters and depth >= 1, got {services}, {depth}")
        for service in services:
            check_name("service", service)
        inbox = Inbox(services, depth, self._unserve)
        taken = self._engine.runner.call(self._engine.serve, inbox)
        if taken is not None:
            raise ConfigError(f"service {taken!r} is served already on this node: close its inbox first")
        with self._lock:
            if not self._closed:
                self._inboxes.append(inbox)
                return inbox
        inbox.shut()  # close() ran in between and has not seen it
        raise NodeClosed("the node was closed meanwhile: make a new Node")

    def connect(self, endpoint: str, server_key: str | None = None, timeout_s: float = 5.0) -> Link:
        """Dial a node and wait until both have greeted.

        Args:
            endpoint: tcp://HOST:PORT or ipc://PATH.
            server_key: its public key, 40 characters; None only if this node is insecure.
            timeout_s: seconds to wait; a wrong key is reported as soon as it shows.

        Raises:
            PeerUnreachable: nobody there, or it does not answer.
            KeyNotAllowed: the server's allow-list lacks our key.
            WrongServerKey: the server holds another key, or one side is plaintext.
            VersionMismatch: no common protocol version.
            InsecureError, ConfigError: the arguments do not fit the node, or max_peers links are open.
        """
        _check_transport(endpoint)
        self._check_server_key(endpoint, server_key)
        dialled = self._engine.runner.call(self._engine.dial, endpoint, server_key)
        dialled.settled.wait(timeout_s)
        if dialled.failure is None and dialled.settled.is_set() and not self._closed:
            return Link(self._engine, dialled, endpoint)
        why = dialled.watch.describe()
        self._engine.runner.submit_unless_closed(self._engine.hang_up, dialled, 0.0)
        if self._closed:
            raise NodeClosed(f"the node was closed while it connected to {endpoint}")
        if dialled.failure is not None:
            raise FATAL[dialled.failure.code](dialled.failure.detail)
        raise PeerUnreachable(f"no link after {timeout_s:.3g} s: {why}")

    def stats(self) -> NodeStats:
        """Totals, per peer, and what was turned away."""
        return self._engine.runner.call(self._engine.stats)

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
        self._engine.runner.submit_unless_closed(self._engine.shut_down, linger_s)
        self._engine.runner.join(linger_s + 2.0)

    def __enter__(self) -> Node:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _unserve(self, inbox: Inbox) -> None:
        with self._lock:
            self._inboxes = [each for each in self._inboxes if each is not inbox]
        self._engine.runner.submit_unless_closed(self._engine.unserve, inbox)

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


def _check_transport(endpoint: str) -> None:
    if not endpoint.startswith(("tcp://", "ipc://")):
        raise ConfigError(f"endpoint {endpoint!r} is not tcp://HOST:PORT or ipc://PATH")
