"""Announcements that lie, peers that want it all, and processes that cannot share."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import re
import subprocess
import sys
from typing import get_args

import pytest

from edgebus import shm
from edgebus.shm import segments
from edgebus.shm.processes import parse_stat
from tests.edgebus.shm.child import block_of
from tests.edgebus.shm.tools import (
    BOTH_SEALS,
    MIB,
    ROOT,
    memory_file,
    refused,
    view,
)

pytestmark = pytest.mark.skipif(not shm.available(), reason="no memory files that peers can open here")


@pytest.mark.parametrize(
    ("seals", "reason"), [(0, "not_sealed"), (fcntl.F_SEAL_GROW, "not_sealed"), (fcntl.F_SEAL_SHRINK, "not_sealed")]
)
def test_a_segment_that_could_be_truncated_is_refused(mapper, seals, reason):
    fd = memory_file(seals=seals)
    assert refused(mapper, shm.SegmentInfo(os.getpid(), fd, MIB, b"n" * 16)) == reason
    os.close(fd)


def test_a_memory_file_that_is_sealed_and_has_the_nonce_is_taken(mapper):
    """What the refusals above and below lack in turn."""
    fd = memory_file(seals=BOTH_SEALS)
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
    fd = memory_file(seals=BOTH_SEALS)
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
        (4096, 2**63 - 1),
        (2**63 - 64, 2**63 - 1),
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
    fd = memory_file(seals=BOTH_SEALS)
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

    monkeypatch.setattr(segments, "open_file", fail)
    assert refused(mapper, block.segment) == reason


def test_a_hostile_peer_maps_no_more_than_its_bound_and_others_go_on(pool):
    mapper = shm.Mapper(6 * MIB, 3 * MIB)
    files = [memory_file(seals=BOTH_SEALS) for _ in range(10)]
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
    files = [memory_file(8192, seals=BOTH_SEALS) for _ in range(6)]
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
    files = [memory_file(seals=BOTH_SEALS) for _ in range(4)]
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


def test_host_id_is_another_one_for_a_process_in_another_pid_namespace():
    command = [sys.executable, "-c", "from edgebus import shm; print(shm.host_id().hex())"]
    unshare = ["unshare", "--pid", "--fork", "--mount-proc"]
    try:
        subprocess.run([*unshare, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("may not make a pid namespace")
    ids = [
        subprocess.run(prefix + command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.strip()
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
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
        host_id, works = done.stdout.split()
        assert (len(host_id), works) == (32, "True")
        ids.add(host_id)
    assert len(ids) == 4


def test_the_page_names_every_reason():
    page = (ROOT / "docs/spec/bus-shm.md").read_text()
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
    make, refused_flags = segments.open_memory, []

    def old(name, flags):
        if flags & 8:
            refused_flags.append(flags)
            raise OSError(errno.EINVAL, "unknown flag")
        return make(name, flags)

    monkeypatch.setattr(segments, "open_memory", old)
    segment = segments.Segment(8192)
    assert refused_flags
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
