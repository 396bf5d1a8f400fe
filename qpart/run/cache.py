"""Pieces on the device's disk: a blob store that a device can do without."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from edgebus.blobs import BlobStore, BlobStoreBusy, fetch_blobs
from edgebus.blobs.fetch import AskLink
from qpart.messages import MARK_BYTES, MAX_NAMED_PIECES
from qpart.pieces import Data

DEFAULT_MAX_BYTES = 256 << 20
_log = logging.getLogger(__name__)


class PieceCache:
    """A directory of pieces, shared by any number of processes; the longest unused go when it grows over its bound.

    A file that is not what its name says is fetched again; a directory that cannot be written, or a full disk, only
    means that the next start fetches again.

    Args:
        directory: where; made when it is first used.
        max_bytes: of all files together.
    """

    def __init__(self, directory: Path, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._directory, self._max_bytes = directory, max_bytes

    @cached_property
    def _store(self) -> BlobStore | None:
        try:
            return BlobStore(self._directory, self._max_bytes)
        except (OSError, BlobStoreBusy) as error:
            _log.warning("pieces are not kept, so every start fetches them: %s", error)
            return None

    def marks(self) -> bytes:
        """What is there, as a device says it: the beginning of every address, latest use first, as many as may be."""
        if self._store is None:
            return b""
        try:
            latest = self._store.ids()[: -MAX_NAMED_PIECES - 1 : -1]
        except OSError:
            return b""
        return b"".join(address.raw[:MARK_BYTES] for address in latest)

    def fetch(self, link: AskLink, sizes: Mapping[bytes, int], timeout_s: float) -> dict[bytes, Data]:
        """Pieces by address, from here or from the server, each proven to be what its address says.

        Args:
            link: to the server.
            sizes: what is wanted, and how large it may be.
            timeout_s: for all of it.

        Raises:
            edgebus.blobs.BlobStoreFull: more than these sizes together would come.
            edgebus.EdgebusError: the server is gone, late, or has not got them.
        """
        wanted, most = [address.hex() for address in sizes], sum(sizes.values())
        try:
            blobs = fetch_blobs(link, wanted, self._store, timeout_s=timeout_s, if_full="memory", max_bytes=most)
        except (OSError, BlobStoreBusy) as error:
            if self._store is None:
                raise
            _log.warning("the pieces' directory cannot be used, they are fetched into memory: %s", error)
            blobs = fetch_blobs(link, wanted, timeout_s=timeout_s, max_bytes=most)
        return {blob_id.raw: blob.view for blob_id, blob in blobs.items()}
