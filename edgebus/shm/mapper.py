"""The receiving side: read-only views of a peer's segments, without a copy."""

from __future__ import annotations

import mmap
import os
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np

from edgebus.forks import forks
from edgebus.locks import open_lock
from edgebus.shm.forks import leave_when_forked
from edgebus.shm.pool import ALIGN_BYTES
from edgebus.shm.segments import HEADER_BYTES, SegmentInfo, SegmentUnavailable, available, open_segment


@dataclass(frozen=True, slots=True)
class MapperStats:
    """What is mapped now, views of forgotten peers included; `num_mapped` and `refused` count up.

    `copied_bytes` is always 0: a view is the sender's memory.
    """

    mapped_bytes: int = 0
    segments: int = 0
    views: int = 0
    num_mapped: int = 0
    refused: int = 0
    copied_bytes: int = 0


_FIRST_AT, _ALIGN_BYTES = HEADER_BYTES, ALIGN_BYTES


class _Mapped:
    """Address space in use and its bounds: each segment may cost a descriptor as well."""

    def __init__(self, max_bytes: int, max_segments: int) -> None:
        self.max_bytes = max_bytes
        self.max_segments = max_segments
        self.num_bytes = self.num_segments = 0

    def add(self, num_bytes: int) -> None:
        self.num_bytes += num_bytes
        self.num_segments += 1 if num_bytes > 0 else -1

    def has_room(self, size: int) -> bool:
        return self.num_bytes + size <= self.max_bytes and self.num_segments < self.max_segments

    def __str__(self) -> str:
        return f"{self.num_bytes} of {self.max_bytes} bytes in {self.num_segments} of {self.max_segments} segments"


class Place:
    """Bytes in a segment of a peer's; as SegmentInfo and more, in C where this is compiled.

    Attributes:
        lease: the number under which they come back.
        pid, fd, segment_bytes, nonce: the segment.
        offset, size: where in it they lie.
    """

    lease: int
    pid: int
    fd: int
    segment_bytes: int
    nonce: bytes
    offset: int
    size: int

    def info(self) -> SegmentInfo:
        """The segment."""
        return SegmentInfo(self.pid, self.fd, self.segment_bytes, self.nonce)


def place(lease: int, pid: int, fd: int, segment_bytes: int, nonce: bytes, offset: int, size: int) -> Place:
    """A place, quicker than by an __init__."""
    made = Place.__new__(Place)
    made.lease, made.pid, made.fd, made.segment_bytes, made.nonce = lease, pid, fd, segment_bytes, nonce
    made.offset, made.size = offset, size
    return made


class _Ended:
    """What is called at the end of a view."""

    def __init__(self, pid: int, ended: deque[None], on_release: Callable[[], None]) -> None:
        self._pid, self._ended, self._on_release = pid, ended, on_release

    def __call__(self) -> None:
        if TOLD_TO_CHILDREN and os.getpid() != self._pid:
            return
        self._ended.append(None)
        self._on_release()


_Key = tuple[Hashable, SegmentInfo]


class Mapper:
    """Maps segments when they are first announced and keeps them while there is room (thread-safe).

    A view keeps its mapping alive whatever becomes of the peer, of the link and of this object. It belongs to this
    process: a forked child that wants the content copies it before the parent lets go.

    Args:
        max_mapped_bytes: address space for all peers together, views of forgotten ones among it.
        max_peer_bytes: for one peer; None for no other bound.
        max_segments, max_peer_segments: likewise the number of segments.
    """

    def __init__(
        self,
        max_mapped_bytes: int = 1 << 30,
        max_peer_bytes: int | None = None,
        *,
        max_segments: int = 256,
        max_peer_segments: int = 16,
    ) -> None:
        self._max_peer_bytes = max_mapped_bytes if max_peer_bytes is None else max_peer_bytes
        self._max_peer_segments = max_peer_segments
        if min(max_mapped_bytes, self._max_peer_bytes, max_segments, max_peer_segments) < 1:
            bounds = f"{max_mapped_bytes}, {max_peer_bytes}, {max_segments} and {max_peer_segments}"
            raise ValueError(f"bounds must be positive, got {bounds}")
        self._all = _Mapped(max_mapped_bytes, max_segments)
        self._peers: dict[Hashable, _Mapped] = {}
        self._cached: OrderedDict[_Key, mmap.mmap] = OrderedDict()
        # Of _cached, what was seen last:
        self._last: Place | None = None
        self._last_peer: Hashable = None
        self._last_mapping: mmap.mmap | None = None
        self._lock = open_lock()  # nothing that a signal handler might want is called while it is held
        self._pid, self._forks = os.getpid(), forks[0]
        self._num_mapped = self._num_views = self._refused = 0
        # The garbage collector ends views and mappings on any thread, also on one that is in here: it only appends.
        self._views_ended: deque[None] = deque()
        self._unmapped: deque[tuple[Hashable, int]] = deque()
        leave_when_forked(self)

    def view(
        self, peer: Hashable, info: SegmentInfo, offset: int, size: int, on_release: Callable[[], None]
    ) -> memoryview:
        """Read-only bytes of a peer's segment, in place.

        Args:
            on_release: called once when the last view, slice or array over these bytes is gone: by the garbage
                collector, on any thread, in the middle of anything. It must do no more than append to a deque.
                Never called if this raises, in a forked child, or when the interpreter ends.

        Raises:
            SegmentUnavailable: it cannot be used, or there is no room for it.
        """
        try:
            where = place(0, info.pid, info.fd, info.size, info.nonce, offset, size)
        except OverflowError:  # no number that a place has
            self._refused += 1
            raise SegmentUnavailable("malformed", f"{size} bytes at {offset} of {info}") from None
        return self.view_place(peer, where, on_release)

    def view_place(self, peer: Hashable, where: Place, on_release: Callable[[], None]) -> memoryview:
        """The same of a place."""
        try:
            self._lock.acquire()
            try:
                self._check(where)
                mapping = self._mapping(peer, where)
            except SegmentUnavailable:
                self._refused += 1
                raise
            seen = _watch(mapping, where.offset, where.size, _Ended(self._pid, self._views_ended, on_release))
            self._num_views += 1
            return seen
        finally:
            self._lock.release()

    def forget(self, peer: Hashable) -> None:
        """Drop what is kept of a peer whose link is gone; its views stay as they are."""
        with self._lock:
            self._last = self._last_mapping = None
            for key in [key for key in self._cached if key[0] == peer]:
                del self._cached[key]  # unmapped here, or with its last view
            self._drain()

    def close(self) -> None:
        """Forget everybody."""
        with self._lock:
            self._last = self._last_mapping = None
            self._cached.clear()
            self._drain()

    def stats(self) -> MapperStats:
        """Snapshot."""
        with self._lock:
            self._drain()
            return MapperStats(
                self._all.num_bytes, self._all.num_segments, self._num_views, self._num_mapped, self._refused
            )

    def leave_to_parent(self) -> None:
        """In a forked child: keep no segment alive that no view needs, and map none."""
        self._lock = open_lock()
        self._last = self._last_mapping = None
        self._cached.clear()

    def _check(self, where: Place) -> None:
        if self._forks != forks[0] and os.getpid() != self._pid:
            raise SegmentUnavailable("forked", f"this mapper belongs to process {self._pid}")
        offset, size, end = where.offset, where.size, where.segment_bytes
        if not (offset >= _FIRST_AT and 0 <= size <= end - offset and offset % _ALIGN_BYTES == 0):
            raise SegmentUnavailable("out_of_bounds", f"{size} bytes at {offset} of a segment of {end}")

    def _mapping(self, peer: Hashable, where: Place) -> mmap.mmap:
        """The segment, kept or mapped now."""
        last = self._last
        if (
            last is not None
            and self._last_peer is peer
            and last.fd == where.fd
            and last.pid == where.pid
            and last.segment_bytes == where.segment_bytes
            and last.nonce == where.nonce
            and self._last_mapping is not None
        ):
            return self._last_mapping  # it is the one used last: nothing to be moved
        self._last = self._last_mapping = None
        info = where.info()
        key = (peer, info)
        mapping = self._cached.get(key)
        if mapping is not None:
            if len(self._cached) > 1:
                self._cached.move_to_end(key)
            self._last_peer, self._last_mapping, self._last = peer, mapping, where
            return mapping
        if not available():
            raise SegmentUnavailable("unavailable", "this process cannot open segments")
        self._drain()
        mapped = self._peers.get(peer) or _Mapped(self._max_peer_bytes, self._max_peer_segments)
        mine = [key for key in self._cached if key[0] == peer]
        for bound, keys, whose in ((mapped, mine, "this peer's"), (self._all, list(self._cached), "mapped")):
            self._evict(bound, keys, info.size)
            if not bound.has_room(info.size):
                raise SegmentUnavailable("too_much", f"{info.size} more bytes; {whose}: {bound}; let go of views")
        mapping = open_segment(info)
        weakref.finalize(mapping, self._unmapped.append, (peer, info.size)).atexit = False
        self._cached[peer, info] = mapping
        self._peers[peer] = mapped
        self._all.add(info.size)
        mapped.add(info.size)
        self._num_mapped += 1
        return mapping

    def _evict(self, bound: _Mapped, keys: list[_Key], size: int) -> None:
        """Unmap what has no views, used longest ago first, until there is room for so much."""
        for key in keys:
            if bound.has_room(size) or size > bound.max_bytes:
                return
            if key not in self._cached:  # one of the peer's, gone already
                continue
            try:
                self._cached[key].close()
            except BufferError:  # it has views
                continue
            del self._cached[key]
            self._drain()

    def _drain(self) -> None:
        """Take account of what the garbage collector has ended."""
        while self._unmapped:
            peer, size = self._unmapped.popleft()
            self._all.add(-size)
            self._peers[peer].add(-size)
            if self._peers[peer].num_segments == 0:
                del self._peers[peer]
        while self._views_ended:
            self._views_ended.popleft()
            self._num_views -= 1


def _plain_watch(buffer: mmap.mmap, offset: int, size: int, on_end: Callable[[], None]) -> memoryview:
    """Read-only bytes of a buffer; `on_end` is called when the last view of them is gone, unless the process ends."""
    # An ndarray can be watched and dies with the last buffer taken of it: it stands for the view.
    base = np.frombuffer(buffer, np.uint8, size, offset)
    weakref.finalize(base, on_end).atexit = False
    return base.data


_watch: Callable[[mmap.mmap, int, int, Callable[[], None]], memoryview] = _plain_watch
TOLD_TO_CHILDREN = True
"""Whether a view that ends in a forked child says so."""
try:
    from edgebus import _views

    _watch, TOLD_TO_CHILDREN = _views.watch, False
except ImportError:  # not built
    pass
