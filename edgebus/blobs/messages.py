"""What is asked of the service `edgebus.blob`, and what it answers. Pure; layout: docs/spec/bus-blobs.md.

A page and a chunk are answered by their bare bytes.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from edgebus.blobs.manifest import HASH_BYTES, MAX_CHUNKS, MAX_HEAD_BYTES, MAX_PAGE_BYTES, PAGE_HASHES, Data
from edgebus.payloads import Payload

SERVICE = "edgebus.blob"
INLINE_BYTES = 1 << 16
MAX_NAMED = 1024
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


Ask: TypeAlias = AskManifest | AskPage | AskChunk | AskHave


class ManifestAnswer(Payload, frozen=True, array_like=True):
    """The head, page 0 (empty if there is none), and the content of a blob of at most 64 KiB in one chunk."""

    head: Annotated[bytes, Meta(max_length=MAX_HEAD_BYTES)]
    page: Annotated[bytes, Meta(max_length=MAX_PAGE_BYTES)]
    content: Annotated[bytes, Meta(max_length=INLINE_BYTES)] = b""


class HaveAnswer(Payload, frozen=True, array_like=True):
    """Sizes in the order of the question, -1 for a blob that is not there."""

    sizes: Annotated[tuple[Size, ...], Meta(max_length=MAX_NAMED)]


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
