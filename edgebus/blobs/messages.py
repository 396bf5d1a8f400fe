"""What is asked of the service `edgebus.blob`, and what it answers. Pure; layout: docs/spec/bus-blobs.md.

A page and a chunk are answered by their bare bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from edgebus.blobs.manifest import (
    CHUNK_BYTES,
    HASH_BYTES,
    MAX_CHUNKS,
    MAX_HEAD_BYTES,
    MAX_PAGE_BYTES,
    PAGE_HASHES,
    Data,
    Head,
)
from edgebus.payloads import Payload, encode

SERVICE = "edgebus.blob"
INLINE_BYTES = 1 << 16
MAX_NAMED = 1024
MAX_CONTENTS_BYTES = CHUNK_BYTES
"""Of one blob that is answered by its content."""
ANSWER_BYTES = 1 << 17
"""Of contents in one answer, unless its first one alone has more: what has come of one is lost with its process."""
MAX_ASK_BYTES = 64 + MAX_NAMED * (HASH_BYTES + 2)

Address = Annotated[bytes, Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
Size = Annotated[int, Meta(ge=-1, le=2**53)]


class AskManifest(Payload, frozen=True, array_like=True, tag=1):
    """The head, the first page, and the content where it is small; answered by ManifestAnswer."""

    blob: Address


class AskPage(Payload, frozen=True, array_like=True, tag=2):
    """One page of the manifest."""

    blob: Address
    index: Annotated[int, Meta(ge=0, lt=MAX_CHUNKS // PAGE_HASHES)]


class AskChunk(Payload, frozen=True, array_like=True, tag=3):
    """One chunk."""

    blob: Address
    index: Annotated[int, Meta(ge=0, lt=MAX_CHUNKS)]


class AskHave(Payload, frozen=True, array_like=True, tag=4):
    """Which of these are there; answered by HaveAnswer."""

    blobs: Annotated[tuple[Address, ...], Meta(max_length=MAX_NAMED)]


class AskContents(Payload, frozen=True, array_like=True, tag=5):
    """The contents of these small blobs; answered by records, of the first ones if not all fit."""

    blobs: Annotated[tuple[Address, ...], Meta(min_length=1, max_length=MAX_NAMED)]


Ask: TypeAlias = AskManifest | AskPage | AskChunk | AskHave | AskContents


class ManifestAnswer(Payload, frozen=True, array_like=True):
    """The head, page 0 (empty if there is none), and the content of a blob of at most 64 KiB in one chunk."""

    head: Annotated[bytes, Meta(max_length=MAX_HEAD_BYTES)]
    page: Annotated[bytes, Meta(max_length=MAX_PAGE_BYTES)]
    content: Annotated[bytes, Meta(max_length=INLINE_BYTES)] = b""


class HaveAnswer(Payload, frozen=True, array_like=True):
    """Sizes in the order of the question, -1 for a blob that is not there."""

    sizes: Annotated[tuple[Size, ...], Meta(max_length=MAX_NAMED)]


_RECORD = struct.Struct("<I")
_NOT_SMALL = 2**32 - 1


def is_small(head: Head) -> bool:
    """Whether a blob is one that content alone proves: one chunk of the default size, or nothing."""
    return head.chunk_bytes == CHUNK_BYTES and head.num_chunks <= 1


def encode_contents(contents: Iterable[Data | None]) -> bytes:
    """The answer to AskContents: each content behind its size; None for a blob that is not here or not small."""
    parts: list[Data] = []
    for content in contents:
        parts += [_RECORD.pack(_NOT_SMALL if content is None else len(content)), content or b""]
    return b"".join(parts)


def decode_contents(payload: Data, asked: int) -> list[memoryview | None]:
    """The records of an answer, one at least; none of them is proven.

    Raises:
        ValueError: they are cut off, or more than were asked for.
    """
    view, found = memoryview(payload).cast("B"), list[memoryview | None]()
    while len(view) >= _RECORD.size and len(found) < asked:
        (size,) = _RECORD.unpack_from(view)
        view = view[_RECORD.size :]
        if size == _NOT_SMALL:
            found.append(None)
        elif size <= min(len(view), CHUNK_BYTES):
            found.append(view[:size])
            view = view[size:]
        else:
            raise ValueError(f"a content of {size} bytes is announced, {len(view)} are there")
    if view or not found:
        raise ValueError(f"{len(found)} of {asked} contents came, then {len(view)} bytes more")
    return found


def framing_bytes(size: int) -> int:
    """Payload bytes besides its content that one blob of the default chunk size takes when fetch_blobs brings it.

    >>> framing_bytes(1000), framing_bytes(2_000_000)
    (4, 123)
    """
    head = Head(size, CHUNK_BYTES, b"")
    if is_small(head):
        return _RECORD.size
    first = encode(ManifestAnswer(bytes(head.head_bytes), bytes(head.page_size(0))))
    return _RECORD.size + len(first) + sum(head.page_size(index) for index in range(1, head.num_pages))


_asks: msgspec.msgpack.Decoder[Ask] = msgspec.msgpack.Decoder(Ask)


def decode_ask(payload: Data) -> Ask:
    """A question off the wire.

    Raises:
        ValueError: not one, or larger than any.
    """
    if len(payload) > MAX_ASK_BYTES:
        raise ValueError(f"a question of {len(payload)} bytes, the largest has {MAX_ASK_BYTES}")
    try:
        return _asks.decode(payload)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"not a question of {SERVICE}: {error}") from None
