"""Messages to frames and back. Everything that comes in is hostile: checked first, allocated second."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import msgspec

from edgebus.config import HEADER_CAP_BYTES, Limits
from edgebus.errors import MessageTooLarge, WireError
from edgebus.messages import (
    ArraySpec,
    Header,
    Message,
    Refusal,
    Reply,
    Request,
    WireLimits,
    decode_header,
    encode_header,
)

ITEM_BYTES = {
    "f4": 4, "f2": 2, "i4": 4, "i8": 8, "u1": 1, "u2": 2, "u4": 4, "i1": 1, "i2": 2, "f8": 8, "u8": 8,
}  # fmt: skip
"""Dtype codes that may travel and the size of one item. Closed list: no objects, no strings."""

_MAX_DIM = 2**40


def encode(message: Message) -> list[bytes]:
    """Turn a message into frames, header first."""
    return [encode_header(message.header), *message.frames]


def decode(frames: Sequence[bytes], limits: Limits) -> Message:
    """Turn frames into a message, refusing anything that does not add up.

    Args:
        frames: header frame first.
        limits: this node's own bounds.

    Raises:
        WireError: the only exception, with the request id where the header could be read.
    """
    if not frames or len(frames) > limits.max_frames:
        raise WireError(f"{len(frames)} frames, accepted are 1..{limits.max_frames}")
    if len(frames[0]) > min(limits.max_header_bytes, HEADER_CAP_BYTES):
        raise WireError(f"header of {len(frames[0])} B, accepted are {limits.max_header_bytes} B")
    try:
        header: Header = decode_header(frames[0])
    except (msgspec.MsgspecError, RecursionError, ValueError, OverflowError) as error:
        # The text of a decode error may quote the peer; repr keeps it to one printable line.
        raise WireError(f"header does not decode: {str(error)[:200]!r}") from None
    _check_frames(header, frames, limits)
    return Message(header, tuple(frames[1:]))


def _check_frames(header: Header, frames: Sequence[bytes], limits: Limits) -> None:
    if isinstance(header, (Request, Reply)):
        specs: Sequence[ArraySpec] = header.arrays
        expected = 2 + len(specs)
    elif isinstance(header, Refusal):
        specs, expected = (), 2
    else:
        if len(frames) != 1:
            raise WireError(f"{type(header).__name__} in {len(frames)} frames, expected 1")
        return
    fault = None
    if len(frames) != expected:
        fault = f"{type(header).__name__} in {len(frames)} frames, its header announces {expected}"
    elif max(map(len, frames)) > limits.max_frame_bytes:
        fault = f"frame of {max(map(len, frames))} B, accepted are {limits.max_frame_bytes} B"
    else:
        for spec, frame in zip(specs, frames[2:], strict=True):
            fault = fault or spec_fault(spec, len(frame))
    if fault:
        raise WireError(fault, request_id=header.id, is_answer=not isinstance(header, Request))


def spec_fault(spec: ArraySpec, frame_bytes: int) -> str | None:
    """Say what is wrong with an array spec for a frame of this size, or None.

    >>> spec_fault(ArraySpec("f4", (2, 3)), 24)
    >>> spec_fault(ArraySpec("f4", (2, 3)), 23)
    'array f4 (2, 3) needs 24 B, its frame has 23 B'
    """
    item_bytes = ITEM_BYTES.get(spec.dtype)
    if item_bytes is None:
        return f"array dtype {spec.dtype!r} is not one of {' '.join(ITEM_BYTES)}"
    # Zero-sized dims would let the others be absurd; numpy multiplies them all when it makes strides.
    if prod(dim or 1 for dim in spec.shape) > _MAX_DIM:
        return f"array shape {spec.shape} has over 2**40 items"
    need_bytes = prod(spec.shape) * item_bytes
    if need_bytes != frame_bytes:
        return f"array {spec.dtype} {spec.shape} needs {need_bytes} B, its frame has {frame_bytes} B"
    return None


def check_name(what: str, name: str) -> None:
    """Check a service or node name before it is sent.

    Raises:
        TypeError: not a string.
        ValueError: empty, over 64 characters, or not UTF-8 (half a surrogate pair).
    """
    if not isinstance(name, str):
        raise TypeError(f"{what} must be a string, got {type(name).__name__}")
    if not 0 < len(name) <= 64:
        raise ValueError(f"{what} must have 1..64 characters, got {len(name)}")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} {name!a} does not encode as UTF-8: drop the lone surrogate") from None


def check_outgoing(frames: Sequence[bytes], specs: Sequence[ArraySpec], peer: WireLimits) -> None:
    """Check a request or answer against what the peer accepts, before anything is sent.

    Raises:
        MessageTooLarge: with the size, the peer's limit and the remedy.
    """
    if 1 + len(frames) > peer.max_frames:
        raise MessageTooLarge(
            f"{1 + len(frames)} frames, the peer accepts {peer.max_frames}: send fewer arrays at once"
        )
    largest = max(map(len, frames))
    if largest > peer.max_frame_bytes:
        raise MessageTooLarge(
            f"frame of {largest} B, the peer accepts {peer.max_frame_bytes} B: split it, or raise max_frame_bytes there"
        )
    # A header is specs plus strings that are bounded by type: 512 B covers all of them.
    header_bytes = 512 + sum(8 + 9 * len(spec.shape) for spec in specs)
    if header_bytes > peer.max_header_bytes:
        raise MessageTooLarge(
            f"header of up to {header_bytes} B, the peer accepts {peer.max_header_bytes} B: send fewer arrays at once"
        )
