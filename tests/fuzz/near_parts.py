"""What a process of the same host says: greetings of the near lane, and packets in its pipes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise

import msgspec

from edgebus import messages as m
from edgebus.attached import open_reader, open_writer
from edgebus.handed import Handed, PlainReader, PlainWriter, as_handed
from edgebus.near import decode_here
from edgebus.shm import pipes
from tests.fuzz.source import bare, join_frames, split_frames


def near(data: bytes) -> None:
    """Greetings and headers on the near lane: refused, or said again as they are."""
    here = decode_here(data)
    assert here is None or decode_here(msgspec.msgpack.encode(here)) == here
    reader, frame = open_reader(), bare(data)
    for again in (False, True):  # it remembers parts of what it has read
        if (read := reader.read(frame)) is not None:
            header = m.decode_header(data)
            known = as_handed(header)
            assert known is not None
            assert read.header() == known.header()
            assert _places(read) == _places(known)
            if again:
                _check_cut(reader, data)
                _check_said_again(header)


def _check_cut(reader: PlainReader, data: bytes) -> None:
    """What ends too soon is no header, and nothing behind the end is looked at."""
    for size in range(0, len(data), 1 + len(data) // 600):
        assert reader.read(bare(data[:size])) is None


def _check_said_again(header: m.Request) -> None:
    """It is written in C as msgspec writes it, or not at all."""
    writer, plain = open_writer(), PlainWriter()
    for number in (0, 2**63 - 9):
        begins = (header.id, header.service, header.ttl_ms, header.settled_below, header.arrays, header.inline)
        written = writer.write(*begins, header.blocks, number)
        assert written is None or written == plain.write(*begins, header.blocks, number)


def _places(read: Handed) -> list[tuple[object, ...]]:
    return [(each.lease, *each.info(), each.offset, each.size) for each in read.places]


def packets(data: bytes) -> None:
    """Packets of a pipe between processes of one host: compiled and plain readers see the same frames."""
    names = pipes.PipeNames.unpack(data)
    assert names is None or names.pack() == data
    read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_DIRECT) if hasattr(os, "O_DIRECT") else (-1, -1)
    if read_end < 0:  # only Linux has such pipes
        return
    with open(read_end, "rb", 0), open(write_end, "wb", 0):
        packets = split_frames(data)
        for first, second in pairwise([*packets, None]):
            _check_written(read_end, write_end, first or b"", second)
        for packet in packets:
            found = []
            for read in (pipes._plain_read, pipes._read):
                os.write(write_end, packet[: pipes.PACKET_BYTES])
                found.append(read(read_end))
            assert found[0] == found[1] == _frames_of(packet[: pipes.PACKET_BYTES])
            if found[0]:
                assert pipes._write(write_end, found[0][0], found[0][1] if len(found[0]) > 1 else None)
                assert pipes._read(read_end) == found[0]


def _check_written(read_end: int, write_end: int, first: bytes, second: bytes | None) -> None:
    """What fits a packet is written by either writer, and read as it was; what does not is written by none."""
    fits = 2 + len(first) + len(second or b"") <= pipes.PACKET_BYTES
    for write in (pipes._plain_write, pipes._write):
        assert write(write_end, first, second) == fits
        if fits:
            assert pipes._plain_read(read_end) == ([first] if second is None else [first, second])
    assert pipes._plain_read(read_end) is None


def _frames_of(packet: bytes) -> list[bytes] | None:
    """By the layout: the size of the first frame, in its top bit whether there is a second; then both frames."""
    if not packet:
        return None
    head, body = int.from_bytes(packet[:2], "little"), packet[2:]
    size, has_more = head % 0x8000, head >= 0x8000
    if len(packet) < 2 or size > len(body) or (size < len(body) and not has_more):
        return []
    return [body[:size], body[size:]] if has_more else [body]


def near_seeds() -> Iterator[bytes]:
    """Greetings: one, more than is known, too little, nested without end; headers, some as large as C writes them."""
    block = m.Block(7, 1234, 5, 1 << 20, bytes(range(16)), 4096, 96)
    yield msgspec.msgpack.encode(block)
    yield msgspec.msgpack.encode((*msgspec.structs.astuple(block), True))
    yield msgspec.msgpack.encode(msgspec.structs.astuple(block)[:-1])
    yield b"\x95\x90\x90\x00\x00" + b"\x91" * 3000 + b"\x00"
    specs = (m.ArraySpec("f4", (4, 6)), m.ArraySpec("u1", (300,)))
    yield m.encode_header(m.Request(7, "work", 5000, 6, specs, b"hello", None, None, (block, block)))
    yield m.encode_header(m.Request(7, "work", 5000, 6, specs, bytes(300), None, None, (block, block)))
    most = m.Block(7, 2**63 - 1, 2**31 - 1, 2**48, bytes(range(16)), 2**48 - 64, 2**48)
    large = m.ArraySpec("f4", (2**40,) * 8)
    for size in (255, 256, 2000, 2300, 2900, 3000, 4096, 4097):
        said = m.Request(2**63 - 1, "w" * 64, 86_400_000, 2**63 - 1, (large,) * 8, bytes(size), None, None, (most,) * 8)
        yield m.encode_header(said)


def packet_seeds() -> Iterator[bytes]:
    """Packets of one frame and of two, ones that lie about their sizes, and the names of two pipes."""
    one, two = b"\x05\x00hello", b"\x03\x80onetwo"
    yield join_frames([one, two, b"\x06\x00hello", b"\xff\xffabc", b"\x00", b"\x00\x80", b"\x00\x00"])
    yield pipes.PipeNames(5, 6, 7, 8).pack()
    most = pipes.PACKET_BYTES - 2
    yield join_frames([bytes(most - 7), b"seven b", b"", bytes(most)])
    yield join_frames([bytes(most - 6), b"seven b", bytes(most + 1)])
    yield join_frames([bytes([size, 0x80]) + b"abc" for size in range(2, 7)])  # of one that ends too early or late


SEEDS = {"near": near_seeds, "packets": packet_seeds}
