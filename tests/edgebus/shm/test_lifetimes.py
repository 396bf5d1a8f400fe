"""Whoever is killed, retired, closed, forked or collected: nothing changes under a reader, and nothing is left."""

from __future__ import annotations

import gc
import mmap
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from edgebus import shm
from edgebus.forks import forks
from tests.edgebus.shm.child import block_of, digest, info_of, memory_files
from tests.edgebus.shm.tools import (
    MIB,
    bytes_of,
    holders,
    inode_of,
    view,
)

pytestmark = pytest.mark.skipif(not shm.available(), reason="no memory files that peers can open here")


def test_views_outlive_a_killed_sender_unchanged_and_then_nothing_is_left(child, mapper):
    values, content = child("put", 1, 700_000)
    block = block_of(values)
    inode = inode_of(block)
    array = np.frombuffer(view(mapper, block), np.uint8)
    assert holders(inode) == {os.getpid(), child.process.pid}
    assert os.stat(f"/proc/{child.process.pid}/fd/{block.segment.fd}").st_nlink == 0, (
        "no name that could be left behind"
    )
    child.kill()
    mapper.forget("peer")
    gc.collect()
    assert digest(array) == content
    assert holders(inode) == {os.getpid()}
    assert mapper.stats() == shm.MapperStats(MIB, 1, 1, 1, 0)
    del array
    assert holders(inode) == set()
    assert (mapper.stats().mapped_bytes, mapper.stats().views) == (0, 0)


def test_a_segment_of_a_killed_sender_that_was_never_mapped_is_gone(child, mapper):
    block = block_of(child("put", 1, 1000)[0])
    child.kill()
    with pytest.raises(shm.SegmentUnavailable) as error:
        view(mapper, block)
    assert error.value.reason == "gone"


def test_a_killed_receiver_frees_its_blocks_at_once_when_it_is_known_to_be_dead(pool, child):
    started = shm.process_start_time(child.process.pid)
    [block] = pool.put([bytes_of(1, 500_000)], "peer")
    inode = inode_of(block)
    child("view", info_of(block), "a")
    assert shm.process_alive(child.process.pid, started)
    os.kill(child.process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.process.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
    assert not shm.process_alive(child.process.pid, started)
    pool.retire("peer", dead=True)
    assert holders(inode) == set()
    assert pool.stats() == shm.PoolStats(copied_bytes=500_000)


def test_what_a_retired_peer_still_reads_is_never_written_again(pool, child):
    blocks = [pool.put([bytes_of(seed, 400_000)], "peer")[0] for seed in range(3)]
    digests = [child("view", info_of(block), str(number)) for number, block in enumerate(blocks)]
    pool.release([blocks[1].lease_id], "peer")
    pool.retire("peer")
    stats = pool.stats()
    assert (stats.in_use_bytes, stats.segments, stats.orphan_segments) == (0, 0, 2)
    assert 800_000 <= stats.orphan_bytes <= 950_000
    for owner in ("peer", "other"):  # write wherever there is room
        while pool.put([bytes_of(99, 300_000)], owner) is not None:
            pass
    assert [child("digest", "0"), child("digest", "2")] == [digests[0], digests[2]]
    child("drop", "0")
    child("drop", "1")
    child("drop", "2")
    pool.sweep()
    assert pool.stats().orphan_segments == 2, "kept by the receiver until it forgets the peer"
    assert child("forget") == 0
    assert pool.put([bytes(300_000)], "peer") is not None, "found without being asked"
    assert pool.stats().orphan_bytes == 0


def test_orphans_of_a_killed_receiver_are_found_by_asking_the_kernel(pool, child):
    [block] = pool.put([bytes(1000)], "peer")
    child("view", info_of(block), "a")
    pool.retire("peer")
    assert pool.stats().orphan_segments == 1
    child.kill()
    pool.sweep()
    assert pool.stats().orphan_segments == 0
    assert memory_files() == 0


def test_a_dead_peer_may_be_reported_later(pool, mapper):
    [block] = pool.put([b"abc"], "peer")
    content = view(mapper, block)
    pool.retire("peer")
    pool.retire("other", dead=True)
    assert pool.stats().orphan_segments == 1
    pool.retire("peer", dead=True)
    assert pool.stats().orphan_segments == 0
    assert bytes(content) == b"abc"


def test_a_stopped_receiver_that_maps_late_gets_what_was_sent_or_nothing(pool, mapper):
    """The link was given up while the announcement lay in its socket."""
    [block] = pool.put([b"old"], "peer")
    pool.retire("peer")
    pool.put([b"new"], "peer")
    with pytest.raises(shm.SegmentUnavailable) as error:
        view(mapper, block)
    assert error.value.reason in {"gone", "wrong_nonce"}


def test_closing_a_pool_leaves_views_alone_and_lends_no_more(mapper):
    pool = shm.Pool(4 * MIB, MIB)
    [block] = pool.put([b"abc"], "peer")
    memory, _ = pool.loan(3, "peer")
    content = view(mapper, block)
    pool.close()
    assert pool.put([b"x"], "peer") is None
    memory[:] = b"xyz"
    assert bytes(content) == b"abc"
    assert pool.stats() == shm.PoolStats(copied_bytes=3, refused=1)


def test_a_pool_that_is_dropped_closes_its_descriptors():
    pool = shm.Pool(4 * MIB, MIB)
    pool.put([b"abc"], "peer")
    assert memory_files() == 3
    del pool
    gc.collect()
    assert memory_files() == 0


def test_release_comes_once_when_the_last_array_is_gone(pool, mapper):
    [block] = pool.put([np.arange(100, dtype="<i4")], "peer")
    released = []
    content = view(mapper, block, lambda: released.append(1))
    array = np.ndarray((10, 10), "<i4", buffer=content)
    column = array[:, 3]
    half = memoryview(content)[:200]
    del content
    assert released == []
    del array
    assert released == []
    del half
    gc.collect()
    assert released == []
    assert column.tolist() == list(range(3, 100, 10))
    del column
    assert released == [1]
    gc.collect()
    assert released == [1]


def test_release_comes_from_the_garbage_collector_and_not_before_a_resurrected_array_is_gone(pool, mapper):
    [block] = pool.put([b"abcd"], "peer")
    released, saved = [], []

    class Cycle:
        def __init__(self):
            self.me, self.array = self, np.frombuffer(view(mapper, block, lambda: released.append(1)), np.uint8)

        def __del__(self):
            saved.append(self.array)

    Cycle()
    gc.collect()
    assert (released, bytes(saved[0])) == ([], b"abcd")
    saved.clear()
    assert released == [1]


def test_views_may_end_on_any_thread_while_others_begin(pool, mapper):
    [block] = pool.put([bytes(1000)], "peer")
    released = []

    def work():
        for _ in range(300):
            content = np.frombuffer(view(mapper, block, lambda: released.append(1)), np.uint8)
            cycle = [content]
            cycle.append(cycle)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    gc.collect()
    assert len(released) == 1200
    assert mapper.stats().views == 0


def test_a_view_that_outlives_all_modules_ends_without_a_word():
    code = (
        "import mmap, sys\n"
        "from edgebus.shm import mapper\n"
        "sys.kept = mapper._watch(mmap.mmap(-1, 4096), 0, 64, lambda: print('told'))  # sys goes last\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_forked_receiver_reads_on_but_gives_nothing_back(pool, child):
    [block] = pool.put([bytes_of(1, 1000)], "peer")
    content = child("view", info_of(block), "a")
    (seen, _, released, files), released_by_parent, after = child("fork_receiver", "a")
    assert (seen, released, files) == (content, [], 0)
    assert (released_by_parent, after) == ([], ["a"])


def test_a_forked_sender_lends_frees_and_keeps_nothing(child):
    (blocks, files, in_use), before, after, same, loaned = child("fork_sender")
    assert (blocks, files, in_use) == (None, 0, 0)
    assert before == after == 1024 + 128
    assert same
    assert loaned == 100


def test_a_mapper_maps_nothing_in_a_forked_child(pool, mapper, monkeypatch):
    [block] = pool.put([b"abc"], "peer")
    monkeypatch.setattr(os, "getpid", lambda: 1)
    monkeypatch.setattr("edgebus.shm.mapper.forks", [forks[0] + 1])
    with pytest.raises(shm.SegmentUnavailable, match="forked"):
        view(mapper, block)


@pytest.mark.parametrize("page", [4096, 16384, 65536])
def test_memory_that_counts_as_committed_is_there_whatever_the_size_of_pages(monkeypatch, page):
    """Pages of 16 KiB: Raspberry Pi 5; of 64 KiB: some servers."""
    monkeypatch.setattr(mmap, "PAGESIZE", page)
    pool = shm.Pool(MIB, shm.COMMIT_BYTES + shm.HEADER_BYTES)
    try:
        [block] = pool.put([bytes(60_000)], "peer")
        [small] = pool.put([bytes(4000)], "peer")
        pool.release([block.lease_id, small.lease_id], "peer")
        pool.trim()
        assert pool.stats().committed_bytes <= max(page, shm.COMMIT_BYTES)
        assert os.lseek(block.segment.fd, 0, os.SEEK_HOLE) >= pool.stats().committed_bytes
    finally:
        pool.close()
