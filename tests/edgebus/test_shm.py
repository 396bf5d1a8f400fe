"""Shared memory between real processes: what is read is what was put, whoever is killed, forked or lies."""

from __future__ import annotations

import errno
import fcntl
import gc
import json
import mmap
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from edgebus import shm
from edgebus.shm import segments
from edgebus.shm.processes import parse_stat
from tests.edgebus.child_shm import block_of, digest, info_of, memory_files

CHILD = Path(__file__).with_name("child_shm.py")
MIB = 1 << 20

pytestmark = pytest.mark.skipif(not shm.available(), reason="no memory files that peers can open here")


class Child:
    """A process that does what it is told, until it is killed."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=CHILD.parents[2]
        )

    def __call__(self, *command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def kill(self):
        self.process.kill()
        self.process.wait()

    def close(self):
        self.kill()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def child():
    process = Child()
    yield process
    process.close()


@pytest.fixture
def pool():
    made = shm.Pool(4 * MIB, MIB)
    yield made
    made.close()


@pytest.fixture
def mapper():
    made = shm.Mapper()
    yield made
    made.close()


def bytes_of(seed, size):
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def view(mapper, block, on_release=lambda: None, peer="peer"):
    return mapper.view(peer, block.segment, block.offset, block.size, on_release)


def holders(inode):
    """Pids that have the file with this inode open or mapped."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        inodes = {entry.st_ino for fd in process.glob("fd/*") if (entry := stat_of(fd)) is not None}
        try:
            maps = (process / "maps").read_text().splitlines()
        except OSError:
            continue  # ended, or not ours
        if inode in inodes | {int(line.split()[4]) for line in maps if "memfd:edgebus" in line}:
            found.add(int(process.name))
    return found


def stat_of(fd):
    """What a descriptor is, if it is one of our segments."""
    try:
        return os.stat(fd) if os.readlink(fd).startswith("/memfd:edgebus") else None
    except OSError:
        return None


def inode_of(block):
    return os.stat(f"/proc/{block.segment.pid}/fd/{block.segment.fd}").st_ino


# Both sides alive


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


# Lifetimes


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
    with pytest.raises(shm.SegmentUnavailable, match="forked"):
        view(mapper, block)


# Lies


def refused(mapper, info, offset=4096, size=64):
    with pytest.raises(shm.SegmentUnavailable) as error:
        mapper.view("liar", info, offset, size, lambda: pytest.fail("released what was never given"))
    assert mapper.stats().mapped_bytes == 0
    return error.value.reason


def memory_file(size=MIB, *, seals=0, nonce=b"n" * 16):
    fd = os.memfd_create("other", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    os.pwrite(fd, b"EDGESHM1" + nonce, 0)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


BOTH = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


@pytest.mark.parametrize(
    ("seals", "reason"), [(0, "not_sealed"), (fcntl.F_SEAL_GROW, "not_sealed"), (fcntl.F_SEAL_SHRINK, "not_sealed")]
)
def test_a_segment_that_could_be_truncated_is_refused(mapper, seals, reason):
    fd = memory_file(seals=seals)
    assert refused(mapper, shm.SegmentInfo(os.getpid(), fd, MIB, b"n" * 16)) == reason
    os.close(fd)


def test_a_memory_file_that_is_sealed_and_has_the_nonce_is_taken(mapper):
    """What the refusals above and below lack in turn."""
    fd = memory_file(seals=BOTH)
    assert bytes(mapper.view("peer", shm.SegmentInfo(os.getpid(), fd, MIB, b"n" * 16), 4096, 64, int)) == bytes(64)
    os.close(fd)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"nonce": b"m" * 16}, "wrong_nonce"),
        ({"nonce": b"n" * 15}, "malformed"),
        ({"size": 2 * MIB}, "wrong_size"),
        ({"size": MIB // 2}, "wrong_size"),
        ({"size": 4096}, "out_of_bounds"),
        ({"size": -1}, "out_of_bounds"),
        ({"size": 2**60}, "too_much"),
        ({"size": 2**28}, "wrong_size"),
        ({"fd": 2**31}, "malformed"),
        ({"fd": -1}, "malformed"),
        ({"fd": 2**31 - 1}, "gone"),
        ({"pid": 0}, "malformed"),
        ({"pid": -1}, "malformed"),
        ({"pid": 2**31 - 1}, "gone"),
        ({"pid": 2**80}, "malformed"),
    ],
)
def test_an_announcement_that_lies_is_refused(mapper, change, reason):
    fd = memory_file(seals=BOTH)
    info = shm.SegmentInfo(os.getpid(), fd, MIB, b"n" * 16)._replace(**change)
    assert refused(mapper, info) == reason
    os.close(fd)


@pytest.mark.parametrize(
    ("offset", "size"),
    [
        (0, 64),
        (4032, 64),
        (-64, 64),
        (4096, MIB),
        (MIB, 64),
        (MIB - 64, 65),
        (4096, -1),
        (4097, 1),
        (2**60, 1),
        (4096, 2**60),
    ],
)
def test_a_block_outside_its_segment_is_refused(pool, mapper, offset, size):
    [block] = pool.put([b"abc"], "peer")
    assert refused(mapper, block.segment, offset, size) == "out_of_bounds"


def test_a_huge_size_is_refused_however_much_may_be_mapped():
    info = shm.SegmentInfo(os.getpid(), 0, 2**60, b"n" * 16)
    assert refused(shm.Mapper(2**62), info) == "malformed"


def test_files_that_are_no_memory_are_refused_unopened(mapper, tmp_path):
    path = tmp_path / "plain"
    path.write_bytes(b"EDGESHM1" + b"n" * 16 + bytes(MIB - 24))
    reader, writer = os.pipe()
    os.mkfifo(tmp_path / "fifo")
    opened = {
        reader: "not_a_segment",
        writer: "not_a_segment",
        os.open(tmp_path / "fifo", os.O_RDWR): "not_a_segment",
        os.open("/dev/zero", os.O_RDONLY): "not_a_segment",
        os.open(tmp_path, os.O_RDONLY): "not_a_segment",
        os.open(path, os.O_RDONLY): "not_a_segment",
        os.open("/dev/shm", os.O_RDWR | os.O_TMPFILE): "wrong_size",
    }
    for fd, reason in opened.items():
        assert refused(mapper, shm.SegmentInfo(os.getpid(), fd, MIB, b"n" * 16)) == reason
        os.close(fd)


def test_files_of_a_file_system_in_memory_are_refused(mapper):
    fd = os.open("/dev/shm", os.O_RDWR | os.O_TMPFILE)
    os.pwrite(fd, b"EDGESHM1" + b"n" * 16 + bytes(MIB - 24), 0)
    assert refused(mapper, shm.SegmentInfo(os.getpid(), fd, MIB, b"n" * 16)) in {"not_sealed", "not_a_segment"}
    os.close(fd)


def test_descriptors_of_another_program_are_refused(mapper, child):
    pid = child.process.pid
    assert child("host_id") == shm.host_id().hex()
    assert refused(mapper, shm.SegmentInfo(pid, 0, MIB, b"n" * 16)) == "not_a_segment"  # its pipe
    block = block_of(child("put", 1, 1000)[0])
    assert refused(mapper, block.segment._replace(nonce=b"n" * 16)) == "wrong_nonce"
    assert refused(mapper, block.segment._replace(pid=os.getpid())) in {"gone", "not_a_segment", "wrong_size"}


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root to have a file of somebody else")
def test_memory_of_another_user_is_refused(mapper):
    fd = memory_file(seals=BOTH)
    os.fchown(fd, 65534, 65534)
    assert refused(mapper, shm.SegmentInfo(os.getpid(), fd, MIB, b"n" * 16)) == "forbidden"
    os.close(fd)


def test_a_sender_cannot_truncate_a_segment_under_its_reader(pool, mapper):
    [block] = pool.put([b"abc"], "peer")
    content = view(mapper, block)
    for size in (0, MIB // 2, 2 * MIB):
        with pytest.raises(PermissionError):
            os.ftruncate(block.segment.fd, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(block.segment.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    assert bytes(content) == b"abc"


@pytest.mark.parametrize(("number", "reason"), [(errno.EMFILE, "no_resources"), (errno.EACCES, "forbidden")])
def test_what_the_system_refuses_is_told_apart(pool, mapper, monkeypatch, number, reason):
    [block] = pool.put([b"abc"], "peer")

    def fail(*_):
        raise OSError(number, "no")

    monkeypatch.setattr(os, "open", fail)
    assert refused(mapper, block.segment) == reason


# Bounds of the receiver


def test_a_hostile_peer_maps_no_more_than_its_bound_and_others_go_on(pool):
    mapper = shm.Mapper(6 * MIB, 3 * MIB)
    files = [memory_file(seals=BOTH) for _ in range(10)]
    views, reasons = [], []
    for fd in files:
        try:
            views.append(mapper.view("hostile", shm.SegmentInfo(os.getpid(), fd, MIB, b"n" * 16), 4096, 64, int))
        except shm.SegmentUnavailable as error:
            reasons.append(error.reason)
    mapper.forget("hostile")  # a new link does not make it more
    with pytest.raises(shm.SegmentUnavailable, match="too_much"):
        mapper.view("hostile", shm.SegmentInfo(os.getpid(), files[9], MIB, b"n" * 16), 4096, 64, int)
    assert (len(views), set(reasons)) == (3, {"too_much"})
    assert mapper.stats().mapped_bytes == 3 * MIB
    [block] = pool.put([b"abc"], "peer")
    assert bytes(view(mapper, block)) == b"abc"
    for fd in files:
        os.close(fd)


def test_tiny_segments_cost_a_descriptor_each_and_are_counted(mapper):
    mapper = shm.Mapper(max_segments=5, max_peer_segments=4)
    files = [memory_file(8192, seals=BOTH) for _ in range(6)]
    infos = [shm.SegmentInfo(os.getpid(), fd, 8192, b"n" * 16) for fd in files]
    views = [mapper.view("a", info, 4096, 64, int) for info in infos[:4]]
    with pytest.raises(shm.SegmentUnavailable, match="4 of 4 segments"):
        mapper.view("a", infos[4], 4096, 64, int)
    views.append(mapper.view("b", infos[4], 4096, 64, int))
    with pytest.raises(shm.SegmentUnavailable, match="5 of 5 segments"):
        mapper.view("b", infos[5], 4096, 64, int)
    views.clear()
    assert bytes(mapper.view("b", infos[5], 4096, 64, int)) == bytes(64)
    for fd in files:
        os.close(fd)


def test_the_segment_not_used_for_longest_makes_room_unless_it_has_views():
    mapper = shm.Mapper(3 * MIB)
    files = [memory_file(seals=BOTH) for _ in range(4)]
    infos = [shm.SegmentInfo(os.getpid(), fd, MIB, b"n" * 16) for fd in files]
    viewed = mapper.view("peer", infos[0], 4096, 64, int)
    for info in (infos[1], infos[2], infos[1], infos[3]):
        mapper.view("peer", info, 4096, 64, int)
    assert (mapper.stats().num_mapped, mapper.stats().segments) == (4, 3)
    for info in (infos[0], infos[1], infos[3]):
        mapper.view("peer", info, 4096, 64, int)
    assert mapper.stats().num_mapped == 4, "only the third had to go"
    mapper.view("peer", infos[2], 4096, 64, int)
    assert mapper.stats().num_mapped == 5
    assert bytes(viewed) == bytes(64)
    for fd in files:
        os.close(fd)


def test_bounds_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="at least 65536 bytes, got 1, "):
        shm.Pool(1)
    with pytest.raises(ValueError, match="must be positive"):
        shm.Mapper(0)
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        shm.Pool().loan(-1, "peer")


# Who can share


def test_host_id_is_another_one_for_a_process_in_another_pid_namespace():
    command = [sys.executable, "-c", "from edgebus import shm; print(shm.host_id().hex())"]
    unshare = ["unshare", "--pid", "--fork", "--mount-proc"]
    try:
        subprocess.run([*unshare, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("may not make a pid namespace")
    ids = [
        subprocess.run(
            prefix + command, check=True, capture_output=True, text=True, cwd=CHILD.parents[2]
        ).stdout.strip()
        for prefix in ([], unshare, ["unshare", "--pid", "--fork"])
    ]
    assert ids[0] == shm.host_id().hex()
    assert len(ids[1]) == 32
    assert ids[1] != ids[0]
    assert ids[2] == "", "its /proc shows the pids of another namespace"


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root to become another user")
def test_host_id_is_another_one_for_another_user():
    """A process changes its ids, and may be looked into again (prctl PR_SET_DUMPABLE) as after an exec."""
    code = """
import ctypes, os, sys
from edgebus import shm
os.setgroups([]); os.setresgid(*[int(sys.argv[1])] * 3); os.setresuid(*[int(sys.argv[2])] * 3)
ctypes.CDLL(None).prctl(4, 1)
print(shm.host_id().hex(), shm.Pool().put([b"x"], "peer") is not None)
"""
    ids = {shm.host_id().hex()}
    for group, user in ((65534, 65534), (65534, 65533), (65533, 65533)):
        command = [sys.executable, "-c", code, str(group), str(user)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=CHILD.parents[2])
        host_id, works = done.stdout.split()
        assert (len(host_id), works) == (32, "True")
        ids.add(host_id)
    assert len(ids) == 4


def test_the_page_names_every_reason():
    page = (CHILD.parents[2] / "docs/spec/bus-shm.md").read_text()
    assert set(get_args(segments.Reason)) <= set(re.findall(r"`([a-z_]+)`", page))


def test_a_system_without_memory_files_falls_back_to_sockets(mapper, pool, monkeypatch):
    [block] = pool.put([b"abc"], "peer")
    monkeypatch.delattr(os, "memfd_create")
    shm.available.cache_clear()
    try:
        assert not shm.available()
        assert shm.host_id() == b""
        assert shm.Pool().put([b"abc"], "peer") is None
        assert refused(mapper, block.segment) == "unavailable"
    finally:
        monkeypatch.undo()
        shm.available.cache_clear()


def test_old_kernels_make_segments_without_the_newest_flag(monkeypatch):
    make = os.memfd_create

    def old(name, flags):
        if flags & 8:
            raise OSError(errno.EINVAL, "unknown flag")
        return make(name, flags)

    monkeypatch.setattr(os, "memfd_create", old)
    segment = segments.Segment(8192)
    with segments.open_segment(segment.info) as mapping:
        assert mapping[:8] == b"EDGESHM1"
    segment.close()


def test_a_segment_may_not_be_executed_or_opened_by_others():
    segment = segments.Segment(mmap.PAGESIZE * 2)
    assert os.fstat(segment.fd).st_mode & 0o777 == 0o600
    assert not os.get_inheritable(segment.fd)
    segment.close()


# Processes


def test_a_process_is_alive_under_its_pid_and_start_time_only():
    started = shm.process_start_time(os.getpid())
    assert shm.process_alive(os.getpid(), started)
    assert not shm.process_alive(os.getpid(), started + 1)
    assert not shm.process_alive(2**31 - 1, started)
    assert not shm.process_alive(-1, started)
    assert shm.process_start_time(2**31 - 1) is None


def test_a_process_name_with_brackets_does_not_move_the_fields():
    """man 5 proc: state is field 3, num_threads 20, starttime 22."""
    rest = " ".join(str(number) for number in range(4, 53))
    assert parse_stat(f"12 (a) Z (b c) S {rest}\n".encode()) == ("S", 20, 22)


@pytest.mark.parametrize(
    ("state", "threads", "alive"), [("S", 1, True), ("Z", 1, False), ("X", 0, False), ("Z", 2, True)]
)
def test_a_first_thread_that_ended_is_not_the_end_of_its_process(monkeypatch, state, threads, alive):
    monkeypatch.setattr("edgebus.shm.processes._stat", lambda pid: (state, threads, 7))
    assert shm.process_alive(1, 7) is alive
