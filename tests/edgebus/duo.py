"""Two hubs, a device and a server, joined by wires in memory: both lanes, any fault, one virtual clock, no sockets."""

from __future__ import annotations

import itertools
from collections import deque

from edgebus import messages as m
from edgebus.config import Limits
from edgebus.hub import Hub
from edgebus.link_states import Surroundings, WantBulk
from edgebus.outcomes import Arrived, PartArrived, Room, Settled, Superseded, Withdrawn
from edgebus.streams import content_bytes
from edgebus.wire import decode, encode

CONTROL, BULK = 0, 1
KIB = 1 << 10
SMALL = Limits(
    max_frame_bytes=256 * KIB,
    max_pending_bytes=512 * KIB,
    max_outstanding_bytes=4096 * KIB,
    bulk_bytes=128 * KIB,
    bulk_from_bytes=8 * KIB,
    cache_bytes=4096 * KIB,
)
"""Bounds that contents of some 100 KiB reach: each is a transfer of several pieces, and a few of them fill a window."""
LISTENING, DIALLED = 7, 1  # socket ids


class Duo:
    """A device that dialled a server.

    Args:
        limits: of both.
        device, server: keyword arguments of Surroundings that only one of them has.
        lanes: False never lets the device open its bulk lane.

    Attributes:
        arrived: requests the server's application has been given.
        settled: outcomes at the device, in order.
        parts: parts at the device, in order.
        carried: (from the device?, lane, header, bytes of frames after the header) of every message delivered.
        loses: told of every message before it is delivered; True loses it.
    """

    def __init__(self, limits=None, *, device=None, server=None, lanes=True, key="DEVICE"):
        self.now = 0.0
        self.limits = limits or Limits()
        numbers = itertools.count(1)
        self._around = {"device": device or {}, "server": server or {}}
        self._new_incarnation = lambda: next(numbers).to_bytes(16, "big")
        self._lanes, self._key = lanes, key
        self.device = self._hub("device")
        self.server = self._hub("server")
        self.arrived, self.settled, self.parts, self.withdrawn, self.rooms, self.superseded = [], [], [], [], [], []
        self.carried = []
        self.loses = lambda from_device, lane, header: False
        self._wires = {(True, 0): deque(), (True, 1): deque(), (False, 0): deque(), (False, 1): deque()}
        self.attached = self.device.dial((DIALLED, b""), now=0.0)
        self.link = self.attached.link
        self.device.connected((DIALLED, b""), now=0.0)
        self.run()

    @property
    def far(self):
        """The server's end of the link."""
        [attached] = self.server.links
        return attached.link

    def prove(self):
        """As if large contents had come and gone: both ends know that the link is fast."""
        for link in (self.link, self.far):
            link.pace.proven_bytes = self.limits.max_frame_bytes
        return self

    def ask(self, *frames, timeout_s=60.0, terms=None, service="s"):
        """The device's application asks; its request id."""
        frames = frames or (b"",)
        specs = tuple(m.ArraySpec("u1", (len(frame),)) for frame in frames[1:])
        request_id = self.link.caller.start(
            service, specs, frames, deadline_at=self.now + timeout_s, ref=len(self.settled), now=self.now, terms=terms
        )
        self.device.touch(self.attached, now=self.now)
        return request_id

    def answer(self, arrived, *frames):
        """The server's application answers."""
        frames = frames or (b"",)
        specs = tuple(m.ArraySpec("u1", (len(frame),)) for frame in frames[1:])
        arrived.answerer.answer(arrived.id, m.Message(m.Reply(arrived.id, specs), frames))
        self.touch_server()

    def push(self, arrived, *frames):
        """The server's application pushes a part; False if there is no room, None if nobody wants it."""
        room = arrived.answerer.has_room(arrived.id, content_bytes(frames))
        if room:
            specs = tuple(m.ArraySpec("u1", (len(frame),)) for frame in frames[1:])
            arrived.answerer.push(arrived.id, specs, frames)
            self.touch_server()
        return room

    def consume(self, request_id, pos):
        """The device's application took the parts below pos."""
        self.link.caller.consume(request_id, pos)
        self.device.touch(self.attached, now=self.now)

    def cancel(self, request_id):
        """The device's application gives up."""
        self.link.caller.cancel(request_id)
        self.device.touch(self.attached, now=self.now)

    def touch_server(self):
        for attached in self.server.links:
            self.server.touch(attached, now=self.now)

    # -- time and wires ---------------------------------------------------------------------------

    def run(self, most=1_000_000):
        """Let messages come and go until there are none, or `most` of them have been carried."""
        for _ in range(most):
            self._collect()
            wire = next((wire for wire in self._wires.items() if wire[1]), None)
            if wire is None:
                return
            (from_device, lane), queue = wire
            self._deliver(from_device, lane, queue.popleft())
        self._collect()

    def advance(self, seconds):
        """Let time pass, with all timers in it."""
        until = self.now + seconds
        self.run()
        while (at := min(self.device.next_timer(), self.server.next_timer())) <= until:
            self.now = max(self.now, at)
            self.device.handle_timer(now=self.now)
            self.server.handle_timer(now=self.now)
            self.run()
        self.now = until

    def cut(self, *, lanes=(CONTROL, BULK)):
        """Connections end, with all that was on them; they are not made again before `reconnect`."""
        for (_, lane), queue in self._wires.items():
            if lane in lanes:
                queue.clear()
        for lane in lanes:
            self.device.disconnected(self._near(lane), now=self.now)
            self.server.disconnected(self._far_route(lane), now=self.now)

    def reconnect(self, *, lanes=(CONTROL, BULK)):
        """The device dials again."""
        if CONTROL in lanes:
            self.device.connected(self._near(CONTROL), now=self.now)
            self.run()
        if BULK in lanes and self.attached.bulk_route is not None:
            self.device.lane_connected(self.attached, now=self.now)
            self.run()

    def restart_server(self):
        """Another process at the same address, without memory."""
        self.cut()
        self.server = self._hub("server")
        self.arrived.clear()

    # -- inside -----------------------------------------------------------------------------------

    def _hub(self, name):
        around = Surroundings(**({"name": name, "limits": self.limits} | self._around[name]))
        return Hub(around=around, new_incarnation=self._new_incarnation)

    def _near(self, lane):
        return (DIALLED + lane, b"")

    def _far_route(self, lane):
        return (LISTENING, b"bulk" if lane else b"control")

    def _collect(self):
        for hub, from_device in ((self.device, True), (self.server, False)):
            for _, event in hub.events():
                self._handle(event)
            for route, frames in hub.frames_to_send(now=self.now):
                lane = int(route in (self._near(BULK), self._far_route(BULK)))
                self._wires[from_device, lane].append([bytes(frame) for frame in frames])

    def _handle(self, event):
        match event:
            case Arrived():
                self.arrived.append(event)
            case Settled():
                self.settled.append(event)
            case PartArrived():
                self.parts.append(event.arrival)
            case Withdrawn():
                self.withdrawn.append(event.id)
            case Room():
                self.rooms.append(event.id)
            case Superseded():
                self.superseded.append(event.id)
            case WantBulk() if self._lanes and self.attached.bulk_route is None:
                self.device.add_lane(self.attached, self._near(BULK))
                self.device.lane_connected(self.attached, now=self.now)

    def _deliver(self, from_device, lane, frames):
        header = m.decode_header(frames[0])
        if self.loses(from_device, lane, header):
            return
        self.carried.append((from_device, lane, header, sum(map(len, frames[1:]))))
        if from_device:
            self.server.receive(self._far_route(lane), frames, self._key, now=self.now)
        else:
            self.device.receive(self._near(lane), frames, None, now=self.now)

    def count(self, kind, *, from_device=None, lane=None):
        """Messages of a kind that were delivered."""
        return sum(
            isinstance(header, kind)
            and (from_device is None or from_device is is_from_device)
            and (lane is None or lane == by_lane)
            for is_from_device, by_lane, header, _ in self.carried
        )


def through_the_wire(message, limits=None):
    """A message as it arrives at the other end."""
    return decode([bytes(frame) for frame in encode(message)], limits or Limits())
