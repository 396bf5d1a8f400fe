"""The plan of a fetch, pure: what to ask of whom next, and what to believe of the answers.

Table and rules: docs/spec/bus-blobs.md. Time and answers are arguments; sockets, disk and threads are fetch.py's.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import NamedTuple, TypeAlias

from edgebus.blobs.errors import BlobCorrupt, BlobNotFound
from edgebus.blobs.manifest import BlobId, Data, Head, Manifest
from edgebus.blobs.messages import Ask, AskChunk, AskManifest, AskPage, ManifestAnswer
from edgebus.counting import count
from edgebus.errors import DeadlineExceeded, EdgebusError, LinkLost, Refused, RequestCancelled
from edgebus.payloads import decode

MAX_BAD_ANSWERS = 3
PASSING = {"busy", "closing", "dropped", "expired", "forgotten"}  # refusals that another moment may lift
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 2.0


class Kind(IntEnum):
    """What can be asked for, most urgent first."""

    HEAD = 0
    PAGE = 1
    CHUNK = 2


class Item(NamedTuple):
    """One thing to ask for."""

    kind: Kind
    number: int

    def ask(self, blob_id: BlobId) -> Ask:
        """The question as it travels."""
        if self.kind is Kind.HEAD:
            return AskManifest(blob_id.raw)
        return (AskPage if self.kind is Kind.PAGE else AskChunk)(blob_id.raw, self.number)


class State(Enum):
    """Where a fetch stands."""

    DESCRIBING = "describing"
    DESCRIBED = "described"
    FETCHING = "fetching"
    COMPLETE = "complete"
    FAILED = "failed"


class Described(NamedTuple):
    """Event: the manifest is known and proven; call start() with what is at hand already."""

    manifest: Manifest


class Verified(NamedTuple):
    """Event: this chunk is right; call stored() when it is kept."""

    chunk: int
    data: Data


class Superseded(NamedTuple):
    """Event: another source was faster, or this one is dropped; the question to it can be cancelled."""

    source: int
    item: Item


class Completed(NamedTuple):
    """Event: every chunk is stored."""


class Failed(NamedTuple):
    """Event: no source is left."""

    error: EdgebusError


Event: TypeAlias = Described | Verified | Superseded | Completed | Failed


@dataclass(slots=True)
class _Source:
    index: int
    name: str
    asked: set[Item] = field(default_factory=set)
    wrong: set[Item] = field(default_factory=set)  # answered with other bytes than promised
    bad_answers: int = 0
    waits: int = 0
    not_before: float = -math.inf
    error: EdgebusError | None = None  # why it is asked no more


class FetchMachine:
    """Spreads the questions for one blob over sources and believes only what the address proves.

    Args:
        blob_id: what is wanted.
        names: of the sources, for errors; questions name a source by its place in here.
        window: most questions outstanding at one source.
    """

    def __init__(self, blob_id: BlobId, names: Sequence[str], *, window: int = 4) -> None:
        self._blob_id = blob_id
        self._sources = [_Source(index, name) for index, name in enumerate(names)]
        self._window = window
        self._wanted: list[Item] = [Item(Kind.HEAD, 0)]  # a heap
        self._open: set[Item] = {Item(Kind.HEAD, 0)}  # wanted or asked, not yet answered well
        self._head: Head | None = None
        self._pages: dict[int, bytes] = {}
        self._inline: Data | None = None
        self._manifest: Manifest | None = None
        self._unstored: set[int] = set()
        self._events: list[Event] = []
        self.state = State.DESCRIBING
        self.bad_answers = 0

    @property
    def num_missing(self) -> int:
        """Chunks that are not stored yet."""
        return len(self._unstored)

    def restore(self, manifest: Manifest) -> None:
        """Begin with a manifest that is at hand, instead of asking for it."""
        assert self.state is State.DESCRIBING
        assert self._head is None
        self._wanted, self._open = [], set()
        self._describe(manifest)

    def start(self, have: Iterable[int]) -> None:
        """After Described: these chunks are at hand, fetch the others."""
        assert self.state is State.DESCRIBED
        assert self._manifest is not None
        self._unstored = set(range(self._manifest.num_chunks)).difference(have)
        if not self._unstored:
            self._complete()
            return
        self.state = State.FETCHING
        if self._inline is not None:
            self._events.append(Verified(0, self._inline))
            return
        self._wanted = [Item(Kind.CHUNK, index) for index in sorted(self._unstored)]
        self._open = set(self._wanted)
        self._end_if_nobody_is_left()

    def stored(self, index: int) -> None:
        """After Verified: the chunk is kept."""
        self._unstored.discard(index)
        if not self._unstored and self.state is State.FETCHING:
            self._complete()

    def ask(self, source: int, *, now: float) -> Item | None:
        """What to ask this source next; None: nothing now. Every item given out comes back by receive() or fail()."""
        asker = self._sources[source]
        if asker.error is not None or now < asker.not_before or len(asker.asked) >= self._window:
            return None
        item = self._take_wanted(asker) or self._take_second(asker)
        if item is not None:
            asker.asked.add(item)
        return item

    def next_timer(self, source: int) -> float:
        """When a source that must be left alone for a while may be asked again; -inf: now; inf: never."""
        asker = self._sources[source]
        return math.inf if asker.error is not None else asker.not_before

    def is_dropped(self, source: int) -> bool:
        """Whether this source is asked no more."""
        return self._sources[source].error is not None

    def receive(self, source: int, item: Item, answer: Data) -> None:
        """Take an answer; bytes that are not what the address promises count against the source, repetitions do not."""
        asker = self._sources[source]
        if item not in asker.asked:
            return
        asker.asked.discard(item)
        if item not in self._open:
            self._end_if_nobody_is_left()
            return
        if not self._accept(item, answer):
            self._blame(asker, item)
            return
        asker.waits = 0
        self._open.discard(item)
        self._events += [Superseded(other.index, item) for other in self._sources if item in other.asked]
        self._advance()

    def fail(self, source: int, item: Item, error: EdgebusError, *, now: float) -> None:
        """Take a question that was not answered yes."""
        asker = self._sources[source]
        asker.asked.discard(item)
        match error:
            case RequestCancelled():
                pass
            case Refused(code="unknown_blob"):
                text = f"{asker.name} has no blob {self._blob_id}: put it into the store served there, or ask another"
                self._drop(asker, BlobNotFound(text))
            case DeadlineExceeded() | LinkLost():
                self._leave_alone(asker, now)
            case Refused() if error.code in PASSING:
                self._leave_alone(asker, now)
            case _:
                self._drop(asker, error)
        self._give_back(item)
        self._end_if_nobody_is_left()

    def events(self) -> list[Event]:
        """What happened since the last call."""
        events, self._events = self._events, []
        return events

    # -- whom to ask --------------------------------------------------------------------------------

    def _take_wanted(self, asker: _Source) -> Item | None:
        put_aside = []
        found = None
        while self._wanted and found is None:
            item = heapq.heappop(self._wanted)
            if item in asker.wrong and self._someone_else_may_have(item):
                put_aside.append(item)
            else:
                found = item
        for item in put_aside:
            heapq.heappush(self._wanted, item)
        return found

    def _take_second(self, asker: _Source) -> Item | None:
        """Near the end: ask an idle source for one thing that another was asked first, in case that one stalls."""
        if self._wanted or asker.asked:
            return None
        for item in sorted(self._open):
            if item not in asker.wrong and sum(item in other.asked for other in self._sources) == 1:
                return item
        return None

    def _someone_else_may_have(self, item: Item) -> bool:
        return any(other.error is None and item not in other.wrong for other in self._sources)

    def _drop(self, asker: _Source, error: EdgebusError) -> None:
        if asker.error is None:
            asker.error = error
            self._events += [Superseded(asker.index, item) for item in sorted(asker.asked)]

    def _leave_alone(self, asker: _Source, now: float) -> None:
        asker.not_before = now + min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** min(asker.waits, 10))
        asker.waits += 1

    def _give_back(self, item: Item) -> None:
        asked_elsewhere = any(item in other.asked for other in self._sources)
        if item in self._open and not asked_elsewhere and item not in self._wanted:
            heapq.heappush(self._wanted, item)

    # -- what to believe ----------------------------------------------------------------------------

    def _accept(self, item: Item, answer: Data) -> bool:
        if item.kind is Kind.HEAD:
            return self._accept_head(answer)
        if item.kind is Kind.PAGE:
            assert self._head is not None
            right = self._head.has_page(item.number, answer)
            if right:
                self._pages[item.number] = bytes(answer)
            return right
        assert self._manifest is not None
        right = self._manifest.has_chunk(item.number, answer)
        if right:
            self._events.append(Verified(item.number, answer))
        return right

    def _accept_head(self, answer: Data) -> bool:
        try:
            given = decode(ManifestAnswer, bytes(answer))
            head = Head.decode(given.head, self._blob_id)
        except ValueError:
            return False
        if given.page and not (head.num_pages and head.has_page(0, given.page)):
            return False
        if given.content:
            if head.num_chunks != 1 or not given.page:
                return False
            if not Manifest(self._blob_id, head, given.page).has_chunk(0, given.content):
                return False
            self._inline = given.content
        self._head = head
        if given.page:
            self._pages[0] = given.page
        missing = [Item(Kind.PAGE, index) for index in range(head.num_pages) if index not in self._pages]
        self._wanted = missing
        self._open = {Item(Kind.HEAD, 0), *missing}
        return True

    def _advance(self) -> None:
        if self.state is State.DESCRIBING and not self._open:
            assert self._head is not None
            pages = b"".join(self._pages[index] for index in range(self._head.num_pages))
            self._pages.clear()
            self._describe(Manifest(self._blob_id, self._head, pages))

    def _describe(self, manifest: Manifest) -> None:
        self._manifest, self._head = manifest, manifest.head
        self.state = State.DESCRIBED
        self._events.append(Described(manifest))

    def _blame(self, asker: _Source, item: Item) -> None:
        self.bad_answers += 1
        asker.bad_answers += 1
        asker.wrong.add(item)
        if asker.bad_answers >= MAX_BAD_ANSWERS:
            chunk = item.number if item.kind is Kind.CHUNK else -1
            self._drop(asker, BlobCorrupt(asker.name, chunk, asker.bad_answers))
        self._give_back(item)
        self._end_if_nobody_is_left()

    # -- how it ends --------------------------------------------------------------------------------

    def _complete(self) -> None:
        self.state = State.COMPLETE
        self._events.append(Completed())

    def _end_if_nobody_is_left(self) -> None:
        errors = [source.error for source in self._sources if source.error is not None]
        # What a dropped source was asked before may still come, and be good.
        if len(errors) < len(self._sources) or any(source.asked for source in self._sources):
            return
        if self.state in (State.COMPLETE, State.FAILED) or not self._open:
            return
        self.state = State.FAILED
        self._events.append(Failed(_worst(errors, self._blob_id)))


def _worst(errors: Sequence[EdgebusError], blob_id: BlobId) -> EdgebusError:
    """The error that says most: bytes that were wrong, then what is neither that nor a plain no."""
    for error in errors:
        if isinstance(error, BlobCorrupt):
            return error
    for error in errors:
        if not isinstance(error, BlobNotFound):
            return error
    if len(errors) == 1:
        return errors[0]
    return BlobNotFound(f"none of {count(len(errors), 'peer')} has blob {blob_id}: put it into a store that is served")
