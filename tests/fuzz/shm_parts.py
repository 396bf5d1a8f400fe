"""What a process of the same host lies about: where its memory and its pipes are."""

from __future__ import annotations

import fcntl
import functools
import gc
import os
import socket
import tempfile
from collections.abc import Iterator

from edgebus import shm
from edgebus.shm.pipes import PipeNames
from tests.fuzz.source import Source

SIZE = 1 << 16
NONCE = b"n" * 16
BOUNDS = ((4 * SIZE, 16), (SIZE + SIZE // 2, 16), (4 * SIZE, 1))  # of bytes and segments: for all, or for one
MOST = 2**63 - 8192  # a compiled mapper takes no more
_SEALED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


def _memory_file(seals: int, nonce: bytes = NONCE, magic: bytes = b"EDGESHM1", size: int = SIZE) -> int:
    fd = os.memfd_create("other", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    os.pwrite(fd, magic + nonce, 0)
    os.pwrite(fd, b"content", 4096)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


@functools.cache
def _descriptors() -> tuple[list[int], shm.Pipes, PipeNames]:
    """The first is a segment as it should be; then what is none, of every kind; and pipes made here."""
    made = shm.make_pipes()
    assert made is not None
    with tempfile.TemporaryFile() as file:
        file.truncate(SIZE)
        ordinary = os.dup(file.fileno())
    wrong = [
        _memory_file(0), _memory_file(fcntl.F_SEAL_GROW), _memory_file(fcntl.F_SEAL_SHRINK),
        _memory_file(_SEALED, b"m" * 16), _memory_file(_SEALED, magic=b"EDGESHM0"), _memory_file(_SEALED, size=4096),
        ordinary, *os.pipe(), os.open("/", os.O_RDONLY), os.open("/dev/zero", os.O_RDWR), os.eventfd(0),
        *(end.detach() for end in socket.socketpair()),
    ]  # fmt: skip
    return [_memory_file(_SEALED), *wrong], *made


def lies(data: bytes) -> None:
    """Places of memory and of pipes: refused by name, or just what is there; nothing stays open or mapped."""
    descriptors, pipes, names = _descriptors()
    source, bounds, before = Source(data), BOUNDS[len(data) % len(BOUNDS)], len(os.listdir("/proc/self/fd"))
    mapper, held = shm.Mapper(bounds[0], max_segments=bounds[1]), []
    for _ in range(12):
        if not source:
            break
        pid = (os.getpid(), os.getpid(), os.getpid(), 1, 0, -1, 2**31, source.number())[source.below(8)]
        fd = descriptors[source.below(len(descriptors))] if source.below(8) else source.number() - 1
        if source.below(4) == 0:
            _find(pid, fd, source, names)
            continue
        size = (SIZE, SIZE, SIZE, SIZE - 1, 4096, 2 * SIZE, -1, source.number())[source.below(8)]
        nonce = (NONCE, NONCE, NONCE, b"m" * 16, source.blob())[source.below(5)]
        offset = 4096 if source.below(2) else min(64 * source.number(), MOST) + source.below(2)
        wanted = (7, 0, SIZE - 4096, source.number())[source.below(4)]
        info = shm.SegmentInfo(pid, fd, size, nonce)
        try:
            view = mapper.view("liar", info, offset, wanted, lambda: None)
        except shm.SegmentUnavailable:
            pass
        else:
            assert info[:3] in ((os.getpid(), descriptors[0], SIZE), (os.getpid(), descriptors[4], SIZE))
            assert nonce == (NONCE if fd == descriptors[0] else b"m" * 16), "memory that is not what was announced"
            assert view.readonly
            assert view.tobytes() == (bytes(4096) + b"content").ljust(SIZE, b"\0")[offset : offset + wanted]
            held.append(view)
            del view
        stats = mapper.stats()
        assert stats.mapped_bytes <= bounds[0]
        assert stats.segments <= bounds[1]
    held.clear()
    mapper.forget("liar")
    if mapper.stats().mapped_bytes:
        gc.collect()
    assert (mapper.stats().mapped_bytes, mapper.stats().views) == (0, 0)
    assert len(os.listdir("/proc/self/fd")) == before
    assert pipes.read_fd == names.read_fd


def _find(pid: int, fd: int, source: Source, names: PipeNames) -> None:
    """Look for pipes: only those that were made here for others to find are found."""
    inode = os.fstat(fd).st_ino if source.below(2) and 0 <= fd < 64 and _is_open(fd) else source.number()
    said = PipeNames(
        names.written_fd if source.below(2) else fd,
        names.written_inode if source.below(4) else inode,
        names.read_fd if source.below(2) else fd,
        names.read_inode if source.below(4) else inode,
    )
    try:
        found = shm.find_pipes(pid, said)
    except shm.SegmentUnavailable:
        return
    found.close()
    assert said == names


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def lie_seeds() -> Iterator[bytes]:
    """Everything right, each thing wrong in turn, two segments within bounds for both and for one, and pipes."""
    right, other = bytes([0, 0, 1, 0, 1, 0, 0, 0, 0, 1, 0, 0]), bytes([0, 0, 1, 4, 1, 0, 0, 0, 3, 1, 0, 0])
    yield right * 6
    for place in range(len(right)):
        yield b"".join(
            right[:place] + bytes([value]) + right[place + 1 :] for value in range(13) if value != right[place]
        )
    both = right + other + right
    yield from (both + other[: (size - len(both)) % len(BOUNDS)] for size in range(len(BOUNDS)))
    yield bytes([0, 0, 1, 0, 0, 0, 0, 1, 1, 1, 1]) * 3


TARGETS = {"lies": lies} if shm.available() else {}
SEEDS = {"lies": lie_seeds}
