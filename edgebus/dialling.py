"""The links a node has dialled: their sockets, how their handshakes go, and who waits for them to be up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgebus.attached import Attached
from edgebus.greeting import Question
from edgebus.handshake import HandshakeWatch, Verdict
from edgebus.link_states import Failed
from edgebus.sockets import Sockets

if TYPE_CHECKING:
    from edgebus.hub import Hub
    from edgebus.keys import Keys


class Once:
    """What comes once, to wait for.

    threading.Event keeps its lock for ever if a signal handler raises in the middle of it.
    """

    def __init__(self) -> None:
        self.ready = False
        self._waiter = threading.Lock()  # held until then
        self._waiter.acquire()

    def come(self) -> None:
        """It is there; coming twice is fine."""
        self.ready = True
        with suppress(RuntimeError):
            self._waiter.release()

    def follow(self, wait_s: float) -> None:
        """Sleep until it has come, at most so long."""
        if not self.ready and self._waiter.acquire(timeout=wait_s):
            self._waiter.release()


@dataclass(eq=False)
class Dialled:
    """A link this node opened: how its transports do, and who waits for it."""

    socket_id: int
    attached: Attached
    watch: HandshakeWatch
    endpoint: str
    server_key: str | None
    other_keys: tuple[str, ...] = ()  # that it may hold as well, while it changes its key
    bulk_socket_id: int | None = None
    question: Question | None = None  # for the listener's greeting, while its handshakes are cut
    settled: Once = field(default_factory=Once)  # up once, or failed
    failure: Failed | None = None


class Dialling:
    """All of them, by socket; every method with the runner's lock held.

    A signal handler may raise between any two steps. So a socket is in the table before it is opened; what is begun is
    undone as long as nothing depends on it, and from then on done to the end, of which every step may come twice.

    Args:
        hub: whose links they are.
        sockets: of the node.
        keys: its key pair, None if insecure.

    Attributes:
        by_socket: those that are not hung up, by the control lane's socket and by the bulk lane's, if they have one.
        rejected: handshakes of other sockets, the listening ones, that failed.
    """

    def __init__(self, hub: Hub, sockets: Sockets, keys: Keys | None) -> None:
        self._hub = hub
        self._sockets = sockets
        self._keys = keys
        self.by_socket: dict[int, Dialled] = {}
        self.rejected = 0

    def dial(
        self,
        endpoint: str,
        server_key: str | None,
        other_keys: tuple[str, ...] = (),
        keep: Callable[[Dialled], object] = lambda dialled: None,
    ) -> Dialled:
        """Open a link; its `settled` is set when it is up or has failed.

        Args:
            other_keys: what to try once it was up and then finds another key there.
            keep: called with it before it is returned, which a signal handler may prevent.
        """
        now = time.monotonic()
        self._hub.make_room_to_dial(now=now)
        socket_id = self._sockets.reserve(endpoint)
        try:
            attached = self._hub.dial((socket_id, b""), now=now)
            watch = HandshakeWatch(endpoint, secure=server_key is not None)
            dialled = self.by_socket[socket_id] = Dialled(socket_id, attached, watch, endpoint, server_key, other_keys)
            self._dial_socket(socket_id, endpoint, server_key)
            keep(dialled)
        except BaseException:
            self._sockets.close(socket_id, 0.0)
            if (begun := self._hub.by_route.get((socket_id, b""))) is not None:
                self._hub.drop(begun)
            self.by_socket.pop(socket_id, None)
            raise
        return dialled

    def move(self, dialled: Dialled, endpoint: str, server_key: str | None) -> None:
        """Go on with a link at another address; what is outstanding goes there."""
        other_keys = dialled.other_keys if server_key == dialled.server_key else ()
        self._redial(dialled, endpoint, server_key, other_keys, proven=False)

    def open_lane(self, dialled: Dialled) -> None:
        """Connect the bulk lane, unless it is."""
        if dialled.bulk_socket_id is not None:
            return
        socket_id = self._sockets.reserve(dialled.endpoint)
        try:
            self.by_socket[socket_id] = dialled
            self._dial_socket(socket_id, dialled.endpoint, dialled.server_key, is_bulk=True)
            self._hub.add_lane(dialled.attached, (socket_id, b""))
            dialled.bulk_socket_id = socket_id
        except BaseException:  # of a signal handler: it is asked for again
            self._sockets.close(socket_id, 0.0)
            self._hub.drop_lane(dialled.attached, (socket_id, b""))
            self.by_socket.pop(socket_id, None)
            raise

    def on_monitor(self, socket_id: int, event: str, value: int) -> None:
        """A transport changed."""
        dialled = self.by_socket.get(socket_id)
        if dialled is None:
            self.rejected += event.startswith("HANDSHAKE_FAILED")
            return
        now = time.monotonic()
        if socket_id == dialled.bulk_socket_id:
            if event == "HANDSHAKE_SUCCEEDED":
                self._hub.lane_connected(dialled.attached, now=now)
            elif event == "DISCONNECTED":
                self._hub.disconnected((socket_id, b""), now=now)
            return
        watch, before = dialled.watch, vars(dialled.watch).copy()
        try:
            self._judged(dialled, watch.handle(event, value), now)
        except BaseException:  # of a signal handler: it is told again
            vars(watch).update(before)
            raise

    def up(self, attached: Attached, *, now: float) -> bool:
        """A link is up: who waits for it is told, its bulk lane follows; False if it is none of these."""
        dialled = self.by_socket.get(attached.route[0])
        if dialled is None:
            return False
        dialled.settled.come()
        if dialled.bulk_socket_id is not None:
            self._hub.lane_connected(attached, now=now)
        return True

    def failed(self, dialled: Dialled, failure: Failed) -> None:
        """A link has failed for good."""
        dialled.failure = failure
        dialled.settled.come()
        # libzmq would go on trying a wrong key for ever.
        self._sockets.close(dialled.socket_id, 0.0)

    def endpoints(self) -> dict[str, str]:
        """Where each link was dialled, by peer id."""
        return {dialled.attached.peer_id: dialled.endpoint for dialled in self.by_socket.values()}

    def let_go(self) -> None:
        """The node ends: nobody waits any more."""
        for dialled in self.by_socket.values():
            dialled.settled.come()

    def close(self, linger_s: float) -> None:
        """Close all sockets."""
        for dialled in {id(each): each for each in self.by_socket.values()}.values():
            self.close_sockets(dialled, linger_s)

    def close_sockets(self, dialled: Dialled, linger_s: float) -> None:
        """Close those of one link."""
        self._ask_no_more(dialled)
        # Without a connection there is nobody to wait for, whatever libzmq has queued.
        linger_s = linger_s if dialled.watch.handshaken else 0.0
        self._sockets.close(dialled.socket_id, linger_s)
        self._close_lane(dialled)

    # -- inside -------------------------------------------------------------------------------------

    def _close_lane(self, dialled: Dialled) -> None:
        if dialled.bulk_socket_id is not None:
            self._sockets.close(dialled.bulk_socket_id, 0.0)
            self.by_socket.pop(dialled.bulk_socket_id, None)
            dialled.bulk_socket_id = None

    def _dial_socket(self, socket_id: int, endpoint: str, server_key: str | None, *, is_bulk: bool = False) -> None:
        keys = self._keys if server_key is not None else None
        self._sockets.dial(endpoint, keys, server_key, is_bulk=is_bulk, socket_id=socket_id)

    def _redial(
        self, dialled: Dialled, endpoint: str, server_key: str | None, other_keys: tuple[str, ...], *, proven: bool
    ) -> None:
        before = dialled.socket_id
        if dialled.failure is not None or before not in self.by_socket:
            return
        socket_id = self._sockets.reserve(endpoint)
        watch = HandshakeWatch(endpoint, secure=server_key is not None, proven=proven)
        try:
            self.by_socket[socket_id] = dialled
            self._dial_socket(socket_id, endpoint, server_key)
        except BaseException:  # an address that is none, or of a signal handler: it stays where it is
            self._sockets.close(socket_id, 0.0)
            self.by_socket.pop(socket_id, None)
            raise

        def go_on() -> None:
            now = time.monotonic()
            dialled.attached.link.disconnected(now=now)
            self._ask_no_more(dialled)
            dialled.socket_id, dialled.watch = socket_id, watch
            dialled.endpoint, dialled.server_key, dialled.other_keys = endpoint, server_key, other_keys
            self._close_lane(dialled)
            self._sockets.close(before, 0.0)
            self.by_socket.pop(before, None)
            self._hub.move(dialled.attached, (socket_id, b""))
            self._hub.touch(dialled.attached, now=now)

        try:
            go_on()
        except BaseException:  # of a signal handler
            go_on()
            raise

    def _judged(self, dialled: Dialled, verdict: Verdict | None, now: float) -> None:
        if verdict is None:
            return
        route = dialled.attached.route
        match verdict.what:
            case "connected":
                self._ask_no_more(dialled)
                self._hub.connected(route, now=now)
            case "disconnected":
                self._hub.disconnected(route, now=now)
            case "failed":
                self._ask_no_more(dialled)
                self._hub.fail(route, verdict.code, verdict.detail, now=now)
            case "unclear":
                self._ask_greeting(dialled)
            case "doubtful" if dialled.other_keys:
                # Cut again and again where it was let in: perhaps the server has changed its key meanwhile.
                key, others = dialled.other_keys[0], (*dialled.other_keys[1:], str(dialled.server_key))
                self._redial(dialled, dialled.endpoint, key, others, proven=True)

    def _ask_greeting(self, dialled: Dialled) -> None:
        """Ask a listener that cuts handshakes for its greeting; one question at a time, the last one counts."""
        watch = dialled.watch

        def tell(content: bytes) -> None:
            if dialled.watch is watch and dialled.failure is None:
                self._judged(dialled, watch.greeted(content), time.monotonic())

        self._ask_no_more(dialled)
        dialled.question = Question(self._sockets, dialled.endpoint, tell)
        dialled.question.ask()

    def _ask_no_more(self, dialled: Dialled) -> None:
        if dialled.question is not None:
            dialled.question.close()
            dialled.question = None
