"""Fetching a blob over one link or several: threads, deadlines and disk around the plan in machine.py."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from edgebus import seconds
from edgebus.blobs.blob import Blob
from edgebus.blobs.errors import BlobCorrupt, BlobStoreFull
from edgebus.blobs.machine import Completed, Described, Event, Failed, FetchMachine, Item, State, Superseded, Verified
from edgebus.blobs.manifest import BlobId, Data, Manifest
from edgebus.blobs.memory import MemoryPartial
from edgebus.blobs.messages import MAX_NAMED, SERVICE, AskHave, HaveAnswer
from edgebus.blobs.partial import Partial
from edgebus.errors import DeadlineExceeded, EdgebusError, RequestCancelled
from edgebus.payloads import decode, encode

if TYPE_CHECKING:
    from edgebus.blobs.store import BlobStore
    from edgebus.calls import Reply

DEFAULT_MEMORY_BYTES = 256 << 20
Progress = Callable[[int, int], object]


class Asked(Protocol):
    """What is needed of a Pending."""

    def result(self) -> Reply:
        """Wait for the answer."""

    def cancel(self) -> object:
        """It is not wanted any more."""


class AskLink(Protocol):
    """What is needed of an edgebus.Link."""

    def send_request(self, service: str, payload: bytes = ..., *, timeout_s: float = ...) -> Asked:
        """Send a request."""


class BlobFetch:
    """One fetch, to be run once; fetch_blob makes and runs it. From another thread it can be cancelled.

    Args:
        links: where to ask, in order of preference.
        blob_id: what to fetch.
        store: where to keep it; None fetches into memory.
        timeout_s: for all of it.
        window: most questions outstanding on one link.
        progress: called with (bytes at hand, bytes of the blob) whenever a chunk is kept, never twice at once.
        if_full: "raise" BlobStoreFull when the store cannot take it, or fetch it into "memory" then.
        max_memory_bytes: largest blob that is fetched into memory.
        max_bytes: largest blob that is fetched at all; None leaves that to budget and memory.

    Raises:
        ValueError: no link, or a bound that is not positive.
    """

    def __init__(
        self,
        links: Sequence[AskLink],
        blob_id: str,
        store: BlobStore | None = None,
        *,
        timeout_s: float = 600.0,
        window: int = 4,
        progress: Progress | None = None,
        if_full: Literal["raise", "memory"] = "raise",
        max_memory_bytes: int = DEFAULT_MEMORY_BYTES,
        max_bytes: int | None = None,
    ) -> None:
        timeout_s = seconds.deadline(timeout_s)
        if not links or window < 1:
            raise ValueError(f"a fetch needs a link and window >= 1, got {len(links)} links, {window}")
        self.blob_id = BlobId(blob_id)
        self._links = list(links)
        self._store = store
        self._timeout_s = timeout_s
        self._deadline_at = 0.0
        self._progress = progress
        self._falls_back = if_full == "memory"
        self._max_memory_bytes = max_memory_bytes
        self._max_bytes = max_bytes
        names = [str(getattr(link, "endpoint", f"source {index}")) for index, link in enumerate(links)]
        self._machine = FetchMachine(self.blob_id, names, window=window)
        self._changed = threading.Condition(threading.RLock())  # guards the machine and what follows
        self._pending: dict[tuple[int, Item], Asked] = {}
        self._partial: Partial | MemoryPartial | None = None
        self._keeping = threading.RLock()  # one writer at a time; never taken while _changed is held
        self._changes = 0
        self._last_failure = ""
        self._done = False
        self._error: BaseException | None = None
        self.fetched_bytes = 0

    def run(self) -> Blob:
        """Fetch it.

        Raises:
            BlobNotFound: no peer has it.
            BlobCorrupt: the last peer that had it served other bytes.
            BlobStoreFull: it has no place.
            DeadlineExceeded: not all of it came in time; a store keeps what came.
            RequestCancelled: cancel() was called.
            NodeClosed, KeyNotAllowed, Refused, ...: why the last link could not be asked.
        """
        self._deadline_at = time.monotonic() + self._timeout_s
        threads: list[threading.Thread] = []
        try:
            if self._store is not None:
                if (blob := self._store.get(self.blob_id, max_bytes=self._max_bytes)) is not None:
                    return blob
                self._resume(self._store)
            for source in range(1, len(self._links)):
                threads.append(threading.Thread(target=self._work, args=(source,), name=f"edgebus-fetch-{source}"))
                threads[-1].start()
            self._work(0)
            self._wait()
            if self._error is not None:
                raise self._error
            return self._finish()
        finally:
            self._end(RequestCancelled(f"the fetch of blob {self.blob_id} was broken off"))
            for thread in threads:
                thread.join()
            if self._partial is not None:
                self._partial.close()

    def cancel(self) -> None:
        """Give up, from any thread: run() raises RequestCancelled soon; a store keeps what came."""
        self._end(RequestCancelled(f"the fetch of blob {self.blob_id} was cancelled"))

    # -- one thread per link ------------------------------------------------------------------------

    def _work(self, source: int) -> None:
        """Ask one link, keep what it answers, until the end or until it is not asked any more."""
        asked: deque[tuple[Item, Asked]] = deque()
        try:
            while not self._is_over():
                seen = self._ask(source, asked)
                self._handle_events()
                if asked:
                    self._take(source, *asked.popleft())
                elif self._machine.is_dropped(source):
                    return
                else:
                    self._pause(source, seen)
        except BaseException as error:
            self._end(error)

    def _ask(self, source: int, asked: deque[tuple[Item, Asked]]) -> int:
        """Fill the window; returns the state it was decided on, for _pause."""
        while True:
            with self._changed:
                seen = self._changes
                item = None if self._done else self._machine.ask(source, now=time.monotonic())
            if item is None:
                return seen
            failure: EdgebusError | None = None
            try:  # not with _changed held: sending may wait for a thread that is calling cancel()
                pending = self._links[source].send_request(
                    SERVICE, encode(item.ask(self.blob_id)), timeout_s=max(0.001, self._left_s())
                )
            except EdgebusError as error:
                failure = error
            with self._changed:
                if failure is not None:
                    self._machine.fail(source, item, failure, now=time.monotonic())
                else:
                    self._pending[source, item] = pending
                    asked.append((item, pending))
                self._tell()
                is_late = self._done
            if is_late and failure is None:
                pending.cancel()

    def _take(self, source: int, item: Item, pending: Asked) -> None:
        failure: EdgebusError | None = None
        payload: Data = b""
        try:
            payload = pending.result().payload
        except EdgebusError as error:
            failure = error
        with self._changed:
            self._pending.pop((source, item), None)
            if failure is not None:
                self._last_failure = str(failure)
                self._machine.fail(source, item, failure, now=time.monotonic())
            else:
                self.fetched_bytes += len(payload)
                self._machine.receive(source, item, payload)
            self._tell()
        self._handle_events()

    def _pause(self, source: int, seen: int) -> None:
        """Until something has changed since it was seen, or this source may be asked again."""
        with self._changed:
            if not self._done and self._changes == seen:
                at = self._machine.next_timer(source) - time.monotonic()
                self._changed.wait(min(self._left_s(), at if at > 0 else self._left_s()))

    def _handle_events(self) -> None:
        while True:
            with self._changed:
                events = self._machine.events()
            if not events:
                return
            for event in events:
                self._handle(event)

    def _handle(self, event: Event) -> None:
        match event:
            case Described(manifest):
                self._open(manifest)
            case Verified(index, data):
                self._keep(index, data)
            case Superseded(source, item):
                with self._changed:
                    pending = self._pending.get((source, item))
                if pending is not None:
                    pending.cancel()
            case Completed():
                self._end(None)
            case Failed(error):
                self._end(error)

    # -- where it goes ------------------------------------------------------------------------------

    def _resume(self, store: BlobStore) -> None:
        try:
            partial = store.resume(self.blob_id)
        except BlobStoreFull:
            if not self._falls_back:
                raise
            return
        if partial is not None:
            self._partial = partial
            self._machine.restore(partial.manifest)
            self._handle_events()

    def _open(self, manifest: Manifest) -> None:
        if self._max_bytes is not None and manifest.size > self._max_bytes:
            raise BlobStoreFull(
                f"blob {self.blob_id} has {manifest.size} bytes, over the {self._max_bytes} allowed: raise max_bytes"
            )
        with self._keeping:
            if self._partial is None:
                self._partial = self._place(manifest)
            have = self._have(self._partial)
        with self._changed:
            self._machine.start(have)
            self._tell()
        self._report()

    def _place(self, manifest: Manifest) -> Partial | MemoryPartial:
        if self._store is not None:
            try:
                return self._store.begin(manifest)
            except BlobStoreFull:
                if not self._falls_back:
                    raise
        return MemoryPartial(manifest, self._max_memory_bytes)

    def _have(self, partial: Partial | MemoryPartial) -> list[int]:
        """What an earlier fetch left; reading all of it may take a while."""
        have: Iterable[int] = partial.present()
        found = []
        for index in have:
            if self._is_over():
                break
            found.append(index)
        return found

    def _keep(self, index: int, data: Data) -> None:
        with self._keeping:
            assert self._partial is not None
            try:
                self._partial.write(index, data)
            except BlobStoreFull:
                if not self._falls_back or not isinstance(self._partial, Partial):
                    raise
                self._partial = self._to_memory(self._partial)
                self._partial.write(index, data)
            with self._changed:
                self._machine.stored(index)
                self._tell()
            self._report()

    def _to_memory(self, partial: Partial) -> MemoryPartial:
        """The disk is full in the middle: what it holds goes to memory, the rest will follow."""
        memory = MemoryPartial(partial.manifest, self._max_memory_bytes)
        for index in partial.present():
            memory.write(index, partial.read(index))
        partial.close()
        return memory

    def _finish(self) -> Blob:
        assert self._partial is not None
        try:
            return self._partial.finish()
        except BlobStoreFull:
            if not self._falls_back or not isinstance(self._partial, Partial):
                raise
            return self._to_memory(self._partial).finish()

    def _report(self) -> None:
        if self._progress is not None and self._partial is not None:
            with self._keeping:
                head = self._partial.manifest.head
                self._progress(max(0, head.size - self._machine.num_missing * head.chunk_bytes), head.size)

    def _tell(self) -> None:
        """Wake whoever pauses (_changed held)."""
        self._changes += 1
        self._changed.notify_all()

    # -- how it ends --------------------------------------------------------------------------------

    def _left_s(self) -> float:
        return max(0.0, self._deadline_at - time.monotonic())

    def _is_over(self) -> bool:
        if not self._done and self._left_s() <= 0:
            self._expire()
        return self._done

    def _wait(self) -> None:
        """The first link is not asked any more: the others go on."""
        while not self._is_over():
            with self._changed:
                if not self._done:
                    self._changed.wait(self._left_s())

    def _expire(self) -> None:
        if self._machine.state is State.FETCHING:
            missing = self._machine.num_missing
            what = "1 chunk is missing" if missing == 1 else f"{missing} chunks are missing"
        else:
            what = "its manifest is missing"
        why = f", {self._last_failure}" if self._last_failure else ""
        self._end(
            DeadlineExceeded(
                f"blob {self.blob_id} did not come within {self._timeout_s:.3g} s ({what}{why}): "
                "allow more time; what came into a store is kept"
            )
        )

    def _end(self, error: BaseException | None) -> None:
        """The first to say so decides how it ends."""
        with self._changed:
            if not self._done:
                self._done = True
                self._error = error
                self._tell()
            left = list(self._pending.values())
        for pending in left:
            pending.cancel()


def fetch_blob(
    link: AskLink | Sequence[AskLink],
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
    """Fetch a blob over one link, or spread over several; see BlobFetch for arguments and BlobFetch.run for errors.

    Every chunk is proven before it is kept. With a store, what an earlier fetch left is not fetched again.
    """
    links = [link] if hasattr(link, "send_request") else list(link)
    return BlobFetch(
        links,
        blob_id,
        store,
        timeout_s=timeout_s,
        window=window,
        progress=progress,
        if_full=if_full,
        max_memory_bytes=max_memory_bytes,
        max_bytes=max_bytes,
    ).run()


def have_blobs(link: AskLink, blob_ids: Iterable[str], *, timeout_s: float = 10.0) -> dict[BlobId, int]:
    """Which of these blobs a peer has, with their sizes as it says.

    Raises:
        BlobCorrupt: the answer is none.
        Refused, DeadlineExceeded, ...: as of any request.
    """
    wanted = list(dict.fromkeys(BlobId(each) for each in blob_ids))
    found = {}
    until = time.monotonic() + seconds.deadline(timeout_s)
    for at in range(0, len(wanted), MAX_NAMED):
        some = wanted[at : at + MAX_NAMED]
        ask = encode(AskHave(tuple(each.raw for each in some)))
        reply = link.send_request(SERVICE, ask, timeout_s=max(0.001, until - time.monotonic())).result()
        try:
            sizes = decode(HaveAnswer, bytes(reply.payload)).sizes
        except ValueError:
            sizes = ()
        if len(sizes) != len(some):
            raise BlobCorrupt(str(getattr(link, "endpoint", "the peer")), -1, 1)
        found.update({each: size for each, size in zip(some, sizes, strict=True) if size >= 0})
    return found
