"""What a device of qpart takes from a server: segments, and the pieces of a layer."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np

from edgebus.payloads import decode, encode
from qpart.errors import SegmentRejected
from qpart.head import Head
from qpart.messages import Chosen, Live, ModelInfo, Segment, segment_of
from qpart.network import INPUT, Parameters, infer_shapes, showing_input
from qpart.ops import Linear
from qpart.pieces import Layer, encode_pieces, steps_to
from qpart.profile import Channel, DeviceProfile, Request
from qpart.run.published import Published
from qpart.segment import inspect
from qpart.sizes import peak_items
from qpart.tables import WIDTHS
from tests.fuzz.source import join_frames, split_frames
from tests.qpart.random_nets import random_network
from tests.qpart.wide import made_up

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
