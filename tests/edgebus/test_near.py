"""The near lane: messages about shared memory through pipes. It may lose what it likes, and nothing is lost."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time

import numpy as np
import pytest

import edgebus
from edgebus import messages as m
from edgebus import shm
from edgebus.shm import pipes
from edgebus.shm.board import PLACES
from edgebus.shm.pipes import PACKET_BYTES
from edgebus.testing import Proxy
from tests.edgebus.callbacks import stacked
from tests.edgebus.test_sharing import MIB, QUICK, array, child, eventually, pool_of, two_nodes, warm

pytestmark = [pytest.mark.net, pytest.mark.skipif(not shm.available(), reason="no shared memory here")]
needs_board = pytest.mark.skipif(not shm.ORDERED, reason="no board on this machine")


def near_of(link):
    eventually(lambda: link.request("echo", b"", [array(0, 100_000)]) and link._dialled.attached.near is not None)
    return link._dialled.attached.near


@pytest.fixture
def ends():
    made, names = shm.make_pipes()
    found = shm.find_pipes(os.getpid(), names)
    yield made, found, names
    made.close()
    found.close()


# -- pipes ---------------------------------------------------------------------------------------------


def test_pipes_carry_messages_of_one_frame_and_of_two_both_ways(ends):
    made, found, _ = ends
    for one, other in ((made, found), (found, made)):
        for frames in ([b"header"], [b"header", b"payload"], [b"", b"x"], [b"header", b""], [b""]):
            assert one.send(frames)
            assert other.take() == frames
        assert other.take() is None


def test_message_that_does_not_fit_a_packet_is_not_sent(ends):
    made, found, _ = ends
    most = PACKET_BYTES - 2
    assert made.send([bytes(most)])
    assert made.send([bytes(most - 5), bytes(5)])
    for frames in ([bytes(most + 1)], [bytes(most), b"1"], [b"1", b"2", b"3"]):
        assert not made.send(frames)
    assert [len(found.take()[0]), sum(map(len, found.take()))] == [most, most]
    assert found.take() is None


@pytest.mark.parametrize("frames", [(b"", None), (b"one", None), (b"", b""), (b"one", b"two"), (b"x" * 4094, None)])
def test_packets_are_the_same_whether_compiled_or_not(frames):
    files = pytest.importorskip("edgebus.shm._files", reason="not built, or EDGEBUS_PURE")
    read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_DIRECT)
    try:
        want = [frame for frame in frames if frame is not None]
        raw = []
        for write in (pipes._plain_write, files.write_packet):
            for read in (pipes._plain_read, files.read_packet):
                assert write(write_fd, *frames)
                assert read(read_fd) == want
            assert write(write_fd, *frames)
            raw.append(os.read(read_fd, PACKET_BYTES))
        assert raw[0] == raw[1]
        for packet in (b"\x01", b"\x05\x00four", b"\x03\x00four", b"\x05\x80four"):
            for read in (pipes._plain_read, files.read_packet):
                os.write(write_fd, packet)
                assert read(read_fd) == []
                assert read(read_fd) is None
        for write in (pipes._plain_write, files.write_packet):
            assert not write(write_fd, b"x" * (PACKET_BYTES - 1), None)
            assert not write(write_fd, b"x" * 4000, b"y" * 95)
    finally:
        os.close(read_fd)
        os.close(write_fd)


def test_full_pipe_says_so_and_keeps_what_it_has(ends):
    made, found, _ = ends
    sent = 0
    while made.send([sent.to_bytes(4, "big")]):
        sent += 1
        assert sent < 10_000
    assert sent >= 16
    assert [int.from_bytes(found.take()[0], "big") for _ in range(sent)] == list(range(sent))


def test_packet_that_is_no_message_is_empty(ends):
    made, found, _ = ends
    for packet in (b"\x05", b"\x05\x00abc", b"\xff\xffabc", b"\x04\x80abc"):
        os.write(made._write_fd, packet)
        assert found.take() == []


def test_peer_that_closes_is_neither_signal_nor_end_of_file(ends):
    made, found, _ = ends
    found.close()
    found.close()
    assert made.send([b"x"])
    assert made.take() is None
    assert not found.send([b"x"])
    assert found.take() is None


def test_pipes_that_are_not_what_was_announced_are_not_opened(ends):
    _, _, names = ends
    with open(os.devnull) as other:
        for wrong in (
            names._replace(read_inode=names.read_inode + 1),
            names._replace(written_fd=other.fileno()),
            names._replace(written_fd=999_999),
        ):
            before = len(os.listdir("/proc/self/fd"))
            with pytest.raises(shm.SegmentUnavailable):
                shm.find_pipes(os.getpid(), wrong)
            assert len(os.listdir("/proc/self/fd")) == before
    assert shm.PipeNames.unpack(names.pack()) == names
    assert shm.PipeNames.unpack(names.pack() + b"1") is None


# -- the board -----------------------------------------------------------------------------------------


def test_board_frees_what_stands_on_it_and_nothing_else():
    numbers, board = shm.Numbers(), [0] * 8
    for lease in (10, 11, 12):
        numbers.number(lease)
    assert numbers.done([10, 11, 12]) == []
    board[1] = 2
    assert numbers.read(board) == [11]
    assert numbers.read(board) == []
    board[0] = 9  # number 8, which is not out yet
    assert numbers.read(board) == []
    assert numbers.settle(2, []) == [10, 12]


def test_board_waits_for_every_number_of_a_lease():
    numbers, board = shm.Numbers(), [0] * 8
    numbers.number(5)
    numbers.number(5)
    board[0] = 1
    assert numbers.read(board) == []
    board[1] = 2
    assert numbers.read(board) == [], "it may be sent again"
    assert numbers.done([5]) == [5]


@needs_board
def test_board_of_a_peer_counts_among_its_segments_and_goes_with_its_link():
    with two_nodes() as (server, device, link):
        eventually(lambda: near_of(link).peer_board is not None)
        mappers = [node._engine.sharing._mapper for node in (server, device)]
        for mapper in mappers:
            assert mapper.stats().segments == 2  # what is lent, and a board
            assert mapper.stats().views >= 1
            assert mapper._all.num_segments == 2
        link.close()
        eventually(lambda: (mappers[1].stats().segments, mappers[1].stats().views) == (0, 0))
    assert (mappers[0].stats().segments, mappers[0].stats().views) == (0, 0)


def test_board_is_seen_by_whoever_maps_it():
    board, mapper = shm.Board(), shm.Mapper()
    words = mapper.view("peer", board.info, shm.HEADER_BYTES, shm.BOARD_BYTES, lambda: None).cast("Q")
    board.give_back(3)
    board.give_back(PLACES + 4)
    assert (words[3], words[4], words[5]) == (4, PLACES + 5, 0)
    board.close()
    board.give_back(6)
    del words


@needs_board
def test_memory_is_used_again_as_soon_as_the_receiver_has_let_go():
    """One block after the other at the same place, whatever reports come: pages and caches stay warm."""
    with two_nodes() as (server, device, link):
        server.handle("drop", lambda request: request.reply(b""))
        near_of(link)
        eventually(lambda: link._dialled.attached.near.peer_board is not None)
        committed = pool_of(device).stats().committed_bytes
        for number in range(6):
            link.request("drop", b"", [array(number, 2 * MIB)])
            gc.collect()
        assert pool_of(device).stats().committed_bytes <= committed + 5 * MIB


@needs_board
def test_memory_is_used_again_behind_many_views_that_are_held():
    """The board is not only looked at where the oldest numbers stand."""
    with two_nodes() as (server, device, link):
        held = []
        server.handle("keep", lambda request: (held.append(request.arrays), request.reply(b"")))
        server.handle("drop", lambda request: request.reply(b""))
        eventually(lambda: near_of(link).peer_board is not None)
        for _ in range(40):
            link.request("keep", b"", [array(1, 70_000)])
        before, most = pool_of(device).stats().in_use_bytes, 0
        for number in range(20):
            link.request("drop", b"", [array(number)])
            most = max(most, pool_of(device).stats().in_use_bytes)
        assert most <= before + 6 * MIB
        assert all((arrays[0] == array(1, 70_000)).all() for arrays in held)
        held.clear()


@needs_board
def test_who_answers_looks_at_the_board_too():
    with two_nodes() as (server, _, link):
        server.handle("get", lambda request: request.reply(b"", [array(1, 100_000)]))
        near_of(link)
        [far] = server._engine.hub.links
        eventually(lambda: link.request("get", b"") and far.near.peer_board is not None)
        names = server._engine.sharing._names(far)
        assert max(len(names) for _ in range(40) if link.request("get", b"")) <= 6


@needs_board
def test_memory_that_other_peers_have_given_back_is_room_too():
    with (
        edgebus.Node("s", insecure=True) as one,
        edgebus.Node("t", insecure=True) as other,
        edgebus.Node("d", insecure=True, limits=edgebus.Limits(share_bytes=4 * MIB)) as device,
    ):
        links = []
        for server in (one, other):
            server.handle("echo", lambda request: request.reply())
            links.append(device.connect(server.bind("tcp://127.0.0.1:0")))
            eventually(lambda: near_of(links[-1]).peer_board is not None)
        for _ in range(10):
            for link, size in zip(links, (3 * MIB, 2 * MIB), strict=True):
                for server in (one, other):  # it has let go, and nothing but its board is looked at
                    eventually(lambda mapper=server._engine.sharing._mapper: mapper.stats().views <= 1)
                before = pool_of(device).stats().copied_bytes
                link.request("echo", b"", [array(1, size)])
                assert pool_of(device).stats().copied_bytes == before + size, "it went another way"


def test_link_that_finds_no_room_for_its_probe_asks_again():
    with (
        edgebus.Node("s", insecure=True) as one,
        edgebus.Node("t", insecure=True) as other,
        edgebus.Node("d", insecure=True, limits=edgebus.Limits(share_bytes=4 * MIB)) as device,
    ):
        held = []
        one.handle("echo", lambda request: (held.append(request.arrays), request.reply()))
        other.handle("echo", lambda request: request.reply())
        first, second = (device.connect(server.bind("tcp://127.0.0.1:0")) for server in (one, other))
        near_of(first)
        held.clear()
        eventually(lambda: first.request("echo", b"", [array(1, 200_000)]) and pool_of(device).stats().refused)
        for _ in range(5):
            second.request("echo", b"", [array(1, 900_000)])
            assert len(device._engine.near._lanes) <= 2
        held.clear()
        near_of(second)


# -- two nodes -----------------------------------------------------------------------------------------


def count_packets(near):
    pipes, sent = near.pipes, []
    near.pipes = Counting(pipes, sent)
    return sent


class Counting(shm.Pipes):
    """Pipes that count, and lose what they are told to."""

    def __init__(self, pipes, sent, loses=False):
        self._pipes, self._sent, self._loses = pipes, sent, loses
        self._files, self._closer = pipes._files, pipes._closer
        self.read_fd, self._write_fd = pipes.read_fd, pipes._write_fd

    def send_one(self, frame):
        return self.send([frame])

    def send(self, frames):
        self._sent.append(list(frames))
        return True if self._loses else self._pipes.send(frames)


def test_requests_and_answers_of_shared_memory_go_by_the_near_lane():
    with two_nodes() as (_, device, link):
        sent = count_packets(near_of(link))
        eventually(lambda: device._engine.sharing.in_order(link._dialled.attached), what="what went round is back")
        for n in range(5):
            assert (link.request("echo", b"hello", [array(n)]).arrays[0] == array(n)).all()
        headers = [m.decode_header(frames[0]) for frames in sent]
        assert sum(isinstance(header, m.Request) for header in headers) == 5
        assert link.stats().retries == 0
        assert link.stats().content_bytes_sent >= 5 * MIB


def test_what_the_near_lane_loses_comes_by_the_control_lane():
    with two_nodes(resend_s=0.1) as (_, _, link):
        near = near_of(link)
        near.pipes = Counting(near.pipes, [], loses=True)
        for n in range(3):
            assert (link.request("echo", b"", [array(n)]).arrays[0] == array(n)).all()
        assert link.stats().retries >= 1, "and what follows goes round for a while"
        assert link._dialled.attached.sharing == "yes"


def test_answers_that_the_near_lane_loses_are_given_again():
    with two_nodes(resend_s=0.1) as (server, _, link):
        calls = []
        server.handle("once", lambda request: calls.append(1) or request.reply(b"done"))
        near_of(link)
        [attached] = server._engine.hub.links
        assert attached.near is not None
        attached.near.pipes = Counting(attached.near.pipes, [], loses=True)
        assert link.request("once", b"", [array(1)]).payload == b"done"
        assert link.request("once", b"").payload == b"done"
        assert calls == [1, 1]


def test_near_lane_that_is_full_leaves_it_to_the_control_lane():
    with two_nodes() as (_, _, link):
        near = near_of(link)

        class Full(Counting):
            def send(self, frames):
                return False

        near.pipes = Full(near.pipes, [])
        for n in range(3):
            assert (link.request("echo", b"", [array(n)]).arrays[0] == array(n)).all()
        assert link.stats().retries == 0


def test_callbacks_that_ask_by_the_near_lane_do_not_stand_on_top_of_each_other():
    """Each would keep its request until all that came behind it had been handled."""
    asked = []

    def answer(request):
        asked.append(far.send_request("echo", b"", [array(1, 100_000)]))
        request.reply()

    with two_nodes() as (server, device, far):
        sent = count_packets(near_of(far))
        _, deepest = stacked(device, server, answer)
        assert all(each.result().arrays[0].nbytes == 100_000 for each in asked)
        asked.clear()
    assert len(sent) >= 40
    assert deepest == 1


def test_interrupt_before_a_request_is_sent_leaves_no_memory_behind_and_the_loan_as_it_was():
    """Ctrl-C while another thread is at the node's work: what was put for the request goes with none."""

    class Interrupted(KeyboardInterrupt):
        pass

    def interrupt(*_):
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with two_nodes() as (_, device, link):
            near_of(link)
            engine, pool = device._engine, pool_of(device)
            lock, held, done = engine.runner._lock, threading.Event(), threading.Event()

            def hold():
                with lock:
                    held.set()
                    done.wait(10)

            loan = link.loan((128, 1024))
            loan[:] = 7
            threading.Thread(target=hold).start()
            held.wait(10)
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(Interrupted):  # what is small is put without the lock, and waits for it then
                link.request("echo", b"", [loan, array(1, 200_000)])
            assert not loan.is_shared or pool.stats().leases > 1
            done.set()
            small = [array(0, 100_000)]
            eventually(lambda: link.request("echo", b"", small) and pool.stats().in_use_bytes < 2 * MIB)
            assert loan.is_shared
            loan[0] = 8
            assert link.request("echo", b"", [loan]).arrays[0][:2, 0].tolist() == [8, 7]
            del loan
            eventually(lambda: link.request("echo", b"", small) and pool.stats().in_use_bytes < MIB)
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_interrupt_while_views_are_made_gives_up_no_memory_that_is_looked_at_later(index):
    """What was given back in between is free at its owner: a message that is taken again must not bring it back."""

    class Interrupted(KeyboardInterrupt):
        pass

    class Interrupting(shm.Mapper):
        left = -1

        def view_place(self, *args):
            if self.left == 0 and threading.current_thread() is threading.main_thread():  # as signal handlers are
                self.left = -1
                raise Interrupted
            self.left -= 1
            return super().view_place(*args)

    with two_nodes(resend_s=0.2) as (server, device, link):
        near_of(link)
        eventually(lambda: device._engine.sharing.in_order(link._dialled.attached), what="what went round is back")
        inbox, arrays = server.serve("work"), [array(n, 200_000) for n in range(3)]
        sharing = server._engine.sharing
        sharing._mapper.close()
        sharing._mapper = mapper = Interrupting(4 << 28, 2 << 28)
        times, answers = 0, []
        for _ in range(50):  # until it was this thread that took it in
            mapper.left, request = index, None
            thread = threading.Thread(target=lambda: answers.append(link.request("work", b"", arrays).payload))
            thread.start()
            while request is None:
                try:
                    request = inbox.get(5)
                except Interrupted:
                    times += 1
            mapper.left = -1
            views = request.arrays
            request.reply(b"done")
            thread.join(10)
            assert answers.pop() == b"done"
            for n in range(10):
                link.request("echo", b"", [array(100 + n, 200_000)])
            assert all((view == each).all() for view, each in zip(views, arrays, strict=True))
            assert link._dialled.attached.sharing == "yes"
            if times:
                break
        assert times == 1


def test_rubbish_on_the_near_lane_is_counted_and_harmless(caplog):
    with two_nodes() as (server, _, link):
        near = near_of(link)
        for frames in ([b"\xc1rubbish"], [b"x", b"y"], [m.encode_header(m.Ping()), b"z"], [b"", b"no block"]):
            assert near.pipes.send(frames)
        os.write(near.pipes._write_fd, b"\x09")
        assert (link.request("echo", b"", [array(3)]).arrays[0] == array(3)).all()
        assert server.stats().malformed >= 2
    caplog.clear()  # its error knows where it was raised, and so keeps the node


def test_greeting_with_a_board_that_is_none_is_counted_and_the_lane_goes_on(caplog):
    with two_nodes() as (server, _, link):
        near = near_of(link)
        [attached] = server._engine.hub.links
        eventually(lambda: attached.near is not None and (attached.near.peer_board is not None or not shm.ORDERED))
        attached.near.peer_board = None  # as after a greeting without one
        for said in (b"no block", b"", b"\x91" * 3000):
            assert near.pipes.send([b"", said])
        assert (link.request("echo", b"", [array(3)]).arrays[0] == array(3)).all()
        assert server.stats().malformed == 3
        assert attached.near.peer_board is None
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_peer_that_does_not_take_the_lane_is_served_by_the_control_lane(monkeypatch):
    """As one that does not know of near lanes: it looks at the first bytes of the probe only."""
    monkeypatch.setattr("edgebus.shm.PipeNames.unpack", lambda data: None)
    with two_nodes() as (_, _, link):
        warm(link)
        assert (link.request("echo", b"", [array(3)]).arrays[0] == array(3)).all()
        assert link._dialled.attached.near is None


def test_near_lane_ends_with_its_link_and_leaves_no_descriptor():
    with edgebus.Node("d", insecure=True, limits=QUICK) as device:

        def pipes():
            names = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
            return [name for name in names if os.path.lexists(name) and os.readlink(name).startswith("pipe:")]

        before = len(pipes())
        for _ in range(2):
            with child() as (process, endpoint):
                link = device.connect(endpoint)
                near_of(link)
                process.kill()
                process.wait(5)
                link.close()
        gc.collect()
        assert len(pipes()) <= before
        assert device._engine.near._lanes == {}


def test_request_on_the_near_lane_at_a_killed_server_is_executed_by_the_next():
    # Not QUICK: a server that is slow to start would be thought silent, and what is sent while a link is down goes by
    # the control lane once it is up. That this one has died is told by its connection.
    with edgebus.Node("d", insecure=True) as device, child() as (process, endpoint):
        link = device.connect(endpoint)
        near = near_of(link)
        in_order = link._engine.sharing.in_order
        # What went round the lane has to be done with, which only a request looks for.
        eventually(lambda: in_order(link._dialled.attached) or not link.request("echo", b"", [array(1)]), 30.0)
        sent = count_packets(near)
        pending = link.send_request("hold", b"", [array(3)], timeout_s=60.0)
        assert sent, "it went by another lane"
        process.kill()
        process.wait(5)
        with child(endpoint):
            assert (pending.result().arrays[0] == array(3)).all()


def test_judge_is_asked_on_the_near_lane_too(tmp_path):
    keys, other = edgebus.generate_keys(tmp_path / "s"), edgebus.generate_keys(tmp_path / "d")
    with edgebus.Node("s", keys=keys, allow=edgebus.AllowList.any()) as server, edgebus.Node("d", keys=other) as device:
        server.handle("echo", lambda request: request.reply(request.payload, request.arrays))
        link = device.connect(server.bind("tcp://127.0.0.1:0"), keys.public)
        near_of(link)

        def judge(key, service, size, now):
            return ("forbidden", "not you") if service == "echo" else None

        server._engine.hub.judge = judge
        with pytest.raises(edgebus.Refused, match="not you"):
            link.request("echo", b"", [array(1)])


def test_threads_that_share_a_near_lane_get_their_own_answers():
    with two_nodes() as (_, _, link):
        near_of(link)
        wrong = []

        def work(number):
            for step in range(40):
                sent = np.full(70_000, (7 * number + step) % 251, np.uint8)
                if not (link.request("echo", b"%d" % number, [sent]).arrays[0] == sent).all():
                    wrong.append(number)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert wrong == []
        assert link.stats().retries == 0


def test_near_lane_does_not_hide_that_the_connection_is_dead():
    with (
        edgebus.Node("s", insecure=True, limits=QUICK) as server,
        edgebus.Node("d", insecure=True, limits=QUICK) as device,
    ):
        server.handle("echo", lambda request: request.reply(request.payload, request.arrays))
        with Proxy(server.bind("tcp://127.0.0.1:0")) as proxy:
            link = device.connect(proxy.endpoint)
            near_of(link)
            proxy.stall()
            until = time.monotonic() + 5.0
            while link.health == "up":
                assert time.monotonic() < until, "shared memory works on, and nobody notices"
                with contextlib.suppress(edgebus.EdgebusError):
                    link.request("echo", b"", [array(1)], timeout_s=0.1)
            proxy.resume()
            assert (link.request("echo", b"", [array(2)], timeout_s=10.0).arrays[0] == array(2)).all()


@pytest.mark.parametrize("every", [2, 5, 30])
def test_what_goes_round_by_the_control_lane_keeps_its_order_and_its_memory(every):
    """It neither overtakes nor is overtaken: a lease that is refused would end the sharing of memory."""
    with two_nodes() as (server, _, link):
        server.handle("drop", lambda request: request.reply(b"%d" % request.arrays[0][0]))
        near = near_of(link)

        class SometimesFull(Counting):
            def send(self, frames):
                self._sent.append(frames)
                return len(self._sent) % every != 0 and self._pipes.send(frames)

        near.pipes = SometimesFull(near.pipes, [])
        for _ in range(4):
            sent = [np.full(70_000, n, np.uint8) for n in range(60)]
            pendings = [link.send_request("drop", b"", [each]) for each in sent]
            assert [int(pending.result().payload) for pending in pendings] == list(range(60))
            assert link._dialled.attached.sharing == "yes"
        assert link.stats().retries == 0


@pytest.mark.parametrize("holder", ["server", "device"])
def test_near_lane_is_taken_again_though_each_message_is_held_until_the_next(holder):
    """As in the usual loops, where a variable has the last request, or the last answer."""
    with edgebus.Node("s", insecure=True) as server, edgebus.Node("d", insecure=True) as device:
        inbox = server.serve("echo")
        held = {}

        def serve():
            while (request := inbox.get(60)) is not None and request.payload != b"end":
                request.reply(b"", request.arrays)
                held["server"] = request if holder == "server" else None
                del request

        thread = threading.Thread(target=serve)
        thread.start()
        link = device.connect(server.bind("tcp://127.0.0.1:0"))
        near_of(link)
        [far] = server._engine.hub.links
        sender, attached = (device, link._dialled.attached) if holder == "server" else (server, far)
        with sender._engine.runner._lock:
            names = sender._engine.sharing._names(attached)
            detour = names._detour = names._next  # the next one goes round

        def request():
            held["device"] = link.request("echo", b"", [array(1)])
            if holder == "server":
                held["device"] = None
            return names._next > detour + 1 and names.in_order()

        eventually(request, what="every message went round")
        link.send_request("echo", b"end")
        thread.join(5)
        assert not thread.is_alive()


@pytest.mark.parametrize("most", [3, 40, 1000])
def test_near_lane_is_taken_again_after_the_next_answer_however_long_messages_are_held(most):
    with two_nodes() as (server, device, link):
        held = []

        def keep(request):
            held.append(request.arrays)
            del held[:-most]
            request.reply(b"")

        server.handle("keep", keep)
        near_of(link)
        names = device._engine.sharing._names(link._dialled.attached)
        for _ in range(50):
            link.request("keep", b"", [array(1, 70_000)])
        with device._engine.runner._lock:
            names._detour = names._next  # the next one goes round
        link.request("keep", b"", [array(1, 70_000)])
        for _ in range(5):
            if names.in_order():
                break
            link.request("keep", b"", [array(1, 70_000)])
        assert names.in_order(), "every message goes round"
        held.clear()


def test_near_messages_are_taken_before_one_that_went_round():
    """The pipe was full when it was sent, so they are older."""
    with two_nodes() as (server, _, link):
        order = []
        server.handle("note", lambda request: (order.append(int(request.arrays[0][0])), request.reply(b"")))
        near = near_of(link)

        class Slow(Counting):
            """Puts nothing into the pipe before the last message has gone round."""

            def send(self, frames):
                if len(self._sent) < 3:
                    self._sent.append(frames)
                    return True
                for each in self._sent:
                    self._pipes.send(each)
                return False

        near.pipes = Slow(near.pipes, [])
        with server._engine.runner._lock:  # it looks at nothing meanwhile
            pendings = [link.send_request("note", b"", [np.full(70_000, n, np.uint8)]) for n in range(4)]
            time.sleep(0.1)
        for pending in pendings:
            pending.result()
        assert order == [0, 1, 2, 3]
        assert link._dialled.attached.sharing == "yes"
        assert link.stats().retries == 0


def test_lane_that_is_offered_again_takes_the_place_of_one_that_its_maker_has_dropped():
    """As after a link that went down between the offer and the answer to it."""
    with two_nodes() as (server, device, link):
        near_of(link)
        attached = link._dialled.attached
        [there] = server._engine.hub.links
        before = there.near
        device._engine.runner.do(device._engine.near.drop, attached)
        assert (link.request("echo", b"", [array(1)]).arrays[0] == array(1)).all()
        attached.sharing = "unknown"
        near_of(link)
        assert there.near is not before
        assert link.request("echo", b"", [array(2, 100_000)], timeout_s=0.9).arrays[0][0] == array(2)[0]


def test_lanes_of_a_link_are_few_however_often_one_is_offered():
    with two_nodes() as (server, device, link):
        near_of(link)
        attached = link._dialled.attached
        for _ in range(10):
            attached.near = None
            attached.sharing = "unknown"
            near_of(link)
        assert (link.request("echo", b"", [array(1)]).arrays[0] == array(1)).all()
        for node in (server, device):
            assert len(node._engine.near._lanes) <= 3


def test_payload_beside_shared_memory_goes_whole_on_a_link_that_has_shown_nothing():
    """In pieces it would be a transfer beside blocks, which the peer refuses as malformed."""
    with two_nodes() as (server, _, link):
        near_of(link)
        [far] = server._engine.hub.links
        arrays = [array(1)]
        for machine, size in [(link._link, size) for size in (9_000, 60_000)] + [(far.link, 20_000)]:
            machine.pace.lost()
            answer = link.request("echo", bytes(size), arrays, timeout_s=5)
            assert len(answer.payload) == size
            assert (answer.arrays[0] == arrays[0]).all()
        assert server.stats().malformed == 0


def test_late_request_beside_shared_memory_is_sent_again_as_it_is():
    """Its content is not announced either."""
    with two_nodes(resend_s=0.05) as (server, _, link):
        near_of(link)
        inbox = server.serve("slow")
        pending = link.send_request("slow", bytes(6_000), [array(1)], timeout_s=5)
        request = inbox.get(5)
        eventually(lambda: link.stats().retries >= 2)
        request.reply(b"done")
        assert pending.result().payload == b"done"
        assert server.stats().malformed == 0


def test_views_of_an_earlier_life_of_the_peer_free_nothing_of_the_next_one():
    """Both lives begin with lease number 0: the board of the second must not be told of the first one's."""
    with edgebus.Node("d", insecure=True, limits=QUICK) as device:
        with child() as (first, endpoint):
            link = device.connect(endpoint)
            near_of(link)
            old = [link.request("echo", b"", [array(number)]).arrays[0] for number in range(30)]
            first.kill()
            first.wait(5)
        with child(endpoint):
            eventually(lambda: link.request("echo", b"", [array(0, 100_000)]) and link._dialled.attached.near)
            eventually(lambda: link._dialled.attached.near.board is not None or not shm.ORDERED)
            new = [link.request("echo", b"", [array(number)]).arrays[0] for number in range(30, 60)]
            assert (old[7] == array(7)).all()
            del old
            gc.collect()
            for number in range(60):
                link.request("echo", b"", [array(100 + number)])
            for number, view in enumerate(new, 30):
                assert (view == array(number)).all(), number


def test_near_lane_of_a_peer_that_said_goodbye_is_closed_at_once():
    with two_nodes(forget_s=60) as (server, device, link):
        endpoint = link._dialled.endpoint
        near_of(link)
        eventually(lambda: server._engine.near._lanes)
        link.close()
        eventually(lambda: not server._engine.near._lanes, what="though the link is remembered")
        again = device.connect(endpoint)
        near_of(again)


def test_pipe_of_our_own_that_is_no_near_lane_is_not_opened():
    """A remote peer that claims to be us may know the numbers of our segments, and guess those of our pipes."""
    pairs = [os.pipe(), os.pipe()]
    try:
        (first, second) = (pair[0] for pair in pairs)
        names = shm.PipeNames(first, os.fstat(first).st_ino, second, os.fstat(second).st_ino)
        os.write(pairs[1][1], b"not for others")
        with pytest.raises(shm.SegmentUnavailable):
            shm.find_pipes(os.getpid(), names)
        assert os.read(second, 100) == b"not for others"
    finally:
        for fd in (fd for pair in pairs for fd in pair):
            os.close(fd)


def test_lane_thrown_back_at_who_offers_it_is_not_used():
    with two_nodes() as (_, device, link):
        near_of(link)
        attached, near = link._dialled.attached, device._engine.near
        near.drop(attached)
        offered = near.offer(attached)
        near.accept(attached, os.getpid(), offered)
        assert attached.near is None
        assert len(near._lanes) == 1


def test_near_lanes_leave_half_of_the_descriptors_to_connections(monkeypatch, ends):
    _, _, names = ends
    monkeypatch.setattr("resource.getrlimit", lambda what: (2 * names.written_fd, 4096))
    before = len(os.listdir("/proc/self/fd"))
    assert shm.make_pipes() is None
    with pytest.raises(shm.SegmentUnavailable):
        shm.find_pipes(os.getpid(), names)
    assert len(os.listdir("/proc/self/fd")) == before
