"""What can go wrong with blobs; whose fault it is stands in the base class."""

from __future__ import annotations

from edgebus import counting
from edgebus.errors import LocalError, RemoteError


class BlobStoreFull(LocalError):
    """The blob does not fit: over the budget, over what is not in use, or over what the disk has left."""


class BlobStoreBusy(LocalError):
    """Another process has held the store's lock too long: it is stopped, or its disk hangs."""


class BlobNotFound(RemoteError):
    """None of the peers asked has the blob."""


class BlobCorrupt(RemoteError):
    """A peer served bytes that are not what the address promises, more often than is forgiven.

    Args:
        peer: who.
        chunk: index of the last bad chunk; -1 if it was the manifest.
        times: bad answers of this peer.
    """

    def __init__(self, peer: str, chunk: int, times: int) -> None:
        what = "its manifest" if chunk < 0 else f"chunk {chunk}"
        super().__init__(
            f"{peer} answered {counting.times(times)} with bytes that are not the blob's (last: {what}): "
            "check its disk, or fetch from another peer"
        )
        self.peer = peer
        self.chunk = chunk
        self.times = times
