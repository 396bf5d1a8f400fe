"""Blobs over real sockets: peers that die, lie, stall and come back, disks that fill up, callers who give up."""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import edgebus
from edgebus.blobs import (
    BlobCorrupt,
    BlobFetch,
    BlobNotFound,
    BlobStore,
    BlobStoreFull,
    MemoryBlobs,
    fetch_blob,
    have_blobs,
    manifest_of,
    serve_blobs,
)
from edgebus.blobs.messages import AskChunk, AskHave, AskManifest, AskPage, decode_ask
from edgebus.blobs.serve import answer
from edgebus.payloads import encode

pytestmark = pytest.mark.net
CHUNK = 1 << 16
CHILD = Path(__file__).with_name("child_blobs.py")


def content_of(num_chunks, seed=0):
    return random.Random(seed).randbytes(num_chunks * CHUNK - 5)


@pytest.fixture
def plain():
    """A node that serves and one that asks, both plaintext, and how to link them (again)."""
    with edgebus.Node("server", insecure=True) as server, edgebus.Node("device", insecure=True) as device:
        server.endpoint = server.bind("tcp://127.0.0.1:0")
        yield server, device


class Source:
    """Serves one content by hand: counts what is asked, and answers what `twist` makes of the true answer."""

    def __init__(self, content, twist=lambda ask, right: right):
        self.blobs = MemoryBlobs()
        self.blob_id = self.blobs.put(content, chunk_bytes=CHUNK)
        self.twist = twist
        self.asks = []
        self.node = edgebus.Node("source", insecure=True)
        self.endpoint = self.node.bind("tcp://127.0.0.1:0")
        self._inbox = self.node.serve("edgebus.blob")
        self._held = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        while (request := self._inbox.get(None)) is not None:
            ask = decode_ask(request.payload)
            self.asks.append(ask)
            right = answer(self.blobs, ask)
            given = self.twist(ask, right)
            if given is None:
                self._held.append(request)  # never answered
            elif isinstance(given, str):
                request.refuse(given, "")
            else:
                request.reply(given)
            del request

    @property
    def chunks(self):
        return [ask.index for ask in self.asks if isinstance(ask, AskChunk)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._held.clear()
        self._inbox.close()
        self.node.close()
        self._thread.join(5)


@contextmanager
def within(seconds):
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


# -- what works ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 60_000, CHUNK, 10 * CHUNK - 5, 3_000_000])
def test_blob_comes_over_curve_into_a_store_and_into_memory(ring, tmp_path, size):
    content = random.Random(0).randbytes(size)
    served, own = BlobStore(tmp_path / "served"), BlobStore(tmp_path / "own")
    blob_id = served.put(content)
    with ring.server() as server, ring.device() as device, serve_blobs(server, served) as service:
        link = device.connect(server.bind("tcp://127.0.0.1:0"), ring.public("server"))
        with fetch_blob(link, blob_id, own) as blob, fetch_blob(link, blob_id) as in_memory:
            assert blob.view == in_memory.view == content
            assert (blob.path, in_memory.path) == (own.path / blob_id, None)
            assert in_memory.view.readonly
        asked = service.chunks
        fetch_blob(link, blob_id, own, timeout_s=1).close()
        assert service.chunks == asked, "what is in the store is not asked for"


def test_progress_grows_to_the_size_of_the_blob(plain):
    server, device = plain
    content, seen = content_of(5), []
    blob_id = manifest_of(content).blob_id
    with serve_blobs(server, {blob_id: content}):
        fetch_blob(device.connect(server.endpoint), blob_id, progress=lambda *args: seen.append(args)).close()
    assert seen == sorted(seen)
    assert (seen[0][0], seen[-1]) == (0, (len(content), len(content)))


def test_peer_says_which_blobs_it_has(plain, tmp_path):
    server, device = plain
    store = BlobStore(tmp_path)
    ids = [store.put(bytes([number])) for number in range(3)]
    absent = ["0" * 63 + digit for digit in "123"]
    with serve_blobs(server, store):
        link = device.connect(server.endpoint)
        assert have_blobs(link, [*ids, *absent, *ids]) == dict.fromkeys(ids, 1)
        many = [f"{number:064x}" for number in range(2000)]
        assert have_blobs(link, [*many, ids[0]]) == {ids[0]: 1}


def test_two_sources_share_the_work(plain):
    _, device = plain
    content = content_of(24)
    with Source(content) as one, Source(content) as two:
        links = [device.connect(source.endpoint) for source in (one, two)]
        with fetch_blob(links, one.blob_id, window=2) as blob:
            assert blob.view == content
        assert set(one.chunks) | set(two.chunks) == set(range(24))
        assert len(one.chunks) >= 2
        assert len(two.chunks) >= 2
        assert len(one.chunks) + len(two.chunks) <= 26, "at most one chunk each is asked for twice, at the end"


def test_fetches_of_one_blob_into_one_store_at_once_all_succeed(plain, tmp_path):
    server, device = plain
    content = content_of(30)
    source = MemoryBlobs()
    blob_id = source.put(content, chunk_bytes=CHUNK)
    store, results = BlobStore(tmp_path), []

    def fetch(link):
        with fetch_blob(link, blob_id, store) as blob:
            results.append(blob.view == content)

    with serve_blobs(server, source):
        threads = [threading.Thread(target=fetch, args=(device.connect(server.endpoint),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert results == [True] * 4
    assert store.stats().num_partials == 0


def test_service_can_be_closed_and_served_again(plain):
    server, device = plain
    content = content_of(3)
    blob_id = manifest_of(content).blob_id
    link = device.connect(server.endpoint)
    for _ in range(2):
        with serve_blobs(server, {blob_id: content}):
            fetch_blob(link, blob_id, timeout_s=5).close()
    with pytest.raises(edgebus.Refused, match="serves no blobs any more"):
        fetch_blob(link, blob_id, timeout_s=5)


def test_node_serves_blobs_once_at_a_time(plain):
    with serve_blobs(plain[0], {}), pytest.raises(edgebus.ConfigError, match="serves blobs already"):
        serve_blobs(plain[0], {})


def test_mapping_with_a_wrong_address_is_refused(plain):
    with pytest.raises(ValueError, match="has the address"):
        serve_blobs(plain[0], {"0" * 64: b"x"})


# -- peers that lie ------------------------------------------------------------------------------------


def corrupt(*chunks):
    def twist(ask, right):
        return b"\0" * len(right) if isinstance(ask, AskChunk) and ask.index in chunks else right

    return twist


def test_corrupt_chunk_of_the_only_source_is_named_and_the_rest_is_kept(plain, tmp_path):
    _, device = plain
    store, content = BlobStore(tmp_path), content_of(6)
    with Source(content, corrupt(3)) as source:
        link = device.connect(source.endpoint)
        with pytest.raises(BlobCorrupt, match=r"answered 3 times .*chunk 3.*another peer") as raised:
            fetch_blob(link, source.blob_id, store)
        assert (raised.value.peer, raised.value.chunk) == (source.endpoint, 3)
        assert source.chunks.count(3) == 3
        assert not store.has(source.blob_id)
        source.twist = corrupt()
        source.asks.clear()
        with fetch_blob(link, source.blob_id, store) as blob:
            assert blob.view == content
        assert source.chunks == [3], "the good ones were kept, and the manifest too"
        assert len(source.asks) == 1


def test_source_of_junk_is_dropped_for_a_good_one(plain, tmp_path):
    _, device = plain
    content = content_of(20)
    with Source(content, corrupt(*range(20))) as bad, Source(content) as good:
        links = [device.connect(source.endpoint) for source in (bad, good)]
        with fetch_blob(links, good.blob_id, BlobStore(tmp_path), window=2) as blob:
            assert blob.view == content
        assert len(bad.chunks) <= 3 + 2
        assert set(good.chunks) == set(range(20))


def test_lying_manifests_cost_neither_disk_nor_memory(plain, tmp_path):
    _, device = plain
    lies = [b"", b"\xc1", bytes(9000), encode(AskHave((bytes(32),))), b"\xdd\xff\xff\xff\xff"]
    for lie in lies:
        with Source(content_of(3), lambda ask, right, lie=lie: lie) as source:
            store = BlobStore(tmp_path)
            with pytest.raises(BlobCorrupt, match="its manifest"):
                fetch_blob(device.connect(source.endpoint), source.blob_id, store)
            assert [file.name for file in store.path.iterdir()] == [".lock"]


def test_address_of_an_absurdly_large_blob_is_refused_before_any_download(plain, tmp_path):
    """Whoever made the address made it for a manifest of 2**39 bytes: it proves, and is over every bound."""
    from edgebus.blobs.manifest import PAGE_HASHES, BlobId, Head, _head_hash, _page_hash
    from edgebus.blobs.messages import ManifestAnswer

    _, device = plain
    page = bytes(32 * PAGE_HASHES)
    head = Head(1 << 39, 1 << 20, _page_hash(page) * (2**19 // PAGE_HASHES))
    blob_id = BlobId(_head_hash(head.encode()).hex())

    def twist(ask, right):
        return encode(ManifestAnswer(head.encode(), page)) if isinstance(ask, AskManifest) else page

    with Source(b"", twist) as source:
        source.blobs.manifest = source.blobs.chunk = lambda *_: None
        link = device.connect(source.endpoint)
        store = BlobStore(tmp_path)
        with pytest.raises(BlobStoreFull, match="over the budget"):
            fetch_blob(link, blob_id, store)
        with pytest.raises(BlobStoreFull, match="549755813888 bytes, over the 268435456 allowed in memory"):
            fetch_blob(link, blob_id, store, if_full="memory")
        assert source.chunks == []
        assert store.stats().used_bytes == 0


def test_questions_that_are_none_are_refused_and_the_next_is_answered(plain):
    server, device = plain
    content = content_of(3)
    blob_id = manifest_of(content).blob_id
    with serve_blobs(server, {blob_id: content}):
        link = device.connect(server.endpoint)
        raw = bytes.fromhex(blob_id)
        for payload in (b"", b"\xff", b"\x93\x03", encode(AskChunk(raw, 1))[:-1], bytes(70_000), b"\x92\x03\xa1x"):
            with pytest.raises(edgebus.Refused, match="malformed"):
                link.request("edgebus.blob", payload)
        with pytest.raises(edgebus.Refused, match="no arrays"):
            link.request("edgebus.blob", encode(AskChunk(raw, 0)), [np.zeros(1 << 20, np.uint8)])
        for ask in (AskChunk(raw, 10), AskPage(raw, 1), AskChunk(bytes(32), 0), AskManifest(bytes(32))):
            with pytest.raises(edgebus.Refused, match="unknown_blob"):
                link.request("edgebus.blob", encode(ask))
        fetch_blob(link, blob_id).close()


def test_source_that_raises_is_refused_as_unreadable(plain, caplog):
    server, device = plain

    class Broken:
        def size(self, blob_id):
            raise OSError("disk gone")

        manifest = chunk = size

    with serve_blobs(server, Broken()):
        link = device.connect(server.endpoint)
        with pytest.raises(edgebus.Refused, match="unreadable"):
            fetch_blob(link, "0" * 64)
        with pytest.raises(edgebus.Refused, match="unreadable"):
            have_blobs(link, ["0" * 64])


def test_blob_that_nobody_has_is_not_found(plain, tmp_path):
    server, device = plain
    with serve_blobs(server, BlobStore(tmp_path)):
        links = [device.connect(server.endpoint) for _ in range(2)]
        with pytest.raises(BlobNotFound, match="has no blob 0000"):
            fetch_blob(links[0], "0" * 64)
        with pytest.raises(BlobNotFound, match="none of 2 peers"):
            fetch_blob(links, "0" * 64)


def test_damaged_store_of_the_server_is_said_and_the_other_one_asked(plain, tmp_path):
    server, device = plain
    content, store = content_of(6), BlobStore(tmp_path)
    blob_id = store.put(content, chunk_bytes=CHUNK)
    with open(store.path / blob_id, "r+b") as file:
        file.seek(4 * CHUNK)
        file.write(b"damage")
    with serve_blobs(server, store), Source(content) as good:
        first = device.connect(server.endpoint)
        with fetch_blob([first, device.connect(good.endpoint)], blob_id, window=1) as blob:
            assert blob.view == content


# -- time ----------------------------------------------------------------------------------------------


def never(ask, right):
    return None if isinstance(ask, AskChunk) and ask.index >= 2 else right


def test_deadline_holds_over_all_and_says_what_is_missing(plain, tmp_path):
    _, device = plain
    store = BlobStore(tmp_path)
    with Source(content_of(5), never) as source:
        link = device.connect(source.endpoint)
        with within(3), pytest.raises(edgebus.DeadlineExceeded, match=r"within 0.5 s \(3 chunks are missing"):
            fetch_blob(link, source.blob_id, store, timeout_s=0.5)
        partial = store.resume(source.blob_id)
        assert list(partial.present()) == [0, 1]
        partial.close()


def test_cancel_from_another_thread_ends_it_at_once(plain):
    _, device = plain
    with Source(content_of(5), never) as source:
        links = [device.connect(source.endpoint) for _ in range(2)]
        fetch = BlobFetch(links, source.blob_id, timeout_s=60, progress=lambda done, _: done > 0 and fetch.cancel())
        with within(5), pytest.raises(edgebus.RequestCancelled, match="was cancelled"):
            fetch.run()


def test_error_of_the_progress_function_ends_it(plain):
    _, device = plain

    def progress(done, size):
        raise KeyError("mine")

    with Source(content_of(5)) as source:
        links = [device.connect(source.endpoint) for _ in range(2)]
        with within(5), pytest.raises(KeyError, match="mine"):
            fetch_blob(links, source.blob_id, progress=progress)


def test_source_that_stalls_is_outrun_by_the_other(plain):
    _, device = plain
    content = content_of(12)
    with Source(content, never) as stalled, Source(content) as good:
        links = [device.connect(source.endpoint) for source in (stalled, good)]
        with within(10), fetch_blob(links, good.blob_id, window=3, timeout_s=60) as blob:
            assert blob.view == content
        assert len(stalled.chunks) <= 5


def test_busy_source_is_asked_again_a_little_later(plain):
    _, device = plain
    content, refused = content_of(4), []

    def busy(ask, right):
        if len(refused) < 3:
            refused.append(ask)
            return "busy"
        return right

    with Source(content, busy) as source, fetch_blob(device.connect(source.endpoint), source.blob_id) as blob:
        assert blob.view == content


def test_closed_link_is_left_for_the_other(plain):
    _, device = plain
    content = content_of(4)
    with Source(content) as source:
        closed, link = device.connect(source.endpoint), device.connect(source.endpoint)
        closed.close()
        with fetch_blob([closed, link], source.blob_id, timeout_s=20) as blob:
            assert blob.view == content


# -- disks ---------------------------------------------------------------------------------------------


def test_blob_over_the_budget_is_refused_or_comes_into_memory(plain, tmp_path):
    _, device = plain
    content = content_of(4)
    store = BlobStore(tmp_path, budget_bytes=2 * CHUNK)
    with Source(content) as source:
        link = device.connect(source.endpoint)
        with pytest.raises(BlobStoreFull, match=f"over the budget of {2 * CHUNK}"):
            fetch_blob(link, source.blob_id, store)
        assert source.chunks == []
        with fetch_blob(link, source.blob_id, store, if_full="memory") as blob:
            assert (blob.view, blob.path) == (content, None)


@pytest.mark.parametrize("if_full", ["raise", "memory"])
def test_disk_that_fills_up_in_the_middle(plain, tmp_path, monkeypatch, if_full):
    _, device = plain
    content, store, real, written = content_of(6), BlobStore(tmp_path), os.pwrite, []

    def pwrite(fd, data, offset):
        written.append(offset)
        if len(written) > 3:
            real(fd, data[:100], offset)
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data, offset)

    with Source(content) as source:
        link = device.connect(source.endpoint)
        monkeypatch.setattr("edgebus.blobs.partial.os.pwrite", pwrite)
        if if_full == "raise":
            with pytest.raises(BlobStoreFull, match="is full"):
                fetch_blob(link, source.blob_id, store)
        else:
            with fetch_blob(link, source.blob_id, store, if_full="memory") as blob:
                assert (blob.view, blob.path) == (content, None)
            assert sorted(source.chunks) == list(range(6)), "nothing was fetched twice"
        monkeypatch.undo()
        assert not store.has(source.blob_id)
        fetch = BlobFetch([link], source.blob_id, store)
        with fetch.run() as blob:
            assert blob.view == content
        assert fetch.fetched_bytes == len(content) - 3 * CHUNK, "only what was missing"


# -- processes -----------------------------------------------------------------------------------------


def test_fetch_after_a_kill_asks_for_the_missing_chunks_only(plain, tmp_path, blob_children):
    _, device = plain
    content = content_of(40)
    reached, go_on = threading.Event(), threading.Event()

    def gate(ask, right):
        if isinstance(ask, AskChunk) and ask.index == 15 and not go_on.is_set():
            reached.set()
            return None
        return right

    with Source(content, gate) as source:
        child = blob_children("fetch", tmp_path, source.endpoint, source.blob_id)
        assert reached.wait(20), "it asks for one chunk at a time, the sixteenth never comes"
        child.send_signal(signal.SIGKILL)
        child.wait(5)
        go_on.set()
        first, store = len(source.asks), BlobStore(tmp_path)
        fetch = BlobFetch([device.connect(source.endpoint)], source.blob_id, store)
        with fetch.run() as blob:
            assert blob.view == content
        again = source.asks[first:]
        assert [ask.index for ask in again] == list(range(15, 40)), "not even the manifest is asked for again"
        assert fetch.fetched_bytes == len(content) - 15 * CHUNK
        assert store.stats().num_partials == 0


def test_server_killed_in_the_middle_and_restarted_ends_the_same_fetch(plain, tmp_path, blob_children):
    _, device = plain
    content = content_of(40)
    served = BlobStore(tmp_path / "served")
    blob_id = served.put(content, chunk_bytes=CHUNK)
    first = blob_children("serve", served.path, "tcp://127.0.0.1:0")
    endpoint = first.stdout.readline().strip()
    killed = []

    def progress(done, _):
        if done > 10 * CHUNK and not killed:
            first.kill()
            first.wait(5)
            killed.append(blob_children("serve", served.path, endpoint))

    with within(30), fetch_blob(device.connect(endpoint), blob_id, BlobStore(tmp_path / "own"), progress=progress) as b:
        assert b.view == content
    assert killed


def test_one_peer_cannot_fill_the_line_of_questions(plain):
    """Its worker stuck on a disk: one key gets half of the places, the rest stay for others."""
    server, device = plain
    release, entered = threading.Event(), threading.Event()

    class Stuck(MemoryBlobs):
        def manifest(self, blob_id):
            entered.set()
            assert release.wait(10)
            return super().manifest(blob_id)

    source = Stuck()
    ask = encode(AskManifest(bytes.fromhex(source.put(b"x"))))
    with serve_blobs(server, source, depth=4), edgebus.Node("other", insecure=True) as other:
        greedy, modest = device.connect(server.endpoint), other.connect(server.endpoint)
        pending = [greedy.send_request("edgebus.blob", ask)]
        assert entered.wait(5)
        pending += [greedy.send_request("edgebus.blob", ask) for _ in range(5)]
        for refused in pending[3:]:
            with pytest.raises(edgebus.Refused, match="busy"):
                refused.result()
        pending[3:] = [modest.send_request("edgebus.blob", ask)]
        assert modest.request("edgebus.ping", b"x").payload == b"x", "the node itself goes on"
        release.set()
        assert all(b"x" in each.result().payload for each in pending)
