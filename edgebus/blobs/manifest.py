"""Addresses of blobs, and the manifest that proves every chunk before the whole is there. Pure.

The layout stands in docs/spec/bus-blobs.md: head -> pages -> chunks, each named by its hash in the one above it, the
head by the blob's address.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import TypeAlias

Data: TypeAlias = bytes | bytearray | memoryview

HASH_BYTES = 32
CHUNK_BYTES = 1 << 20
MIN_CHUNK_BYTES, MAX_CHUNK_BYTES = 1 << 12, 1 << 22
PAGE_HASHES = 4096  # a page is 128 KiB: small enough for every peer, verified as it arrives
MAX_CHUNKS = 1 << 20  # 1 TiB in chunks of 1 MiB; the head stays under 8.3 KiB
_HEAD = struct.Struct("<4sIQ")
_MAGIC = b"EBM1"
MAX_HEAD_BYTES = _HEAD.size + MAX_CHUNKS // PAGE_HASHES * HASH_BYTES
MAX_PAGE_BYTES = PAGE_HASHES * HASH_BYTES
MAX_MANIFEST_BYTES = MAX_HEAD_BYTES + MAX_CHUNKS * HASH_BYTES
_ADDRESS = re.compile(r"[0-9a-f]{64}")


def _hash(person: bytes, data: Data) -> bytes:
    # Personalised: bytes that are a chunk of one blob can never pass for the head or a page of another.
    return blake2b(data, digest_size=HASH_BYTES, person=person).digest()


def _head_hash(data: Data) -> bytes:
    return _hash(b"edgebus.blobhead", data)


def _page_hash(data: Data) -> bytes:
    return _hash(b"edgebus.blobpage", data)


def _chunk_hash(data: Data) -> bytes:
    return _hash(b"edgebus.blobdata", data)


def content_hash(content: Data) -> str:
    """Plain blake2b-256 of some content, as `b2sum -l 256` prints it; not the address of the blob."""
    return blake2b(content, digest_size=HASH_BYTES).hexdigest()


class BlobId(str):
    """The address of a blob: 64 lower-case hexadecimal digits, the hash of its manifest's head.

    Raises:
        ValueError: not such digits.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> BlobId:
        if not _ADDRESS.fullmatch(text):
            raise ValueError(f"a blob's address is 64 lower-case hexadecimal digits, got {text[:80]!r}")
        return super().__new__(cls, text)

    @property
    def raw(self) -> bytes:
        """The 32 bytes that travel."""
        return bytes.fromhex(self)


@dataclass(frozen=True, slots=True)
class Head:
    """The top of a manifest; its hash is the address.

    Args:
        size: of the content in bytes.
        chunk_bytes: of every chunk but the last, a power of two.
        page_hashes: one hash for each page, in order.
    """

    size: int
    chunk_bytes: int
    page_hashes: bytes

    @property
    def num_chunks(self) -> int:
        """Chunks of the blob; none if it is empty."""
        return -(-self.size // self.chunk_bytes)

    @property
    def num_pages(self) -> int:
        """Pages of at most 4096 chunk hashes."""
        return -(-self.num_chunks // PAGE_HASHES)

    @property
    def head_bytes(self) -> int:
        """Size of the head."""
        return _HEAD.size + self.num_pages * HASH_BYTES

    @property
    def manifest_bytes(self) -> int:
        """Size of the head and all pages."""
        return self.head_bytes + self.num_chunks * HASH_BYTES

    def chunk_size(self, index: int) -> int:
        """Exact size of a chunk."""
        return min(self.chunk_bytes, self.size - index * self.chunk_bytes)

    def page_size(self, index: int) -> int:
        """Exact size of a page."""
        return min(PAGE_HASHES, self.num_chunks - index * PAGE_HASHES) * HASH_BYTES

    def has_page(self, index: int, page: Data) -> bool:
        """Whether these bytes are that page."""
        expected = self.page_hashes[index * HASH_BYTES : (index + 1) * HASH_BYTES]
        return len(page) == self.page_size(index) and _page_hash(page) == expected

    def encode(self) -> bytes:
        """The head as bytes; there is exactly one way to write it."""
        return _HEAD.pack(_MAGIC, self.chunk_bytes, self.size) + self.page_hashes

    @classmethod
    def decode(cls, data: Data, blob_id: BlobId) -> Head:
        """The head of this blob in some bytes.

        Raises:
            ValueError: it is not; nothing in it is to be believed.
        """
        if not _HEAD.size <= len(data) <= MAX_HEAD_BYTES or _head_hash(data) != blob_id.raw:
            raise ValueError(f"{len(data)} bytes are not the head of blob {blob_id}")
        # The hash being right proves only that the address was made from these bytes, by whomever.
        magic, chunk_bytes, size = _HEAD.unpack_from(data)
        head = cls(size, chunk_bytes, bytes(data[_HEAD.size :]))
        if (
            magic != _MAGIC
            or not is_chunk_size(chunk_bytes)
            or head.num_chunks > MAX_CHUNKS
            or len(head.page_hashes) != head.num_pages * HASH_BYTES
        ):
            raise ValueError(
                f"the head of blob {blob_id} says {size} bytes in chunks of {chunk_bytes}, which cannot be"
            )
        return head


class Manifest:
    """A whole, verified manifest.

    Args:
        blob_id: the address.
        head: the top.
        pages: all chunk hashes, in order.
    """

    def __init__(self, blob_id: BlobId, head: Head, pages: bytes) -> None:
        assert len(pages) == head.num_chunks * HASH_BYTES
        self.blob_id = blob_id
        self.head = head
        self._pages = pages

    @property
    def size(self) -> int:
        """Bytes of content."""
        return self.head.size

    @property
    def num_chunks(self) -> int:
        """Chunks of the blob."""
        return self.head.num_chunks

    def offset(self, index: int) -> int:
        """Where a chunk begins in the content."""
        return index * self.head.chunk_bytes

    def has_chunk(self, index: int, chunk: Data) -> bool:
        """Whether these bytes are that chunk."""
        expected = self._pages[index * HASH_BYTES : (index + 1) * HASH_BYTES]
        return len(chunk) == self.head.chunk_size(index) and _chunk_hash(chunk) == expected

    def page(self, index: int) -> bytes:
        """One page, as it travels."""
        return self._pages[index * MAX_PAGE_BYTES : (index + 1) * MAX_PAGE_BYTES]

    def encode(self) -> bytes:
        """Head and pages, as they lie on disk."""
        return self.head.encode() + self._pages

    @classmethod
    def decode(cls, data: Data, blob_id: BlobId) -> Manifest:
        """The manifest of this blob, from disk.

        Raises:
            ValueError: it is not.
        """
        view = memoryview(data)
        num_pages = 0
        if len(view) >= _HEAD.size:
            _, chunk_bytes, size = _HEAD.unpack_from(view)
            if is_chunk_size(chunk_bytes) and size <= MAX_CHUNKS * chunk_bytes:
                num_pages = Head(size, chunk_bytes, b"").num_pages
        top = _HEAD.size + num_pages * HASH_BYTES
        head, pages = Head.decode(view[:top], blob_id), view[top:]
        parts = [pages[i * MAX_PAGE_BYTES : (i + 1) * MAX_PAGE_BYTES] for i in range(head.num_pages)]
        if len(data) != head.manifest_bytes or not all(head.has_page(i, part) for i, part in enumerate(parts)):
            raise ValueError(f"{len(data)} bytes are not the manifest of blob {blob_id}")
        return cls(blob_id, head, bytes(pages))


class ManifestBuilder:
    """Makes the manifest of content that passes by chunk after chunk.

    Args:
        chunk_bytes: of every chunk but the last; part of the address.

    Raises:
        ValueError: not a power of two of 4 KiB to 4 MiB.
    """

    def __init__(self, chunk_bytes: int = CHUNK_BYTES) -> None:
        if not is_chunk_size(chunk_bytes):
            raise ValueError(
                f"chunk_bytes must be a power of two in {MIN_CHUNK_BYTES}..{MAX_CHUNK_BYTES}, got {chunk_bytes}"
            )
        self._chunk_bytes = chunk_bytes
        self._size = 0
        self._hashes = bytearray()

    def add(self, chunk: Data) -> None:
        """The next chunk; all but the last are full.

        Raises:
            ValueError: there are too many.
        """
        assert self._size % self._chunk_bytes == 0
        assert 0 < len(chunk) <= self._chunk_bytes
        if len(self._hashes) >= MAX_CHUNKS * HASH_BYTES:
            most = MAX_CHUNKS * self._chunk_bytes
            raise ValueError(f"a blob in chunks of {self._chunk_bytes} has at most {most} bytes: take larger chunks")
        self._size += len(chunk)
        self._hashes += _chunk_hash(chunk)

    def finish(self) -> Manifest:
        """The manifest of what passed."""
        pages = bytes(self._hashes)
        hashes = [_page_hash(pages[at : at + MAX_PAGE_BYTES]) for at in range(0, len(pages), MAX_PAGE_BYTES)]
        head = Head(self._size, self._chunk_bytes, b"".join(hashes))
        return Manifest(BlobId(_head_hash(head.encode()).hex()), head, pages)


def manifest_of(content: Data, chunk_bytes: int = CHUNK_BYTES) -> Manifest:
    """The manifest of content at hand.

    >>> manifest_of(b"hello").blob_id[:16]
    'd2b6fea2cc2d6703'
    """
    return build(split(content, chunk_bytes), chunk_bytes)


def build(chunks: Iterable[Data], chunk_bytes: int) -> Manifest:
    """The manifest of chunks that pass by."""
    builder = ManifestBuilder(chunk_bytes)
    for chunk in chunks:
        builder.add(chunk)
    return builder.finish()


def split(content: Data, chunk_bytes: int) -> Iterable[memoryview]:
    """Content as chunks, not copied."""
    view = memoryview(content).cast("B")
    return (view[at : at + chunk_bytes] for at in range(0, len(view), chunk_bytes))


def manifest_bytes(size: int, chunk_bytes: int) -> int:
    """Size of the manifest of so much content."""
    return Head(size, chunk_bytes, b"").manifest_bytes


def is_chunk_size(chunk_bytes: int) -> bool:
    """A power of two within the bounds."""
    return MIN_CHUNK_BYTES <= chunk_bytes <= MAX_CHUNK_BYTES and chunk_bytes & (chunk_bytes - 1) == 0
