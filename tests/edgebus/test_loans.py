"""Loans: filled in place, sent without a copy where memory is shared, and as they lie where it is not."""

from __future__ import annotations

import gc
import os
import sys
import threading

import numpy as np
import pytest

import edgebus
from edgebus import sharing_views, shm
from tests.edgebus.interrupting import interrupted
from tests.edgebus.test_interrupts import PLAIN
from tests.edgebus.test_near import near_of
from tests.edgebus.test_sharing import MIB, QUICK, child, eventually, pool_of, two_nodes, warm

pytestmark = [pytest.mark.net, pytest.mark.skipif(not shm.available(), reason="no shared memory here")]


def fill(loan, seed):
    loan[...] = np.random.default_rng(seed).random(loan.shape, np.float32)
    return loan.copy()


def test_loan_is_sent_without_a_copy_and_its_memory_comes_back():
    with two_nodes() as (_server, device, link):
        warm(link)
        before, counted = link.stats().copied_bytes_sent, pool_of(device).stats().copied_bytes
        for number in range(20):
            loan = link.loan((512, 512))
            assert loan.is_shared
            assert loan.flags.writeable
            expected = fill(loan, number)
            assert (link.request("echo", b"x", [loan]).arrays[0] == expected).all()
            assert not loan.flags.writeable, "the peer may still read it"
            assert not loan.is_shared
        assert link.stats().copied_bytes_sent == before
        assert pool_of(device).stats().copied_bytes == counted
        assert link.stats().content_bytes_sent >= 20 * MIB
        del loan
        eventually(lambda: link.request("echo", b"", [np.zeros(30_000)]) and pool_of(device).stats().in_use_bytes < MIB)


def test_loan_beside_other_arrays_keeps_its_place():
    with two_nodes() as (_, _, link):
        warm(link)
        loan, other = link.loan(200_000, "u1"), np.arange(100_000, dtype=np.int32)
        loan[:] = 7
        first, second, third = link.request("echo", b"", [other, loan, other[::2]]).arrays
        assert (first == other).all()
        assert (second == 7).all()
        assert (third == other[::2]).all()
        copied = link.stats().copied_bytes_sent
        assert copied < loan.nbytes + 4 * (first.nbytes + third.nbytes)


def test_loan_that_is_held_is_not_written_over():
    """While anybody looks at it, at either end, its memory is nobody else's."""
    with two_nodes() as (_, device, link):
        warm(link)
        loan = link.loan(MIB, "u1")
        loan[:] = 1
        link.request("echo", b"", [loan])
        for number in range(2, 30):
            other = link.loan(MIB, "u1")
            other[:] = number
            link.request("echo", b"", [other])
            assert (loan == 1).all(), "our own array changed under us"
        assert pool_of(device).stats().in_use_bytes < 12 * MIB


def test_loan_sent_twice_is_copied_the_second_time():
    with two_nodes() as (_, _, link):
        warm(link)
        loan = link.loan(100_000, "u1")
        loan[:] = 3
        link.request("echo", b"", [loan])
        before = link.stats().copied_bytes_sent
        assert (link.request("echo", b"", [loan]).arrays[0] == 3).all()
        assert link.stats().copied_bytes_sent > before


def test_loan_that_is_not_sent_gives_its_memory_back():
    with two_nodes() as (_, device, link):
        warm(link)
        eventually(lambda: pool_of(device).stats().in_use_bytes < MIB)
        loans = [link.loan(MIB, "u1") for _ in range(4)]
        assert pool_of(device).stats().in_use_bytes >= 4 * MIB
        kept = loans[0][:10]
        loans.clear()
        gc.collect()
        eventually(lambda: pool_of(device).stats().in_use_bytes < 2 * MIB)
        kept[:] = 5  # a slice keeps the memory
        assert pool_of(device).stats().in_use_bytes >= MIB


@pytest.mark.skipif(PLAIN, reason="plain Python shows a signal handler between any two steps")
def test_loan_whose_end_a_signal_handler_interrupts_gives_its_memory_back():
    """No frame of Python runs there, in which it could raise."""

    def interrupt(*_):
        raise KeyboardInterrupt

    with two_nodes() as (_, device, link):
        warm(link)
        eventually(lambda: pool_of(device).stats().in_use_bytes < MIB)
        loan = link.loan(MIB, "u1")
        before = sys.gettrace()
        sys.settrace(interrupt)
        del loan
        sys.settrace(before)
        assert not device._engine.sharing._loans
        eventually(lambda: pool_of(device).stats().in_use_bytes < MIB)


def test_loan_whose_message_finds_no_room_can_be_sent_later():
    with two_nodes(max_outstanding_bytes=200_000) as (server, device, link):
        warm(link)
        inbox = server.serve("full")
        pending = link.send_request("full", bytes(190_000))
        loan = link.loan(100_000, "u1")
        loan[:] = 9
        with pytest.raises(edgebus.QueueFull):
            link.send_request("echo", bytes(60_000), [loan])
        assert loan.is_shared
        assert loan.flags.writeable
        loan[0] = 8
        inbox.get(5).reply()
        pending.result()
        copied = pool_of(device).stats().copied_bytes
        assert link.request("echo", b"", [loan]).arrays[0][:2].tolist() == [8, 9]
        assert pool_of(device).stats().copied_bytes == copied


def test_loan_two_threads_send_at_once_goes_twice_and_whole():
    with two_nodes() as (_, _, link):
        warm(link)
        wrong = []
        for number in range(20):
            loan = link.loan(100_000, "u1")
            loan[:] = number

            def send(loan=loan, number=number):
                if not (link.request("echo", b"", [loan]).arrays[0] == number).all():
                    wrong.append(number)

            threads = [threading.Thread(target=send) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(10)
        assert wrong == []


def test_loan_where_nothing_is_shared_is_ordinary_memory_sent_as_it_lies():
    with two_nodes(share_bytes=0) as (_, _, link):
        loan = link.loan((300, 300), "f4")
        assert not loan.is_shared
        expected = fill(loan, 1)
        assert (link.request("echo", b"", [loan]).arrays[0] == expected).all()
        assert link.stats().copied_bytes_sent == 0
        small = link.loan(3, "i4")
        small[:] = 1, 2, 3
        assert link.request("echo", b"", [small]).arrays[0].tolist() == [1, 2, 3]


def test_reply_can_be_a_loan():
    with two_nodes() as (server, device, link):
        server.handle("make", lambda request: request.reply(b"", [filled(request.loan(100_000, "u1"))]))

        def filled(loan):
            loan[:] = 4
            return loan

        warm(link)
        copied = pool_of(server).stats().copied_bytes
        for _ in range(5):
            assert (link.request("make").arrays[0] == 4).all()
        assert pool_of(server).stats().copied_bytes == copied
        assert pool_of(device) is not pool_of(server)


def test_loan_that_does_not_travel_is_refused():
    with two_nodes() as (_, _, link):
        for shape, dtype, error in (((2,), ">f4", TypeError), ((2,), "O", TypeError), ((-1,), "f4", ValueError)):
            with pytest.raises(error):
                link.loan(shape, dtype)
        with pytest.raises(ValueError, match="8 dimensions"):
            link.loan((1,) * 9)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((2**62,), "f8"),
        (2**63 - 1, "u1"),
        ((2**62 + 2**18, 4), "u1"),
        ((2**40,) * 2, "u1"),
        (np.full(2, 2**32), "u1"),
        ((0, 2**62), "f8"),
    ],
)
def test_loan_that_is_larger_than_any_memory_is_refused_and_takes_none(shape, dtype):
    """Its size in bytes is more than 64 bits hold: a count of what is left over would look small."""
    with two_nodes() as (_server, device, link):
        warm(link)
        eventually(lambda: link.request("echo") and pool_of(device).stats().leases <= 1)
        before = pool_of(device).stats().leases
        with pytest.raises(ValueError, match="over 2\\*\\*40 items"):
            link.loan(shape, dtype)
        assert pool_of(device).stats().leases <= before


def test_loan_of_a_peer_that_was_killed_goes_to_the_next_one():
    with edgebus.Node("d", insecure=True, limits=QUICK) as device, child() as (process, endpoint):
        link = device.connect(endpoint)
        warm(link)
        loan = link.loan(MIB, "u1")
        loan[:] = 6
        process.kill()
        process.wait(5)
        with child(endpoint):
            assert (link.request("echo", b"", [loan], timeout_s=20.0).arrays[0] == 6).all()


def test_sender_killed_with_loans_leaves_what_was_received():
    with child() as (process, endpoint), edgebus.Node("d", insecure=True, limits=QUICK) as device:
        link = device.connect(endpoint)
        warm(link)
        loan = link.loan(MIB, "u1")
        loan[:] = 2
        echoed = link.request("echo", b"", [loan]).arrays[0]
        process.kill()
        process.wait(5)
        eventually(lambda: link.health == "down")
        assert (echoed == 2).all()
        assert (loan == 2).all()
    assert os.getpid()


@pytest.mark.parametrize("shared", [True, False])
def test_what_is_made_of_a_loan_is_copied_when_it_is_sent(shared):
    """A slice over memory that can still be written, and a result that its owner goes on with."""
    with two_nodes(**({} if shared else {"share_bytes": 0})) as (server, _, link):
        if shared:
            warm(link)
        inbox = server.serve("in")
        for make in (lambda loan: loan[:200_000], lambda loan: loan + np.uint8(0), np.copy):
            loan = link.loan(300_000, "u1")
            loan[:] = 1
            made = make(loan)
            pending = link.send_request("in", b"", [made], timeout_s=5)
            assert made.flags.writeable
            loan[:] = made[:] = 9
            request = inbox.get(5)
            assert (request.arrays[0] == 1).all()
            request.reply()
            pending.result()


def test_loan_and_arrays_of_a_link_that_has_ended_leave_nothing_behind():
    with two_nodes(forget_s=0.5) as (_server, device, first):
        endpoint, sharing = first._dialled.endpoint, device._engine.sharing
        for _ in range(5):
            link = device.connect(endpoint)
            warm(link)
            dropped = link.loan(200_000, "u1")
            assert dropped.is_shared
            link.close()
            late = link.loan(200_000, "u1")
            assert not late.is_shared
            with pytest.raises(edgebus.EdgebusError):
                link.request("echo", b"", [late, np.zeros(200_000)])
            del dropped, late
        gc.collect()
        eventually(lambda: not sharing._dropped)
        assert not sharing._numbers, "they would keep every link there ever was"
        stats = pool_of(device).stats()
        assert stats.segments == 0
        assert stats.in_use_bytes == 0


@pytest.mark.skipif(not shm.ORDERED, reason="no board on this machine")
def test_loan_is_made_of_memory_that_the_peer_of_another_link_has_given_back(monkeypatch):
    """It stands on that one's board; a report of it comes later, and nobody waits for it."""
    monkeypatch.setattr(sharing_views, "TOLD_S", 60.0)
    limits, held = edgebus.Limits(share_bytes=8 * MIB), []

    def hold(request):
        held.append(request.arrays)
        request.reply(b"")

    with (
        edgebus.Node("a", insecure=True) as first,
        edgebus.Node("b", insecure=True) as second,
        edgebus.Node("d", insecure=True, limits=limits) as device,
    ):
        first.handle("hold", hold)
        for server in (first, second):
            server.handle("echo", lambda request: request.reply(request.payload, request.arrays))
        links = [device.connect(server.bind("tcp://127.0.0.1:0")) for server in (first, second)]
        for link in links:
            near_of(link)
        links[0].request("hold", b"", [np.zeros(6 * MIB, np.uint8)])
        assert not links[1].loan(6 * MIB, "uint8").is_shared, "there is no room"
        held.clear()
        gc.collect()
        assert links[1].loan(6 * MIB, "uint8").is_shared


def test_loan_that_is_interrupted_in_the_making_is_free_again():
    """Where a handler can run then: in what is Python although the pool is compiled."""
    pool, at, going = shm.Pool(1 << 20, 1 << 20), 0, True
    while going:
        at += 1
        going = interrupted(lambda: pool.loan(4096, "peer", keep=True), at, lambda name: name.startswith("namedtuple_"))
        if going:
            assert pool.stats().leases == 0
    pool.close()
