"""Nodes of the virtual network: the machines that run on sockets, driven by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edgebus.answerer import Answerer
from edgebus.arrays import Array
from edgebus.attached import Attached, Route
from edgebus.calls import Item, Pending
from edgebus.config import Limits
from edgebus.hub import Hub
from edgebus.inbox import Request
from edgebus.link_states import Surroundings
from edgebus.loans import Loan, make_loan
from edgebus.messages import VERSION_MAX, VERSION_MIN, Block, Message
from edgebus.outcomes import Arrived, PartArrived, Room, Settled
from edgebus.requests import refusal
from edgebus.streams import Frames, Specs, content_bytes
from edgebus.testing.clocks import NodeClock

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from edgebus.testing.network import SimNetwork

Handler = Callable[[Request], None]


class SimNode:
    """A node of the virtual network; made by SimNetwork.node.

    Attributes:
        hub: its machines; new ones after every crash.
        clock: what it takes for the time.
        is_up: False between a crash and the next start.
        is_frozen: it is stopped, and what happens to it waits.
        life: how often it was started.
        limits: its bounds.
    """

    def __init__(
        self,
        net: SimNetwork,
        name: str,
        handler: Handler | None,
        limits: Limits,
        on_restart: Callable[[], None] | None = None,
        versions: tuple[int, int] | None = None,
    ) -> None:
        self.name = name
        self.versions = versions or (VERSION_MIN, VERSION_MAX)  # another pair counts from the next life on
        self.handler = handler
        self.clock = NodeClock(net.clock)
        self.is_up = True
        self.is_frozen = False
        self.life = 1
        self._net = net
        self.limits = limits
        self._on_restart = on_restart
        self._waiting: list[tuple[Callable[[], None], Callable[[], None]]] = []  # what happened while it was frozen
        self.rooms: dict[tuple[Answerer, int], Callable[[], object]] = {}
        self.hub = self._new_hub()

    @property
    def now(self) -> float:
        """The time by its own clock."""
        return self.clock.now

    @property
    def runs(self) -> bool:
        """Neither away nor frozen."""
        return self.is_up and not self.is_frozen

    def do(self, function: Callable[[], None], or_else: Callable[[], None] = lambda: None) -> None:
        """Let something happen to it: now, or when it thaws; if it crashes before, or is away, something else."""
        if self.is_frozen:
            self._waiting.append((function, or_else))
        elif self.is_up:
            function()
        else:
            or_else()

    def call_later(self, delay_s: float, function: Callable[[], None]) -> None:
        """Run a function of its application after some virtual seconds by its clock, in this life or never."""
        life, due_at = self.life, self.now + delay_s

        def wake() -> None:
            if self.life == life and self.is_up:
                if self.now < due_at:  # its clock was set back meanwhile
                    self._net.call_at(self.clock.true_time(due_at), wake)
                else:
                    self.do(function)

        self._net.call_at(self.clock.true_time(due_at), wake)

    # -- driven by the network ----------------------------------------------------------------------

    def crash(self) -> None:
        """Lose all memory; the application's pending requests end as closed here."""
        hub, now = self.hub, self.now
        hub.close(now=now)
        self.is_up = self.is_frozen = False
        waiting, self._waiting = self._waiting, []
        for _, or_else in waiting:
            or_else()
        for _, event in hub.events():
            if isinstance(event, Settled):
                self._settle(event)

    def start(self) -> None:
        """Begin another life, without memory."""
        self.life += 1
        self.is_up = True
        self.hub = self._new_hub()
        if self._on_restart is not None:
            self._on_restart()

    def freeze(self) -> None:
        """Do nothing from now on."""
        self.is_frozen = self.is_up

    def thaw(self) -> None:
        """Go on, with all that waited first."""
        self.is_frozen = False
        waiting, self._waiting = self._waiting, []
        for function, or_else in waiting:
            self.do(function, or_else)

    def receive(self, route: Route, frames: Sequence[bytes]) -> None:
        """Take a message off the wire."""
        self.hub.receive(route, frames, None, now=self.now)

    def next_wake_at(self) -> float:
        """True time of its next timer."""
        return self.clock.true_time(self.hub.next_timer())

    def turn(self) -> tuple[bool, list[tuple[Route, list[bytes]]]]:
        """Handle all events; returns whether there were any, and what is to be sent."""
        events, sending = self.hub.events(), self.hub.frames_to_send(now=self.now)
        for attached, event in events:
            if isinstance(event, Arrived):
                self.deliver(attached, event)
            elif isinstance(event, Settled):
                self._settle(event)
            elif isinstance(event, PartArrived):
                assert isinstance(event.ref, Pending)
                event.ref.add_part(event.arrival)
            elif isinstance(event, Room) and (callback := self.rooms.pop((event.answerer, event.id), None)):
                self._net.call_later(0.0, callback)
        return bool(events or sending), sending

    def deliver(self, attached: Attached, arrived: Arrived) -> None:
        """Hand a request to the handler."""
        desk = SimDesk(self)
        if self.handler is None:
            refused = refusal(arrived.id, "unknown_service", "nothing is served here")
            desk.answer(attached, arrived.answerer, arrived.id, refused)
        else:
            request = Request(attached, arrived, desk)
            request.acknowledge()
            self.handler(request)

    def wait(self, item: Item, until: float) -> bool:
        """Let virtual time pass until something is ready."""
        return self._net.run_until(lambda: item.ready, max(0.0, until - self.now))

    def turn_soon(self) -> None:
        """Something is to be sent."""
        self._net.call_later(0.0, lambda: None)

    # -- inside -------------------------------------------------------------------------------------

    def _new_hub(self) -> Hub:
        around = Surroundings(name=self.name, limits=self.limits, versions=self.versions)
        return Hub(around=around, new_incarnation=self._net.new_incarnation)

    def _settle(self, event: Settled) -> None:
        assert isinstance(event.ref, Pending)
        event.ref.settle(event)


class SimDesk:
    """Where the answers of one life of a node go."""

    def __init__(self, node: SimNode) -> None:
        self._node, self._hub = node, node.hub

    def now(self) -> float:
        return self._node.now

    def answer(self, attached: Attached, answerer: Answerer, request_id: int, message: Message) -> None:
        def give() -> None:
            if self._hub is self._node.hub:  # else it is the answer of a life that is over
                answerer.answer(request_id, message)
                self._touch(attached)

        self._node.do(give)

    answer_later = answer

    def push(
        self, attached: Attached, answerer: Answerer, request_id: int, specs: Specs, frames: Frames
    ) -> int | bool | None:
        room = answerer.has_room(request_id, content_bytes(frames))
        if self._hub is not self._node.hub or not self._node.runs or not room:
            return room
        pos = answerer.push(request_id, specs, frames)
        self._touch(attached)
        return pos

    def share(
        self, attached: Attached, payload: bytes, arrays: Sequence[Array]
    ) -> tuple[Specs, tuple[Block, ...]] | None:
        return None

    def loan(self, attached: Attached, shape: int | tuple[int, ...], dtype: DTypeLike) -> Loan:
        return make_loan(shape, dtype, None, attached)

    def unshare(self, attached: Attached, blocks: Sequence[Block]) -> None:
        pass

    def when_room(self, answerer: Answerer, request_id: int, callback: Callable[[], object]) -> None:
        if answerer.is_full(request_id):
            self._node.rooms[answerer, request_id] = callback
        else:
            callback()

    def answer_small(self, attached: Attached, answerer: Answerer, request_id: int, payload: bytes) -> bool:
        return False

    def wait(self, item: Item, until: float) -> bool:
        return self._node.wait(item, until)

    def _touch(self, attached: Attached) -> None:
        self._hub.touch(attached, now=self._node.now)
        self._node.turn_soon()
