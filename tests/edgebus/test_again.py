"""Memory that a peer could not see for a while is shared again, by itself."""

from __future__ import annotations

import time

import pytest

from edgebus import again as again_module
from edgebus import shm
from edgebus.again import AGAIN_S, MOST_AGAIN_S, Again
from tests.edgebus.test_sharing import Blind, array, eventually, pool_of, two_nodes, warm


def test_who_says_no_is_asked_after_a_second_then_later_and_later_and_never_after_more_than_a_minute():
    again, now, waits = Again(), 100.0, []
    assert not again.is_due(7, now)
    for _ in range(9):
        again.refused(7, now)
        again.refused(7, now)  # for another message that was on its way
        began = now
        while not again.is_due(7, now):
            now += 0.5
        waits.append(now - began)
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    assert (waits[0], waits[-1]) == (AGAIN_S, MOST_AGAIN_S)


def test_who_saw_it_for_a_minute_is_asked_after_a_second_again():
    again = Again()
    again.refused(7, 100.0)
    again.refused(7, 102.0)
    assert [again.is_due(7, at) for at in (103.9, 104.0)] == [False, True]
    again.refused(7, 104.0 + MOST_AGAIN_S)
    assert again.is_due(7, 105.0 + MOST_AGAIN_S)
    again.forget(7)
    assert not again.is_due(7, 1000.0)


@pytest.mark.net
@pytest.mark.skipif(not shm.available(), reason="no shared memory here")
def test_peer_that_has_no_room_for_a_moment_is_given_memory_again_on_the_same_link(monkeypatch):
    monkeypatch.setattr(again_module, "AGAIN_S", 0.02)
    with two_nodes() as (server, _, link):
        warm(link)
        attached, sharing = link._dialled.attached, server._engine.sharing
        mapper, sharing._mapper = sharing._mapper, Blind()
        try:
            for number in range(4):  # it is asked again meanwhile, and says no
                assert (link.request("echo", b"", [array(number)]).arrays[0] == array(number)).all()
                eventually(lambda: attached.sharing == "no")
                time.sleep(0.02)
        finally:
            sharing._mapper = mapper
        warm(link)
        assert link._link.num_ups == 1
        before = link.stats().bytes_sent
        assert (link.request("echo", b"", [array(9)]).arrays[0] == array(9)).all()
        assert link.stats().bytes_sent - before < 10_000


@pytest.mark.net
@pytest.mark.skipif(not shm.available(), reason="no shared memory here")
def test_peer_that_never_sees_it_has_no_memory_of_ours_however_often_it_is_asked(monkeypatch):
    monkeypatch.setattr(again_module, "AGAIN_S", 0.001)
    monkeypatch.setattr(again_module, "MOST_AGAIN_S", 0.001)
    with two_nodes() as (server, device, link):
        attached, sharing, asked = link._dialled.attached, server._engine.sharing, []
        mapper, sharing._mapper = sharing._mapper, Blind()
        try:
            for number in range(10):
                link.request("echo", b"", [array(number, 100_000)])
                eventually(lambda: attached.sharing == "no")
                asked.append(device._engine.sharing._pool._next_lease)
                time.sleep(0.002)
        finally:
            sharing._mapper = mapper
        assert asked[-1] > 5
        assert (pool_of(device).stats().leases, len(device._engine.sharing._names(attached))) == (0, 0)
