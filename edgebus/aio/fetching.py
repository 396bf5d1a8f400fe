"""Blobs for asyncio: a fetch belongs to the task that waits for it, and ends before that does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from edgebus.aio.calling import Link
from edgebus.aio.loops import in_thread
from edgebus.blobs.fetch import DEFAULT_MEMORY_BYTES, BlobFetch, Progress

if TYPE_CHECKING:
    from edgebus.blobs.blob import Blob
    from edgebus.blobs.store import BlobStore


async def fetch_blob(
    link: Link | Sequence[Link],
    blob_id: str,
    store: BlobStore | None = None,
    *,
    timeout_s: float = 600.0,
    window: int = 4,
    progress: Progress | None = None,
    if_full: Literal["raise", "memory"] = "raise",
    max_memory_bytes: int = DEFAULT_MEMORY_BYTES,
    max_bytes: int | None = None,
) -> Blob:
    """Fetch a blob over one link, or spread over several. Arguments and errors as edgebus.fetch_blob.

    Cancelling the task ends the fetch: when it raises, nothing is asked or written any more; a store keeps what came.
    One that is cancelled again meanwhile does not wait for that. `progress` is called on threads of the fetch.
    """
    fetch = BlobFetch(
        [each.sync for each in ([link] if isinstance(link, Link) else link)],
        blob_id,
        store,
        timeout_s=timeout_s,
        window=window,
        progress=progress,
        if_full=if_full,
        max_memory_bytes=max_memory_bytes,
        max_bytes=max_bytes,
    )
    running = asyncio.create_task(in_thread(fetch.run, unwanted=lambda blob: blob.close()))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        fetch.cancel()
        with suppress(Exception):  # how a fetch ended that nobody wants
            (await running).close()
        raise
