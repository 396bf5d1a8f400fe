"""Serving blobs: a worker thread reads the disk, so that the thread that drives the node never waits for it."""

from __future__ import annotations

import logging
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from edgebus import serving
from edgebus.blobs.manifest import BlobId, Data, Manifest
from edgebus.blobs.memory import MemoryBlobs
from edgebus.blobs.messages import (
    ANSWER_BYTES,
    INLINE_BYTES,
    MAX_ASK_BYTES,
    MAX_CONTENTS_BYTES,
    SERVICE,
    Ask,
    AskChunk,
    AskContents,
    AskHave,
    AskManifest,
    AskPage,
    HaveAnswer,
    ManifestAnswer,
    decode_ask,
    encode_contents,
    is_small,
)
from edgebus.errors import ConfigError
from edgebus.payloads import encode

if TYPE_CHECKING:
    from edgebus.inbox import Request
    from edgebus.node import Node

_IDLE_S = 2.0
_log = logging.getLogger(__name__)


class BlobSource(Protocol):
    """What can be served: a BlobStore, MemoryBlobs, or something of your own. Called on the worker thread."""

    def size(self, blob_id: BlobId) -> int | None:
        """Bytes of a blob, None if it is not there."""

    def manifest(self, blob_id: BlobId) -> Manifest | None:
        """The manifest of a blob."""

    def chunk(self, blob_id: BlobId, index: int) -> bytes | None:
        """A chunk; None if there is no such blob or chunk."""


def answer(source: BlobSource, ask: Ask) -> bytes | None:
    """The answer to a question, None if what it names is not there."""
    match ask:
        case AskHave():
            sizes = (source.size(_address(raw)) for raw in ask.blobs)
            return encode(HaveAnswer(tuple(-1 if size is None else size for size in sizes)))
        case AskContents():
            return encode_contents(_contents(source, ask))
        case AskChunk():
            return source.chunk(_address(ask.blob), ask.index)
        case AskManifest() | AskPage():
            manifest = source.manifest(_address(ask.blob))
            if manifest is None:
                return None
            if isinstance(ask, AskPage):
                return manifest.page(ask.index) or None
            content = None
            if manifest.num_chunks == 1 and manifest.size <= INLINE_BYTES:
                content = source.chunk(manifest.blob_id, 0)
            return encode(ManifestAnswer(manifest.head.encode(), manifest.page(0), content or b""))


def _contents(source: BlobSource, ask: AskContents) -> Iterator[Data | None]:
    """As many as an answer may have, the first in any case."""
    left = ANSWER_BYTES
    for place, raw in enumerate(ask.blobs):
        blob_id, content = _address(raw), None
        size = source.size(blob_id)
        if size is not None and size <= MAX_CONTENTS_BYTES:
            if place and size > left:
                return
            manifest = source.manifest(blob_id)
            if manifest is not None and is_small(manifest.head):
                content = source.chunk(blob_id, 0) if size else b""
        left -= len(content or b"")
        yield content


class BlobServer:
    """Answers the service `edgebus.blob` on a node; made by serve_blobs. Close it before its node.

    Args:
        node: that serves.
        source: what it serves.
        depth: most questions waiting; more are refused "busy". One peer has at most half of the places, rounded up.

    Attributes:
        chunks, chunk_bytes: how many chunks were answered, and their bytes.
    """

    def __init__(self, node: Node, source: BlobSource, depth: int) -> None:
        self._source = source
        self._depth = depth
        self._waiting: deque[Request] = deque()
        self._held: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._worker: threading.Thread | None = None
        self._closed = False
        self.chunks = 0
        self.chunk_bytes = 0
        self._slot = _occupy(node, self._take)

    def close(self) -> None:
        """Stop serving; what waits is refused "closing"."""
        with self._changed:
            self._closed = True
            waiting = list(self._waiting)
            self._waiting.clear()
            worker = self._worker
            self._changed.notify_all()
        if self._slot.take == self._take:
            self._slot.take = None
        for request in waiting:
            serving.refuse(request, "closing", "the blob service is closing")
        if worker is not None:
            worker.join(10)

    def __enter__(self) -> BlobServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take(self, request: Request) -> None:
        """Put a question into the line, or refuse it (on the thread that drives the node)."""
        if len(request.payload) > MAX_ASK_BYTES or request.arrays:  # before it waits here: memory is bounded
            serving.refuse(request, "malformed", f"a question has at most {MAX_ASK_BYTES} bytes and no arrays")
            return
        owner = request.peer.key or request.peer.id
        with self._changed:
            is_full = len(self._waiting) >= self._depth or self._held[owner] >= (self._depth + 1) // 2
            if not self._closed and not is_full:
                self._waiting.append(request)
                self._held[owner] += 1
                if self._worker is None:
                    self._worker = threading.Thread(target=self._run, name="edgebus-blobs", daemon=True)
                    self._worker.start()
                self._changed.notify()
                return
        if self._closed:
            serving.refuse(request, "closing", "the blob service is closing")
        else:
            serving.refuse(request, "busy", f"{self._depth} questions about blobs wait already, or half of them yours")

    def _run(self) -> None:
        """Answer until there was nothing to do for a while: a node that closes leaves no thread behind."""
        while True:
            with self._changed:
                if not self._waiting and not self._closed:
                    self._changed.wait(_IDLE_S)
                if not self._waiting:
                    self._worker = None
                    return
                request = self._waiting.popleft()
                owner = request.peer.key or request.peer.id
                self._held[owner] -= 1
                if not self._held[owner]:
                    del self._held[owner]
            self._answer(request)
            del request

    def _answer(self, request: Request) -> None:
        if request.remaining_s() <= 0:
            serving.refuse(request, "expired", "the deadline passed while the question waited")
            return
        try:
            ask = decode_ask(request.payload)
        except ValueError as error:
            serving.refuse(request, "malformed", str(error))
            return
        try:
            found = answer(self._source, ask)
        except Exception as error:  # a source of the application's may raise anything; the worker goes on
            _log.exception("blobs: %r could not be answered", ask)
            serving.refuse(request, "unreadable", f"the peer cannot read the blob: {type(error).__name__}")
            return
        if found is None:
            serving.refuse(request, "unknown_blob", "no such blob, or no such part of it")
            return
        if isinstance(ask, AskChunk):
            self.chunks += 1
            self.chunk_bytes += len(found)
        serving.reply(request, found)


def serve_blobs(node: Node, source: BlobSource | Mapping[str, Data], *, depth: int = 64) -> BlobServer:
    """Serve blobs to every peer that may call `edgebus.blob` and knows their address.

    Args:
        node: that serves.
        source: a BlobStore, a BlobSource, or content by address.
        depth: most questions waiting.

    Raises:
        ConfigError: the node serves blobs already.
        ValueError: a mapping whose content has another address.
    """
    return BlobServer(node, MemoryBlobs(source) if isinstance(source, Mapping) else source, depth)


def _address(raw: bytes) -> BlobId:
    return BlobId(raw.hex())


class _Slot:
    """What a node calls for its blobs: a service that is handled stays, so whoever serves takes this place."""

    def __init__(self) -> None:
        self.take: Callable[[Request], None] | None = None

    def __call__(self, request: Request) -> None:
        take = self.take
        if take is None:
            serving.refuse(request, "unknown_service", "this node serves no blobs any more")
        else:
            take(request)


_slots: weakref.WeakKeyDictionary[Node, _Slot] = weakref.WeakKeyDictionary()
_slots_lock = threading.Lock()


def _occupy(node: Node, take: Callable[[Request], None]) -> _Slot:
    with _slots_lock:
        slot = _slots.get(node)
        if slot is None:
            slot = _Slot()
            node.handle(SERVICE, slot)
            _slots[node] = slot
        elif slot.take is not None:
            raise ConfigError("this node serves blobs already: close that BlobServer first")
        slot.take = take
    return slot
