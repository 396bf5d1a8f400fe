"""Payloads of the services of qpart: msgpack arrays with every field bounded (docs/spec/qpart-protocol.md)."""

from __future__ import annotations

from typing import Annotated

import msgspec

from edgebus.payloads import Payload, encode
from qpart.network import MAX_NODES, Network, Node, ValueId
from qpart.ops import MAX_DIMS, Size
from qpart.pieces import ID_BYTES
from qpart.plan import Plan
from qpart.profile import Request
from qpart.tables import MAX_LEVELS, BitList

DESCRIBE, PLAN, SEGMENT, PIECES, INFER = (
    "qpart.describe",
    "qpart.plan",
    "qpart.segment",
    "qpart.pieces",
    "qpart.infer",
)
SERVICES = (DESCRIBE, PLAN, SEGMENT, PIECES, INFER)

MAX_NAMED_PIECES = 4096
MAX_NAME = 64
MAX_PIECES = 32
CHUNK_BYTES = 1 << 20
"""Of one piece in one answer."""

ContentId = Annotated[bytes, msgspec.Meta(min_length=ID_BYTES, max_length=ID_BYTES)]
Cut = Annotated[int, msgspec.Meta(ge=0, le=MAX_NODES)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME)]


class ModelInfo(Payload, frozen=True, array_like=True):
    """One model of a server; `model_id` differs where anything in its artefact differs."""

    name: Name
    model_id: ContentId
    input_shape: Annotated[tuple[Size, ...], msgspec.Meta(min_length=1, max_length=MAX_DIMS)]
    num_classes: Size
    num_nodes: Annotated[int, msgspec.Meta(ge=1, le=MAX_NODES)]
    levels: Annotated[tuple[float, ...], msgspec.Meta(max_length=MAX_LEVELS)]


class Described(Payload, frozen=True, array_like=True):
    """Answer to `qpart.describe`."""

    models: Annotated[tuple[ModelInfo, ...], msgspec.Meta(max_length=256)]


class Ask(Payload, frozen=True, array_like=True):
    """Ask for a plan; `cached` are the pieces which the device has."""

    model_id: ContentId
    request: Request
    cached: Annotated[tuple[ContentId, ...], msgspec.Meta(max_length=MAX_NAMED_PIECES)] = ()


class Planned(Payload, frozen=True, array_like=True):
    """Answer to `qpart.plan`: the decision with its table, and the segment that carries it out."""

    plan: Plan
    segment_id: ContentId


class InfeasibleInfo(Payload, frozen=True, array_like=True):
    """Sent along with the refusal `infeasible`."""

    constraint: str
    nearest_accuracy: float | None


class Chosen(Payload, frozen=True, array_like=True):
    """Ask for the segment of a cut with these widths: one per layer with weights, one per live value."""

    model_id: ContentId
    cut: Cut
    weight_bits: BitList
    live_bits: BitList


class Live(Payload, frozen=True, array_like=True):
    """A value that travels, and the range of its codes (float32 numbers; unused at 16 bits)."""

    value: ValueId
    bits: Annotated[int, msgspec.Meta(ge=2, le=16)]
    scale: float
    offset: float


class Segment(Payload, frozen=True, array_like=True):
    """Answer to `qpart.segment`: what the device runs. Its hash is the segment's id.

    `pieces` are the addresses of the parameters, one for each node that has some, in order.
    """

    model_id: ContentId
    input_shape: Annotated[tuple[Size, ...], msgspec.Meta(min_length=1, max_length=MAX_DIMS)]
    nodes: Annotated[tuple[Node, ...], msgspec.Meta(max_length=MAX_NODES)]
    pieces: Annotated[tuple[ContentId, ...], msgspec.Meta(max_length=MAX_NODES)]
    live: Annotated[tuple[Live, ...], msgspec.Meta(max_length=64)]


class Fetch(Payload, frozen=True, array_like=True):
    """Ask for pieces, each once; the answer has an empty payload and one uint8 array for each, in order.

    Of every piece come the bytes from `offset` on, at most `CHUNK_BYTES` of them.
    """

    model_id: ContentId
    pieces: Annotated[tuple[ContentId, ...], msgspec.Meta(min_length=1, max_length=MAX_PIECES)]
    offset: Annotated[int, msgspec.Meta(ge=0, lt=1 << 40)] = 0


class Infer(Payload, frozen=True, array_like=True):
    """Run the tail; one array (batch, bytes) or (batch, items) for each live value travels along.

    The answer has an empty payload and one float32 array (batch, classes). The server keeps nothing between requests.
    """

    model_id: ContentId
    cut: Cut
    live_bits: BitList


def segment_of(
    network: Network, model_id: bytes, cut: int, pieces: tuple[bytes, ...], live: tuple[Live, ...]
) -> Segment:
    """The description of a head: names are left out, they are for people."""
    nodes = tuple(Node(node.op, node.inputs) for node in network.nodes[:cut])
    return Segment(model_id, network.input_shape, nodes, pieces, live)


def manifest_bytes(network: Network, cut: int) -> int:
    """Bytes of the encoded `Segment` at a cut, which widths, ranges and addresses do not change."""
    blank = bytes(ID_BYTES)
    pieces = tuple(blank for i in network.parametric if i < cut)
    live = tuple(Live(value, 2, 0.0, 0.0) for value in network.live[cut])
    return len(encode(segment_of(network, blank, cut, pieces, live)))


def infer_bytes(network: Network, cut: int) -> int:
    """Bytes of the payload of one `Infer` at a cut; 0 at the last, where nothing is asked."""
    if cut == network.num_nodes:
        return 0
    return len(encode(Infer(bytes(ID_BYTES), cut, tuple(2 for _ in network.live[cut]))))
