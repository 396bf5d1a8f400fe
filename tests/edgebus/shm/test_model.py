"""Shared memory against models: no block overlaps another, no view changes, everything comes back."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgebus import shm
from edgebus.shm.ranges import FreeRanges

MIB = 1 << 20

needs_memory_files = pytest.mark.skipif(not shm.available(), reason="no memory files that peers can open here")


def test_free_ranges_worked_by_hand():
    free = FreeRanges(0, 100)
    assert [free.take(size, below=100) for size in (10, 20, 30)] == [0, 10, 30]
    assert list(free) == [(60, 100)]
    free.give(0, 10)
    free.give(30, 30)
    assert list(free) == [(0, 10), (30, 100)]
    assert free.take(15, below=100) == 30
    assert free.take(5, below=4) is None
    free.give(10, 20)
    assert list(free) == [(0, 30), (45, 100)]
    free.give(30, 15)
    assert list(free) == [(0, 100)]
    assert free.take(101, below=100) is None
    with pytest.raises(AssertionError, match="twice"):
        free.give(50, 10)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 40), st.integers(0, 100)), max_size=100))
def test_free_ranges_are_the_complement_of_what_is_taken(steps):
    free, taken = FreeRanges(5, 105), []
    for take, size, below in steps:
        if take:
            start = free.take(size, below=below)
            used = {byte for at, length in taken for byte in range(at, at + length)}
            places = [at for at in range(5, min(below, 105) - size + 1) if not used & set(range(at, at + size))]
            assert start == (places[0] if places else None)
            if start is not None:
                taken.append((start, size))
        elif taken:
            free.give(*taken.pop(size % len(taken)))
        ranges = list(free)
        assert all(end < start for (_, end), (start, _) in pairwise(ranges)), "merged and in order"
        used = {byte for at, length in taken for byte in range(at, at + length)}
        assert {byte for start, end in ranges for byte in range(start, end)} == set(range(5, 105)) - used


STEPS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2**20), st.integers(0, 2)), min_size=50, max_size=100)


@needs_memory_files
@settings(max_examples=20, deadline=None)
@given(STEPS)
def test_live_blocks_never_overlap_and_keep_their_bytes(steps):
    """Up to 2,000 steps in all: put 1 to 3 buffers, give back one, retire an owner, trim."""
    pool, mapper, live = shm.Pool(3 * MIB, MIB, max_owner_bytes=2 * MIB), shm.Mapper(), {}
    for number, (what, size, owner) in enumerate(steps):
        if what < 6:
            sizes = [size % 300_000, size % 777][: 1 + size % 2]
            blocks = pool.put([np.full(length, number % 251, np.uint8) for length in sizes], owner)
            for block in blocks or ():
                live[owner, block.lease_id] = block, number % 251
        elif what < 9 and live:
            key = sorted(live)[size % len(live)]
            del live[key]
            pool.release([key[1]], key[0])
        elif size % 4 == 0:
            pool.retire(owner)
            live = {key: value for key, value in live.items() if key[0] != owner}
        else:
            pool.trim()
        check(pool, mapper, live)
    for owner, lease_id in live:
        pool.release([lease_id], owner)
    assert pool.stats().in_use_bytes == pool.stats().leases == 0
    pool.close()
    assert pool.stats().committed_bytes == 0


def check(pool, mapper, live):
    """Bounds, accounts and contents."""
    stats = pool.stats()
    assert stats.committed_bytes <= 3 * MIB
    assert stats.leases == len(live)
    assert stats.in_use_bytes == sum(-(-max(block.size, 1) // 64) * 64 for block, _ in live.values())
    places = sorted((block.segment, block.offset, block.size) for block, _ in live.values())
    for (segment, offset, size), (other, next_offset, _) in pairwise(places):
        assert segment != other or offset + size <= next_offset
    for (owner, _), (block, fill) in live.items():
        content = np.frombuffer(mapper.view(owner, block.segment, block.offset, block.size, int), np.uint8)
        assert (content == fill).all()
    for owner in range(3):
        mapper.forget(owner)


def test_ledger_worked_by_hand():
    ledger = shm.Ledger(max_held=3)
    assert ledger.report() is None
    assert not ledger.has_news
    assert ledger.admit([4, 5])
    assert ledger.admit([5])
    assert ledger.has_news
    assert ledger.report() == (5, (4, 5))
    assert not ledger.has_news
    ledger.give_back(5)
    assert not ledger.has_news
    ledger.give_back(5)
    assert ledger.has_news
    assert not ledger.admit([5]), "the next report gives it up"
    assert not ledger.admit([3]), "overtaken and given up unseen"
    assert not ledger.admit([6, 3])
    assert ledger.num_held == 1
    assert not ledger.admit([6, 7, 8]), "at most three"
    assert ledger.admit([4, 6])
    ledger.give_back(6)
    assert ledger.admit([6]), "no report has spoken of it"
    assert ledger.report() == (6, (4, 6))
    with pytest.raises(ValueError, match="lease 7 is not held"):
        ledger.give_back(7)


@needs_memory_files
@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 50)), max_size=120))
def test_no_view_changes_whatever_is_lost_repeated_or_overtaken(steps):
    """Messages and reports over a link that loses, repeats and reorders, between a pool and a ledger."""
    pool, mapper, ledger = shm.Pool(64 << 10, 64 << 10), shm.Mapper(), shm.Ledger()
    sent, kept, on_the_way, reports, views = {}, [], [], [], []
    for number, (what, which) in enumerate(steps):
        if what <= 1:
            blocks = pool.put([np.full(9000, number % 251, np.uint8)], "peer", keep=True)
            if blocks is not None:
                sent[blocks[0].lease_id] = blocks[0], number % 251
                on_the_way.append(blocks[0].lease_id)
                kept.append(blocks[0].lease_id)
        elif what == 2 and on_the_way:  # the newest most of all; it may come again, and one we gave up may come late
            lease_id = on_the_way[-1 - min(which % 10, len(on_the_way) - 1)]
            if ledger.admit([lease_id]):
                block, fill = sent[lease_id]
                view = mapper.view("peer", block.segment, block.offset, block.size, int)
                assert bytes(view) == bytes([fill]) * 9000, "what was sent"
                views.append((lease_id, view, fill))
        elif what == 3 and views:
            ledger.give_back(views.pop(which % len(views))[0])
        elif what == 4 and ledger.has_news:
            reports.append(ledger.report())
        elif what == 5 and reports:  # old ones too
            pool.settle("peer", *reports[-1 - min(which % 5, len(reports) - 1)])
        elif what == 6 and kept:
            pool.done([kept.pop(which % len(kept))], "peer")
        for _, view, fill in views:
            assert bytes(view) == bytes([fill]) * 9000
    views.clear()
    pool.close()
