"""Many small blobs over real sockets: few questions, exact bytes, and peers that are old, busy or lie."""

from __future__ import annotations

import random
import threading
import time

import pytest

import edgebus
from edgebus.blobs import (
    BlobCorrupt,
    BlobNotFound,
    BlobStore,
    BlobStoreFull,
    MemoryBlobs,
    fetch_blobs,
    framing_bytes,
    manifest_of,
    serve_blobs,
)
from edgebus.blobs.messages import AskContents, AskManifest, decode_ask, encode_contents
from edgebus.blobs.serve import answer
from edgebus.testing import Proxy

pytestmark = pytest.mark.net
MIB = 1 << 20


class Source:
    """Serves blobs by hand: keeps the questions, and answers what `twist` makes of the true answer."""

    def __init__(self, contents, twist=lambda ask, right: right):
        self.blobs = MemoryBlobs()
        self.contents = {self.blobs.put(content): content for content in contents}
        self.twist, self.asks = twist, []
        self.node = edgebus.Node("source", insecure=True)
        self.endpoint = self.node.bind("tcp://127.0.0.1:0")
        self._inbox = self.node.serve("edgebus.blob")
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        while (request := self._inbox.get(None)) is not None:
            ask = decode_ask(request.payload)
            self.asks.append(ask)
            given = self.twist(ask, answer(self.blobs, ask))
            if isinstance(given, str):
                request.refuse(given, "")
            elif given is None:
                request.refuse("unknown_blob", "")
            else:
                request.reply(given)
            del request

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._inbox.close()
        self.node.close()
        self._thread.join(5)


@pytest.fixture
def device():
    with edgebus.Node("device", insecure=True) as node:
        yield node


def contents(sizes, seed=0):
    chance = random.Random(seed)
    return [chance.randbytes(size) for size in sizes]


def fetched(link, source, store=None, **more):
    blobs = fetch_blobs(link, source.contents, store, **{"timeout_s": 20, **more})
    assert {blob_id: blob.tobytes() for blob_id, blob in blobs.items()} == source.contents
    return blobs


@pytest.mark.parametrize("sizes", [[], [0], [500] * 150, [MIB], [MIB + 1, 2 * MIB + 5, 3], [700_000] * 5])
def test_blobs_come_with_exactly_the_bytes_announced(device, tmp_path, sizes):
    with Source(contents(sizes)) as source:
        link = device.connect(source.endpoint)
        before = link.stats().content_bytes_received
        fetched(link, source, BlobStore(tmp_path))
        moved = link.stats().content_bytes_received - before
        assert moved == sum(len(content) + framing_bytes(len(content)) for content in source.contents.values())
        asked = len(source.asks)
        fetched(link, source, BlobStore(tmp_path))
        fetched(link, source, None)
        assert len(source.asks) >= asked, "what is in the store is not asked for"


def test_a_hundred_and_fifty_small_blobs_take_a_handful_of_questions(device):
    with Source(contents([2000] * 150)) as source:
        fetched(device.connect(source.endpoint), source)
        assert {len(ask.blobs) for ask in source.asks[:4]} == {36, 38}
        assert len(source.asks) <= 14  # an answer has 64 of them: 128 KiB at most


def test_round_trips_do_not_add_up(device):
    """20 ms each way: one by one, 150 blobs would take 6 s."""
    with Source(contents([2000] * 150)) as source, Proxy(source.endpoint) as proxy:
        proxy.delay_s = 0.02
        link = device.connect(proxy.endpoint)
        began = time.monotonic()
        fetched(link, source)
        assert 0.04 <= time.monotonic() - began < 3.0


def test_an_answer_has_as_many_as_fit_and_the_rest_is_asked_again(device):
    with Source(contents([48_000] * 7)) as source:
        fetched(device.connect(source.endpoint), source, window=1)
        assert [len(ask.blobs) for ask in source.asks] == [7, 5, 3, 1]


def test_what_is_there_is_not_asked_for_and_what_is_spoiled_is(device, tmp_path):
    store = BlobStore(tmp_path)
    with Source(contents([100, 200, 300])) as source:
        link = device.connect(source.endpoint)
        first, *_ = fetched(link, source, store)
        (tmp_path / first).write_bytes(b"x" * 100)
        source.asks.clear()
        fetched(link, source, store)
        assert [blob.hex() for ask in source.asks for blob in ask.blobs] == [first]
        assert store.stats().num_partials == 0


def test_chunks_of_another_size_come_the_long_way(device):
    with Source([b"first"]) as source:
        other = source.blobs.put(b"second", chunk_bytes=4096)
        source.contents[other] = b"second"
        fetched(device.connect(source.endpoint), source)
        assert [type(ask) for ask in source.asks].count(AskManifest) == 1


def test_an_older_peer_is_asked_one_by_one(device):
    def older(ask, right):
        return "malformed" if isinstance(ask, AskContents) else right

    with Source(contents([10, 20, MIB + 1]), older) as source:
        fetched(device.connect(source.endpoint), source)


def test_a_busy_peer_is_asked_again(device):
    left = [2]

    def busy(ask, right):
        left[0] -= 1
        return "busy" if left[0] >= 0 else right

    with Source(contents([10, 20]), busy) as source:
        fetched(device.connect(source.endpoint), source)


@pytest.mark.parametrize("lie", [encode_contents([b"lie"]), b"", b"\5\0\0\0", encode_contents([None])])
def test_what_does_not_prove_is_asked_the_long_way(device, lie):
    def twist(ask, right):
        return lie if isinstance(ask, AskContents) else right

    with Source([b"truth"], twist) as source:
        fetched(device.connect(source.endpoint), source)


def test_a_peer_that_always_lies_is_blamed_and_nothing_of_it_is_kept(device, tmp_path):
    def twist(ask, right):
        return right[:-1] + bytes([right[-1] ^ 1])

    store = BlobStore(tmp_path)
    with Source([b"truth"], twist) as source, pytest.raises(BlobCorrupt, match="3 times"):
        fetched(device.connect(source.endpoint), source, store)
    assert store.ids() == []


def test_what_nobody_has_is_named_and_the_others_are_kept(device, tmp_path):
    store = BlobStore(tmp_path)
    with Source(contents([10, 20])) as source:
        source.contents[manifest_of(b"absent").blob_id] = b"absent"
        with pytest.raises(BlobNotFound):
            fetched(device.connect(source.endpoint), source, store)
    assert len(store.ids()) == 2


@pytest.mark.parametrize("sizes", [[600, 600], [MIB + 1]])
def test_more_than_allowed_is_refused(device, tmp_path, sizes):
    store = BlobStore(tmp_path)
    with Source(contents(sizes)) as source, pytest.raises(BlobStoreFull, match="max_bytes"):
        fetched(device.connect(source.endpoint), source, store, max_bytes=1000)
    assert store.stats().num_partials == 0


def test_a_link_that_is_cut_costs_what_was_on_its_way(device, tmp_path):
    with Source(contents([40_000] * 12)) as source, Proxy(source.endpoint) as proxy:
        link = device.connect(proxy.endpoint)
        seen = []

        def cut(ask, right):
            seen.append(ask)
            if len(seen) == 2:
                proxy.cut()
            return right

        source.twist = cut
        fetched(link, source, BlobStore(tmp_path), window=1)
        assert len(seen) < 12


def test_a_peer_that_is_silent_is_not_waited_for_forever(device):
    held = threading.Event()

    def silent(ask, right):
        held.wait(6.0)
        return right

    with Source([b"late"], silent) as source:
        began = time.monotonic()
        with pytest.raises(edgebus.DeadlineExceeded):
            fetched(device.connect(source.endpoint), source, timeout_s=0.2)
        waited_s = time.monotonic() - began
        held.set()
        assert waited_s < 2.5


def test_several_peers_share_the_work_and_stand_in_for_each_other(device):
    def busy(ask, right):
        return "busy" if isinstance(ask, AskContents) else right

    sizes = [2000] * 40
    with Source(contents(sizes)) as one, Source(contents(sizes)) as two, Source(contents(sizes[:3]), busy) as poor:
        links = [device.connect(source.endpoint) for source in (one, two, poor)]
        fetched(links[:2], one)
        assert len(one.asks) == len(two.asks) == 4
        fetched(links, one)
        assert poor.asks


def test_what_came_before_it_ended_badly_is_kept(device, tmp_path):
    def twist(ask, right):
        return right if isinstance(ask, AskContents) and len(source.asks) < 3 else None

    store = BlobStore(tmp_path)
    with Source(contents([600_000] * 4), twist) as source:
        link = device.connect(source.endpoint)
        with pytest.raises(BlobNotFound):
            fetched(link, source, store, window=1)
    assert len(store.ids()) == 2


def test_server_counts_and_refuses_as_ever(device, tmp_path):
    with edgebus.Node("server", insecure=True) as server, serve_blobs(server, BlobStore(tmp_path)):
        link = device.connect(server.bind("tcp://127.0.0.1:0"))
        with pytest.raises(BlobNotFound):
            fetch_blobs(link, ["0" * 64], timeout_s=5)
        assert fetch_blobs(link, [], timeout_s=5) == {}
