"""Shared memory between processes: what is read is what was put, in bounded memory."""

from __future__ import annotations

import errno
import os
import threading

import numpy as np
import pytest

from edgebus import shm
from tests.edgebus.shm.child import digest, info_of, memory_files
from tests.edgebus.shm.tools import (
    MIB,
    bytes_of,
    view,
)

pytestmark = pytest.mark.skipif(not shm.available(), reason="no memory files that peers can open here")


@pytest.mark.parametrize("size", [0, 1, 64, 65, 4096, MIB - 4096, 3 * MIB])
def test_what_is_put_is_viewed_bit_for_bit_in_another_process(pool, child, size):
    content = bytes_of(size, size)
    [block] = pool.put([content], "peer")
    assert child("view", info_of(block), "a") == digest(content)
    assert pool.stats().copied_bytes == size


def test_several_buffers_of_any_kind_lie_apart_in_one_segment(pool, mapper):
    buffers = [np.float64(1.5), b"", bytearray(b"abc"), np.arange(6, dtype=">i4").reshape(2, 3), memoryview(b"x" * 100)]
    blocks = pool.put(buffers, "peer")
    assert len({block.segment for block in blocks}) == 1
    assert [bytes(view(mapper, block)) for block in blocks] == [
        buffer.tobytes() if hasattr(buffer, "tobytes") else bytes(buffer) for buffer in buffers
    ]
    assert all(block.offset % 64 == 0 for block in blocks)
    assert pool.put([], "peer") == []


def test_strided_array_is_refused_and_nothing_is_taken(pool):
    with pytest.raises(ValueError, match="not C-contiguous"):
        pool.put([b"fine", np.zeros((4, 4))[:, ::2]], "peer")
    assert pool.stats().leases == 0


def test_the_receiver_cannot_write(pool, mapper):
    [block] = pool.put([b"abcd"], "peer")
    content = view(mapper, block)
    array = np.frombuffer(content, np.uint8)
    with pytest.raises(TypeError, match="read-only"):
        content[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True


def test_nothing_is_copied_on_the_way_in(pool, mapper):
    [block] = pool.put([b"abcd"], "peer")
    first, second = (np.frombuffer(view(mapper, block), np.uint8) for _ in range(2))
    assert first.__array_interface__["data"][0] == second.__array_interface__["data"][0]
    assert mapper.stats() == shm.MapperStats(MIB, 1, 2, 1, 0, 0)


def test_a_loan_is_written_in_place_and_copies_nothing(pool, child):
    memory, block = pool.loan(1000, "peer")
    np.frombuffer(memory, np.uint8)[:] = content = bytes_of(1, 1000)
    assert child("view", info_of(block), "a") == digest(content)
    assert pool.stats().copied_bytes == 0


def test_a_loan_given_back_is_not_used_again_while_it_can_be_written(pool):
    memory, block = pool.loan(1000, "peer")
    array = np.frombuffer(memory, np.uint8)[10:20]
    del memory
    pool.release([block.lease_id], "peer")
    [other] = pool.put([bytes(1000)], "peer")
    assert other.offset >= block.offset + block.size
    del array
    [reused] = pool.put([bytes(1000)], "peer")
    assert reused.offset == block.offset


def test_a_kept_block_is_free_when_the_peer_and_we_are_through_in_either_order(pool):
    first, second = pool.put([b"a", b"b"], "peer", keep=True)
    pool.release([first.lease_id], "peer")
    pool.done([second.lease_id], "peer")
    assert pool.stats().leases == 2
    pool.done([first.lease_id], "peer")
    pool.release([second.lease_id], "peer")
    assert (pool.stats().leases, pool.stats().in_use_bytes) == (0, 0)


def test_only_an_owner_gives_back_its_leases_and_strays_are_counted(pool):
    [block] = pool.put([b"a"], "peer")
    pool.release([block.lease_id, 999], "stranger")
    pool.release([999, -1, 2**70], "peer")
    assert (pool.stats().leases, pool.stats().stray_releases) == (1, 5)
    pool.release([block.lease_id, block.lease_id], "peer")
    assert (pool.stats().leases, pool.stats().stray_releases) == (0, 6)


def test_a_report_ends_the_leases_up_to_a_number_that_it_does_not_hold(pool):
    first, second, third, fourth = pool.put([b"a", b"b", b"c", b"d"], "peer")
    pool.settle("peer", third.lease_id, [first.lease_id, 999])
    pool.settle("stranger", 2**62, [])
    assert pool.stats().leases == 2
    pool.release([second.lease_id, third.lease_id], "peer")
    assert pool.stats().stray_releases == 2
    pool.release([first.lease_id, fourth.lease_id], "peer")
    assert (pool.stats().leases, pool.stats().stray_releases) == (0, 2)


def test_owners_do_not_share_segments(pool):
    [mine], [other] = pool.put([b"a"], "peer"), pool.put([b"b"], "other")
    assert mine.segment.nonce != other.segment.nonce


# Bounds of the sender


def test_memory_is_used_again_and_not_asked_for_twice(pool):
    offsets = set()
    for seed in range(50):
        [block] = pool.put([bytes_of(seed, 300_000)], "peer")
        offsets.add(block.offset)
        pool.release([block.lease_id], "peer")
    assert len(offsets) == 1
    assert 300_000 < pool.stats().committed_bytes < 400_000


def test_a_full_pool_says_so_and_takes_again_what_is_given_back(pool):
    blocks = []
    while (put := pool.put([bytes(500_000)], "peer")) is not None:
        blocks += put
        assert pool.stats().committed_bytes <= 4 * MIB
    assert 6 <= len(blocks) <= 8
    assert pool.loan(500_000, "other") is None
    assert pool.stats().refused == 2
    pool.release([blocks[3].lease_id], "peer")
    assert pool.put([bytes(500_000)], "peer") is not None


def test_one_owner_gets_no_more_than_its_share():
    pool = shm.Pool(4 * MIB, MIB, max_owner_bytes=2 * MIB)
    while pool.put([bytes(500_000)], "greedy") is not None:
        assert pool.stats().committed_bytes <= 2 * MIB
    assert pool.put([bytes(500_000)], "modest") is not None
    pool.close()


def test_an_owner_has_at_most_so_many_leases(pool):
    assert len(pool.put([b""] * 4096, "peer")) == 4096
    assert pool.put([b""], "peer") is None
    assert pool.put([b""], "other") is not None


def test_idle_memory_of_one_owner_makes_room_for_another(pool, mapper):
    """Also while the first owner's peer still maps it: its pages are given back to the system."""
    [block] = pool.put([bytes(3 * MIB)], "idle")
    viewed = view(mapper, block)
    assert pool.put([bytes(2 * MIB)], "busy") is None
    inode = os.stat(f"/proc/self/fd/{block.segment.fd}")
    assert inode.st_blocks * 512 >= 3 * MIB
    pool.release([block.lease_id], "idle")
    assert pool.put([bytes(2 * MIB)], "busy") is not None
    assert os.stat(f"/proc/self/fd/{block.segment.fd}").st_blocks * 512 <= 65536
    del viewed


def test_segments_too_small_for_what_is_sent_now_do_not_pile_up(pool):
    for size in range(MIB, 3 * MIB, MIB // 4):
        [block] = pool.put([bytes(size)], "peer")
        pool.release([block.lease_id], "peer")
    assert pool.stats().segments == 1
    assert memory_files() == 3  # two descriptors and a mapping


def test_a_machine_without_memory_is_an_answer_and_not_a_signal(pool, monkeypatch):
    pool.put([bytes(100)], "peer")
    before = pool.stats()

    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert pool.put([bytes(500_000)], "peer") is None
    assert pool.put([bytes(100)], "other") is None
    after = pool.stats()
    assert after.committed_bytes <= before.committed_bytes
    assert (after.in_use_bytes, after.leases, after.segments) == (128, 1, 1)
    assert pool.put([bytes(100)], "peer") is not None


def test_threads_put_and_release_without_mixing_up_their_bytes(mapper):
    pool, wrong = shm.Pool(16 * MIB, 4 * MIB), []

    def work(number):
        for round_ in range(100):
            content = bytes_of(number * 1000 + round_, 5000)
            [block] = pool.put([content], number % 2)
            if bytes(view(mapper, block, peer=number)) != content.tobytes():
                wrong.append(number)
            pool.release([block.lease_id], number % 2)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert pool.stats().in_use_bytes == 0
    pool.close()
