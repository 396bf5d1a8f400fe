"""The other process of the shared memory tests: takes a JSON command per line, answers each with a JSON line."""

import gc
import hashlib
import json
import os
import sys

import numpy as np

from edgebus import shm
from edgebus.shm import segments


def info_of(block):
    """The plain values of a block, for the other side."""
    return [[*block.segment[:3], block.segment.nonce.hex()], *block[1:]]


def block_of(values):
    """The block again."""
    segment, *rest = values
    return shm.Block(shm.SegmentInfo(*segment[:3], bytes.fromhex(segment[3])), *rest)


def digest(content):
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def in_fork(function):
    """What a function returns in a forked child, which then ends without any clean-up."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, json.dumps(function()).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        content = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(content)


class Commands:
    """One method for each command."""

    def __init__(self):
        self.pool = shm.Pool(8 << 20, 1 << 20)
        self.mapper = shm.Mapper()
        self.views, self.released, self.loans = {}, [], []

    def host_id(self):
        return shm.host_id().hex()

    def put(self, seed, size, owner="peer"):
        content = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
        blocks = self.pool.put([content], owner)
        return info_of(blocks[0]), digest(content)

    def release(self, lease_id, owner="peer"):
        self.pool.release([lease_id], owner)
        return self.pool.stats().in_use_bytes

    def view(self, values, name):
        block = block_of(values)
        self.views[name] = np.frombuffer(
            self.mapper.view("peer", block.segment, block.offset, block.size, lambda: self.released.append(name)),
            np.uint8,
        )
        return self.digest(name)

    def digest(self, name):
        return digest(self.views[name])

    def drop(self, name):
        del self.views[name]
        gc.collect()
        return self.released

    def forget(self):
        self.mapper.forget("peer")
        return self.mapper.stats().segments

    def fork_receiver(self, name):
        """A child reads the view, drops it and is done; then the parent drops it."""

        def child():
            content = self.digest(name)
            cached = self.mapper.stats().segments
            released = self.drop(name)
            return content, cached, list(released), memory_files()

        return in_fork(child), list(self.released), self.drop(name)

    def fork_sender(self):
        """A child that inherits a pool cannot put, release or keep anything of it."""
        content = np.arange(1000, dtype=np.uint8)
        [block] = self.pool.put([content], "peer")
        loan = self.pool.loan(100, "peer")
        self.kept_elsewhere = segments.Segment(8192)

        def child():
            nonlocal loan
            blocks = self.pool.put([content], "peer")
            self.pool.release([block.lease_id], "peer")
            self.pool.retire("peer", dead=True)
            loan = None
            gc.collect()
            self.pool.close()
            return blocks, memory_files(), self.pool.stats().in_use_bytes

        before = self.pool.stats().in_use_bytes
        result = in_fork(child)
        same = bytes(shm.Mapper().view("me", block.segment, block.offset, 1000, int)) == content.tobytes()
        return result, before, self.pool.stats().in_use_bytes, same, len(loan[0])


def memory_files():
    """How many of our segments this process has open or mapped."""
    links = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.lexists(f"/proc/self/fd/{fd}")
    ]
    with open("/proc/self/maps") as maps:
        links += maps.read().splitlines()
    return sum("memfd:edgebus" in link for link in links)


if __name__ == "__main__":
    commands = Commands()
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps(getattr(commands, name)(*arguments)), flush=True)
