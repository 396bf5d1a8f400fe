"""Headers of the protocol: one typed, tagged msgpack array each. Layout: docs/spec/bus-wire.md.

Fields are only ever appended, with a default: a reader ignores what it does not know, so an old and a new
node understand each other's hello and can agree on a version.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta, Struct

VERSION_MIN = 1
VERSION_MAX = 1

Id = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Dim = Annotated[int, Meta(ge=0, le=2**40)]
Version = Annotated[int, Meta(ge=0, le=65535)]
Incarnation = Annotated[bytes, Meta(min_length=16, max_length=16)]
Name = Annotated[str, Meta(max_length=64)]
Code = Annotated[str, Meta(max_length=64)]
Detail = Annotated[str, Meta(max_length=1024)]
Ttl = Annotated[int, Meta(ge=0, le=86_400_000)]
MAX_TIMEOUT_S = 86_400.0


class WireLimits(Struct, array_like=True, frozen=True, gc=False):
    """What the sender of a greeting accepts, in bytes and frames."""

    max_header_bytes: Annotated[int, Meta(ge=8192, le=2**31)]
    max_frame_bytes: Annotated[int, Meta(ge=1, le=2**48)]
    max_frames: Annotated[int, Meta(ge=2, le=2**20)]


class ArraySpec(Struct, array_like=True, frozen=True, gc=False):
    """One array frame: a dtype code of arrays.DTYPES and a shape, row-major, little-endian."""

    dtype: Annotated[str, Meta(max_length=2)]
    shape: Annotated[tuple[Dim, ...], Meta(max_length=8)]


Specs = Annotated[tuple[ArraySpec, ...], Meta(max_length=1024)]


class Hello(Struct, array_like=True, frozen=True, gc=False, tag=1):
    """Dialler to listener, first on every connection. `greeting` is echoed by the welcome."""

    version_min: Version
    version_max: Version
    name: Name
    incarnation: Incarnation
    greeting: Id
    limits: WireLimits


class Welcome(Struct, array_like=True, frozen=True, gc=False, tag=2):
    """Listener to dialler: the version both will speak."""

    version: Version
    name: Name
    incarnation: Incarnation
    greeting: Id
    limits: WireLimits


class Reset(Struct, array_like=True, frozen=True, gc=False, tag=3):
    """Listener to dialler: I do not know you (any more); greet again and resend."""


class Request(Struct, array_like=True, frozen=True, gc=False, tag=4):
    """A call. `ttl_ms` is what is left of its deadline; ids below `settled_below` need no answer any more."""

    id: Id
    service: Name
    ttl_ms: Ttl
    settled_below: Id
    arrays: Specs = ()


class Reply(Struct, array_like=True, frozen=True, gc=False, tag=5):
    """The answer yes."""

    id: Id
    arrays: Specs = ()


class Refusal(Struct, array_like=True, frozen=True, gc=False, tag=6):
    """The answer no; the payload frame carries the handler's info bytes."""

    id: Id
    code: Code
    detail: Detail


class Ping(Struct, array_like=True, frozen=True, gc=False, tag=7):
    """Are you there."""


class Pong(Struct, array_like=True, frozen=True, gc=False, tag=8):
    """I am."""


class Goodbye(Struct, array_like=True, frozen=True, gc=False, tag=9):
    """The sender closes the link (`closing`), or will not greet (`version`, `busy`)."""

    code: Code
    detail: Detail


class Cancel(Struct, array_like=True, frozen=True, gc=False, tag=10):
    """The caller no longer wants the answer."""

    id: Id


Header = Hello | Welcome | Reset | Request | Reply | Refusal | Ping | Pong | Goodbye | Cancel


class Message(NamedTuple):
    """A header and the frames after it: for requests and answers payload then arrays, else none."""

    header: Header
    frames: tuple[bytes, ...] = ()


encode_header = msgspec.msgpack.Encoder().encode
decode_header = msgspec.msgpack.Decoder(Header).decode
