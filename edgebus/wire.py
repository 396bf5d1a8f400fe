"""Messages to frames and back. Everything that comes in is hostile: checked first, allocated second."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from edgebus.config import HEADER_CAP_BYTES, Limits
from edgebus.errors import MessageTooLarge, WireError
from edgebus.interrupts import is_of_signal
from edgebus.messages import (
    INLINE_BYTES,
    VERSION_MAX,
    ArraySpec,
    Chunk,
    Content,
    Header,
    Message,
    Part,
    Refusal,
    Reply,
    Request,
    Transfer,
    WireLimits,
    decode_header,
    encode_header,
)

ITEM_BYTES = {
    "f4": 4, "f2": 2, "i4": 4, "i8": 8, "u1": 1, "u2": 2, "u4": 4, "i1": 1, "i2": 2, "f8": 8, "u8": 8,
}  # fmt: skip
"""Dtype codes that may travel and the size of one item. Closed list: no objects, no strings."""

MAX_ITEMS = 2**40
INLINE_FRAMES = 16  # with more arrays the payload has a frame of its own: headers may be capped at 8 KiB
_CONTENT = frozenset((Request, Reply, Part))
_message: Callable[[tuple[Any, ...]], Message] = partial(tuple.__new__, Message)  # without a frame of Python


def encode(message: Message, version: int = VERSION_MAX) -> list[bytes]:
    """Turn a message into frames for a peer of this version, header first."""
    header, frames = message
    if type(header) in _CONTENT:
        assert isinstance(header, Content)
        if version < 2:
            header.transfer = None  # it may have begun to go to an incarnation of version 2 in pieces
        if header.transfer is not None and not frames:
            header.inline = None  # it may have gone whole before
            return [encode_header(header)]
        if version >= 2 and len(frames[0]) <= INLINE_BYTES and len(frames) <= INLINE_FRAMES:
            header.inline = frames[0]
            return [encode_header(header), *frames[1:]]
        header.inline = None  # it may have gone to an incarnation of another version before
    return [encode_header(header), *frames]


def decode(frames: Sequence[bytes], limits: Limits) -> Message:
    """Turn frames into a message, refusing anything that does not add up.

    A message whose content follows (a transfer) or lies in shared memory comes without it: `arrays_fault` is for
    whoever completes it.

    Args:
        frames: header frame first.
        limits: this node's own bounds.

    Raises:
        WireError: the only exception but a signal handler's, with the request id where the header could be read.
    """
    if not frames or len(frames) > limits.max_frames:
        raise WireError(f"{len(frames)} frames, accepted are 1..{limits.max_frames}")
    if len(frames[0]) > min(limits.max_header_bytes, HEADER_CAP_BYTES):
        raise WireError(f"header of {len(frames[0])} B, accepted are {limits.max_header_bytes} B")
    try:
        header: Header = decode_header(frames[0])
    except (msgspec.MsgspecError, RecursionError, ValueError, OverflowError) as error:
        if is_of_signal(error):
            raise
        # The text of a decode error may quote the peer; repr keeps it to one printable line.
        raise WireError(f"header does not decode: {str(error)[:200]!r}") from None
    kind = type(header)
    if kind in _CONTENT:
        return _message((header, _content(header, frames, limits)))  # type: ignore[arg-type]
    expected = 2 if kind is Refusal or kind is Chunk else 1
    if len(frames) != expected:
        fault = f"{kind.__name__} in {len(frames)} frames, expected {expected}"
        raise WireError(fault, request_id=getattr(header, "id", None), is_answer=kind is Refusal)
    if expected == 2 and len(frames[1]) > limits.max_frame_bytes:
        fault = f"frame of {len(frames[1])} B, accepted are {limits.max_frame_bytes} B"
        raise WireError(fault, request_id=getattr(header, "id", None), is_answer=kind is Refusal)
    return Message(header, (bytes(frames[1]),) if kind is Refusal else tuple(frames[1:]))


def _content(header: Content, frames: Sequence[bytes], limits: Limits) -> tuple[bytes, ...]:
    """The content frames of a message as far as they are there, payload first."""
    inline, specs = header.inline, header.arrays
    if inline is not None and len(frames) == 1 and not specs and header.transfer is None and header.blocks is None:
        return (inline,)  # most messages
    fault = None
    # No tuple with stars: Cython would take its items for tuples, and read the size of a view from the wrong place.
    content = (() if inline is None else (inline,)) + tuple(frames[1:])
    if header.transfer is not None:
        fault = _transfer_fault(header, header.transfer, content, limits)
    elif header.blocks is not None:
        if len(content) != 1 or len(header.blocks) != len(specs):
            fault = f"{len(content)} frames and {len(header.blocks)} blocks for {len(specs)} arrays"
        elif len(content[0]) > limits.max_frame_bytes:
            fault = f"frame of {len(content[0])} B, accepted are {limits.max_frame_bytes} B"
        else:
            pairs = zip(specs, header.blocks, strict=True)
            fault = next((fault for spec, block in pairs if (fault := spec_fault(spec, block.size))), None)
    elif len(content) != 1 + len(specs):
        fault = f"{type(header).__name__} in {len(frames)} frames, its header announces {len(specs)} arrays"
    elif max(map(len, content)) > limits.max_frame_bytes:
        fault = f"frame of {max(map(len, content))} B, accepted are {limits.max_frame_bytes} B"
    else:
        fault = arrays_fault(specs, content[1:])
    if fault:
        raise WireError(fault, request_id=header.id, is_answer=not isinstance(header, Request))
    if content and type(content[0]) is not bytes:  # a large frame comes as a view of the memory it was received into
        return (bytes(content[0]), *content[1:])
    return content


def _transfer_fault(header: Content, transfer: Transfer, content: Sequence[bytes], limits: Limits) -> str | None:
    sizes = transfer.sizes
    if header.blocks is not None:
        return "a transfer beside blocks in shared memory, expected one of them"
    if content and tuple(map(len, content)) != sizes:
        return f"{len(content)} frames beside a transfer, expected none, or all of it"
    if len(sizes) != 1 + len(header.arrays) or len(sizes) >= limits.max_frames:
        return f"a transfer of {len(sizes)} frames for {len(header.arrays)} arrays, accepted are {limits.max_frames}"
    if max(sizes) > limits.max_frame_bytes:
        return f"frame of {max(sizes)} B, accepted are {limits.max_frame_bytes} B"
    for index, spec in enumerate(header.arrays, 1):
        if fault := spec_fault(spec, sizes[index]):
            return fault
    return None


def arrays_fault(specs: Sequence[ArraySpec], frames: Sequence[bytes]) -> str | None:
    """Say which array does not fit its frame, or None."""
    for spec, frame in zip(specs, frames, strict=True):
        if fault := spec_fault(spec, len(frame)):
            return fault
    return None


def spec_fault(spec: ArraySpec, frame_bytes: int) -> str | None:
    """Say what is wrong with an array spec for a frame of this size, or None.

    >>> spec_fault(ArraySpec("f4", (2, 3)), 24)
    >>> spec_fault(ArraySpec("f4", (2, 3)), 23)
    'array f4 (2, 3) needs 24 B, its frame has 23 B'
    """
    item_bytes = ITEM_BYTES.get(spec.dtype)
    if item_bytes is None:
        return f"array dtype {spec.dtype!r} is not one of {' '.join(ITEM_BYTES)}"
    items = strides = 1
    most = MAX_ITEMS
    for dim in spec.shape:
        # Zero-sized dims would let the others be absurd; numpy multiplies them all when it makes strides.
        if dim > 1:
            if dim > most // strides:
                return f"array shape {spec.shape} has over 2**40 items"
            strides *= dim
        items *= dim  # no sooner: in C it would overflow
    need_bytes = items * item_bytes
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
    largest = 0
    for frame in frames:
        largest = max(largest, len(frame))
    if largest > peer.max_frame_bytes:
        raise MessageTooLarge(
            f"frame of {largest} B, the peer accepts {peer.max_frame_bytes} B: split it, or raise max_frame_bytes there"
        )
    # A header is specs plus strings that are bounded by type: 512 B covers all of them.
    header_bytes = 512
    for spec in specs:
        header_bytes += 8 + 9 * len(spec.shape)
    if header_bytes > peer.max_header_bytes:
        raise MessageTooLarge(
            f"header of up to {header_bytes} B, the peer accepts {peer.max_header_bytes} B: send fewer arrays at once"
        )
