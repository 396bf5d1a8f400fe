"""Announcements: a tensor is spoken of while it is copied, and nobody sees it before it is there."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgebus
from edgebus import messages as m
from edgebus import shm
from edgebus.ahead import COMING, HERE, MOST_PLAIN, NEVER
from edgebus.attached import LEAST_PLAIN
from edgebus.port import PlainPoller, open_poller
from edgebus.shm import pool as pools
from tests.edgebus.test_near import Counting, near_of
from tests.edgebus.test_sharing import MIB, array, eventually, pool_of, two_nodes

pytestmark = [pytest.mark.net, pytest.mark.skipif(not shm.available(), reason="no shared memory here")]


@contextlib.contextmanager
def linked(**limits):
    """Two nodes whose near lane is in order, and what the device has sent by it."""
    with two_nodes(**limits) as (server, device, link):
        near, sent = near_of(link), []
        eventually(lambda: device._engine.sharing.in_order(link._dialled.attached), what="what went round is back")
        assert near.hears_ahead
        near.pipes = Counting(near.pipes, sent)
        near.plain, near.patience = 0, LEAST_PLAIN
        yield server, device, link, sent


def theirs(server):
    [attached] = server._engine.hub.links
    return attached.near


def kinds(sent):
    return [frames[0] for frames in sent if len(frames[0]) == 1]


def ask(link, n, **options):
    """A request that is announced, whatever came in between the last one's copy."""
    link._dialled.attached.near.plain = 0
    return link.request("echo", b"payload", [array(n)], **options)


class Told:
    told = None

    def __init__(self, call):
        self._call = call

    def tell(self):
        self._call(self.told)


# -- the pool ------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=5), st.integers(1, 6000))
def test_pool_tells_once_when_little_is_left_to_be_copied(sizes, ahead_bytes):
    pool = shm.Pool(1 << 21, 1 << 21)
    pages = pytest.MonkeyPatch()
    pages.setattr(pools, "AHEAD_BYTES", ahead_bytes)
    buffers, told = [array(n, size) for n, size in enumerate(sizes)], []

    def left(blocks):
        read = [pool.read(block.lease_id, block.size) for block in blocks]
        return sum(a.tobytes() != b for a, b in zip(buffers, read, strict=True))

    try:
        blocks = pool.put(buffers, "peer", ahead=Told(lambda blocks: told.append((list(blocks), left(blocks)))))
        assert [each for each, _ in told] == [blocks]
        assert left(blocks) == 0
        if sum(sizes) <= ahead_bytes:
            assert told[0][1] == sum(bool(array.any()) for array in buffers), "before anything was copied"
    finally:
        pages.undo()
        pool.close()


def test_block_that_was_told_of_is_left_to_whom_it_was_told():
    pool = shm.Pool(1 << 21, 1 << 21)

    def fail(blocks):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool.put([array(1, 1000)], "peer", ahead=Told(fail))
    assert pool.stats().leases == 1
    pool.close()


# -- on a link -----------------------------------------------------------------------------------------


def test_tensor_is_announced_and_arrives_whole():
    with linked() as (server, _, link, sent):
        for n in range(5):
            reply = ask(link, n)
            assert reply.payload == b"payload"
            assert (reply.arrays[0] == array(n)).all()
        assert kinds(sent) == [COMING, HERE] * 5
        assert link.stats().retries == 0
        assert theirs(server).coming is None
        assert theirs(server).views is None


def test_application_sees_nothing_of_what_is_only_announced():
    with linked() as (server, _device, link, sent):
        inbox, lane = server.serve("work"), theirs(server)
        copied, go_on = threading.Event(), threading.Event()
        copy = pools._copy_to

        def slow_copy(target, offset, source):
            if source.nbytes >= MIB // 2 and kinds(sent)[-1:] == [COMING]:
                copied.set()
                assert go_on.wait(10)
            copy(target, offset, source)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pools, "_copy_to", slow_copy)
            answers = []
            thread = threading.Thread(target=lambda: answers.append(link.request("work", b"", [array(3)])))
            thread.start()
            assert copied.wait(10)
            assert inbox.get(0.2) is None
            assert lane.views is not None
            go_on.set()
            request = inbox.get(10)
            assert (request.arrays[0] == array(3)).all()
            request.reply(b"done")
            thread.join(10)
            assert answers[0].payload == b"done"


def test_interrupt_in_the_copy_takes_the_announcement_back():
    class Interrupted(KeyboardInterrupt):
        pass

    with linked() as (server, device, link, sent):
        copy, pool = pools._copy_to, pool_of(device)

        def interrupted(target, offset, source):
            if kinds(sent)[-1:] == [COMING]:
                eventually(lambda: theirs(server).views is not None)
                raise Interrupted
            copy(target, offset, source)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pools, "_copy_to", interrupted)
            with pytest.raises(Interrupted):
                ask(link, 1)
        eventually(lambda: kinds(sent) == [COMING, NEVER])
        eventually(lambda: theirs(server).views is None)
        small = [array(0, 100_000)]
        eventually(lambda: link.request("echo", b"", small) and pool.stats().in_use_bytes < MIB)
        assert (ask(link, 4).arrays[0] == array(4)).all()


def test_what_is_refused_after_its_announcement_takes_it_back():
    with linked(max_outstanding_bytes=MIB) as (server, _device, link, sent):
        link._dialled.attached.near.plain = 0
        caller = link._link.caller
        caller.max_bytes = -1  # as if others had been quicker
        assert (link.request("echo", b"payload", [array(1)]).arrays[0] == array(1)).all()
        caller.max_bytes = MIB
        assert kinds(sent) == [COMING, NEVER]
        eventually(lambda: theirs(server).views is None)


@pytest.mark.parametrize("what", [NEVER, HERE])
def test_announcement_is_taken_back_as_soon_as_a_full_pipe_lets_it(what):
    """Until then the peer keeps its views, and whatever is announced next may be long in coming."""
    with linked(max_outstanding_bytes=MIB) as (server, _device, link, sent):
        near, caller, refused = link._dialled.attached.near, link._link.caller, []

        class Full(Counting):
            def send(self, frames):
                if frames[0] in (what, NEVER) and len(refused) < 4:
                    refused.append(frames[0])
                    return False
                return super().send(frames)

        near.pipes = Full(near.pipes._pipes, sent)
        near.plain = 0
        caller.max_bytes = -1 if what == NEVER else MIB  # as if others had been quicker
        assert (link.request("echo", b"payload", [array(1)]).arrays[0] == array(1)).all()
        caller.max_bytes = MIB
        eventually(lambda: theirs(server).views is None)
        assert refused == [what, NEVER, NEVER, NEVER]
        assert kinds(sent) == [COMING, NEVER]
        assert (ask(link, 2).arrays[0] == array(2)).all()


@pytest.mark.parametrize("lost", [HERE, COMING])
@pytest.mark.parametrize("is_full", [False, True])
def test_packet_that_does_not_arrive_costs_a_resend_at_worst(lost, is_full):
    with linked(resend_s=0.1) as (_server, device, link, sent):
        near = link._dialled.attached.near

        class Losing(Counting):
            def send(self, frames):
                if frames[0] != lost:
                    return super().send(frames)
                self._sent.append(list(frames))
                return not is_full

        near.pipes = Losing(near.pipes, sent)
        for n in range(3):
            assert (ask(link, n).arrays[0] == array(n)).all()
        assert lost in kinds(sent)
        assert link._dialled.attached.sharing == "yes"
        small, pool = [array(0, 100_000)], pool_of(device)
        near.pipes = near.pipes._pipes
        eventually(lambda: ask(link, 1) and link.request("echo", b"", small) and pool.stats().in_use_bytes < 2 * MIB)


def test_header_is_never_taken_with_the_arrays_of_another_announcement():
    """Whatever was lost in between."""
    with linked(resend_s=0.1) as (server, _, link, sent):
        near, lost = link._dialled.attached.near, [HERE, COMING]

        class Losing(Counting):
            def send(self, frames):
                if lost and frames[0] == lost[0]:
                    lost.pop(0)
                    return True
                return super().send(frames)

        near.pipes = Losing(near.pipes, sent)
        for n in range(4):
            eventually(
                lambda: (
                    theirs(server).attached.link.caller.outstanding == {}
                    and link._near.ahead._sharing.in_order(link._dialled.attached)
                )
            )
            assert (ask(link, n).arrays[0] == array(n)).all()
        assert not lost


def test_killed_sender_leaves_nothing_announced():
    with edgebus.Node(
        "s", insecure=True, limits=edgebus.Limits(heartbeat_s=0.1, silence_s=0.3, forget_s=0.3)
    ) as server:
        server.handle("echo", lambda request: request.reply(request.payload, request.arrays))
        endpoint = server.bind("tcp://127.0.0.1:0")
        pid = os.fork()
        if not pid:
            with contextlib.suppress(BaseException):
                device = edgebus.Node("d", insecure=True)
                link = device.connect(endpoint)
                attached, small = link._dialled.attached, [array(0, 100_000)]
                eventually(lambda: link.request("echo", b"", small, 0.5) and attached.near is not None)
                ahead = device._engine.near.ahead
                specs = (m.ArraySpec("u1", (MIB,)),)
                shared = device._engine.sharing.put(link._dialled.attached, [array(1)])
                eventually(lambda: not link._link.caller.outstanding)
                eventually(lambda: device._engine.sharing.in_order(link._dialled.attached))
                ahead.tell(link._dialled.attached, specs, shared[1])
                time.sleep(30)
            os._exit(1)
        try:
            eventually(lambda: server._engine.hub.links and theirs(server) and theirs(server).views is not None, 10)
            assert server._engine.sharing._mapper.stats().views >= 1
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        eventually(lambda: not server._engine.hub.links, 10)
        eventually(lambda: server._engine.sharing._mapper.stats().views == 0)


def test_judge_is_asked_about_what_was_announced():
    with linked() as (server, _, link, sent):
        server._engine.hub.judge = lambda key, service, size, now: ("forbidden", "not you")
        with pytest.raises(edgebus.Refused, match="not you"):
            ask(link, 1)
        assert kinds(sent) == [COMING, HERE]
        server._engine.hub.judge = None
        assert (ask(link, 2).arrays[0] == array(2)).all()


def test_taps_see_what_was_announced():
    with linked() as (server, _, link, sent):
        seen = []
        server._engine.hub.taps.append(seen.append)
        assert (ask(link, 1).arrays[0] == array(1)).all()
        assert kinds(sent) == [COMING, HERE]
        [request] = [event.header for event in seen if isinstance(event.header, m.Request)]
        assert request.service == "echo"
        assert len(request.arrays) == 1


def test_memory_that_cannot_be_seen_is_refused_and_sent_by_sockets():
    with linked() as (server, _, link, _sent):
        sharing = server._engine.sharing
        with pytest.MonkeyPatch.context() as patch:
            server._engine.runner.do(sharing._mapper.forget, theirs(server).attached.peer_id)
            patch.setattr("edgebus.shm.mapper.open_segment", _unseen)
            assert (ask(link, 1).arrays[0] == array(1)).all()
        assert link._dialled.attached.sharing == "no"


def _unseen(info):
    raise shm.SegmentUnavailable("forbidden", "not here")


def test_rubbish_is_counted_and_harmless(caplog):
    with linked() as (server, _, link, _sent):
        near, before = link._dialled.attached.near, server.stats().malformed
        header = m.encode_header(m.Request(10**6, "echo", 1000, 0, (), b"x"))
        near.pipes.send((HERE, bytes(8) + header))  # of nothing: it comes again, if it is wanted
        deep = b"\x95\x90\x90\x00\x00" + b"\x91" * 3000 + b"\x00"  # of a later version, nested without end
        for frames in ((COMING, b"\xc1"), (COMING, b"\x93\x90\x90\x00"), (b"\x09", b""), (COMING, deep), (b"", deep)):
            assert near.pipes.send(frames)
        ask(link, 1)
        assert server.stats().malformed == before + 4 + (theirs(server).peer_board is None)
        assert not caplog.records
        spec = (m.ArraySpec("u1", (8,)),)
        block = m.Block(10**6, os.getpid(), 0, 1 << 20, bytes(16), 4096, 9)
        for coming in ((spec, (block,), 0), (spec, (), 0), (spec * 9, (block,) * 9, 0)):
            assert near.pipes.send((COMING, m.encode_header(coming)))
        ask(link, 2)
        assert server.stats().malformed == before + 7
        link._dialled.attached.near.plain = 0


def test_only_plain_requests_are_announced_and_only_to_who_hears_it():
    with linked() as (_, _, link, sent):
        near = link._dialled.attached.near
        near.plain = 0
        link.request("echo", b"", [array(1)], key=b"once")
        link.send("echo", b"", [array(1)]).result()
        loan = link.loan((MIB,), "uint8")
        loan[...] = 1
        link.request("echo", b"", [loan])
        near.hears_ahead = False
        link.request("echo", b"", [array(1)])
        assert kinds(sent) == []


def test_peer_that_has_something_to_do_is_not_woken_ahead():
    with linked() as (server, _, link, sent):
        inbox = server.serve("work")
        link._dialled.attached.near.plain = 0
        first = link.send_request("work", b"", [array(1)])
        second = link.send_request("work", b"", [array(2)])
        for n in (1, 2):
            request = inbox.get(10)
            assert (request.arrays[0] == array(n)).all()
            request.reply()
        assert [first.result().payload, second.result().payload] == [b"", b""]
        assert kinds(sent) == [COMING, HERE]


def test_threads_announce_one_at_a_time_and_get_their_own_answers():
    with linked() as (_, _, link, sent):
        wrong = []

        def work(seed):
            for n in range(30):
                want = array(100 * seed + n, 200_000)
                link._dialled.attached.near.plain = 0
                if not (link.request("echo", b"", [want], timeout_s=30.0).arrays[0] == want).all():
                    wrong.append(n)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not wrong
        assert link.stats().retries == 0
        told = kinds(sent)
        for kind, after in itertools.pairwise(told):
            assert kind != COMING or after != COMING


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_interrupt_while_views_are_made_gives_up_no_memory_that_is_looked_at_later(ahead, index):
    """What was given back in between is free at its owner: a message that is taken again must not bring it back."""

    class Interrupted(KeyboardInterrupt):
        pass

    class Interrupting(shm.Mapper):
        left = -1

        def view(self, *args):
            if self.left == 0 and threading.current_thread() is threading.main_thread():  # as signal handlers are
                self.left = -1
                raise Interrupted
            self.left -= 1
            return super().view(*args)

    with linked(resend_s=0.2) as (server, _device, link, _sent):
        inbox, arrays = server.serve("work"), [array(n, 200_000) for n in range(3)]
        near, sharing = link._dialled.attached.near, server._engine.sharing
        sharing._mapper.close()
        sharing._mapper = mapper = Interrupting(4 << 28, 2 << 28)
        near.hears_ahead, times, answers = ahead, 0, []
        for _ in range(50):  # until it was this thread that took it in
            near.plain, mapper.left, request = 0, index, None
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


# -- when it is in vain --------------------------------------------------------------------------------


def test_interrupted_copies_are_followed_by_plain_ones_twice_as_many_each_time():
    with linked() as (_, _, link, _):
        attached = link._dialled.attached
        near, ahead, blocks = attached.near, link._near.ahead, ()
        ahead.told(attached, (m.Block(1, 1, 1, 1, bytes(16), 1, 1),), False)
        assert ahead.may(attached), "what was not announced says nothing"
        near.ahead, plain = blocks, []
        for _ in range(10):
            ahead.told(attached, blocks, False)
            plain.append(near.plain)
            while not ahead.may(attached):
                pass
        assert plain == [min(LEAST_PLAIN << n, MOST_PLAIN) for n in range(10)]
        for _ in range(10):
            ahead.told(attached, blocks, True)
        ahead.told(attached, blocks, False)
        assert near.plain == LEAST_PLAIN
        near.ahead = None


@pytest.mark.parametrize("make", [open_poller, PlainPoller])
def test_poller_that_looks_finds_what_comes_and_sleeps_afterwards(make):
    poller, (read_fd, write_fd) = make(), os.pipe()
    try:
        poller.register(read_fd)
        poller.look_for(0.05)
        assert poller.poll(0.0) == []
        begun = time.monotonic()
        assert poller.poll(0.02) == []
        assert 0.015 < time.monotonic() - begun < 0.5
        poller.look_for(0.01)
        timer = threading.Timer(0.1, os.write, (write_fd, b"x"))
        timer.start()
        assert [fd for fd, _ in poller.poll(10.0)] == [read_fd], "it sleeps until then"
        timer.join()
        poller.look_for(0.01)
        assert [fd for fd, _ in poller.poll(10.0)] == [read_fd]
    finally:
        poller.close()
        os.close(read_fd)
        os.close(write_fd)
