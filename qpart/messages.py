"""Payloads of the services of qpart: msgpack arrays with every field bounded (docs/spec/qpart-protocol.md)."""

from __future__ import annotations

from hashlib import blake2b
from typing import Annotated

import msgspec

from edgebus.payloads import Payload, encode
from qpart.nesting import NESTED
from qpart.network import MAX_NODES, Network, Node, ValueId
from qpart.ops import MAX_DIMS, Size
from qpart.pieces import ADDRESS_BYTES, ID_BYTES
from qpart.plan import Plan
from qpart.profile import Request
from qpart.tables import MAX_LEVELS, BitList

DESCRIBE, PLAN, SEGMENT, INFER = "qpart.describe", "qpart.plan", "qpart.segment", "qpart.infer"
STATS = "qpart.stats"
SERVICES = (DESCRIBE, PLAN, SEGMENT, INFER, STATS)

MAX_NAMED_PIECES = 4096
MARK_BYTES = 8
"""Of an address, where a device says what it has: enough to tell the pieces of a server apart."""
MAX_NAME = 64
SIGNATURE_BYTES = 64
SEGMENT_ID_BYTES = 32

ContentId = Annotated[bytes, msgspec.Meta(min_length=ID_BYTES, max_length=ID_BYTES)]
SegmentId = Annotated[bytes, msgspec.Meta(min_length=SEGMENT_ID_BYTES, max_length=SEGMENT_ID_BYTES)]
Addresses = Annotated[bytes, msgspec.Meta(max_length=len(NESTED) * ADDRESS_BYTES)]
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
    takes_tokens: bool = True


class Described(Payload, frozen=True, array_like=True):
    """Answer to `qpart.describe`."""

    models: Annotated[tuple[ModelInfo, ...], msgspec.Meta(max_length=256)]


class Ask(Payload, frozen=True, array_like=True):
    """Ask for a plan.

    Attributes:
        cached: the first 8 bytes of the address of each piece which the device has, joined.
        explain: with the table of all cuts; without it the same plan comes sooner, and in a thirtieth of the bytes.
    """

    model_id: ContentId
    request: Request
    cached: Annotated[bytes, msgspec.Meta(max_length=MAX_NAMED_PIECES * MARK_BYTES)] = b""
    explain: bool = True


class Planned(Payload, frozen=True, array_like=True):
    """Answer to `qpart.plan`: the decision with its table, and the segment that carries it out.

    `signature` is the publisher's, over the segment's id (`qpart.signing`); empty where the server signs nothing.
    """

    plan: Plan
    segment_id: SegmentId
    signature: Annotated[bytes, msgspec.Meta(max_length=SIGNATURE_BYTES)] = b""


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

    `weight_bits` and `pieces` have one entry for each node with weights, in order: its width, and the addresses of
    the pieces that it needs at that width (`qpart.pieces.steps_to`), joined.
    """

    model_id: ContentId
    input_shape: Annotated[tuple[Size, ...], msgspec.Meta(min_length=1, max_length=MAX_DIMS)]
    nodes: Annotated[tuple[Node, ...], msgspec.Meta(max_length=MAX_NODES)]
    weight_bits: BitList
    pieces: Annotated[tuple[Addresses, ...], msgspec.Meta(max_length=MAX_NODES)]
    live: Annotated[tuple[Live, ...], msgspec.Meta(max_length=64)]


class Infer(Payload, frozen=True, array_like=True):
    """Run the tail; one array (batch, bytes) or (batch, items) for each live value travels along.

    The answer is `Answered` and one float32 array (batch, classes). The server keeps nothing between requests.
    """

    model_id: ContentId
    cut: Cut
    live_bits: BitList


class Answered(Payload, frozen=True, array_like=True):
    """Answer to `qpart.infer`, always of the same size: what it took over here, so that the rest was the channel.

    Attributes:
        waited_s: from its arrival until its forward began.
        tail_s: the forward, which it may have shared with others.
    """

    waited_s: float
    tail_s: float


class Busy(Payload, frozen=True, array_like=True):
    """Sent along with the refusal `busy` of an inference request: when it is worth asking again."""

    retry_after_s: Annotated[float, msgspec.Meta(ge=0, le=3600)]


def segment_of(
    network: Network,
    model_id: bytes,
    cut: int,
    weight_bits: tuple[int, ...],
    pieces: tuple[bytes, ...],
    live: tuple[Live, ...],
) -> Segment:
    """The description of a head: names are left out, they are for people."""
    nodes = tuple(Node(node.op, node.inputs) for node in network.nodes[:cut])
    return Segment(model_id, network.input_shape, nodes, weight_bits, pieces, live)


def segment_id(raw: bytes) -> bytes:
    """The id of an encoded segment: its hash, which a publisher signs."""
    return blake2b(raw, digest_size=SEGMENT_ID_BYTES, person=b"qpart.segment").digest()


def manifest_bytes(network: Network, cut: int) -> int:
    """Bytes of the encoded `Segment` at a cut besides its addresses; widths and ranges do not change them."""
    num_layers = sum(i < cut for i in network.parametric)
    live = tuple(Live(value, 2, 0.0, 0.0) for value in network.live[cut])
    return len(encode(segment_of(network, bytes(ID_BYTES), cut, (2,) * num_layers, (b"",) * num_layers, live)))


ANSWERED_BYTES = len(encode(Answered(0.0, 0.0)))
"""Of the payload of one answer."""


def infer_bytes(network: Network, cut: int) -> int:
    """Bytes of the payload of one `Infer` at a cut; 0 at the last, where nothing is asked."""
    if cut == network.num_nodes:
        return 0
    return len(encode(Infer(bytes(ID_BYTES), cut, tuple(2 for _ in network.live[cut]))))
