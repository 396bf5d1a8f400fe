"""Fetching many blobs, most of them small, in few round trips."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Literal

from edgebus import seconds
from edgebus.blobs.blob import Blob
from edgebus.blobs.errors import BlobStoreBusy, BlobStoreFull
from edgebus.blobs.fetch import DEFAULT_MEMORY_BYTES, Asked, AskLink, fetch_blob
from edgebus.blobs.machine import PASSING
from edgebus.blobs.manifest import BlobId, manifest_of
from edgebus.blobs.messages import MAX_NAMED, SERVICE, AskContents, decode_contents
from edgebus.errors import DeadlineExceeded, LinkLost, Refused
from edgebus.payloads import encode

if TYPE_CHECKING:
    from edgebus.blobs.store import BlobStore

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 2.0


def fetch_blobs(
    link: AskLink | Sequence[AskLink],
    blob_ids: Iterable[str],
    store: BlobStore | None = None,
    *,
    timeout_s: float = 600.0,
    window: int = 4,
    if_full: Literal["raise", "memory"] = "raise",
    max_bytes: int = DEFAULT_MEMORY_BYTES,
) -> dict[BlobId, Blob]:
    """Fetch many blobs: the small ones many at a time, link by link in turn, the others one by one over all links.

    Args:
        link: where to ask, or several: peers that have the same blobs, and answer (a silent one is waited for).
        blob_ids: what to fetch; what comes first is asked for first.
        store: where to look first and where to keep them; None fetches into memory.
        timeout_s: for all of it.
        window: most questions outstanding on one link.
        if_full: "raise" when the store cannot take one, or keep it in "memory" then.
        max_bytes: most bytes of all that is fetched; a file of the store that has more, and no manifest, is not read.

    Returns:
        Every blob by its address, each proven; small ones that were fetched now are in memory all the same.

    Raises:
        BlobStoreFull: over max_bytes, or no place in the store.
        BlobNotFound, BlobCorrupt, DeadlineExceeded, ...: as of fetch_blob; a store keeps what came.
    """
    links = [link] if hasattr(link, "send_request") else list(link)
    until = time.monotonic() + seconds.deadline(timeout_s)
    wanted = list(dict.fromkeys(BlobId(each) for each in blob_ids))
    found: dict[BlobId, Blob] = {}
    if store is not None:
        at_hand = ((blob_id, store.get(blob_id, max_bytes=max_bytes)) for blob_id in wanted)
        found = {blob_id: blob for blob_id, blob in at_hand if blob is not None}
    missing, others = [each for each in wanted if each not in found], []
    left_bytes, fresh = max_bytes, list[bytes]()
    try:
        for blob_id, content in _contents(links, missing, until, window):
            if content is None:
                others.append(blob_id)
                continue
            left_bytes -= len(content)
            if left_bytes < 0:
                raise BlobStoreFull(f"the blobs have more than the {max_bytes} bytes allowed together: raise max_bytes")
            found[blob_id] = Blob(blob_id, memoryview(content))
            fresh.append(content)
    except BaseException:
        _keep(store, fresh, falls_back=True)  # what came stays, and why it ended is what counts
        raise
    _keep(store, fresh, falls_back=if_full == "memory")
    for blob_id in others:
        left_s = max(0.001, until - time.monotonic())
        found[blob_id] = fetch_blob(
            links, blob_id, store, timeout_s=left_s, window=window, if_full=if_full, max_bytes=left_bytes
        )
        left_bytes -= found[blob_id].size
    return {blob_id: found[blob_id] for blob_id in wanted}


def _keep(store: BlobStore | None, contents: Sequence[bytes], *, falls_back: bool) -> None:
    if store is None:
        return
    try:
        store.put_many(contents)
    except (BlobStoreFull, BlobStoreBusy, OSError):
        if not falls_back:
            raise


def _contents(
    links: Sequence[AskLink], wanted: Sequence[BlobId], until: float, window: int
) -> Iterator[tuple[BlobId, bytes | None]]:
    """Each wanted blob once: its content, proven, or None for what must be fetched the long way."""
    turns, window = cycle(links), window * len(links)
    at_once = max(1, min(MAX_NAMED, -(-len(wanted) // window)))
    waiting = deque(list(wanted[at : at + at_once]) for at in range(0, len(wanted), at_once))
    asked: deque[tuple[list[BlobId], Asked]] = deque()
    wait_s = _FIRST_WAIT_S
    try:
        while waiting or asked:
            while waiting and len(asked) < window:
                some = waiting.popleft()
                question = encode(AskContents(tuple(each.raw for each in some)))
                asked.append((some, next(turns).send_request(SERVICE, question, timeout_s=_left_s(until))))
            some, pending = asked.popleft()
            try:
                records = decode_contents(pending.result().payload, len(some))
            except (LinkLost, Refused) as error:
                if len(links) > 1 or (isinstance(error, Refused) and error.code not in PASSING):
                    yield from ((each, None) for each in some)  # an older peer, or one of several: then all are asked
                    continue
                time.sleep(min(wait_s, _left_s(until)))
                wait_s = min(_LONGEST_WAIT_S, 2 * wait_s)
                waiting.append(some)
                continue
            except ValueError:
                yield from ((each, None) for each in some)
                continue
            wait_s = _FIRST_WAIT_S
            if some[len(records) :]:
                waiting.append(some[len(records) :])
            for blob_id, record in zip(some, records, strict=False):
                content = None if record is None else bytes(record)
                proven = content is not None and manifest_of(content).blob_id == blob_id
                yield blob_id, content if proven else None
    finally:
        for _, pending in asked:
            pending.cancel()


def _left_s(until: float) -> float:
    left_s = until - time.monotonic()
    if left_s <= 0:
        raise DeadlineExceeded("the blobs did not come in time: allow more; what came into a store is kept")
    return left_s
