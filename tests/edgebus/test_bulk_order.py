"""Contents that come in another order than they were sent in, and that do not fit together: none waits for ever."""

from __future__ import annotations

import dataclasses
import random
import threading
import time

import numpy as np
import pytest

import edgebus
from edgebus import messages as m
from edgebus.bulk import BulkSender, credit_step
from edgebus.bulk_receiver import BulkReceiver
from edgebus.config import Limits
from edgebus.testing import Proxy, SimNetwork, for_seeds
from tests.edgebus.duo import BULK, CONTROL, KIB, SMALL, Duo, through_the_wire

MIB = 1 << 20
WINDOW = 64 * KIB


def request(request_id, size):
    return m.Message(m.Request(request_id, "s", 60_000, 0, ()), (bytes([request_id]) * size,))


class Lanes:
    """A sender and a receiver with two lanes between them, each in order; what is on a lane is lost with it."""

    def __init__(self, max_bytes, chunk_bytes):
        self.sender, self.receiver = BulkSender(1 << 30, 1.0), BulkReceiver(max_bytes, WINDOW)
        self.chunk_bytes, self.now = chunk_bytes, 0.0
        self.lanes = {0: [], 1: []}
        self.arrived, self.most_held = [], 0

    def pump(self, lane):
        sent = self.sender.pump(lane, chunk_bytes=self.chunk_bytes, window_bytes=WINDOW, now=self.now)
        for by, message in sent:
            self.lanes[by].append(through_the_wire(message))

    def take(self, lane):
        """The receiver takes the oldest message of a lane, and the sender hears what it says."""
        header, frames = self.lanes[lane].pop(0)
        if isinstance(header, m.Chunk):
            whole = self.receiver.receive(header, frames[0], now=self.now)
        else:
            whole = self.receiver.announce(header)
        if whole is not None:
            self.arrived.append(whole)
        self.receiver.admit(0)
        self.arrived += self.receiver.take_admitted()
        self.most_held = max(self.most_held, self.receiver.held_bytes)
        for credit in self.receiver.headers_to_send():
            name = self.sender.receive(credit.header, now=self.now)
            if name is None and credit.header.received == 0 and not self.sender.knows(credit.header.transfer):
                self.receiver.drop(credit.header.transfer)

    def lose(self, lane):
        self.lanes[lane].clear()
        self.sender.lane_lost(lane)

    def finish(self, lane=1, most_s=40.0):
        """Whatever is left goes by one lane, in peace."""
        while self.sender and self.now < most_s:
            self.pump(lane)
            while self.lanes[0] or self.lanes[1]:
                self.take(0 if self.lanes[0] else 1)
                self.pump(lane)
            self.now = min(self.sender.next_timer(), self.now + 1.0)
            self.sender.handle_timer(now=self.now)

    def check(self, sizes):
        got = {message.header.id: message.frames[0] for message in self.arrived}
        assert got == {number: bytes([number]) * size for number, size in enumerate(sizes)}
        assert not self.sender
        assert (self.receiver.held_bytes, self.sender.in_flight_bytes, self.sender.queued_bytes) == (0, 0, 0)


@pytest.mark.parametrize(("first", "second"), [(53, 24), (100, 60), (60, 40), (64, 64), (64, 25)])
@pytest.mark.parametrize("begun", [0, 1, 3])
def test_later_content_that_was_announced_first_makes_room_for_the_one_that_goes_before_it(first, second, begun):
    """The first goes by lane 0 and is lost with it; the second was announced, and perhaps begun, by lane 1."""
    sizes = (first * KIB, second * KIB)
    ends = Lanes(max(*sizes, WINDOW), chunk_bytes=8 * KIB)
    for number, size in enumerate(sizes):
        ends.sender.offer(request(number, size))
    ends.pump(0)
    ends.lanes[0].clear()
    header = request(1, sizes[1]).header
    header.transfer = m.Transfer(1, (sizes[1],))
    ends.lanes[1] += [
        m.Message(header),
        *(m.Message(m.Chunk(1, 8 * KIB * n), (bytes([1]) * 8 * KIB,)) for n in range(begun)),
    ]
    while ends.lanes[1]:
        ends.take(1)
    ends.lose(0)
    ends.finish()
    ends.check(sizes)
    assert ends.now < 4.0, "it does not take more than a question or two"


@pytest.mark.parametrize("seed", range(300))
def test_everything_arrives_whatever_lanes_are_lost_and_memory_stays_bounded(seed):
    source = random.Random(seed)
    max_bytes = source.choice([64, 80, 128]) * KIB
    sizes = [source.randrange(1, max_bytes) for _ in range(8)]
    ends = Lanes(max_bytes, source.choice([4, 8, 16]) * KIB)
    for number, size in enumerate(sizes):
        ends.sender.offer(request(number, size))
    for _ in range(200):
        ends.pump(source.randrange(2))
        lane = source.randrange(2)
        if source.random() < 0.06:
            ends.lose(lane)
        for _ in range(source.randrange(8)):
            if ends.lanes[lane]:
                ends.take(lane)
        ends.now += 0.05
        ends.sender.handle_timer(now=ends.now)
    ends.finish(source.randrange(2), most_s=ends.now + 40.0)
    ends.check(sizes)
    assert ends.most_held <= max_bytes + WINDOW + ends.chunk_bytes


def test_peer_that_announces_backwards_for_ever_gets_no_more_memory_by_it():
    """What makes room gives its memory back: a peer cannot have each earlier content held beside the later ones."""
    receiver = BulkReceiver(100 * KIB, WINDOW)
    most = 0
    for number in range(200, 0, -1):
        header = request(1, 90 * KIB).header
        header.id, header.transfer = number, m.Transfer(number, (90 * KIB,))
        receiver.announce(header)
        receiver.admit(0)
        for begin in range(0, 80 * KIB, 8 * KIB):
            receiver.receive(m.Chunk(number, begin), bytes(8 * KIB), now=0.0)
        receiver.admit(0)
        receiver.headers_to_send()
        most = max(most, receiver.held_bytes)
    assert most <= 100 * KIB + WINDOW + 8 * KIB


def test_peer_that_has_contents_wait_again_that_were_never_credited_gets_no_more_memory_by_it():
    """Each is begun with less than is credited, and then loses its room to one that goes before it."""
    receiver = BulkReceiver(256 * KIB, WINDOW)
    step = credit_step(WINDOW)
    most = 0
    for number in range(250, 0, -1):
        header = request(1, step).header
        header.id, header.transfer = number, m.Transfer(number, (step,))
        receiver.announce(header)
        receiver.admit(0)
        receiver.receive(m.Chunk(number, 0), bytes(step - 1), now=0.0)
        receiver.admit(0)
        receiver.headers_to_send()
        most = max(most, receiver.held_bytes)
    assert most <= 256 * KIB + WINDOW + step


# -- two whole hubs -------------------------------------------------------------------------------------------


def test_slow_control_lane_beside_a_quick_bulk_lane():
    """The first fills the window by the control lane, which is late; the second is announced by the bulk lane."""
    duo = Duo(SMALL, lanes=False)
    sizes = 128 * KIB, (250 * KIB, 200 * KIB)
    late, got, deliver = [], [], duo._deliver

    def slowly(from_device, lane, frames):
        if from_device and lane == CONTROL and not isinstance(m.decode_header(frames[0]), m.Hello):
            late.append(frames)
        else:
            deliver(from_device, lane, frames)

    duo._deliver = slowly
    duo.prove()
    duo.ask(bytes(sizes[0]))
    duo.advance(1.5)  # there is no bulk lane
    assert duo.link.sender.in_flight_bytes >= 96 * KIB
    duo._lanes = True
    duo.device.add_lane(duo.attached, duo._near(BULK))
    duo.device.lane_connected(duo.attached, now=duo.now)
    duo.run()
    duo.ask(*map(bytes, sizes[1]))
    duo.run()
    duo._deliver = deliver
    duo._wires[True, CONTROL].extend(late)
    duo.run()
    while duo.arrived:
        arrived = duo.arrived.pop(0)
        got.append(sum(map(len, arrived.frames)))
        duo.answer(arrived)
        duo.advance(5.0)
    assert sorted(got) == [sizes[0], sum(sizes[1])]


# -- a virtual network ----------------------------------------------------------------------------------------

TIGHT = dataclasses.replace(SMALL, max_frame_bytes=128 * KIB, max_pending_bytes=128 * KIB, bulk_bytes=64 * KIB)


@for_seeds(60)
def test_contents_that_do_not_fit_together_all_arrive_in_whatever_order_they_come(seed):
    source = random.Random(seed)
    sizes = [source.randrange(20 * KIB, 127 * KIB) for _ in range(6)]
    with SimNetwork(seed, loss=0.01, delay_s=(0.001, 0.02), reorder=True) as net:
        server = net.node("server", lambda request: request.reply(request.payload[:8]), TIGHT)
        link = net.connect(net.node("device", limits=TIGHT), server)
        pendings = [link.send_request("s", b"%8d" % n + bytes(size), timeout_s=120.0) for n, size in enumerate(sizes)]
        assert net.run_until(lambda: all(pending.done() for pending in pendings), 60.0), "all of them well in time"
        assert [pending.result().payload for pending in pendings] == [b"%8d" % n for n in range(6)]


# -- sockets --------------------------------------------------------------------------------------------------


@pytest.mark.net
def test_connections_that_break_under_contents_that_do_not_fit_together_lose_none():
    limits = Limits(
        share_bytes=0,
        max_pending_bytes=4 * MIB,
        max_frame_bytes=4 * MIB,
        bulk_bytes=2 * MIB,
        heartbeat_s=0.3,
        silence_s=0.6,
        resend_s=0.3,
    )
    server, device = (edgebus.Node(name, insecure=True, limits=limits) for name in "sd")
    with server, device, Proxy(server.bind("tcp://127.0.0.1:0")) as proxy:
        server.handle("sum", lambda request: request.reply(b"%d" % int(request.arrays[0].sum())))
        link = device.connect(proxy.endpoint)
        proxy.bytes_per_s = 30e6
        arrays = [
            np.full(size, n + 1, np.uint8) for n, size in enumerate([3 * MIB, 2 * MIB, 4 * MIB - 64, 60 * KIB] * 2)
        ]
        pendings = [link.send_request("sum", b"", [array], timeout_s=30.0) for array in arrays]
        stop = threading.Event()

        def break_it():
            while not stop.wait(0.2):
                proxy.cut()

        thread = threading.Thread(target=break_it)
        thread.start()
        time.sleep(1.2)
        stop.set()
        thread.join(5)
        proxy.bytes_per_s = None
        for array, pending in zip(arrays, pendings, strict=True):
            assert int(pending.result().payload) == int(array.sum())
        assert server.stats().total.executed == len(arrays)
        assert server.stats().malformed == device.stats().malformed == 0
