"""Headers of the protocol: one typed, tagged msgpack array each. Layout: docs/spec/bus-wire.md.

Fields are only ever appended, with a default: a reader ignores what it does not know, so an old and a new
node understand each other's hello and can agree on a version.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta, Struct

from edgebus import whole

VERSION_MIN = 1
VERSION_MAX = 2
"""Version 1 has whole messages on one connection; 2 adds inline payloads, lanes, streams, leases and keys."""

_MAX_ID = 2**63 - 1
_MAX_SIZE = 2**48
Id = Annotated[int, Meta(ge=0, le=_MAX_ID)]
Dim = Annotated[int, Meta(ge=0, le=2**40)]
Size = Annotated[int, Meta(ge=0, le=_MAX_SIZE)]
Version = Annotated[int, Meta(ge=0, le=65535)]
Incarnation = Annotated[bytes, Meta(min_length=16, max_length=16)]
Name = Annotated[str, Meta(max_length=64)]
Code = Annotated[str, Meta(max_length=64)]
Detail = Annotated[str, Meta(max_length=1024)]
Millis = Annotated[int, Meta(ge=0, le=86_400_000)]
IdempotencyKey = Annotated[bytes, Meta(max_length=64)]
INLINE_BYTES = 4096
"""Payloads up to this size travel inside the header's frame (version 2): one frame less to send and receive."""
Inline = Annotated[bytes, Meta(max_length=INLINE_BYTES)]
MAX_TIMEOUT_S = 86_400.0


class WireLimits(Struct, array_like=True, frozen=True, gc=False):
    """What the sender of a greeting accepts, in bytes and frames. `bulk_bytes` is its credit on the bulk lane."""

    max_header_bytes: Annotated[int, Meta(ge=8192, le=2**31)]
    max_frame_bytes: Annotated[int, Meta(ge=1, le=2**48)]
    max_frames: Annotated[int, Meta(ge=2, le=2**20)]
    bulk_bytes: Size = 0


class Share(Struct, array_like=True, frozen=True, gc=False):
    """Where a node's shared memory can be seen: nodes with the same host id can, and know when the process died."""

    host_id: Annotated[bytes, Meta(min_length=16, max_length=16)]
    pid: Id
    started: Id


class ArraySpec(Struct, array_like=True, frozen=True, gc=False):
    """One array frame: a dtype code of arrays.DTYPES and a shape, row-major, little-endian."""

    dtype: Annotated[str, Meta(max_length=2)]
    shape: Annotated[tuple[Dim, ...], Meta(max_length=8)]


Specs = Annotated[tuple[ArraySpec, ...], Meta(max_length=1024)]


class Transfer(Struct, array_like=True, frozen=True, gc=False):
    """Content that follows as chunks on the lane this header came by: its number and the size of each frame."""

    id: Id
    sizes: Annotated[tuple[Size, ...], Meta(max_length=1024)]


class Block(Struct, array_like=True, frozen=True, gc=False):
    """One frame that lies in shared memory of the sender until the receiver gives the lease back."""

    lease: Id
    pid: Id
    fd: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    segment_bytes: Size
    nonce: Annotated[bytes, Meta(min_length=16, max_length=16)]
    offset: Size
    size: Size


Blocks = Annotated[tuple[Block, ...], Meta(max_length=1024)]


class Terms(Struct, array_like=True, frozen=True, gc=False):
    """What is special about a request: its kind and what it may be dropped or repeated for.

    Attributes:
        kind: 0 a request with one answer, 1 one-way (answered by its delivery), 2 a stream of parts and an answer.
        key: idempotency key; an answer given to it is given again, also to another incarnation of the caller.
        stream, pos: a request of the same stream at a higher position makes this one stale; stream -1 has none.
        from_pos: first part wanted of a stream.
        window_bytes: parts that may be on their way unacknowledged.
    """

    kind: Annotated[int, Meta(ge=0, le=255)] = 0
    key: IdempotencyKey = b""
    stream: Annotated[int, Meta(ge=-1, le=2**63 - 1)] = -1
    pos: Id = 0
    from_pos: Id = 0
    window_bytes: Size = 0


PLAIN, ONE_WAY, STREAM = 0, 1, 2


def terms_of(kind: int, key: bytes, sequence: tuple[int, int] | None) -> Terms:
    """Terms of a request that an application makes.

    Args:
        kind: PLAIN or ONE_WAY.
        key: idempotency key, b"" for none.
        sequence: (stream, position), None for none.

    Raises:
        TypeError, ValueError: no such key or sequence.
    """
    if not isinstance(key, bytes | bytearray | memoryview):
        raise TypeError(f"an idempotency key is bytes, got {type(key).__name__}: encode it")
    if len(key) > 64:
        raise ValueError(f"an idempotency key has at most 64 bytes, got {len(key)}")
    stream, pos = -1, 0
    if sequence is not None:
        try:
            stream, pos = (whole.number(each, "sequence", 0, _MAX_ID) for each in sequence)
        except (TypeError, ValueError):
            raise ValueError(
                f"sequence is (stream, position), both whole numbers in [0, 2**63), got {sequence!r}"
            ) from None
    return Terms(kind, bytes(key), stream, pos)


def stream_terms(from_pos: int, window_bytes: int) -> Terms:
    """Terms of a request for a stream that an application makes.

    Raises:
        TypeError, ValueError: a number that is not whole, or does not travel.
    """
    from_pos = whole.number(from_pos, "from_pos", 0, _MAX_ID)
    return Terms(STREAM, from_pos=from_pos, window_bytes=whole.number(window_bytes, "window_bytes", 1, _MAX_SIZE))


class Hello(Struct, array_like=True, frozen=True, gc=False, tag=1):
    """Dialler to listener, first on every connection of either lane. `greeting` is echoed by the welcome."""

    version_min: Version
    version_max: Version
    name: Name
    incarnation: Incarnation
    greeting: Id
    limits: WireLimits
    lane: Annotated[int, Meta(ge=0, le=1)] = 0
    share: Share | None = None


class Welcome(Struct, array_like=True, frozen=True, gc=False, tag=2):
    """Listener to dialler: the version both will speak."""

    version: Version
    name: Name
    incarnation: Incarnation
    greeting: Id
    limits: WireLimits
    lane: Annotated[int, Meta(ge=0, le=1)] = 0
    share: Share | None = None


class Reset(Struct, array_like=True, frozen=True, gc=False, tag=3):
    """Listener to dialler: I do not know you (any more); greet again and resend."""


class Request(Struct, array_like=True, gc=False, tag=4):
    """A call. `ttl_ms` is what is left of its deadline; ids below `settled_below` need no answer any more."""

    id: Id
    service: Name
    ttl_ms: Millis
    settled_below: Id
    arrays: Specs = ()
    inline: Inline | None = None
    terms: Terms | None = None
    transfer: Transfer | None = None
    blocks: Blocks | None = None


class Reply(Struct, array_like=True, gc=False, tag=5):
    """The answer yes. `num_parts` is where a stream ends."""

    id: Id
    arrays: Specs = ()
    inline: Inline | None = None
    num_parts: Id = 0
    transfer: Transfer | None = None
    blocks: Blocks | None = None


class Refusal(Struct, array_like=True, frozen=True, gc=False, tag=6):
    """The answer no; the payload frame carries the handler's info bytes."""

    id: Id
    code: Code
    detail: Detail


class Ping(Struct, array_like=True, frozen=True, gc=False, tag=7):
    """Are you there."""


class Pong(Struct, array_like=True, frozen=True, gc=False, tag=8):
    """I am: the application has left a request lying for `stalled_ms`, and is busy for `lease_ms` by its own word."""

    stalled_ms: Millis = 0
    lease_ms: Millis = 0


class Goodbye(Struct, array_like=True, frozen=True, gc=False, tag=9):
    """The sender closes the link (`closing`), or will not greet (`version`, `busy`)."""

    code: Code
    detail: Detail


class Cancel(Struct, array_like=True, frozen=True, gc=False, tag=10):
    """The caller no longer wants the answer."""

    id: Id


class Part(Struct, array_like=True, gc=False, tag=11):
    """Part `pos` of the stream that request `id` asked for."""

    id: Id
    pos: Id
    arrays: Specs = ()
    inline: Inline | None = None
    transfer: Transfer | None = None
    blocks: Blocks | None = None


class More(Struct, array_like=True, frozen=True, gc=False, tag=12):
    """The caller has consumed all parts below `pos` of the stream: as many bytes may follow."""

    id: Id
    pos: Id


class Chunk(Struct, array_like=True, frozen=True, gc=False, tag=13):
    """A piece of a transfer, from this byte of its content on; one frame follows."""

    transfer: Id
    offset: Size


class Credit(Struct, array_like=True, frozen=True, gc=False, tag=14):
    """So much of a transfer has been taken and may be followed by more; `rewind`: the rest was lost, go on there."""

    transfer: Id
    received: Size
    rewind: bool = False


class OpenBulk(Struct, array_like=True, frozen=True, gc=False, tag=15):
    """Listener to dialler: I have something large for you, open the bulk lane."""


class Leases(Struct, array_like=True, frozen=True, gc=False, tag=16):
    """Of the sender's shared memory leases up to `upto` only those in `held` are still in use over here."""

    upto: Id
    held: Annotated[tuple[Id, ...], Meta(max_length=8192)] = ()


class Drop(Struct, array_like=True, frozen=True, gc=False, tag=17):
    """The rest of a transfer will not come."""

    transfer: Id


class Probe(Struct, array_like=True, frozen=True, gc=False, tag=18):
    """Can you see this block of my shared memory?"""

    block: Block


class Seen(Struct, array_like=True, frozen=True, gc=False, tag=19):
    """Whether the probe's block could be seen: only then arrays may lie in shared memory."""

    ok: bool


Header = (
    Hello
    | Welcome
    | Reset
    | Request
    | Reply
    | Refusal
    | Ping
    | Pong
    | Goodbye
    | Cancel
    | Part
    | More
    | Chunk
    | Credit
    | OpenBulk
    | Leases
    | Drop
    | Probe
    | Seen
)
Content = Request | Reply | Part
"""Headers that carry a payload and arrays."""


class Message(NamedTuple):
    """A header and the frames after it: for requests, answers and parts payload then arrays, else none."""

    header: Header
    frames: tuple[bytes, ...] = ()


encode_header = msgspec.msgpack.Encoder().encode
decode_header = msgspec.msgpack.Decoder(Header).decode
