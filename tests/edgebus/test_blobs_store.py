"""The store on disk: order of eviction, budget, damage, full disks, killed and competing processes."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import edgebus.blobs.disk
from edgebus import ConfigError
from edgebus.blobs import BlobStore, BlobStoreBusy, BlobStoreFull, manifest_of

CHUNK = 4096
BESIDE = 16 + 32 + 32  # the manifest of a blob of one chunk
CHILD = Path(__file__).with_name("child_blobs.py")


def content_of(num_bytes, seed=0):
    return random.Random(seed).randbytes(num_bytes)


def put(store, content):
    return store.put(content, chunk_bytes=CHUNK)


def disk_bytes(store):
    return sum(file.stat().st_size for file in store.path.iterdir())


@pytest.fixture
def store(tmp_path):
    return BlobStore(tmp_path / "blobs", budget_bytes=10 * CHUNK)


# -- in and out ----------------------------------------------------------------------------------------


def test_blob_comes_back_as_bytes_view_and_file(store):
    content = content_of(2 * CHUNK + 5)
    blob_id = put(store, content)
    assert blob_id == manifest_of(content, CHUNK).blob_id
    with store.get(blob_id) as blob:
        assert blob.view == content
        assert blob.view.readonly
        assert (blob.size, blob.tobytes(), blob.path.read_bytes()) == (len(content), content, content)
        assert blob.path.stat().st_mode & 0o777 == 0o600
    assert store.path.stat().st_mode & 0o777 == 0o700
    assert store.has(blob_id)
    assert store.ids() == [blob_id]


@pytest.mark.parametrize("size", [0, 1, CHUNK, 3 * CHUNK])
def test_bytes_path_file_and_pipe_have_the_same_address(store, tmp_path, size):
    content = content_of(size)
    (tmp_path / "file").write_bytes(content)
    expected = manifest_of(content, CHUNK).blob_id
    assert put(store, tmp_path / "file") == expected
    for source in (content, bytearray(content), memoryview(content), io.BytesIO(content), Drips(content)):
        store.delete(expected)
        assert put(store, source) == expected
        with store.get(expected) as blob:
            assert blob.tobytes() == content


class Drips(io.RawIOBase):
    """A pipe: a few bytes at a time."""

    def __init__(self, content):
        self._file = io.BytesIO(content)

    def read(self, size=-1):
        return self._file.read(min(size, 1000))


def test_absent_blob_is_none_and_a_malformed_address_an_error(store):
    assert store.get("0" * 64) is None
    assert store.chunk("0" * 64, 0) is None
    assert not store.delete("0" * 64)
    for call in (store.get, store.has, store.delete):
        with pytest.raises(ValueError, match="64 lower-case"):
            call("../../etc/passwd")


def test_delete_leaves_views_valid_and_nothing_behind(store):
    content = content_of(CHUNK)
    blob_id = put(store, content)
    blob = store.get(blob_id)
    assert store.delete(blob_id)
    assert blob.view == content
    assert [file.name for file in store.path.iterdir()] == [".lock"]


def test_counters_say_what_lies_there(store):
    blob_id = put(store, content_of(CHUNK))
    store.get(blob_id).close()
    store.get("0" * 64)
    stats = store.stats()
    assert (stats.num_blobs, stats.blob_bytes, stats.used_bytes) == (1, CHUNK, CHUNK + BESIDE)
    assert (stats.hits, stats.misses, stats.evictions, stats.corrupt) == (1, 2, 0, 0)


def test_budget_that_cannot_be_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="budget_bytes must be positive, got 0"):
        BlobStore(tmp_path, 0)


def test_blob_can_be_used_as_soon_as_it_has_its_name(store, monkeypatch):
    """While put still holds the file open, others get at it."""
    content, real, seen = content_of(CHUNK), os.close, []
    blob_id = manifest_of(content, CHUNK).blob_id

    def close(fd):
        path = os.readlink(f"/proc/self/fd/{fd}")
        if path.endswith(blob_id) and not seen:
            seen.append(path)
            seen.append(BlobStore(store.path, store.budget_bytes).get(blob_id).tobytes())
        real(fd)

    monkeypatch.setattr(edgebus.blobs.store.os, "close", close)
    put(store, content)
    assert seen[1] == content


def test_put_of_a_file_that_shrinks_leaves_nothing(store, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(content_of(2 * CHUNK))
    real = os.fstat
    monkeypatch.setattr(edgebus.blobs.store.os, "fstat", lambda fd: os.stat_result([*real(fd)[:6], 3 * CHUNK, 0, 0, 0]))
    with pytest.raises(ValueError, match="ended 4096 bytes early"):
        put(store, tmp_path / "file")
    monkeypatch.undo()
    assert store.stats().used_bytes == 0


# -- budget and order ----------------------------------------------------------------------------------


def test_longest_unused_goes_first(store):
    a, b, c = (put(store, content_of(3 * CHUNK, seed)) for seed in range(3))
    store.get(a).close()
    d = put(store, content_of(3 * CHUNK, 3))
    assert store.ids() == [c, a, d]
    assert not (store.path / f"{b}.manifest").exists()
    assert store.stats().evictions == 1


def test_order_outlives_a_restart_and_a_clock_that_goes_back(store, monkeypatch):
    a, b = (put(store, content_of(3 * CHUNK, seed)) for seed in range(2))
    monkeypatch.setattr(edgebus.blobs.disk.time, "time_ns", lambda: 1_000)
    c = put(store, content_of(3 * CHUNK, 2))
    again = BlobStore(store.path, store.budget_bytes)
    again.get(a).close()
    assert again.ids() == [b, c, a]


def test_blob_over_the_budget_is_refused_before_anything_goes(store):
    a = put(store, content_of(CHUNK))
    with pytest.raises(BlobStoreFull, match=r"over the budget of 40960 .* larger budget_bytes"):
        put(store, content_of(10 * CHUNK, 1))
    with pytest.raises(BlobStoreFull, match="over the budget"):
        store.begin(manifest_of(content_of(10 * CHUNK, 1), CHUNK))
    assert store.ids() == [a]
    assert disk_bytes(store) == CHUNK + BESIDE


@pytest.mark.parametrize("hold", ["blob", "view", "array"])
def test_blob_in_use_is_not_evicted(store, hold):
    a, b = put(store, content_of(4 * CHUNK, 0)), put(store, content_of(4 * CHUNK, 1))
    blob = store.get(a)
    store.get(b).close()
    held = {"blob": blob, "view": blob.view[7:], "array": np.frombuffer(blob.view, np.uint8)}[hold]
    if hold != "blob":
        blob.close()
    del blob
    put(store, content_of(4 * CHUNK, 2))
    assert store.has(a)
    assert not store.has(b)
    with pytest.raises(BlobStoreFull, match="too many of them in use"):
        put(store, content_of(8 * CHUNK, 3))
    assert len(store.ids()) == 2, "nothing is evicted for what cannot fit"
    del held
    put(store, content_of(8 * CHUNK, 3))
    assert not store.has(a)


def test_blob_in_use_by_another_process_is_not_evicted_until_that_is_killed(store, blob_children):
    a = put(store, content_of(4 * CHUNK, 0))
    put(store, content_of(4 * CHUNK, 1))
    holder = blob_children("hold", store.path, store.budget_bytes, a)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(BlobStoreFull, match="in use"):
        put(store, content_of(9 * CHUNK, 2))
    assert store.has(a)
    holder.kill()
    holder.wait(5)
    put(store, content_of(9 * CHUNK, 2))
    assert not store.has(a)


def test_smaller_budget_is_kept_from_the_start(store):
    a, b = (put(store, content_of(3 * CHUNK, seed)) for seed in range(2))
    small = BlobStore(store.path, 4 * CHUNK)
    assert small.ids() == [b]
    assert not store.has(a)


def test_foreign_files_are_neither_counted_nor_removed(store):
    (store.path / "notes.txt").write_bytes(bytes(20 * CHUNK))
    a = put(store, content_of(9 * CHUNK))
    store.gc()
    assert store.has(a)
    assert (store.path / "notes.txt").exists()


# -- damage --------------------------------------------------------------------------------------------


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_flipped_bit_costs_one_chunk(store, caplog):
    content = content_of(3 * CHUNK)
    blob_id = put(store, content)
    flip(store.path / blob_id, CHUNK + 7)
    assert store.get(blob_id) is None
    assert "damaged" in caplog.text
    assert store.stats().corrupt == 1
    partial = store.resume(blob_id)
    assert list(partial.present()) == [0, 2]
    partial.write(1, content[CHUNK : 2 * CHUNK])
    with partial.finish() as blob:
        assert blob.view == content
    partial.close()
    store.get(blob_id).close()


@pytest.mark.parametrize("size", [0, 1, 2 * CHUNK, 3 * CHUNK - 1, 3 * CHUNK + 1])
def test_file_of_another_size_is_not_handed_out(store, size):
    content = content_of(3 * CHUNK)
    blob_id = put(store, content)
    os.truncate(store.path / blob_id, size)
    assert store.get(blob_id, verify=False) is None
    partial = store.resume(blob_id)
    assert list(partial.present()) == list(range(min(3, size // CHUNK)))
    partial.close()


def test_damaged_blob_is_put_right_by_another_put(store):
    content = content_of(3 * CHUNK)
    blob_id = put(store, content)
    flip(store.path / blob_id, 0)
    assert put(store, content) == blob_id
    store.get(blob_id).close()


def test_damaged_chunk_is_not_served(store):
    blob_id = put(store, content_of(3 * CHUNK))
    flip(store.path / blob_id, CHUNK)
    assert store.chunk(blob_id, 0) == content_of(3 * CHUNK)[:CHUNK]
    assert store.chunk(blob_id, 1) is None
    assert not store.has(blob_id)


def test_chunk_that_the_disk_cannot_read_is_a_damaged_one(store, monkeypatch):
    blob_id = put(store, content_of(3 * CHUNK))

    def pread(fd, size, offset):
        raise OSError(errno.EIO, "bad sector")

    monkeypatch.setattr(edgebus.blobs.store.os, "pread", pread)
    assert store.get(blob_id) is None
    assert not store.has(blob_id)


@pytest.mark.parametrize("damage", ["missing", "flipped", "empty"])
def test_lost_manifest_is_made_anew_from_the_content(store, damage):
    blob_id = store.put(content_of(3 * CHUNK))
    path = store.path / f"{blob_id}.manifest"
    if damage == "missing":
        path.unlink()
    elif damage == "flipped":
        flip(path, 20)
    else:
        path.write_bytes(b"")
    again = BlobStore(store.path, store.budget_bytes)
    again.get(blob_id).close()
    assert path.stat().st_size == BESIDE


def test_lost_manifest_and_damaged_content_leave_nothing(store):
    blob_id = put(store, content_of(3 * CHUNK))
    (store.path / f"{blob_id}.manifest").unlink()
    flip(store.path / blob_id, 5)
    again = BlobStore(store.path, store.budget_bytes)
    assert again.get(blob_id) is None
    assert [file.name for file in store.path.iterdir()] == [".lock"]


@pytest.fixture
def unread(monkeypatch):
    """Nothing is hashed to see whether it is a blob."""
    monkeypatch.setattr(edgebus.blobs.store, "build", lambda *_: pytest.fail("it would be hashed whole"))


@pytest.mark.parametrize("manifest", ["there", "lost"])
def test_sparse_terabyte_in_the_place_of_a_blob_is_not_read_and_costs_no_other(store, unread, manifest):
    others, blob_id = [put(store, content_of(CHUNK, seed)) for seed in range(3)], store.put(b"hello")
    if manifest == "lost":
        (store.path / f"{blob_id}.manifest").unlink()
        store = BlobStore(store.path, store.budget_bytes)
    os.truncate(store.path / blob_id, 1 << 40)
    assert store.get(blob_id) is None
    assert not store.has(blob_id)
    assert store.stats().corrupt == 1
    assert store.put(b"hello" * CHUNK)
    assert disk_bytes(store) <= store.budget_bytes
    assert all(store.has(other) for other in others)


@pytest.mark.parametrize("suffix", ["", ".manifest"])
def test_sparse_terabyte_goes_before_all_blobs_when_a_store_is_opened(store, suffix):
    others, blob_id = [put(store, content_of(CHUNK, seed)) for seed in range(3)], put(store, b"hello")
    os.truncate(store.path / f"{blob_id}{suffix}", 1 << 40)
    again = BlobStore(store.path, store.budget_bytes)
    assert not again.has(blob_id)
    assert all(again.has(other) for other in others)


def test_file_without_a_manifest_that_is_larger_than_what_is_wanted_is_not_read(store, unread):
    blob_id = store.put(b"hello")
    (store.path / f"{blob_id}.manifest").unlink()
    os.truncate(store.path / blob_id, store.budget_bytes // 2)
    again = BlobStore(store.path, store.budget_bytes)
    assert again.get(blob_id, max_bytes=5) is None
    assert not again.has(blob_id)


def test_sparse_terabyte_in_the_place_of_a_manifest_is_not_read(store):
    blob_id = store.put(content_of(CHUNK))
    os.truncate(store.path / f"{blob_id}.manifest", 1 << 40)
    again = BlobStore(store.path, 1 << 50)
    again.get(blob_id).close()
    assert (store.path / f"{blob_id}.manifest").stat().st_size == BESIDE


def test_pipe_in_the_place_of_a_blob_is_not_waited_for(store):
    """Nobody writes to it; whoever opened it would wait for ever, with the directory locked."""
    blob_id = store.put(b"hello")
    (store.path / blob_id).unlink()
    os.mkfifo(store.path / blob_id)
    assert store.get(blob_id) is None
    store.gc()
    assert store.put(b"hello") == blob_id


def test_symlink_in_the_place_of_a_blob_is_not_followed(store, tmp_path):
    content = content_of(CHUNK)
    blob_id = put(store, content)
    (tmp_path / "elsewhere").write_bytes(content)
    (store.path / blob_id).unlink()
    (store.path / blob_id).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        store.get(blob_id)


# -- partial blobs -------------------------------------------------------------------------------------


def test_partial_blob_is_resumed_with_what_it_has(store):
    content = content_of(4 * CHUNK)
    manifest = manifest_of(content, CHUNK)
    partial = store.begin(manifest)
    partial.write(2, content[2 * CHUNK : 3 * CHUNK])
    partial.write(0, content[:100])  # as if the power had gone in the middle of a chunk
    partial.close()
    assert not store.has(manifest.blob_id)
    again = BlobStore(store.path, store.budget_bytes)
    partial = again.resume(manifest.blob_id)
    assert list(partial.present()) == [2]
    partial.close()
    partial.close()
    assert again.stats().num_partials == 1


def test_partial_blob_counts_whole_against_the_budget_and_may_be_evicted(store):
    manifest = manifest_of(content_of(6 * CHUNK), CHUNK)
    partial = store.begin(manifest)
    with pytest.raises(BlobStoreFull, match="in use"):
        put(store, content_of(5 * CHUNK, 1))
    partial.close()
    put(store, content_of(5 * CHUNK, 1))
    assert store.resume(manifest.blob_id) is None


def test_two_writers_of_one_blob_finish_one_after_the_other(store):
    content = content_of(2 * CHUNK)
    manifest = manifest_of(content, CHUNK)
    first, second = store.begin(manifest), store.begin(manifest)
    first.write(0, content[:CHUNK])
    second.write(1, content[CHUNK:])
    first.write(1, content[CHUNK:])
    with first.finish() as blob, second.finish() as other:
        assert blob.view == other.view == content
        assert blob.path == other.path == store.path / manifest.blob_id
    first.close()
    second.close()
    assert store.stats().num_partials == 0


def test_finish_does_not_take_the_name_of_a_newer_partial(store):
    """The blob was finished by another process, deleted by hand and begun again meanwhile."""
    content = content_of(2 * CHUNK)
    manifest = manifest_of(content, CHUNK)
    first, second = store.begin(manifest), store.begin(manifest)
    for index in range(2):
        first.write(index, content[index * CHUNK :][:CHUNK])
    first.finish().close()
    store.delete(manifest.blob_id)
    newer = store.begin(manifest)
    with second.finish() as blob:
        assert (blob.view, blob.path) == (content, None)
    assert not store.has(manifest.blob_id)
    assert list(newer.present()) == []
    for each in (first, second, newer):
        each.close()


# -- full disks ----------------------------------------------------------------------------------------


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync"])
def test_full_disk_is_said_and_leaves_what_was_there(store, monkeypatch, call):
    kept = put(store, content_of(CHUNK))
    monkeypatch.setattr(edgebus.blobs.disk.os, call, full)
    held = store.get(kept)
    if call == "fsync":
        with pytest.raises(OSError, match="No space"):
            put(store, content_of(2 * CHUNK, 1))
    else:
        with pytest.raises(BlobStoreFull, match=r"disk of .* is full: \d+ bytes wanted, \d+ left: free some"):
            put(store, content_of(2 * CHUNK, 1))
    monkeypatch.undo()
    assert held.view == content_of(CHUNK)
    assert disk_bytes(store) == CHUNK + BESIDE


def test_what_a_full_disk_has_left_counts_with_what_can_go(store, monkeypatch):
    """A manifest of 100 blocks, 98 left, and a blob of two that may go."""
    put(store, content_of(2 * CHUNK))
    written, status = [], os.statvfs(store.path)
    left = os.statvfs_result((4096, 4096, 1000, 98, 98, *status[5:]))
    monkeypatch.setattr(edgebus.blobs.disk.os, "statvfs", lambda path: left)

    def write():
        if disk_bytes(store):
            full()
        written.append(1)

    with store._directory.locked():
        store._directory.with_room(100 * 4096, write)
    assert written == [1]


def test_full_disk_in_the_middle_of_a_partial_keeps_its_chunks(store, monkeypatch):
    content = content_of(3 * CHUNK)
    partial = store.begin(manifest_of(content, CHUNK))
    partial.write(0, content[:CHUNK])
    monkeypatch.setattr(edgebus.blobs.disk.os, "pwrite", full)
    with pytest.raises(BlobStoreFull, match="is full"):
        partial.write(1, content[CHUNK : 2 * CHUNK])
    monkeypatch.undo()
    assert list(partial.present()) == [0]
    partial.close()


def test_file_system_that_cannot_allocate_is_used_all_the_same(store, monkeypatch):
    def cannot(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(edgebus.blobs.disk.os, "posix_fallocate", cannot)
    store.get(put(store, content_of(2 * CHUNK))).close()


def test_small_file_system_evicts_before_it_is_full_and_then_says_so(tmp_path):
    """A real one of 256 KiB, in a mount namespace of its own; the budget is far above it."""
    command = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=256k none "$0" && exec "$@" small "$0"']
    command += [str(tmp_path), sys.executable, str(CHILD)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no tmpfs of our own here: {done.stderr.strip()}")
    said = ["evicted the first", "full", "the second is whole", "the second made room", "full", "nothing lies about"]
    assert done.stdout.splitlines() == said, done.stderr


# -- processes -----------------------------------------------------------------------------------------


def test_what_a_killed_put_left_is_removed_at_the_next_start(store, blob_children):
    child = blob_children("put", store.path, store.budget_bytes)
    assert child.stdout.readline() == "halfway\n"
    assert [file.suffix for file in store.path.iterdir() if file.name != ".lock"] == [".put"]
    store.gc()
    assert len(list(store.path.iterdir())) == 2, "a put that lives is left alone"
    child.kill()
    child.wait(5)
    (store.path / f".{'0' * 64}.manifest-abc").touch()
    (store.path / f"{'0' * 64}.manifest").touch()
    BlobStore(store.path, store.budget_bytes)
    assert [file.name for file in store.path.iterdir()] == [".lock"]


def test_processes_that_compete_for_one_store_keep_its_budget_and_its_blobs_right(store, blob_children):
    processes = [blob_children("compete", store.path, store.budget_bytes, seed) for seed in range(4)]
    sizes = []
    for process in processes:
        line = process.stdout.readline().split()
        assert line[0] == "right", line
        assert process.wait(30) == 0
        sizes.append(int(line[1]))
    assert max(sizes) <= store.budget_bytes
    for blob_id in store.ids():
        store.get(blob_id).close()
    assert store.stats().corrupt == 0


def test_lock_held_by_a_stopped_process_is_named_after_a_while(store, blob_children, monkeypatch):
    holder = blob_children("lock", store.path, store.budget_bytes)
    assert holder.stdout.readline() == "locked\n"
    monkeypatch.setattr(edgebus.blobs.disk, "_LOCK_WAIT_S", 0.1)
    with pytest.raises(BlobStoreBusy, match=r"another process has held .*\.lock"):
        put(store, b"x")


def test_forked_child_can_use_the_store(store):
    a = put(store, content_of(CHUNK))
    with store._directory.locked():
        pid = os.fork()
        if not pid:
            # In the child the lock of the thread that forked is held for ever; the one on the file is shared with the
            # parent, so the child waits for that one until the parent lets go.
            ok = False
            try:
                with store.get(a) as blob:
                    ok = blob.view == content_of(CHUNK)
            finally:
                os._exit(0 if ok else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_many_are_kept_at_once_and_leave_nothing_else_behind(tmp_path):
    store = BlobStore(tmp_path)
    contents = [bytes([number]) * 50 for number in range(150)]
    known = store.put(contents[7])
    ids = store.put_many([*contents, b"", contents[3]])
    assert ids[7] == known
    assert len(set(ids)) == 151
    assert [store.get(each).tobytes() for each in ids] == [*contents, b"", contents[3]]
    assert not [path for path in tmp_path.iterdir() if path.name.endswith((".put", ".part"))]


def test_many_evict_the_longest_unused_and_never_exceed_the_budget(tmp_path):
    store = BlobStore(tmp_path, budget_bytes=20 * (100 + 80))
    old = store.put_many([bytes([number]) * 100 for number in range(20)])
    new = store.put_many([bytes([100 + number]) * 100 for number in range(5)])
    assert store.ids() == [*old[5:], *new]
    assert store.stats().used_bytes <= store.budget_bytes
    with pytest.raises(BlobStoreFull):
        store.put_many([bytes([number]) * 101 for number in range(20)])
    assert set(new) <= set(store.ids())


def test_a_disk_that_fails_amid_many_keeps_none_of_their_group_half(tmp_path, monkeypatch):
    from edgebus.blobs import store as module

    store, real = BlobStore(tmp_path), module.write_at

    def write_at(directory, fd, data, offset):
        if bytes(data) == b"3":
            raise OSError(5, "input/output error")
        real(directory, fd, data, offset)

    monkeypatch.setattr(module, "write_at", write_at)
    with pytest.raises(OSError, match="input/output"):
        store.put_many([b"1", b"2", b"3"])
    assert store.ids() == []
    assert store.stats().used_bytes == 0


def test_a_directory_under_a_name_of_ours_harms_nothing_else(tmp_path):
    """Somebody made it: it can be neither read nor removed as a file, and is nobody's reason to stop."""
    first = BlobStore(tmp_path, 40_000)
    kept = first.put(b"kept")
    (tmp_path / f"{'ab' * 16}.put").mkdir()
    (tmp_path / f"{'cd' * 32}.part").mkdir()
    before = len(os.listdir("/dev/fd"))
    store = BlobStore(tmp_path, 40_000)
    for number in range(8):
        store.put(bytes([number]) * 10_000)
    assert store.stats().used_bytes <= 40_000
    assert store.stats().num_partials == 0
    assert store.get(kept) is None
    assert store.get(store.put(b"kept")).tobytes() == b"kept"
    manifest = manifest_of(b"another")
    (tmp_path / f"{manifest.blob_id}.manifest").mkdir()
    for _ in range(2):
        with pytest.raises(IsADirectoryError):
            store.begin(manifest)
    assert store.stats().num_partials == 0
    assert len(os.listdir("/dev/fd")) == before


def test_a_blob_that_somebody_keeps_locked_costs_no_descriptor(tmp_path):
    store = BlobStore(tmp_path)
    blob_id = store.put(b"content")
    with (tmp_path / blob_id).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        before = len(os.listdir("/dev/fd"))
        for _ in range(3):
            with pytest.raises(BlockingIOError):
                store.get(blob_id)
        assert len(os.listdir("/dev/fd")) == before
    assert store.get(blob_id).tobytes() == b"content"


# -- directories and files that cannot be used: which, why, and what to do ---------------------------------


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("file", "File exists; choose another path"),
        ("file/under", "Not a directory; check the path"),
        ("n" * 300, "File name too long; choose a shorter path"),
    ],
)
def test_directory_that_cannot_be_made_is_a_file_error_with_its_remedy(tmp_path, name, says):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(edgebus.FileError, match=f"blob store {re.escape(str(tmp_path / name))}: {says}") as caught:
        BlobStore(tmp_path / name)
    assert isinstance(caught.value, OSError)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.errno == caught.value.__cause__.errno


def test_unwritable_directory_is_a_file_error_with_its_remedy(tmp_path, monkeypatch):
    def denied(path, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(edgebus.blobs.disk.os, "open", denied)
    with pytest.raises(edgebus.FileError, match=f"{tmp_path}: Permission denied; run as the user it belongs to"):
        BlobStore(tmp_path)


def test_every_use_of_a_directory_that_is_gone_is_a_file_error(tmp_path):
    store = BlobStore(tmp_path / "s")
    blob_id = store.put(b"hello")
    shutil.rmtree(tmp_path / "s")
    uses = (
        lambda: store.put(b"other"),
        lambda: store.put_many([b"other"]),
        lambda: store.get(blob_id),
        lambda: store.begin(manifest_of(b"other")),
        lambda: store.delete(blob_id),
        lambda: edgebus.fetch_blob([None], blob_id, store),
        store.ids,
        store.gc,
        store.stats,
    )
    for use in uses:
        with pytest.raises(edgebus.FileError, match=rf"{tmp_path}/s: No such file or directory; check the path"):
            use()


def test_directory_that_goes_amid_a_fetch_is_a_file_error_and_closing_is_fine(tmp_path):
    store = BlobStore(tmp_path / "s")
    partial = store.begin(manifest_of(b"hello"))
    shutil.rmtree(tmp_path / "s")
    partial.write(0, b"hello")
    with pytest.raises(edgebus.FileError, match="check the path"):
        partial.finish()
    partial.close()


def test_source_that_cannot_be_read_is_named(tmp_path):
    store = BlobStore(tmp_path / "s")
    with pytest.raises(edgebus.FileError, match=f"cannot read {tmp_path}/missing: No such file or directory; check"):
        store.put(tmp_path / "missing")
    with pytest.raises(FileNotFoundError):
        store.put(str(tmp_path / "missing"))
    with pytest.raises(edgebus.FileError, match=f"cannot read {tmp_path}: Is a directory; give the path of a file"):
        store.put(str(tmp_path))
    assert store.ids() == []


def test_file_error_can_be_pickled_and_says_its_text_alone():
    error = edgebus.FileError("cannot do it: give up", OSError(errno.EIO, "bad", "file"))
    assert (str(error), error.errno, error.filename) == ("cannot do it: give up", errno.EIO, "file")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.errno, again.filename) == (str(error), errno.EIO, "file")
