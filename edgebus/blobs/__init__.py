"""Blobs: content-addressed bytes, chunked, verified, resumable, kept on disk within a byte budget.

Address, manifest and messages: docs/spec/bus-blobs.md.
"""

from edgebus.blobs.blob import Blob
from edgebus.blobs.errors import BlobCorrupt, BlobNotFound, BlobStoreBusy, BlobStoreFull
from edgebus.blobs.fetch import BlobFetch, fetch_blob, have_blobs
from edgebus.blobs.manifest import BlobId, content_hash, manifest_of
from edgebus.blobs.many import fetch_blobs
from edgebus.blobs.memory import MemoryBlobs
from edgebus.blobs.messages import framing_bytes
from edgebus.blobs.serve import BlobServer, BlobSource, serve_blobs
from edgebus.blobs.store import BlobStore, StoreStats

__all__ = [
    "Blob",
    "BlobCorrupt",
    "BlobFetch",
    "BlobId",
    "BlobNotFound",
    "BlobServer",
    "BlobSource",
    "BlobStore",
    "BlobStoreBusy",
    "BlobStoreFull",
    "MemoryBlobs",
    "StoreStats",
    "content_hash",
    "fetch_blob",
    "fetch_blobs",
    "framing_bytes",
    "have_blobs",
    "manifest_of",
    "serve_blobs",
]
