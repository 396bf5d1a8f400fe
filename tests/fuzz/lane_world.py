"""A peer of the same host that writes what it likes: into the pipe of its near lane, and on its board.

`lanes(data)` writes packets past the peer's own node, straight into the pipe that the other node reads; an honest peer,
with a lane and memory of its own, must still be answered, and nothing may end in an internal error.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
from collections.abc import Callable, Iterator

import msgspec
import numpy as np

import edgebus
from edgebus import messages as m
from edgebus import shm
from edgebus.attached import NearLane
from edgebus.link_states import State
from edgebus.shm.pipes import PACKET_BYTES
from edgebus.shm.segments import Segment
from tests.fuzz.source import Source, join_frames, split_frames
from tests.vectors.golden import VECTORS

_LARGE = np.arange(100_000, dtype=np.uint8)
_HONEST_EVERY = 20
_LIMITS = edgebus.Limits(share_from_bytes=64 * 1024)
_HERE = b"memory of a liar"  # for a nonce: a block of memory that is there
_HERE_BYTES = 1 << 16


class _Complaints(logging.Handler):
    """What the nodes only log: an exception that nobody expected."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(self.format(record))


class LaneWorld:
    """A node that answers, an honest peer of it, and one whose lane we write to."""

    def __init__(self) -> None:
        self.node = edgebus.Node("server", insecure=True, limits=_LIMITS)
        self.node.handle("echo", lambda request: request.reply(request.payload, request.arrays))
        self.endpoint = self.node.bind("tcp://127.0.0.1:0")
        self.honest = edgebus.Node("honest", insecure=True, limits=_LIMITS)
        self.link = self.honest.connect(self.endpoint)
        self.complaints = _Complaints()
        logging.getLogger("edgebus").addHandler(self.complaints)
        self.liar: edgebus.Node | None = None
        self.num_said = self.num_liars = 0
        self.memory = Segment(_HERE_BYTES)
        self.memory.commit(_HERE_BYTES)
        self.next_lease = 1_000_000
        self.check(whole=True)

    def lane(self) -> NearLane:
        """The liar's end of its lane; another liar comes where the last one has none left."""
        if self.liar is not None:
            near: NearLane | None = self.liars_link._dialled.attached.near
            if near is not None and near.pipes.read_fd >= 0 and near.board is not None and self.is_heard():
                return near
            self.liar.close()
        self.num_liars += 1
        self.liar = edgebus.Node(f"liar{self.num_liars}", insecure=True, limits=_LIMITS)
        self.liars_link = self.liar.connect(self.endpoint)
        _eventually(self._is_near)
        return self.liars_link._dialled.attached.near

    def _is_near(self) -> bool:
        self.liars_link.request("echo", b"", [_LARGE])
        near = self.liars_link._dialled.attached.near
        return near is not None and near.board is not None

    def is_heard(self) -> bool:
        """Whether the node reads the liar's lane: a word too many ends the link on its side alone."""
        links = [each for each in tuple(self.node._engine.hub.links) if each.link.peer_name == f"liar{self.num_liars}"]
        return any(each.link.state is State.UP and each.near is not None for each in links)

    def say(self, data: bytes) -> None:
        """Write packets into the pipe and words on the board, and see who notices."""
        lane = self.lane()
        words, *packets = split_frames(data) or [b""]
        source = Source(words)
        while source:
            lane.board._words[source.below(256)] = source.number() % 2**63
        for packet in packets:
            if packet and lane.pipes._write_fd >= 0:
                with contextlib.suppress(OSError):  # full, or closed meanwhile, which is the node's right
                    os.write(lane.pipes._write_fd, self.located(packet)[:PACKET_BYTES])
        self.num_said += 1
        self.check(whole=self.num_said % _HONEST_EVERY == 0)

    def located(self, said: bytes) -> bytes:
        """The same, with blocks that are to be there where memory is, under numbers that are new."""
        try:
            header = m.decode_header(said[2:])
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return said
        if not isinstance(header, m.Request) or header.blocks is None:
            return said
        info, blocks = self.memory.info, []
        for block in header.blocks:
            if block.nonce == _HERE:
                self.next_lease += 1
                blocks.append(
                    m.Block(self.next_lease, info.pid, info.fd, info.size, info.nonce, block.offset, block.size)
                )
            else:
                blocks.append(block)
        header.blocks = tuple(blocks)
        return packet(m.encode_header(header))

    def check(self, *, whole: bool) -> None:
        """The honest peer is answered, what it sent comes back as it was, and nobody has complained."""
        content = b"%d" % self.num_said
        assert self.link.request("echo", content, timeout_s=10.0).payload == content
        if whole:
            reply = self.link.request("echo", content, [_LARGE], timeout_s=10.0)
            assert bytes(reply.arrays[0]) == _LARGE.tobytes()
        assert not self.complaints.said, self.complaints.said.pop()

    def close(self) -> None:
        """End all nodes."""
        logging.getLogger("edgebus").removeHandler(self.complaints)
        for node in (self.liar, self.honest, self.node):
            if node is not None:
                node.close()
        self.memory.close()


def _eventually(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 10.0
    while not condition():
        assert time.monotonic() < until, "the liar gets no lane"


@functools.cache
def _world() -> LaneWorld:
    return LaneWorld()


def lanes(data: bytes) -> None:
    """Write to the one lane of this process."""
    _world().say(data)


def packet(*frames: bytes) -> bytes:
    """A packet of one frame or of two, as pipes.py writes it."""
    head = len(frames[0]) | (0x8000 if len(frames) == 2 else 0)
    return head.to_bytes(2, "little") + b"".join(frames)


def lane_seeds() -> Iterator[bytes]:
    """Greetings, requests with memory that is nowhere, reports, headers of every kind, and what is no packet."""
    block = m.Block(7, 1234, 5, 1 << 20, bytes(range(16)), 4096, 96)
    board = m.Block(0, 1234, 5, shm.BOARD_BYTES + 4096, bytes(16), 4096, shm.BOARD_BYTES)
    here = msgspec.msgpack.encode(board)
    spec = m.ArraySpec("f4", (2, 12))
    asks = [m.Request(500, "echo", 1000, 0, (spec,) * count, b"", None, None, (block,) * count) for count in (1, 2)]
    headers = [m.encode_header(ask) for ask in asks]
    headers += [m.encode_header(header) for header in (m.Leases(5, (1,)), m.Seen(True), m.Drop(3), m.Reset(), m.Ping())]
    yield join_frames([b"", packet(b""), packet(b"", here), packet(b"", here[:-1]), packet(b"", b"")])
    yield join_frames([bytes(range(1, 60)), *map(packet, headers)])
    there = [
        m.Block(0, 1, 1, 1, _HERE, offset, size) for offset, size in ((4096, 96), (8192, 40), (64, 96), (65472, 96))
    ]
    for number, (specs, blocks) in enumerate([
        ((spec,), there[:1]), ((spec, spec), [there[0], there[0]]), ((spec,), there[1:2]), ((spec,), there[2:3]),
        ((spec,), there[3:]), ((spec,), [there[0], there[0]]), ((spec, spec), there[:1]), ((spec, spec), there[:2]),
    ]):  # fmt: skip
        ask = m.Request(600 + number, "echo", 1000, 0, specs, b"", None, None, tuple(blocks))
        yield join_frames([b"", packet(m.encode_header(ask))])
    yield join_frames([b"", packet(b"\xc1junk"), packet(b"\x93\x04junk")])
    yield join_frames([b"", b"\x00", b"\x05\x00a", b"\xff\xff", packet(b"a", b"b"), packet(b"abc", b"")])
    for first in range(0, len(VECTORS), 8):
        said = [bytes.fromhex(vector["hex"]) for vector in VECTORS[first : first + 8]]
        yield join_frames([b"\x01\x05", *(packet(header) for header in said if len(header) < 4000)])


TARGETS = {"lanes": lanes} if shm.available() else {}
SEEDS = {"lanes": lane_seeds}
