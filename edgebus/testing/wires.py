"""Connections of the virtual network: dialled, broken, dialled again, and what flies over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgebus.attached import Route
from edgebus.testing.cables import Cables, Flight
from edgebus.testing.links import SimLink
from edgebus.testing.nodes import SimNode

if TYPE_CHECKING:
    from edgebus.testing.network import SimNetwork

_REDIAL_S = 0.1


@dataclass(eq=False)
class Wire:
    """One connection; a reconnect makes another one, which is why old messages cannot come by it."""

    link: SimLink
    listener_route: Route
    open: bool = True
    last_at: dict[str, float] = field(default_factory=dict)

    def far_end(self, node: SimNode, route: Route) -> tuple[SimNode, Route] | None:
        """Where what a node sends by a route comes out, None if that is not this wire."""
        if self.link.dialler is node and self.link.route == route:
            return self.link.listener, self.listener_route
        if self.link.listener is node and self.listener_route == route:
            return self.link.dialler, self.link.route
        return None


class Wires:
    """All connections there are.

    Args:
        net: whose clock and trace it is.
        cables: what becomes of messages.
        keeps_order: messages of one connection arrive in order, as over tcp, unless a fault holds one back.
    """

    def __init__(self, net: SimNetwork, cables: Cables, *, keeps_order: bool) -> None:
        self._net = net
        self._cables = cables
        self._keeps_order = keeps_order
        self._num_made = 0
        self._open: list[Wire] = []
        self._untold: list[Wire] = []  # the listener lost its power, and nobody knows

    def dial(self, link: SimLink) -> None:
        """Try until the other side can answer, or this life of the dialler is over."""
        dialler, listener, life = link.dialler, link.listener, link.dialler.life

        def attempt() -> None:
            if dialler.life != life or not dialler.is_up:
                return
            ways = (dialler.name, listener.name), (listener.name, dialler.name)
            if not (dialler.runs and listener.runs) or any(self._cables.is_cut(*way) for way in ways):
                self._net.call_later(_REDIAL_S, attempt)
                return
            self._num_made += 1
            self._open.append(Wire(link, (0, self._num_made.to_bytes(8, "big"))))
            dialler.hub.connected(link.route, now=dialler.now)

        self._net.call_later(self._cables.delay(), attempt)

    def send(self, node: SimNode, route: Route, frames: Sequence[bytes]) -> None:
        """Put a message on its way; a sender without a connection learns that it has none."""
        for wire in self._open:
            if far_end := wire.far_end(node, route):
                for flight in self._cables.send(node.name, far_end[0].name, frames, now=self._net.clock.now):
                    self._fly(wire, node, *far_end, flight)
                return
        if not any(wire.link.dialler is node and wire.link.route == route for wire in self._untold):
            node.hub.disconnected(route, now=node.now)

    def reset(self, a: str, b: str) -> None:
        """Break every connection between two nodes."""
        for wire in list(self._open):
            if {wire.link.dialler.name, wire.link.listener.name} == {a, b}:
                self._break(wire)

    def crashed(self, node: SimNode, *, told: bool) -> None:
        """A node is away, its connections with it."""
        for wire in list(self._open):
            if node is wire.link.dialler or (node is wire.link.listener and told):
                self._break(wire)
            elif node is wire.link.listener:
                self._close(wire)
                self._untold.append(wire)

    def started(self, node: SimNode) -> None:
        """A node is back: who was not told that it went learns it now."""
        untold, self._untold = self._untold, []
        for wire in untold:
            if wire.link.listener is node:
                self._tell(wire)
            elif wire.link.dialler is not node:
                self._untold.append(wire)

    def _break(self, wire: Wire) -> None:
        self._close(wire)
        self._tell(wire)

    def _close(self, wire: Wire) -> None:
        wire.open = False
        self._open.remove(wire)

    def _tell(self, wire: Wire) -> None:
        """The dialling end learns that its connection is gone, and dials again. The other finds out when it sends."""
        dialler, route = wire.link.dialler, wire.link.route
        dialler.do(lambda: dialler.hub.disconnected(route, now=dialler.now))
        self.dial(wire.link)

    def _fly(self, wire: Wire, source: SimNode, target: SimNode, route: Route, flight: Flight) -> None:
        at, frames, is_held_back = flight
        if self._keeps_order and not is_held_back:
            at = wire.last_at[target.name] = max(at, wire.last_at.get(target.name, 0.0))

        def receive() -> None:
            self._net.delivered(source, target, frames)
            target.receive(route, frames)

        def arrive() -> None:
            if not wire.open or self._cables.is_cut(source.name, target.name):
                self._cables.counts["cut_off"] += 1
            else:
                target.do(receive)

        self._net.call_at(at, arrive)
