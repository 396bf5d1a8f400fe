"""The links a node has dialled: their sockets, how their handshakes go, and who waits for them to be up."""

from __future__ import annotations

import threading
import time
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
    settled: threading.Event = field(default_factory=threading.Event)  # up once, or failed
    failure: Failed | None = None


class Dialling:
    """All of them, by socket; every method with the runner's lock held.

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

    def dial(self, endpoint: str, server_key: str | None, other_keys: tuple[str, ...] = ()) -> Dialled:
        """Open a link; its `settled` is set when it is up or has failed.

        Args:
            other_keys: what to try once it was up and then finds another key there.
        """
        now = time.monotonic()
        self._hub.make_room_to_dial(now=now)
        socket_id = self._dial_socket(endpoint, server_key)
        attached = self._hub.dial((socket_id, b""), now=now)
        watch = HandshakeWatch(endpoint, secure=server_key is not None)
        dialled = self.by_socket[socket_id] = Dialled(socket_id, attached, watch, endpoint, server_key, other_keys)
        return dialled

    def move(self, dialled: Dialled, endpoint: str, server_key: str | None) -> None:
        """Go on with a link at another address; what is outstanding goes there."""
        if server_key != dialled.server_key:
            dialled.other_keys = ()
        self._redial(dialled, endpoint, server_key, proven=False)

    def open_lane(self, dialled: Dialled) -> None:
        """Connect the bulk lane, unless it is."""
        if dialled.bulk_socket_id is not None:
            return
        socket_id = self._dial_socket(dialled.endpoint, dialled.server_key, is_bulk=True)
        dialled.bulk_socket_id = socket_id
        self.by_socket[socket_id] = dialled
        self._hub.add_lane(dialled.attached, (socket_id, b""))

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
        handshaken = dialled.watch.handshaken
        try:
            self._judged(dialled, dialled.watch.handle(event, value), now)
        except BaseException:  # of a signal handler: it is told again
            dialled.watch.handshaken = handshaken
            raise

    def up(self, attached: Attached, *, now: float) -> bool:
        """A link is up: who waits for it is told, its bulk lane follows; False if it is none of these."""
        dialled = self.by_socket.get(attached.route[0])
        if dialled is None:
            return False
        dialled.settled.set()
        if dialled.bulk_socket_id is not None:
            self._hub.lane_connected(attached, now=now)
        return True

    def failed(self, dialled: Dialled, failure: Failed) -> None:
        """A link has failed for good."""
        dialled.failure = failure
        dialled.settled.set()
        # libzmq would go on trying a wrong key for ever.
        self._sockets.close(dialled.socket_id, 0.0)

    def endpoints(self) -> dict[str, str]:
        """Where each link was dialled, by peer id."""
        return {dialled.attached.peer_id: dialled.endpoint for dialled in self.by_socket.values()}

    def let_go(self) -> None:
        """The node ends: nobody waits any more."""
        for dialled in self.by_socket.values():
            dialled.settled.set()

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
        if dialled.bulk_socket_id is not None:
            self.by_socket.pop(dialled.bulk_socket_id, None)
            self._sockets.close(dialled.bulk_socket_id, 0.0)
            dialled.bulk_socket_id = None

    # -- inside -------------------------------------------------------------------------------------

    def _dial_socket(self, endpoint: str, server_key: str | None, *, is_bulk: bool = False) -> int:
        keys = self._keys if server_key is not None else None
        return self._sockets.dial(endpoint, keys, server_key, is_bulk=is_bulk)

    def _redial(self, dialled: Dialled, endpoint: str, server_key: str | None, *, proven: bool) -> None:
        if dialled.failure is not None or self.by_socket.pop(dialled.socket_id, None) is None:
            return
        now = time.monotonic()
        dialled.attached.link.disconnected(now=now)
        self.close_sockets(dialled, 0.0)
        dialled.endpoint, dialled.server_key = endpoint, server_key
        dialled.watch = HandshakeWatch(endpoint, secure=server_key is not None, proven=proven)
        dialled.socket_id = self._dial_socket(endpoint, server_key)
        self.by_socket[dialled.socket_id] = dialled
        self._hub.move(dialled.attached, (dialled.socket_id, b""))
        self._hub.touch(dialled.attached, now=now)

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
                key, dialled.other_keys = dialled.other_keys[0], (*dialled.other_keys[1:], str(dialled.server_key))
                self._redial(dialled, dialled.endpoint, key, proven=True)

    def _ask_greeting(self, dialled: Dialled) -> None:
        """Ask a listener that cuts handshakes for its greeting; one question at a time, the last one counts."""
        watch = dialled.watch

        def tell(content: bytes) -> None:
            if dialled.watch is watch and dialled.failure is None:
                self._judged(dialled, watch.greeted(content), time.monotonic())

        self._ask_no_more(dialled)
        dialled.question = Question(self._sockets, dialled.endpoint, tell)

    def _ask_no_more(self, dialled: Dialled) -> None:
        if dialled.question is not None:
            dialled.question.close()
            dialled.question = None
