"""What the tests of shared memory have in common: another process, files that lie, who holds what."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgebus import shm

ROOT = Path(__file__).parents[3]
MIB = 1 << 20


class Child:
    """A process that does what it is told, until it is killed."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("child.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
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


BOTH_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
