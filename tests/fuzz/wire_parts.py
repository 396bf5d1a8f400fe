"""Messages off a socket: one decoder for whatever a peer sends."""

from __future__ import annotations

import msgpack

import edgebus
from edgebus import messages as m
from edgebus.arrays import view_arrays
from edgebus.errors import WireError
from edgebus.wire import decode as decode_frames
from edgebus.wire import encode as encode_message
from tests.fuzz.source import split_frames

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
    if message is None:
        assert "\n" not in reason
        return
    header, content = message
    assert decode_frames(encode_message(message), LIMITS).frames == content
    assert msgpack.unpackb(m.encode_header(header), strict_map_key=False)[0] == type(header).__struct_config__.tag
    if isinstance(header, m.Content) and header.transfer is None and header.blocks is None:
        view_arrays(header.arrays, content[1:])
        assert decode_frames(encode_message(message, version=1), LIMITS).frames == content


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
