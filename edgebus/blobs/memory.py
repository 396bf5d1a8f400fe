"""Blobs that live in memory: content to serve, and content on its way to a caller who wants no disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from edgebus.blobs.blob import Blob
from edgebus.blobs.errors import BlobStoreFull
from edgebus.blobs.manifest import CHUNK_BYTES, BlobId, Data, Manifest, manifest_of


class MemoryBlobs:
    """Content to serve that is in memory anyway; the caller does not change it any more.

    Args:
        contents: content by address; each is checked.

    Raises:
        ValueError: content whose address is another one.
    """

    def __init__(self, contents: Mapping[str, Data] | None = None) -> None:
        self._blobs: dict[BlobId, tuple[Manifest, memoryview]] = {}
        for address, content in (contents or {}).items():
            if (found := self.put(content)) != address:
                raise ValueError(f"content of {len(content)} bytes has the address {found}, not {address}")

    def put(self, content: Data, *, chunk_bytes: int = CHUNK_BYTES) -> BlobId:
        """Take some content; returns its address."""
        manifest = manifest_of(content, chunk_bytes)
        self._blobs[manifest.blob_id] = (manifest, memoryview(content).cast("B"))
        return manifest.blob_id

    def delete(self, blob_id: str) -> bool:
        """Let some content go; True if it was there."""
        return self._blobs.pop(BlobId(blob_id), None) is not None

    def size(self, blob_id: BlobId) -> int | None:
        """Bytes of a blob."""
        found = self._blobs.get(blob_id)
        return None if found is None else found[0].size

    def manifest(self, blob_id: BlobId) -> Manifest | None:
        """The manifest of a blob."""
        found = self._blobs.get(blob_id)
        return None if found is None else found[0]

    def chunk(self, blob_id: BlobId, index: int) -> bytes | None:
        """A chunk of a blob."""
        found = self._blobs.get(blob_id)
        if found is None or index >= found[0].num_chunks:
            return None
        manifest, content = found
        begin = manifest.offset(index)
        return bytes(content[begin : begin + manifest.head.chunk_size(index)])


class MemoryPartial:
    """A blob that is being fetched into memory.

    Args:
        manifest: what it will be.
        most_bytes: refused above this.

    Raises:
        BlobStoreFull: it is larger.
    """

    def __init__(self, manifest: Manifest, most_bytes: int) -> None:
        if manifest.size > most_bytes:
            raise BlobStoreFull(
                f"blob {manifest.blob_id} has {manifest.size} bytes, over the {most_bytes} allowed in memory: "
                "fetch it into a BlobStore, or raise max_memory_bytes"
            )
        self.manifest = manifest
        self._content = bytearray(manifest.size)

    def present(self) -> Iterable[int]:
        """Nothing is there beforehand."""
        return ()

    def write(self, index: int, chunk: Data) -> None:
        """Put a verified chunk into its place."""
        begin = self.manifest.offset(index)
        self._content[begin : begin + len(chunk)] = chunk

    def finish(self) -> Blob:
        """All chunks are there."""
        return Blob(self.manifest.blob_id, memoryview(self._content).toreadonly())

    def close(self) -> None:
        """Nothing to let go."""
