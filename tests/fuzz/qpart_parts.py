"""What qpart reads: segments and pieces from a server, questions and activations from a device, models from a file."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from math import prod
from pathlib import Path

import numpy as np

from edgebus.payloads import decode, encode
from qpart.artefact import Trial, load, save
from qpart.datasets import load_data
from qpart.errors import ArtefactError, Infeasible, RequestError, SegmentRejected, ShapeMismatch
from qpart.head import Head
from qpart.messages import Ask, Chosen, Infer, Live, ModelInfo, Segment, segment_of
from qpart.network import INPUT, Parameters, infer_shapes, showing_input
from qpart.noise import law_of
from qpart.ops import Linear
from qpart.pieces import Layer, encode_pieces, steps_to
from qpart.profile import Channel, DeviceProfile, Request
from qpart.run.published import Published
from qpart.run.served import ServedModel
from qpart.segment import inspect
from qpart.sizes import peak_items
from qpart.tables import WIDTHS
from tests.fuzz.model_files import on_disk
from tests.fuzz.source import join_frames, split_frames
from tests.qpart.random_nets import random_network
from tests.qpart.wide import made_up, served

MEMORY_BYTES = 1 << 16
REQUEST = Request(
    accuracy=0.1,
    device=DeviceProfile(macs_per_s=1e9, joules_per_mac=0, memory_bytes=MEMORY_BYTES),
    channel=Channel(up_bits_per_s=1e6, down_bits_per_s=1e6),
)
LAYERS = (Linear(6, 4), Linear(32, 130), Linear(5, 3, False))


def networks(data: bytes) -> None:
    """What a server says that a device should run: refused, or of shapes and memory that can be told beforehand."""
    try:
        found = decode(Segment, data)
        shapes = infer_shapes({INPUT: found.input_shape}, found.nodes)
    except ValueError:  # a shape that cannot be is one as well
        return
    assert len(shapes) == len(showing_input(found.nodes)) == len(found.nodes) + 1
    assert peak_items(found.nodes, shapes, [len(found.nodes)]) < 1 << 44
    assert encode(decode(Segment, encode(found))) == encode(found)


def network_seeds() -> Iterator[bytes]:
    """Random networks of all operations."""
    for seed in range(40, 60):
        net = random_network(seed, 12)
        bits, pieces = (4,) * len(net.parametric), tuple(bytes(32) for _ in net.parametric)
        yield encode(segment_of(net, bytes(16), net.num_nodes, bits, pieces, (Live(net.num_nodes, 4, 0.5, 0.0),)))


def segments(data: bytes) -> None:
    """A segment that says of itself what the plan said: within its memory, or refused; no piece of zeros is run."""
    try:
        segment = decode(Segment, data)
    except ValueError:
        return
    live_bits = tuple(live.bits for live in segment.live)
    chosen = Chosen(segment.model_id, len(segment.nodes), segment.weight_bits, live_bits)
    num_nodes = len(segment.nodes) + bool(live_bits)
    try:
        model = ModelInfo("fuzz", segment.model_id, segment.input_shape, 4, num_nodes, ())
        sizes = inspect(segment, chosen, model, REQUEST)
    except SegmentRejected:
        return
    assert sum(sizes.values()) <= MEMORY_BYTES
    pieces = {address: bytes(size) for address, size in sizes.items()}
    try:
        Head(segment, pieces)
    except SegmentRejected:
        return
    assert not sizes


def pieces(data: bytes) -> None:
    """Pieces whose hashes are right, made by a liar: finite weights, or refused."""
    first, *contents = split_frames(data) or [b""]
    op = LAYERS[first[0] % len(LAYERS)] if first else LAYERS[0]
    bits = WIDTHS[first[1] % len(WIDTHS)] if len(first) > 1 else 2
    try:
        layer = Layer(contents, op, bits)
    except SegmentRejected:
        return
    weight, bias = layer.parameters()
    assert np.isfinite(weight).all()
    assert bias is None or np.isfinite(bias).all()


def segment_seeds() -> Iterator[bytes]:
    """Segments of a small net, the device's part and all of it."""
    net = made_up((8, 6, 4))
    published = Published(net)
    for cut in range(net.network.num_nodes + 1):
        for bits in (2, 8, 16):
            layers = sum(node < cut for node in net.network.parametric)
            live = (bits,) * len(net.network.live[cut])
            yield published.segment(Chosen(net.model_id, cut, (bits,) * layers, live))


def piece_seeds() -> Iterator[bytes]:
    """The pieces of each layer at a few widths."""
    random = np.random.default_rng(0)
    for number, op in enumerate(LAYERS):
        shape = op.weight_shape
        bias = np.ones(shape[0], np.float32) if op.has_bias else None
        made = encode_pieces(Parameters(random.normal(size=shape).astype(np.float32), bias))
        for place in (0, 2, 7):
            bits = WIDTHS[place]
            contents = [made[WIDTHS.index(step.first)] for step in steps_to(prod(shape), bits)]
            yield join_frames([bytes([number, place]), *contents])


@cache
def served_model() -> ServedModel:
    """A model that any plan holds of."""
    return served(made_up((8, 6, 4)))


def asks(data: bytes) -> None:
    """A device's questions: a plan, a segment or an inference; answered, or refused in words."""
    question, *contents = split_frames(data) or [b""]
    model = served_model()
    for kind in (Ask, Chosen, Infer):
        try:
            asked = decode(kind, question)
        except ValueError:
            continue
        with contextlib.suppress(Infeasible, RequestError, ShapeMismatch):
            _answer(model, asked, contents)


def _answer(model: ServedModel, asked: Ask | Chosen | Infer, contents: list[bytes]) -> None:
    match asked:
        case Ask():
            planned = model.plan(asked.request, asked.cached, explain=asked.explain)
            pattern = planned.plan.pattern
            assert model.segment(Chosen(asked.model_id, pattern.cut, pattern.weight_bits, pattern.live_bits))
        case Chosen():
            segment = decode(Segment, model.segment(asked))
            assert encode(segment) == model.segment(asked)
        case Infer():
            arrays = [_array(bits, content) for bits, content in zip(asked.live_bits, contents, strict=False)]
            work = model.tail.check(asked, arrays)
            assert all(np.isfinite(array).all() and len(array) == work.samples for array in work.arrays)
            (logits,) = model.tail.answers([work])
            assert logits.shape == (len(arrays[0]), 4)
            assert np.isfinite(logits).all()


def _array(bits: int, content: bytes) -> np.ndarray:
    """One sample of that width, whatever its size."""
    if bits == 16:
        return np.frombuffer(content[: len(content) // 2 * 2], "<f2").reshape(1, -1)
    return np.frombuffer(content, np.uint8).reshape(1, -1)


def ask_seeds() -> Iterator[bytes]:
    """Questions with and without what is known already, activations of every width, and infinite ones."""
    model = served_model()
    model_id, mark = model.artefact.model_id, model.artefact.piece_ids[0][0][:8]
    measured = DeviceProfile(macs_per_s=1e9, joules_per_mac=1e-9, memory_bytes=1 << 20, watts=2.0, layer_s=(1e-3,) * 3)
    more = Request(accuracy=0.5, device=measured, channel=REQUEST.channel, raw_input_stays=True)
    yield join_frames([encode(Ask(model_id, REQUEST))])
    yield join_frames([encode(Ask(model_id, more, mark * 2))])
    for bits in WIDTHS:
        yield join_frames([encode(Chosen(model_id, 2, (bits,), (bits,)))])
        sizes = {16: 12}
        yield join_frames([encode(Infer(model_id, 1, (bits,))), bytes(sizes.get(bits, -(-6 * bits // 8)))])
    yield join_frames([encode(Infer(model_id, 1, (16,))), b"\0\x7c" * 6])


@cache
def _artefact_file() -> bytes:
    """A small model that was calibrated, as far as its file can tell."""
    made = made_up((3, 2))
    law = law_of((*(4.0**-bits for bits in WIDTHS[:-1]), 0.0))
    made = replace(made, trials=(Trial(1e-3, 1e-3, 1, 4),), value_laws={0: law})
    with tempfile.TemporaryDirectory() as folder:
        save(made, Path(folder) / "made-up")
        return (Path(folder) / "made-up").read_bytes()


def artefacts(data: bytes) -> None:
    """A model's file: damaged, or one from which segments can be shipped and that runs."""
    with on_disk(data, ".qpart") as path:
        try:
            found = load(path)
        except ArtefactError:
            return
    model = served(found)
    cut = found.network.num_nodes
    chosen = Chosen(found.model_id, cut, (2,) * len(found.network.parametric), (2,) * len(found.network.live[cut]))
    assert decode(Segment, model.segment(chosen))
    num_classes = found.network.items(found.network.num_nodes)
    assert found.logits.shape == (len(found.float_inputs()), num_classes)
    assert np.isfinite(found.logits).all()


def artefact_seeds() -> Iterator[bytes]:
    """A whole file, one that is cut off, and one whose logits have another shape."""
    whole = _artefact_file()
    yield whole
    yield whole[:-8]
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])
    header["logits"]["shape"].append(1)
    head = json.dumps(header).encode()
    yield len(head).to_bytes(8, "little") + head + whole[8 + size :]


def datasets(data: bytes) -> None:
    """Inputs that somebody has as a file: an array or an archive, refused or numbers of the right shape."""
    for suffix in (".npy", ".npz"):
        with on_disk(data, suffix) as path, contextlib.suppress(ArtefactError, ShapeMismatch):
            assert load_data(path, (4,)).shape[1:] == (4,)


def dataset_seeds() -> Iterator[bytes]:
    """Arrays of both orders, archives with and without compression."""
    for array in (np.ones((2, 4), np.float32), np.asfortranarray(np.ones((3, 4), np.uint8)), np.ones(4, np.int64)):
        file = io.BytesIO()
        np.save(file, array)
        yield file.getvalue()
    for write in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        write(file, inputs=np.ones((2, 4), np.float32), labels=np.ones(2, np.int64))
        yield file.getvalue()


SEEDS = {
    "networks": network_seeds,
    "segments": segment_seeds,
    "pieces": piece_seeds,
    "asks": ask_seeds,
    "artefacts": artefact_seeds,
    "datasets": dataset_seeds,
}
