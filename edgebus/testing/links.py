"""Links of the virtual network: they take what an edgebus.Link takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgebus import seconds
from edgebus.arrays import Array, checked_content, pack_content
from edgebus.attached import Route
from edgebus.calls import Pending, Reply
from edgebus.errors import ConfigError, NodeClosed, QueueFull
from edgebus.link_states import Health
from edgebus.loans import Loan, make_loan
from edgebus.messages import MAX_TIMEOUT_S, ONE_WAY, PLAIN, STREAM, Terms, terms_of
from edgebus.outcomes import Outcome, Settled
from edgebus.stats import LinkStats, link_stats
from edgebus.stream import Stream
from edgebus.streams import Frames, Specs, content_bytes
from edgebus.testing.nodes import SimNode
from edgebus.wire import check_name, check_outgoing

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from edgebus.testing.network import SimNetwork

_PATIENCE_S = 2 * 86_400.0


class SimPending(Pending):
    """A request on the virtual network: who waits for it lets virtual time pass."""

    def __init__(self, service: str, timeout_s: float, link: SimLink) -> None:
        dialler = link.dialler
        super().__init__(service, timeout_s, dialler.now + timeout_s, link.cancel, link.endpoint, dialler.wait)
        self._dialler = dialler

    def wait(self, timeout_s: float) -> bool:
        """Let at most so many virtual seconds pass; True if there is an outcome."""
        return self.done() or self._dialler.wait(self, min(self.deadline_at + 1.0, self._dialler.now + timeout_s))


class SimLink:
    """A dialled link of the virtual network; made by SimNetwork.connect.

    Attributes:
        past: counters of its earlier lives; a dialling node that restarts begins another.
    """

    def __init__(self, net: SimNetwork, dialler: SimNode, listener: SimNode, route: Route) -> None:
        self._net = net
        self.dialler, self.listener, self.route = dialler, listener, route
        self.past: list[LinkStats] = []
        self.attached = dialler.hub.dial(route, now=dialler.now)

    @property
    def endpoint(self) -> str:
        """The name of the listening node, as an address."""
        return f"sim://{self.listener.name}"

    @property
    def peer_name(self) -> str:
        """What the other node calls itself, once it has greeted."""
        return self.attached.link.peer_name

    @property
    def health(self) -> Health:
        """As edgebus.Link.health."""
        return self.attached.link.health(self.dialler.now)

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
        """As edgebus.Link.request, so that code that waits can be tested as it is; the network runs meanwhile.

        Raises:
            EdgebusError: as edgebus.Link.request.
        """
        pending = self.send_request(service, payload, arrays, timeout_s, key=key, sequence=sequence, copy=copy)
        # Its outcome comes by its deadline, unless the node is frozen or its clock set back.
        if not self._net.run_until(pending.done, _PATIENCE_S):
            raise RuntimeError(f"{service}: no outcome within {_PATIENCE_S} virtual seconds, {timeout_s} were allowed")
        return pending.result()

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
        """As edgebus.Link.send_request; run the network until `pending.done()`, or take its result().

        Raises:
            EdgebusError: as edgebus.Link.send_request; NodeClosed also if the asking node has crashed and is not back.
        """
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
        """As edgebus.Link.send: answered once the handler over there has it.

        Raises:
            EdgebusError: as send_request.
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
        """As edgebus.Link.stream: get() lets virtual time pass.

        Raises:
            EdgebusError: as send_request; ConfigError if the peer speaks version 1.
        """
        if from_pos < 0 or window_bytes < 1:
            raise ValueError(f"from_pos must be >= 0 and window_bytes >= 1, got {from_pos} and {window_bytes}")
        if self.attached.link.version < 2 and self.attached.link.num_ups:
            raise ConfigError(f"{self.listener.name} speaks protocol version 1, streams need 2: upgrade it")
        terms = Terms(STREAM, from_pos=from_pos, window_bytes=window_bytes)
        pending = self._start(service, payload, arrays, timeout_s, terms, copy)
        return Stream(pending, from_pos, self._consume, self.dialler.wait, lambda: self.dialler.now)

    def loan(self, shape: int | tuple[int, ...], dtype: DTypeLike = "float32") -> Loan:
        """As edgebus.Link.loan where no memory is shared."""
        return make_loan(shape, dtype, None, self.attached)

    def has_room(self, num_bytes: int) -> bool:
        """As edgebus.Link.has_room."""
        return self.attached.link.caller.outstanding_bytes + num_bytes <= self.dialler.limits.max_outstanding_bytes

    def stats(self) -> LinkStats:
        """Counters of this link, in this life of its node."""
        return link_stats(self.attached)

    def dial_again(self) -> None:
        """Begin anew after a crash of the dialling node."""
        self.past.append(self.stats())
        self.attached = self.dialler.hub.dial(self.route, now=self.dialler.now)

    def cancel(self, pending: Pending) -> None:
        """What `pending.cancel()` does."""

        def cancel() -> None:
            if pending.request_id is not None and not pending.done():
                self.attached.link.caller.cancel(pending.request_id)
                self.dialler.hub.touch(self.attached, now=self.dialler.now)

        self.dialler.do(cancel)

    # -- inside -------------------------------------------------------------------------------------

    def _start(
        self,
        service: str,
        payload: bytes,
        arrays: Sequence[Array],
        timeout_s: float,
        terms: Terms | None,
        copy: bool,
    ) -> Pending:
        payload, arrays = checked_content(payload, arrays)
        timeout_s = seconds.deadline(timeout_s)
        check_name("service", service)
        if not self.dialler.is_up:
            raise NodeClosed(f"{self.dialler.name} has crashed, it cannot ask before it is back")
        specs, frames = pack_content(payload, arrays, copy)
        if (peer_limits := self.attached.link.peer_limits) is not None:
            check_outgoing(frames, specs, peer_limits)
        pending = SimPending(service, timeout_s, self)
        self._find_room(pending, content_bytes(frames))

        def start() -> None:
            self._begin(pending, service, specs, frames, terms)

        self.dialler.do(start, lambda: pending.settle(Settled(pending, Outcome.CANCELLED)))
        return pending

    def _begin(self, pending: Pending, service: str, specs: Specs, frames: Frames, terms: Terms | None) -> None:
        now = self.dialler.now
        pending.request_id = self.attached.link.caller.start(
            service, specs, frames, deadline_at=pending.deadline_at, ref=pending, now=now, terms=terms
        )
        self.dialler.hub.touch(self.attached, now=now)

    def _find_room(self, pending: Pending, num_bytes: int) -> None:
        """Drop others or wait, as Limits.on_full says; QueueFull if that does not help."""

        def fault() -> str | None:
            return self.attached.link.caller.room_fault(num_bytes)

        if not self.dialler.runs:
            return
        full = fault()
        self.dialler.hub.touch(self.attached, now=self.dialler.now)  # what was dropped has its outcome
        if full and self.dialler.limits.on_full == "wait":
            self._net.run_until(lambda: fault() is None, pending.deadline_at - self.dialler.now)
            full = fault()
        if full:
            raise QueueFull(f"{full} (max_outstanding_bytes): wait for outcomes, or see Limits.on_full")

    def _consume(self, pending: Pending, pos: int) -> None:
        def consume() -> None:
            if pending.request_id is not None:
                self.attached.link.caller.consume(pending.request_id, pos)
                self.dialler.hub.touch(self.attached, now=self.dialler.now)

        self.dialler.do(consume)
