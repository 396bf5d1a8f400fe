"""What travels to a device, over real sockets: increments, deltas, exact bytes, few round trips, signatures."""

from __future__ import annotations

import tracemalloc

import msgspec
import numpy as np
import pytest

from edgebus.blobs import BlobStore, framing_bytes, serve
from edgebus.blobs.messages import AskContents
from edgebus.testing import Proxy
from qpart.errors import SegmentRejected
from qpart.head import Head
from qpart.messages import Chosen, Segment
from qpart.patterns import evaluate
from qpart.pieces import address_of
from qpart.profile import Channel, DeviceProfile, Request
from qpart.run.published import Published
from qpart.signing import generate_signing_key, load_signer
from tests.qpart.serving import Served
from tests.qpart.wide import made_up, served

pytestmark = pytest.mark.net

WHOLE = Request(
    accuracy=0.1,
    device=DeviceProfile(macs_per_s=1e12, joules_per_mac=0, memory_bytes=1 << 28),
    channel=Channel(up_bits_per_s=1.0, down_bits_per_s=1e9),
    inferences=10**9,
)
"""For which the device runs everything."""


def asked(accuracy):
    return msgspec.structs.replace(WHOLE, accuracy=accuracy)


@pytest.fixture(scope="module")
def net():
    """Layers of 4096, 2560 and 120 codes: 7, 4 and 1 pieces."""
    return made_up((64, 64, 40, 3))


@pytest.fixture
def home(tmp_path):
    return Served(tmp_path)


def loaded(device, request):
    """Prepare, check the bytes, and return the pattern and all weights."""
    before = device.traffic.download_bytes, device.traffic.planned_download_bytes
    pattern = device.prepare(request).plan.pattern
    sent = device.traffic.download_bytes - before[0]
    assert sent == device.traffic.planned_download_bytes - before[1] == pattern.download_bytes
    nodes = [i for i, node in enumerate(device.head.segment.nodes) if node.op.weight_shape is not None]
    return pattern, [device.head._parameters(node).weight for node in nodes]


def test_more_bits_are_increments_and_equal_a_full_download_bit_for_bit(home, net):
    with home.serving(models=[served(net)]) as endpoint:
        with home.device(endpoint) as device:
            few, _ = loaded(device, asked(0.5))
            many, delta = loaded(device, asked(0.01))
            again, _ = loaded(device, asked(0.01))
            back, coarse = loaded(device, asked(0.5))
        with home.device(endpoint, cache="other") as device:
            full, fresh = loaded(device, asked(0.01))
    assert few.weight_bits < many.weight_bits == full.weight_bits == again.weight_bits
    assert max(many.weight_bits[:2]) < 16
    assert all(np.array_equal(*pair) for pair in zip(delta, fresh, strict=True))
    assert many.segment_bytes == full.download_bytes == full.segment_bytes
    held = few.segment_bytes - again.download_bytes
    assert many.download_bytes < full.download_bytes - 0.9 * held
    described = net.tables.manifest_bytes[full.cut]
    assert described < again.download_bytes < described + 32 * 8 * 3
    assert back.weight_bits == few.weight_bits
    assert back.download_bytes <= again.download_bytes, "what is cached serves fewer bits too"
    assert [w.shape for w in coarse] == [w.shape for w in fresh]


def test_what_a_device_holds_is_within_what_was_planned(home, net):
    with home.serving(models=[served(net)]) as endpoint, home.device(endpoint) as device:
        for accuracy in (0.5, 0.1, 0.01, 0.002):
            pattern, _ = loaded(device, asked(accuracy))
            tables = net.tables
            planned = pattern.device_bytes - 4 * tables.device_items[pattern.cut] - tables.manifest_bytes[pattern.cut]
            assert 0.8 * planned < device.head.held_bytes <= planned


def test_putting_a_head_together_takes_less_than_was_planned_for_it():
    """Planes and codes of one layer at a time, on top of the pieces, which go as their layers are made."""
    wide = made_up((256, 256, 256, 256, 3))
    published, tables = Published(wide), wide.tables
    cut = wide.network.num_nodes
    raw = published.segment(Chosen(wide.model_id, cut, (8,) * 4, ()))
    segment = msgspec.msgpack.decode(raw, type=Segment)
    pieces = {address: bytes(bytearray(content)) for address, content in published.pieces(segment).items()}
    fetched = sum(map(len, pieces.values()))
    pattern = evaluate(tables, cut, (8,) * 4, ())
    tracemalloc.start()
    try:
        copies = {address: bytes(bytearray(content)) for address, content in pieces.items()}
        pieces.clear()
        head = Head(segment, copies)
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert not copies
    assert fetched < peak <= pattern.device_bytes
    assert head.held_bytes <= now < head.held_bytes + 50_000


def test_a_head_is_not_changed_by_the_cache_it_came_from(home, net):
    """Cached pieces are mapped files: what becomes of them later is nothing to what was checked and runs."""
    with home.serving(models=[served(net)]) as endpoint:
        with home.device(endpoint) as device:
            loaded(device, asked(1e-7))
        with home.device(endpoint) as device:
            pattern, before = loaded(device, asked(1e-7))
            assert 16 in pattern.weight_bits
            for path in (home.directory / "cache").iterdir():
                if len(path.name) == 64:
                    with path.open("r+b") as file:  # in place, where mappings show it; truncated, it would be a SIGBUS
                        file.write(bytes(path.stat().st_size))
            after = [device.head._parameters(node).weight for node in net.network.parametric]
    assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))


def test_pieces_over_a_mebibyte_and_under_are_counted_to_the_byte(home):
    big = made_up((1100, 600, 3))  # 660,000 weights: 1.3 MB in float16
    node = big.network.parametric[0]
    assert big.tables.piece_bytes[node][-1] > 1 << 20
    assert framing_bytes(big.tables.piece_bytes[node][-1]) > 100
    with home.serving(models=[served(big)]) as endpoint, home.device(endpoint) as device:
        pattern, _ = loaded(device, asked(0.1))
        assert pattern.weight_bits[0] < 8
        pattern, _ = loaded(device, asked(1e-7))
        assert pattern.weight_bits[0] == 16
        pattern, _ = loaded(device, asked(0.1))
        assert pattern.weight_bits[0] == 16, "what is there is better and costs nothing"


def test_fifty_layers_take_a_handful_of_round_trips(home, monkeypatch):
    """150 pieces and more behind 20 ms each way are asked for four questions at once, not one by one."""
    deep, questions = made_up((64,) * 50 + (4,)), []
    real = serve.answer

    def answer(source, ask):
        questions.append(ask)
        return real(source, ask)

    monkeypatch.setattr(serve, "answer", answer)
    with home.serving(models=[served(deep)]) as endpoint, Proxy(endpoint) as proxy:
        proxy.delay_s = 0.02
        with home.device(proxy.endpoint) as device:
            pattern, _ = loaded(device, asked(0.1))
    num_pieces = sum(len(ask.blobs) for ask in questions)
    assert len(pattern.weight_bits) == 50
    assert num_pieces > 150
    assert {type(ask) for ask in questions} == {AskContents}
    assert len(questions) <= 14  # answers of 128 KiB


def test_a_link_that_is_cut_meanwhile_costs_no_piece_that_came(home, monkeypatch):
    deep, asks = made_up((64,) * 20 + (4,)), []
    real = serve.answer
    with home.serving(models=[served(deep)]) as endpoint, Proxy(endpoint) as proxy:

        def answer(source, ask):
            asks.append(ask)
            if len(asks) == 3:
                proxy.cut()
            return real(source, ask)

        monkeypatch.setattr(serve, "answer", answer)
        with home.device(proxy.endpoint, timeout_s=20) as device:
            device.prepare(asked(0.1))
            first = device.traffic.download_bytes
        with home.device(endpoint) as device:
            pattern, _ = loaded(device, asked(0.1))
    assert pattern.download_bytes < first / 2


@pytest.mark.parametrize("what", ["same", "unsigned", "other"])
def test_only_the_pinned_publisher_runs_here(home, net, tmp_path, what):
    pytest.importorskip("nacl")
    for name in ("one", "two"):
        generate_signing_key(tmp_path / name)
    signer = {"same": load_signer(tmp_path / "one"), "other": load_signer(tmp_path / "two"), "unsigned": None}[what]
    with home.serving(models=[served(net, sign=signer)]) as endpoint:
        with home.device(endpoint, publisher=tmp_path / "one" / "publisher.key") as device:
            if what == "same":
                loaded(device, WHOLE)
            else:
                with pytest.raises(SegmentRejected, match="--sign" if what == "unsigned" else "not signed by"):
                    device.prepare(WHOLE)
                assert device.traffic.download_bytes == 0
        with home.device(endpoint) as device:
            loaded(device, WHOLE)


class Altered(Published):
    """Ships a segment that was changed on the way, with the right hash."""

    def __init__(self, artefact, change):
        super().__init__(artefact)
        self._change = change

    def segment(self, chosen):
        segment = msgspec.msgpack.decode(super().segment(chosen), type=Segment)
        return msgspec.msgpack.encode(self._change(segment))


def replaced(**changes):
    return lambda segment: msgspec.structs.replace(segment, **{k: v(segment) for k, v in changes.items()})


@pytest.mark.parametrize(
    "change",
    [
        replaced(pieces=lambda s: (s.pieces[0][32:] + s.pieces[0][:32], *s.pieces[1:])),
        replaced(pieces=lambda s: (s.pieces[0][:32] * (len(s.pieces[0]) // 32), *s.pieces[1:])),
        replaced(pieces=lambda s: (s.pieces[1], s.pieces[0], *s.pieces[2:])),
        replaced(pieces=lambda s: s.pieces * 1000),
        replaced(pieces=lambda s: (b"", *s.pieces[1:])),
        replaced(weight_bits=lambda s: tuple(b - 1 for b in s.weight_bits)),
        replaced(weight_bits=lambda s: (9, *s.weight_bits[1:])),
    ],
    ids=["order", "twice", "another's", "thousands", "none", "fewer bits", "nine bits"],
)
def test_segments_that_mix_pieces_up_are_rejected_and_nothing_runs(home, net, change):
    model = served(net)
    model.published = Altered(net, change)
    with home.serving(models=[model]) as endpoint, home.device(endpoint) as device:
        with pytest.raises(SegmentRejected):
            device.prepare(WHOLE)
        assert device.head is None


def test_a_piece_larger_than_its_layer_is_not_taken_in(home, net):
    """The address is right and so is the content, but the layer has no use for half a mebibyte."""
    model, giant = served(net), bytes(1 << 19)

    class Giant(Altered):
        def blob_ids(self):
            return [*super().blob_ids(), address_of(giant).hex()]

        def _find(self, blob_id):
            from edgebus.blobs import manifest_of

            return (manifest_of(giant), giant) if blob_id == address_of(giant).hex() else super()._find(blob_id)

    model.published = Giant(net, replaced(pieces=lambda s: (address_of(giant) + s.pieces[0][32:], *s.pieces[1:])))
    model.published._places[address_of(giant).hex()] = (0, 2)
    with home.serving(models=[model]) as endpoint, home.device(endpoint) as device:
        with pytest.raises(SegmentRejected, match="larger than their layers"):
            device.prepare(WHOLE)
        assert device.head is None
    assert address_of(giant).hex() not in BlobStore(home.directory / "cache").ids()
