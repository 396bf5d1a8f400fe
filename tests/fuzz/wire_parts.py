"""Messages off a socket: one decoder for whatever a peer sends."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import msgpack

import edgebus
from edgebus import messages as m
from edgebus.arrays import view_arrays
from edgebus.errors import WireError
from edgebus.wire import decode as decode_frames
from edgebus.wire import encode as encode_message
from tests.fuzz.source import join_frames, split_frames

LIMITS = edgebus.Limits()
TIGHT = edgebus.Limits(max_frame_bytes=64, max_frames=4)  # of which an input can be over


def wire(data: bytes) -> None:
    """Frames off a socket."""
    check_frames(split_frames(data))


def check_frames(frames: list[bytes]) -> None:
    """Decode frames: a WireError of one line, or a message that can be looked at and sent on, the same afterwards."""
    try:
        message = decode_frames(frames, LIMITS)
    except WireError as refused:
        reason = str(refused)
        message = None
    _check_bounds(frames, message)
    _check_views(frames)
    if message is None:
        assert "\n" not in reason
        return
    header, content = message
    if isinstance(header, m.Content):
        _check_sizes(header, tuple(map(len, content)))
    assert decode_frames(encode_message(message), LIMITS).frames == content
    assert msgpack.unpackb(m.encode_header(header), strict_map_key=False)[0] == type(header).__struct_config__.tag
    if isinstance(header, m.Content) and header.transfer is None and header.blocks is None:
        view_arrays(header.arrays, content[1:])
        assert decode_frames(encode_message(message, version=1), LIMITS).frames == content


def _check_sizes(header: m.Content, come: tuple[int, ...]) -> None:
    """What is there, announced or lent is just as large as the arrays it is for."""
    for spec in header.arrays:
        assert spec.dtype in ("f4", "f2", "i4", "i8", "u1", "u2", "u4", "i1", "i2", "f8", "u8")
        assert math.prod(filter(None, spec.shape)) <= 2**40
    needed = [math.prod(spec.shape) * int(spec.dtype[1]) for spec in header.arrays]
    if header.transfer is not None:
        assert header.blocks is None
        assert come in ((), header.transfer.sizes)
        come = header.transfer.sizes
    elif header.blocks is not None:
        assert len(come) == 1
        come += tuple(block.size for block in header.blocks)
    assert list(come[1:]) == needed
    assert len(come) == 1 + len(needed)


def _check_bounds(frames: list[bytes], message: m.Message | None) -> None:
    """A node of narrow limits takes of what any node takes just what is within them."""
    try:
        decode_frames(frames, TIGHT)
    except WireError:
        is_taken = False
    else:
        is_taken = True
    if message is None:
        assert not is_taken
        return
    header = message.header
    transfer, inline = (header.transfer, header.inline) if isinstance(header, m.Content) else (None, None)
    announced = () if transfer is None else transfer.sizes
    sizes = (*announced, *map(len, frames[1:]))
    if max(sizes, default=0) > TIGHT.max_frame_bytes or max(len(frames), 1 + len(announced)) > TIGHT.max_frames:
        assert not is_taken
    elif len(inline or b"") <= TIGHT.max_frame_bytes:
        assert is_taken


def _check_views(frames: list[bytes]) -> None:
    """Large frames come as views of the memory that they were received into: the same is said of them."""
    views: list[Any] = [*frames[:1], *map(memoryview, frames[1:])]
    for limits in (LIMITS, TIGHT):
        assert _said(views, limits) == _said(frames, limits)


def _said(frames: list[Any], limits: edgebus.Limits) -> object:
    try:
        header, content = decode_frames(frames, limits)
    except WireError as refused:
        return str(refused)
    return m.encode_header(header), [bytes(frame) for frame in content]


def bound_seeds() -> Iterator[bytes]:
    """Messages at a bound and just over it."""
    most = TIGHT.max_frame_bytes
    for size in (most, most + 1):
        yield join_frames([msgpack.packb([5, 1, []]), bytes(size)])
        yield join_frames([msgpack.packb([6, 1, "no", ""]), bytes(size)])
        yield join_frames([msgpack.packb([13, 1, 0]), bytes(size)])
        yield join_frames([msgpack.packb([11, 1, 0, [["u1", [size]]], None, [2, [3, size]]])])
        yield join_frames([msgpack.packb([11, 1, 0, [["u1", [size]]], b"in", [2, [2, size]]]), bytes(size)])
        blocks = [[7, 1234, 5, 1 << 20, bytes(16), 4096, 8]]
        yield join_frames([msgpack.packb([5, 1, [["f4", [2]]], None, 0, None, blocks]), bytes(size)])
    for count in (TIGHT.max_frames, TIGHT.max_frames + 1, LIMITS.max_frames, LIMITS.max_frames + 1):
        yield join_frames([msgpack.packb([5, 1, [["u1", [1]]] * (count - 2)]), b"", *[b"1"] * (count - 2)])
        yield join_frames([msgpack.packb([5, 1, [["u1", [1]]] * (count - 2), None, 0, [2, [1] * (count - 1)]])])
    for shape in ([2**40, 0], [2**40, 0, 2**40], [2**40] * 8, [0] * 8, []):
        yield join_frames([msgpack.packb([5, 1, [["f4", shape]]]), b"", b""])
    three = [["u1", [3]]]
    for size in (2, 3, 4):  # of an array of three bytes
        yield join_frames([msgpack.packb([5, 1, three]), b"p", bytes(size)])
        yield join_frames([msgpack.packb([5, 1, three, None, 0, [2, [1, size]]])])
        yield join_frames([msgpack.packb([5, 1, three, None, 0, [2, [1, 3]]]), b"p", bytes(size)])
        yield join_frames([msgpack.packb([5, 1, three, b"p", 0, None, [[7, 1, 5, 8192, bytes(16), 4096, size]]])])
    for count in (1, 2, 3):  # arrays for two frames, or two blocks
        arrays = [["f4", [2]]] * count
        yield join_frames([msgpack.packb([4, 1, "s", 9, 0, arrays, b"p", None, None, blocks * 2])])
        yield join_frames([msgpack.packb([4, 1, "s", 9, 0, arrays, None, None, [2, [1, 8, 8]]])])
        yield join_frames([msgpack.packb([4, 1, "s", 9, 0, arrays]), b"p", bytes(8), bytes(8)])
