"""A TCP proxy on loopback that cuts, stalls, slows down and refuses: faults for real sockets, without root."""

from __future__ import annotations

import contextlib
import math
import queue
import selectors
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

from edgebus.testing.connection import HOST, TO_CLIENT, TO_TARGET, Connection, port_of, socket_at
from edgebus.testing.pipe import BURST_S, Bucket

T = TypeVar("T")
_BUFFER_BYTES = 256 * 1024
_ANSWER_S = 10.0


@dataclass(frozen=True, slots=True)
class ProxyStats:
    """What went through so far.

    Attributes:
        connections: accepted, all together.
        open: of these, now.
        failed: the target was not there.
        cut: broken by cut() or move().
        bytes_to_target, bytes_to_client: that left the proxy.
        buffered_bytes: that are in it now.
    """

    connections: int = 0
    open: int = 0
    failed: int = 0
    cut: int = 0
    bytes_to_target: int = 0
    bytes_to_client: int = 0
    buffered_bytes: int = 0


class Proxy:
    """Forwards connections to a port of this machine, until it is told to do worse.

    Every method returns when it has taken effect. What it is told holds for all connections, those to come too.

    Args:
        target: a port, or a node's endpoint `tcp://127.0.0.1:PORT`; `target_port` may be changed later.
        buffer_bytes: most that it holds for each direction of a connection; then senders feel it.
        burst_s: with a bound on bytes per second, those of so many idle seconds pass at once.

    Attributes:
        target_port: where the next connections go.
    """

    def __init__(self, target: int | str, *, buffer_bytes: int = _BUFFER_BYTES, burst_s: float = BURST_S) -> None:
        self.target_port = port_of(target)
        if buffer_bytes < 1:
            raise ValueError(f"buffer_bytes must be at least 1, got {buffer_bytes}")
        self._buffer_bytes, self._burst_s = buffer_bytes, burst_s
        self._delay_s = 0.0
        self._buckets = [Bucket(None, now=0.0), Bucket(None, now=0.0)]
        self._stalled = [False, False]
        self._connections: list[Connection] = []
        self._listener: socket.socket | None = None
        self._place = socket_at(0)  # keeps the port while connections are refused
        self._port: int = self._place.getsockname()[1]
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._waiting: list[tuple[Callable[[ProxyStats], bool], Future[None]]] = []
        self._num = {"connections": 0, "failed": 0, "cut": 0}
        self._passed = [0, 0]
        self._closing = False
        self._selector = selectors.DefaultSelector()
        self._ear, self._bell = socket.socketpair()
        self._ear.setblocking(False)
        self._bell.setblocking(False)
        self._selector.register(self._ear, selectors.EVENT_READ, None)
        self._listen()
        self._thread = threading.Thread(target=self._run, name="edgebus-proxy", daemon=True)
        self._thread.start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._port

    @property
    def endpoint(self) -> str:
        """Where to dial: `tcp://127.0.0.1:PORT`."""
        return f"tcp://{HOST}:{self.port}"

    # -- faults -------------------------------------------------------------------------------------

    def cut(self) -> int:
        """Break all connections, with a reset on both sides; returns how many. New ones are welcome."""
        return self._call(self._cut)

    def stall(self) -> None:
        """Forward nothing, keep connections: a cable pulled. Ends are not told of each other's end either."""
        self._call(lambda: self._stall(True, True))

    def half_open(self, dead: str = "to_target") -> None:
        """Forward nothing in one direction, `to_target` or `to_client`; the other goes on."""
        if dead not in ("to_target", "to_client"):
            raise ValueError(f"a direction is to_target or to_client, got {dead!r}")
        self._call(lambda: self._stall(dead == "to_target", dead == "to_client"))

    def resume(self) -> None:
        """Forward again, beginning with what was held back."""
        self._call(lambda: self._stall(False, False))

    def refuse(self) -> None:
        """Refuse new connections, as a machine does where nothing listens; those there are stay."""
        self._call(self._unlisten)

    def accept(self) -> None:
        """Accept connections again, at the same port."""
        self._call(self._listen)

    def move(self) -> str:
        """Listen at another port, and cut all connections: a machine with a new address. Returns the endpoint."""
        return self._call(self._move)

    @property
    def delay_s(self) -> float:
        """Seconds that bytes are kept, each way; set it for those that come in from now on.

        `buffer_bytes` bounds what is on its way: throughput is at most that much per delay.
        """
        return self._delay_s

    @delay_s.setter
    def delay_s(self, delay_s: float) -> None:
        if not 0 <= delay_s < math.inf:
            raise ValueError(f"delay_s must be 0 or more, got {delay_s!r}")
        self._call(lambda: self._set_delay(delay_s))

    @property
    def bytes_per_s(self) -> float | None:
        """Most bytes per second, each way for all connections together; None: no bound."""
        return self._buckets[TO_TARGET].bytes_per_s

    @bytes_per_s.setter
    def bytes_per_s(self, bytes_per_s: float | None) -> None:
        Bucket(bytes_per_s, now=0.0)  # raises here and not on the thread
        self._call(lambda: self._set_rate(bytes_per_s))

    def stats(self) -> ProxyStats:
        """Counters, of one moment."""
        return self._call(self._stats)

    def wait_for(self, condition: Callable[[ProxyStats], bool], timeout_s: float = 10.0) -> bool:
        """Wait until the counters satisfy a condition; False if they do not in time.

        Args:
            condition: is asked on the proxy's thread whenever something has happened.
            timeout_s: most seconds to wait.
        """
        reached: Future[None] = Future()
        self._call(lambda: self._waiting.append((condition, reached)))
        try:
            reached.result(timeout_s)
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Break all connections and end the thread."""
        self._commands.put(self._stop)
        self._ring()
        self._thread.join(_ANSWER_S)
        self._bell.close()

    # -- the thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closing:
                now = time.monotonic()
                next_at = min((item.update(self._selector, now=now) for item in self._connections), default=math.inf)
                timeout_s = None if next_at == math.inf else max(0.0, next_at - now)
                for key, events in self._selector.select(timeout_s):
                    self._handle(key.fileobj, key.data, events)
                self._pump()
        finally:
            self._clean_up()

    def _handle(self, source: object, connection: Connection | None, events: int) -> None:
        if connection is not None:
            assert isinstance(source, socket.socket)
            connection.handle(source, events, now=time.monotonic())
        elif source is self._ear:
            self._ear.recv(4096)
            while not self._commands.empty():
                self._commands.get()()
        elif source is self._listener:
            self._welcome()

    def _pump(self) -> None:
        """Write what is due, drop what is over, wake who waits."""
        now = time.monotonic()
        for connection in list(self._connections):
            for way, num_bytes in enumerate(connection.write(now=now)):
                self._passed[way] += num_bytes
            if connection.is_over:
                self._num["failed"] += connection.has_failed
                self._drop(connection)
        stats = self._stats()
        for item in list(self._waiting):
            condition, reached = item
            try:
                if not condition(stats):
                    continue
                reached.set_result(None)
            except Exception as error:  # of the condition: that is for who waits
                reached.set_exception(error)
            self._waiting.remove(item)

    def _welcome(self) -> None:
        assert self._listener is not None
        try:
            client, _ = self._listener.accept()
        except OSError:  # whoever knocked is gone
            return
        self._num["connections"] += 1
        connection = Connection(client, (HOST, self.target_port), self._buckets, self._buffer_bytes)
        self._connections.append(connection)
        self._tell(connection)

    def _tell(self, connection: Connection) -> None:
        for pipe, bucket, is_stalled in zip(connection.pipes, self._buckets, self._stalled, strict=True):
            pipe.bucket, pipe.is_stalled, pipe.delay_s = bucket, is_stalled, self._delay_s

    def _drop(self, connection: Connection) -> None:
        connection.close(self._selector)
        self._connections.remove(connection)

    def _cut(self) -> int:
        num_cut = len(self._connections)
        for connection in list(self._connections):
            connection.abort()
            self._drop(connection)
        self._num["cut"] += num_cut
        return num_cut

    def _stall(self, to_target: bool, to_client: bool) -> None:
        self._stalled = [to_target, to_client]
        for connection in self._connections:
            self._tell(connection)

    def _set_delay(self, delay_s: float) -> None:
        self._delay_s = delay_s
        for connection in self._connections:
            self._tell(connection)

    def _set_rate(self, bytes_per_s: float | None) -> None:
        self._buckets = [Bucket(bytes_per_s, now=time.monotonic(), burst_s=self._burst_s) for _ in range(2)]
        for connection in self._connections:
            self._tell(connection)

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = socket_at(self.port)
            self._listener.listen(128)
            self._selector.register(self._listener, selectors.EVENT_READ, None)

    def _unlisten(self) -> None:
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def _move(self) -> str:
        place = socket_at(0)
        self._unlisten()
        self._place.close()
        self._place, self._port = place, place.getsockname()[1]
        self._listen()
        self._cut()
        return self.endpoint

    def _stats(self) -> ProxyStats:
        buffered_bytes = sum(pipe.size for connection in self._connections for pipe in connection.pipes)
        num, num_open = self._num, len(self._connections)
        return ProxyStats(
            num["connections"],
            num_open,
            num["failed"],
            num["cut"],
            self._passed[TO_TARGET],
            self._passed[TO_CLIENT],
            buffered_bytes,
        )

    def _stop(self) -> None:
        self._closing = True

    def _clean_up(self) -> None:
        self._closing = True
        self._cut()
        self._unlisten()
        self._place.close()
        self._ear.close()
        self._selector.close()
        for _, reached in self._waiting:
            reached.set_exception(RuntimeError("the proxy was closed meanwhile"))

    def _ring(self) -> None:
        with contextlib.suppress(OSError):  # it is ringing for others already, or closed
            self._bell.send(b"!")

    def _call(self, function: Callable[[], T]) -> T:
        """Run on the thread, and wait for it."""
        answer: Future[T] = Future()

        def run() -> None:
            try:
                answer.set_result(function())
            except Exception as error:
                answer.set_exception(error)

        if self._closing or not self._thread.is_alive():
            raise RuntimeError("the proxy is closed")
        self._commands.put(run)
        self._ring()
        return answer.result(_ANSWER_S)
