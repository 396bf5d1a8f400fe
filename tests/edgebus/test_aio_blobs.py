"""Blobs on the asyncio face: a task that is cancelled anywhere in a fetch leaves nothing, and the next one goes on."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import threading
import time
from types import SimpleNamespace

import pytest

import edgebus
from edgebus import aio
from edgebus.aio import fetching
from edgebus.blobs import BlobStore, fetch_blob
from edgebus.blobs.disk import Sort
from tests.edgebus.test_blobs_net import CHUNK, Source, content_of

pytestmark = pytest.mark.net
NUM_CHUNKS = 6
CONTENT = content_of(NUM_CHUNKS)
NUM_ASKS = 1 + NUM_CHUNKS


class Trigger:
    """Cancels the task at a question that a source hears, and holds answers back from then on, or at a chunk kept."""

    def __init__(self):
        self.reset()

    def reset(self, asks=0, kept=0, *, is_held=False):
        self.left = {"ask": asks, "kept": kept}
        self.is_held, self.is_over = is_held, False
        self.task, self.at_hand = None, []

    def arm(self, task):
        self.task, self.loop = task, asyncio.get_running_loop()

    def step(self, what):
        """Whether an answer is held back."""
        if self.left[what]:
            self.left[what] -= 1
            if not self.left[what]:
                self.is_over = True
                self.loop.call_soon_threadsafe(self.task.cancel)
        return self.is_held and self.is_over

    def twist(self, ask, right):
        return None if self.step("ask") else right or "unknown_blob"

    def progress(self, done, size):
        self.at_hand.append(done)
        self.step("kept")


class World:
    """Sources of one blob, links to them, and where it is kept."""

    def __init__(self, sources, links, trigger, store):
        self.sources, self.links, self.trigger, self.store = sources, links, trigger, store
        self.blob_id = sources[0].blob_id

    def fetch(self):
        links = self.links[0] if len(self.links) == 1 else self.links
        return aio.fetch_blob(links, self.blob_id, self.store, timeout_s=20, progress=self.trigger.progress)

    async def cancelled(self, **point):
        """Cancel a fetch at a point; nothing of it is left when the task has ended."""
        before = descriptors()
        self.trigger.reset(**point)
        task = asyncio.create_task(self.fetch())
        self.trigger.arm(task)
        began = time.monotonic()
        await asyncio.wait([task])
        assert time.monotonic() - began < 5
        if self.trigger.is_held:
            assert task.cancelled(), f"{point}: {task}"
        elif not task.cancelled():  # it was quicker
            task.result().close()
        await gone("edgebus-aio")  # it has nothing left to do but to end
        assert [each.name for each in threading.enumerate() if each.name.startswith("edgebus-fetch")] == []
        for link in self.links:
            stats = link.stats()
            assert (stats.outstanding, stats.bytes_outstanding) == (0, 0), point
            assert stats.started == stats.answered + stats.cancelled, point
        await as_before(before, point)
        if self.store is not None:
            names = {path.name.removeprefix(self.blob_id) for path in self.store.path.iterdir()}
            assert names <= {Sort.WHOLE.value, Sort.PART.value, Sort.MANIFEST.value, ".lock"}, point
            if Sort.WHOLE.value in names:  # it came all the same
                assert not self.trigger.is_held, point
                self.store.delete(self.blob_id)

    async def goes_on(self):
        """The next fetch, over the same links, asks for what is missing."""
        self.trigger.reset()
        kept = 0
        if self.store is not None and (partial := self.store.resume(self.blob_id)) is not None:
            kept = len(list(partial.present()))
            partial.close()
        with await self.fetch() as blob:
            assert blob.view == CONTENT
        assert self.trigger.at_hand[0] == max(0, len(CONTENT) - (NUM_CHUNKS - kept) * CHUNK)
        if self.store is not None:
            assert self.store.delete(self.blob_id)


def descriptors():
    return sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if is_open(fd))


async def as_before(before, point):
    """The node's threads may have one open for a moment; what a fetch has left stays."""
    until = time.monotonic() + 2
    while descriptors() != before:
        assert time.monotonic() < until, f"{point}: {descriptors()}, before {before}"
        await asyncio.sleep(0.005)


def is_open(fd):
    return os.path.lexists(f"/proc/self/fd/{fd}")


async def gone(name):
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join(2)
            assert not thread.is_alive(), f"{thread} goes on"


@contextlib.asynccontextmanager
async def worlds(store, num_sources=1):
    trigger = Trigger()
    with contextlib.ExitStack() as stack:
        sources = [stack.enter_context(Source(CONTENT, trigger.twist)) for _ in range(num_sources)]
        node = aio.Node("device", insecure=True)
        try:
            yield World(sources, [await node.connect(source.endpoint) for source in sources], trigger, store)
        finally:
            began = time.monotonic()
            await node.close()
        assert time.monotonic() - began < 3
        for source in sources:
            assert all(request.remaining_s() == 0 for request in source._held), "the server was not told"


@pytest.mark.parametrize("num_sources", [1, 2])
@pytest.mark.parametrize("where", ["store", "memory"])
def test_task_that_is_cancelled_anywhere_in_a_fetch_leaves_nothing_and_the_next_goes_on(tmp_path, where, num_sources):
    async def main():
        async with worlds(BlobStore(tmp_path) if where == "store" else None, num_sources) as world:
            await world.goes_on()  # what is loaded at the first use is loaded
            for number in range(1, NUM_ASKS + 1):
                await world.cancelled(asks=number, is_held=True)
                await world.goes_on()
            for number in range(1, NUM_CHUNKS + 1):
                await world.cancelled(kept=number)
                await world.goes_on()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_task_that_is_cancelled_as_it_begins_leaves_nothing_either(tmp_path):
    async def main():
        async with worlds(BlobStore(tmp_path)) as world:
            await world.goes_on()
            asked = len(world.sources[0].asks)
            for num_turns in range(2):
                task = asyncio.create_task(world.fetch())
                for _ in range(num_turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                assert task.cancelled()
                assert num_turns or len(world.sources[0].asks) == asked
                await gone("edgebus-aio")
            await world.goes_on()

    asyncio.run(asyncio.wait_for(main(), 60))


class FakeFetch:
    """Brings its blob when it is told to, whoever has cancelled it."""

    def __init__(self, links, *_, **options):
        assert (links, options["timeout_s"]) == (["plain link"], 600.0)
        self.go_on, self.was_cancelled, self.closed = threading.Event(), threading.Event(), threading.Event()
        FakeFetch.made = self

    def run(self):
        assert self.go_on.wait(10)
        return self

    def cancel(self):
        self.was_cancelled.set()

    def close(self):
        self.closed.set()


@pytest.mark.parametrize("times", [1, 2])
def test_blob_that_comes_all_the_same_is_closed(monkeypatch, times):
    """Cancelled once, the task waits for the end of the fetch; cancelled again, it does not."""
    monkeypatch.setattr(fetching, "BlobFetch", FakeFetch)

    async def main():
        task = asyncio.create_task(aio.fetch_blob([SimpleNamespace(sync="plain link")], "id"))
        for _ in range(times):
            await asyncio.sleep(0.01)
            task.cancel()
        await asyncio.sleep(0.01)
        fetch = FakeFetch.made
        assert (fetch.was_cancelled.is_set(), fetch.closed.is_set(), task.done()) == (True, False, times == 2)
        fetch.go_on.set()
        await asyncio.wait([task])
        assert task.cancelled()
        while not fetch.closed.is_set():
            await asyncio.sleep(0.001)
        await gone("edgebus-aio")

    asyncio.run(asyncio.wait_for(main(), 10))


def test_a_fetch_takes_the_same_and_raises_the_same_on_both_faces(tmp_path):
    both = [inspect.signature(each) for each in (fetch_blob, aio.fetch_blob)]
    assert [(each.name, each.default) for each in both[0].parameters.values()] == [
        (each.name, each.default) for each in both[1].parameters.values()
    ]

    async def main():
        async with worlds(None) as world:
            with pytest.raises(edgebus.blobs.BlobNotFound):
                await aio.fetch_blob(world.links[0], "0" * 64)
            with pytest.raises(ValueError, match="needs a link"):
                await aio.fetch_blob([], world.blob_id)
            world.trigger.reset(asks=2, is_held=True)
            world.trigger.arm(asyncio.create_task(asyncio.sleep(0)))  # not the one that fetches
            with pytest.raises(edgebus.DeadlineExceeded, match="did not come within"):
                await aio.fetch_blob(world.links[0], world.blob_id, timeout_s=0.2)

    asyncio.run(asyncio.wait_for(main(), 30))
