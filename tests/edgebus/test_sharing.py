"""Shared memory under the bus: nothing is lost, leaked or changed, whoever dies, lies, hurries or cannot see it."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgebus
from edgebus import messages as m
from edgebus import shm
from edgebus.arrays import describe_arrays
from edgebus.attached import Attached, NearLane, Traffic
from edgebus.config import Limits
from edgebus.sharing import Sharing
from edgebus.sharing_pool import REPORT_S
from edgebus.sharing_views import TOLD_S
from edgebus.shm import Ledger, Numbers
from edgebus.shm.mapper import place
from edgebus.shm.pool import _plain_copy
from edgebus.testing import Proxy
from tests.edgebus.interrupting import interrupted

pytestmark = [pytest.mark.net, pytest.mark.skipif(not shm.available(), reason="no shared memory here")]
MIB = 1 << 20
CHILD = Path(__file__).with_name("child_sharing.py")
QUICK = Limits(heartbeat_s=0.2, silence_s=0.4, forget_s=0.5)


def array(seed, size=MIB):
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def eventually(condition, seconds=5.0, what=""):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"never happened {what}"
        gc.collect()
        time.sleep(0.01)


def pool_of(node):
    return node._engine.sharing._pool


def warm(link):
    """Until both ends know that they see each other's memory."""
    eventually(lambda: link.request("echo", b"", [array(0, 100_000)]) and link._dialled.attached.sharing == "yes")


@contextmanager
def two_nodes(**limits):
    made = Limits(**limits)
    with (
        edgebus.Node("s", insecure=True, limits=made) as server,
        edgebus.Node("d", insecure=True, limits=made) as device,
    ):
        server.handle("echo", lambda request: request.reply(request.payload, request.arrays))
        yield server, device, device.connect(server.bind("tcp://127.0.0.1:0"))


@contextmanager
def child(endpoint="tcp://127.0.0.1:0", *, unseen=False):
    """A server process, and where it listens."""
    options = ["--unseen"] if unseen else []
    process = subprocess.Popen(
        [sys.executable, str(CHILD), endpoint, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait(5)
        process.stdin.close()
        process.stdout.close()


# -- numbers of leases, pure ---------------------------------------------------------------------------


def test_numbers_grow_in_the_order_of_sending():
    numbers = Numbers()
    assert [numbers.number(lease) for lease in (5, 3, 5)] == [0, 1, 2]
    assert numbers.done([5, 3]) == []
    assert numbers.settle(1, [0]) == [3]
    assert numbers.settle(2, []) == [5]
    assert len(numbers) == 0


def test_lease_that_never_left_is_free_at_once_and_one_that_may_be_sent_again_is_not():
    numbers = Numbers()
    assert numbers.done([7]) == [7]
    numbers.number(8)
    assert numbers.settle(0, []) == [], "it may be sent again"
    numbers.number(8)
    assert numbers.done([8]) == []
    assert numbers.settle(1, []) == [8]


def test_quick_way_is_free_once_the_peer_has_what_went_by_the_slow_one_though_it_holds_it():
    """A server that takes one request after the other lets go of the last one when it takes the next."""
    numbers = Numbers()
    for lease in (5, 6):
        numbers.number(lease)
    numbers.went_round()
    assert numbers.settle(0, []) == []
    assert not numbers.in_order(), "number 1 may still be on its way"
    numbers.settle(1, [1])
    assert numbers.in_order()
    numbers.number(7)
    numbers.went_round()
    numbers.settle(1, [1])
    assert not numbers.in_order(), "said before it, or said again"


def test_board_is_looked_at_at_both_ends_of_what_is_out_and_everywhere_if_need_be():
    numbers, board = Numbers(), [0] * 1024
    for lease in range(200):
        numbers.number(lease)
    numbers.went_round()
    assert numbers.done(range(200)) == []
    for number in (31, 32, 167, 168, 199):
        board[number] = number + 1
    assert not numbers.in_order()
    assert sorted(numbers.read(board)) == [31, 168, 199]
    assert numbers.in_order(), "the last one was received, whatever is held of the older ones"
    assert numbers.read(board, True) == [32, 167]
    for number in range(200):
        board[number] = number + 1
    for _ in range(4):
        freed = numbers.read(board)
        assert len(freed) == len(set(freed))
    assert len(numbers) == 0


def test_lease_that_stands_on_no_board_is_told_soon_though_others_wait_longer():
    woken, traffic = [], Traffic()
    sharing = Sharing(Limits(), lambda: woken.append(1))
    links = [Attached(None, (1, b""), None, peer, None, traffic) for peer in ("near", "far")]
    links[0].near = NearLane(links[0], (0, b""), None)
    links[0].near.board = shm.Board()
    for attached, within_s in zip(links, (TOLD_S, REPORT_S), strict=True):
        before = len(woken)
        sharing._give_back(attached, sharing._ledger(attached), place(0, 1, 1, 64 * MIB, bytes(16), 4096, 100_000))
        assert len(woken) == before + 1
        now = time.monotonic()
        assert sharing.take_back(now) == []
        assert now < sharing.report_at <= now + within_s
    links[0].near.board.close()
    sharing.close()


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=60), st.randoms(use_true_random=False))
def test_numbers_against_a_ledger_that_loses_and_repeats(sends, source):
    """Whatever is lost, nothing that comes in order is refused, and memory is free exactly when nobody uses it."""
    numbers, ledger = Numbers(), Ledger()
    held, free, done = [], set(), set()
    for lease, arrives in sends:
        if lease in done:
            continue
        number = numbers.number(lease)
        if arrives:
            assert ledger.admit([number])
            held.append((number, lease))
        if held and source.random() < 0.5:
            number, _ = held.pop(source.randrange(len(held)))
            ledger.give_back(number)
        if source.random() < 0.2:
            done.add(lease)
            free |= set(numbers.done([lease]))
        if source.random() < 0.4 and (report := ledger.report()) is not None:
            free |= set(numbers.settle(*report))
        assert free <= done
        assert not free & {lease for _, lease in held}
    for number, _ in held:
        ledger.give_back(number)
    last = numbers.number(99)
    ledger.admit([last])
    ledger.give_back(last)
    free |= set(numbers.settle(*ledger.report()))
    assert free == done


# -- two nodes ------------------------------------------------------------------------------------------


def test_answer_that_nobody_has_any_more_is_given_back_without_the_garbage_collector():
    with two_nodes() as (_, device, link):
        warm(link)
        mapper = device._engine.sharing._mapper
        gc.collect()
        gc.disable()
        try:
            before, until = mapper.stats().views, time.monotonic() + 2.0
            for number in range(10):
                link.request("echo", b"", [array(number, 100_000)])
            while mapper.stats().views > before and time.monotonic() < until:
                time.sleep(0.01)
            assert mapper.stats().views <= before
        finally:
            gc.enable()


def test_array_that_lies_as_it_travels_is_copied_once_only():
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    others = (values[:, :2], values.astype(">f4"), np.array(3, np.float32), values.view(np.ma.MaskedArray))
    specs, ordered = describe_arrays([values, *others])
    assert ordered[0] is values
    for spec, there, sent in zip(specs, ordered, (values, *others), strict=True):
        assert spec.shape == sent.shape
        assert there.flags.c_contiguous
        assert there.dtype == np.dtype("<f4")
        assert type(there) is np.ndarray
        np.testing.assert_array_equal(there.reshape(sent.shape), np.asarray(sent))


def test_ledger_admits_one_lease_as_it_admits_several():
    ledger = Ledger(max_held=2)
    assert ledger.admit([3])
    assert not ledger.admit([3, 5, 6])
    assert ledger.admit([3]), "held once more"
    assert ledger.admit([4])
    assert not ledger.admit([5]), "no room"
    ledger.give_back(3)
    assert ledger.report() == (4, (3, 4))
    ledger.give_back(3)
    ledger.give_back(4)
    assert not ledger.admit([4]), "given up"
    assert ledger.report() == (4, ())


def test_nothing_is_copied_beside_its_place():
    views = pytest.importorskip("edgebus._views", reason="not built, or EDGEBUS_PURE")
    for copy_to in (views.copy_to, _plain_copy):
        room = np.zeros(8, np.uint8)
        copy_to(room, 2, memoryview(np.array([[1, 2], [3, 4]], np.uint8)))
        copy_to(room, 8, memoryview(b""))
        assert room.tolist() == [0, 0, 1, 2, 3, 4, 0, 0]
        with pytest.raises(ValueError, match="4"):
            copy_to(room, 5, memoryview(bytes(4)))
    with pytest.raises(ValueError, match="1 bytes at -1 of 8"):
        views.copy_to(room, -1, b"x")


def test_bytes_are_watched_within_their_buffer_only():
    views = pytest.importorskip("edgebus._views", reason="not built, or EDGEBUS_PURE")
    room, told = bytearray(range(64)), []
    for offset, size in ((0, 65), (64, 1), (65, 0), (-1, 1), (1, -1), (2**62, 2**62), (1, 2**63 - 1)):
        with pytest.raises(ValueError, match="bytes at"):
            views.watch(room, offset, size, lambda: told.append(None))
    assert told == []
    for offset, size in ((0, 64), (63, 1), (64, 0)):
        assert views.watch(room, offset, size, lambda: told.append(None)) == room[offset : offset + size]
    assert told == [None] * 3


def test_arrays_go_through_shared_memory_and_their_leases_come_back():
    with two_nodes() as (server, device, link):
        warm(link)
        kept = [link.request("echo", b"%d" % n, [array(n)]) for n in range(5)]
        for n, reply in enumerate(kept):
            assert (reply.arrays[0] == array(n)).all()
        assert pool_of(server).stats().in_use_bytes >= 5 * MIB, "what is kept here stays theirs"
        del kept, reply
        eventually(lambda: link.request("echo", b"", [array(9, 100_000)]) and True)
        for node in (server, device):
            eventually(lambda node=node: pool_of(node).stats().in_use_bytes <= 2 * MIB, what=node.name)
        assert link.stats().bytes_sent < 3 * MIB


def test_threads_that_share_a_link_are_never_refused():
    """They fill their memory at once and send in another order than they began."""
    wrong = []
    with two_nodes() as (_server, _device, link):
        warm(link)

        def work(number):
            for step in range(60):
                sent = np.full(70_000 + 40_000 * number, (7 * number + step) % 251, np.uint8)
                try:
                    if not (link.request("echo", b"", [sent]).arrays[0] == sent).all():
                        wrong.append("other bytes")
                except edgebus.EdgebusError as error:
                    wrong.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert wrong == []
        assert link._dialled.attached.sharing == "yes"
        assert link.stats().retries == 0


def test_full_memory_goes_by_sockets_instead():
    with two_nodes(share_bytes=4 * MIB) as (server, _, link):
        warm(link)
        kept = [link.request("echo", b"", [array(n)]) for n in range(12)]
        assert all((reply.arrays[0] == array(n)).all() for n, reply in enumerate(kept))
        assert pool_of(server).stats().committed_bytes <= 4 * MIB
        assert link.stats().content_bytes_received > 5 * MIB


def test_reconnected_link_goes_on_with_shared_memory_and_nothing_is_lost():
    with edgebus.Node("s", insecure=True) as server, edgebus.Node("d", insecure=True) as device:
        server.handle("echo", lambda request: request.reply(request.payload, request.arrays))
        with Proxy(server.bind("tcp://127.0.0.1:0")) as proxy:
            link = device.connect(proxy.endpoint)
            warm(link)
            for round_number in range(2):
                pendings = [link.send_request("echo", b"", [array(n)], timeout_s=20.0) for n in range(4)]
                proxy.cut()
                for n, pending in enumerate(pendings):
                    assert (pending.result().arrays[0] == array(n)).all(), round_number
            warm(link)


def test_host_that_cannot_be_seen_falls_back_to_sockets():
    with child(unseen=True) as (_, endpoint), edgebus.Node("d", insecure=True) as device:
        link = device.connect(endpoint)
        for n in range(3):
            assert (link.request("echo", b"", [array(n)]).arrays[0] == array(n)).all()
        eventually(lambda: link._dialled.attached.sharing == "no")
        assert link.stats().content_bytes_sent >= 3 * MIB


class Blind(shm.Mapper):
    """Sees nothing."""

    def view_place(self, *args):
        raise shm.SegmentUnavailable("gone", "as it happens")


def test_memory_that_turns_out_unseen_goes_by_sockets_without_the_application_knowing():
    """The probe was seen, the message is not: the receiver says so, and the request is sent again by socket."""
    with two_nodes() as (server, device, link):
        warm(link)
        sharing = server._engine.sharing
        mapper, sharing._mapper = sharing._mapper, Blind()
        try:
            for n in range(3):
                assert (link.request("echo", b"", [array(n)]).arrays[0] == array(n)).all()
            assert link._dialled.attached.sharing == "no"
        finally:
            sharing._mapper = mapper
        eventually(lambda: pool_of(device).stats().in_use_bytes == 0)


def test_queue_that_is_full_leaves_no_memory_behind():
    with two_nodes(max_outstanding_bytes=200_000) as (_, device, link):
        warm(link)
        pendings = [link.send_request("nothing", bytes(190_000))]
        for _ in range(20):
            try:
                pendings.append(link.send_request("echo", bytes(190_000), [array(1)]))
            except edgebus.QueueFull:
                continue
        for pending in pendings:
            pending.wait(5)
        link.request("echo", b"", [array(1, 100_000)])
        eventually(lambda: pool_of(device).stats().in_use_bytes <= MIB, what="leases of refused requests")


# -- processes that die -----------------------------------------------------------------------------------


def test_killed_receiver_frees_the_senders_memory():
    with edgebus.Node("d", insecure=True, limits=QUICK) as device, child() as (process, endpoint):
        link = device.connect(endpoint)
        warm(link)
        for n in range(8):
            link.request("keep", b"", [array(n)])  # it holds them all
        assert pool_of(device).stats().in_use_bytes >= 8 * MIB
        process.kill()
        process.wait(5)
        with child(endpoint):
            assert (link.request("echo", b"", [array(1)], timeout_s=10.0).arrays[0] == array(1)).all()
            warm(link)
            eventually(lambda: pool_of(device).stats().in_use_bytes <= 2 * MIB)
            eventually(lambda: pool_of(device).sweep() or pool_of(device).stats().orphan_bytes == 0)


@pytest.mark.parametrize("when", ["filled", "started"])
def test_request_whose_memory_goes_with_the_last_life_of_its_peer_goes_by_sockets(monkeypatch, when):
    """The peer begins another life after the arrays were put, before the request is started or just after that."""
    monkeypatch.setattr(shm, "process_alive", lambda *process: False)  # as if the last life had been another process
    with edgebus.Node("d", insecure=True, limits=QUICK) as device, Echo() as first:
        link = device.connect(first.endpoint)
        warm(link)
        engine, attached = device._engine, link._dialled.attached
        engine.runner.do(engine.near.drop, attached)  # as when the peer has just gone
        put, lives, started = engine.put_shared, [first], []

        def another_life():
            if len(lives) == 1:
                lives[0].__exit__()
                lives.append(Echo(first.endpoint))
                eventually(lambda: link._link.num_ups == 2 and link.health == "up")

        def put_and_restart(*args):
            shared = put(*args)
            assert (shared is not None) or len(lives) == 2
            another_life()
            return shared

        if when == "filled":
            monkeypatch.setattr(engine, "put_shared", put_and_restart)
            started.append(link.send_request("echo", b"", [array(1)], timeout_s=5.0))
            assert len(lives) == 2
        else:
            shared = put(attached, b"", [array(1)])
            handle = engine._handle_event

            def begin(each, event):
                if each is attached and type(event).__name__ == "Up" and not started:
                    pending = edgebus.Pending("echo", 5.0, time.monotonic() + 5.0, lambda pending: None)
                    pending._wait = engine.runner.wait
                    assert engine.request(link._dialled, "echo", shared[0], (b"",), pending, None, shared[1])
                    started.append(pending)
                handle(each, event)

            monkeypatch.setattr(engine, "_handle_event", begin)
            another_life()
        assert (started[0].result().arrays[0] == array(1)).all()
        lives[1].__exit__()


class Echo:
    """A server in this process."""

    def __init__(self, endpoint="tcp://127.0.0.1:0"):
        self._node = edgebus.Node("s", insecure=True)
        self._node.handle("echo", lambda request: request.reply(request.payload, request.arrays))
        self.endpoint = self._node.bind(endpoint)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._node.close(0.1)


def test_killed_sender_leaves_what_was_received_readable():
    with edgebus.Node("d", insecure=True, limits=QUICK) as device, child() as (process, endpoint):
        link = device.connect(endpoint)
        warm(link)
        kept = [link.request("echo", b"", [array(n)]).arrays[0] for n in range(4)]
        process.kill()
        process.wait(5)
        eventually(lambda: link.health == "down")
        for n, received in enumerate(kept):
            assert (received == array(n)).all()
            assert not received.flags.writeable


def test_nothing_is_left_in_dev_shm_and_no_descriptor_after_kills():
    before = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    with edgebus.Node("d", insecure=True, limits=QUICK) as device:
        for number in range(2):
            with child() as (process, endpoint):
                link = device.connect(endpoint)
                warm(link)
                link.request("keep", b"", [array(number)])
                process.kill()
                process.wait(5)
                link.close()
    gc.collect()
    after = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    assert {name for name in after - before if "edgebus" in name.lower()} == set()
    files = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.lexists(f"/proc/self/fd/{fd}")
    ]
    assert not [name for name in files if "memfd:edgebus" in name]


def test_request_outstanding_at_a_killed_server_is_executed_by_the_next():
    with edgebus.Node("d", insecure=True, limits=QUICK) as device, child() as (process, endpoint):
        link = device.connect(endpoint)
        warm(link)
        pending = link.send_request("hold", b"", [array(3)], timeout_s=20.0)
        eventually(lambda: pool_of(device).stats().in_use_bytes >= MIB)
        time.sleep(0.1)
        process.kill()
        process.wait(5)
        with child(endpoint):
            assert (pending.result().arrays[0] == array(3)).all()


def test_random_sizes_and_holders_end_with_nothing_in_use():
    source = random.Random(5)
    with two_nodes() as (server, device, link):
        warm(link)
        kept = {}
        for number in range(150):
            sent = array(number, source.randrange(1000, 400_000))
            kept[source.randrange(10)] = (sent, link.request("echo", b"", [sent]).arrays[0])
            for expected, received in kept.values():
                assert expected[0] == received[0]
                assert expected[-1] == received[-1]
        assert all((expected == received).all() for expected, received in kept.values())
        kept.clear()
        del expected, received
        gc.collect()
        link.request("echo", b"", [array(1, 100_000)])
        for node in (server, device):
            eventually(lambda node=node: pool_of(node).stats().in_use_bytes <= MIB, what=node.name)


def test_answers_that_are_not_sent_leave_no_memory_behind():
    with edgebus.Node("s", insecure=True) as server, edgebus.Node("d", insecure=True) as device:
        inbox = server.serve("work")
        server.handle("echo", lambda request: request.reply(request.payload, request.arrays))
        link = device.connect(server.bind("tcp://127.0.0.1:0"))
        warm(link)
        link.request("echo", b"", [array(0, 100_000)])
        eventually(lambda: pool_of(server).stats().in_use_bytes <= 200_000)
        pending = link.send_request("work")
        request = inbox.get(5)
        request.reply(b"first")
        for _ in range(5):
            with pytest.raises(edgebus.AlreadyAnswered):
                request.reply(b"second", [array(1)])
        assert pending.result().payload == b"first"
        pending = link.send_request("work")
        request = inbox.get(5)
        pending.cancel()
        eventually(lambda: request.remaining_s() == 0)
        request.reply(b"too late", [array(1)])
        eventually(lambda: pool_of(server).stats().in_use_bytes <= 200_000)


def test_contents_in_shared_memory_are_counted_as_contents():
    with two_nodes() as (_, _, link):
        warm(link)
        before = link.stats()
        link.request("echo", b"abc", [array(1)])
        after = link.stats()
        assert after.content_bytes_sent - before.content_bytes_sent == MIB + 3
        assert after.content_bytes_received - before.content_bytes_received == MIB + 3
        assert after.bytes_sent - before.bytes_sent < 1000


# -- leases given back ------------------------------------------------------------------------------------


def count_leases(node):
    """Headers that `node` sends about leases from now on; grows."""
    seen = []

    def tap(event):
        if event.direction == "out" and isinstance(event.header, m.Leases):
            seen.append(event.header)

    node._engine.hub.taps.append(tap)
    return seen


@pytest.mark.parametrize(("has_board", "within_s", "together"), [(True, TOLD_S, 256), (False, REPORT_S, 8)])
def test_leases_that_come_back_one_by_one_are_told_together(monkeypatch, has_board, within_s, together):
    monkeypatch.setattr(shm, "ORDERED", has_board)
    with two_nodes() as (server, _device, link):
        server.handle("read", lambda request: request.reply(bytes(request.arrays[0][:1])))
        warm(link)
        told, begun = count_leases(server), time.monotonic()
        for n in range(80):
            assert link.request("read", b"", [np.full(100_000, n, np.uint8)]).payload == bytes([n])
        eventually(lambda: told)
        most = (time.monotonic() - begun) / within_s + 80 / together + 1
        assert 1 <= len(told) <= most, "a report for each would be 80"


@pytest.mark.parametrize("size", [100_000, 16 * MIB])
def test_leases_are_told_without_anything_else_being_said(size):
    with two_nodes(heartbeat_s=30.0, silence_s=60.0) as (server, device, link):
        server.handle("read", lambda request: request.reply(b"read"))
        warm(link)
        link.request("read", b"", [np.ones(size, np.uint8)])
        eventually(lambda: pool_of(device).stats().in_use_bytes == 0)


def test_view_from_an_earlier_life_of_the_peer_gives_nothing_of_this_one_back():
    with two_nodes() as (_server, device, link):
        warm(link)
        sharing, attached = device._engine.sharing, link._dialled.attached
        # The other direction is asked about only when there is something to answer with.
        eventually(lambda: link.request("echo", b"", [array(0)]) and id(attached) in sharing._ledgers)
        kept = link.request("echo", b"", [array(1)]).arrays
        eventually(lambda: len(sharing._ledgers[id(attached)][1]._held) == 1)
        [number] = sharing._ledgers[id(attached)][1]._held
        with device._engine.runner._lock:
            sharing.gone(attached)
            assert sharing._ledger(attached).admit([number]), "the next life counts from the start again"
        assert kept[0].nbytes == MIB
        del kept
        gc.collect()
        time.sleep(0.05)
        with device._engine.runner._lock:
            assert sharing._ledger(attached)._held == {number: 1}


def test_signal_handler_in_the_middle_of_a_put_closes_the_node():
    at, going = 0, True
    while going:
        at += 1
        with two_nodes() as (_, device, link):
            warm(link)

            def ask(link=link):
                with suppress(edgebus.NodeClosed):
                    link.request("echo", b"", [array(1)])

            going = interrupted(ask, at, lambda name: name == "edgebus.shm.segments", handle=device.close)
            assert not going or device._engine.runner.join(5.0)
    assert at > 3


@pytest.mark.parametrize("pause_s", [0.0, 0.2])
def test_signal_handler_in_the_middle_of_a_put_can_wait_for_answers(pause_s):
    """It finds the pool's lock taken by its own thread: what it would free is freed afterwards.

    After a pause the node's own thread drives, which must not wait for the put that waits for it.
    """
    with two_nodes() as (_server, device, link):
        warm(link)
        pool = pool_of(device)
        inside, putting = [], device._engine.sharing._putting

        def interrupted():
            if not inside and threading.get_ident() in putting:
                inside.append(link.send_request("echo", b"", [array(7)]))  # goes by socket
                time.sleep(pause_s)
                assert pending.result().arrays[0].nbytes == MIB
                assert (inside[0].result().arrays[0] == array(7)).all()

        pending = link.send_request("echo", b"", [array(1)])  # its answer frees what it lies in

        class Written(deque):
            """Looked at with the pool's lock taken."""

            def __bool__(self):
                interrupted()
                return len(self) > 0

        pool._written = Written()
        assert (link.request("echo", b"", [array(2)]).arrays[0] == array(2)).all()
        pool._written = deque()
        assert inside
        pending = None
        inside.clear()
        eventually(lambda: link.request("echo", b"", [array(0, 100_000)]) and pool.stats().in_use_bytes <= MIB)


@pytest.mark.skipif(not shm.ORDERED, reason="no board on this machine")
def test_memory_that_a_busy_pool_did_not_take_back_is_taken_back_without_another_message():
    """On the short way nothing follows: without being woken the node looks again with the next beat."""
    limits, postponed = Limits(heartbeat_s=30.0, silence_s=60.0, resend_s=20.0), False
    with child() as (process, endpoint), edgebus.Node("d", insecure=True, limits=limits) as device:
        link = device.connect(endpoint)
        warm(link)
        attached, sharing, pool = link._dialled.attached, device._engine.sharing, pool_of(device)
        for _ in range(500):
            link.request("echo", b"", [array(0, 100_000)])
            time.sleep(0.001)
            os.kill(process.pid, signal.SIGSTOP)  # it reports nothing: its board has to do
            try:
                device._engine.runner.look()
                with pool._lock:
                    device._engine.runner.do_small(sharing.collect, attached)
                    postponed = bool(sharing._postponed)
                until = time.monotonic() + 0.5
                while sharing._postponed:
                    assert time.monotonic() < until, "put off until the next beat"
                    time.sleep(0.01)
            finally:
                os.kill(process.pid, signal.SIGCONT)
            if postponed:
                break
        assert postponed


def test_what_is_put_off_twice_is_looked_at_again():
    """Whoever drives finds the pool taken, and taken still when it comes back: nobody else may ever wake it."""
    with two_nodes(heartbeat_s=30.0, silence_s=60.0) as (_server, device, link):
        warm(link)
        sharing, tried = device._engine.sharing, []
        with device._engine.runner._lock:

            def function():
                tried.append(None)
                if len(tried) < 4:
                    raise shm.PoolBusy

            sharing._now_or_later(function)
            assert len(tried) == 1
            for count in (2, 3, 4):
                assert sharing.report_at < time.monotonic() + 1.0, "nobody comes back"
                sharing.take_back(sharing.report_at)
                assert len(tried) == count
            assert not sharing._postponed
            assert sharing.report_at == float("inf")
