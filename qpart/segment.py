"""A segment as a device sees it: held against the plan and the request before anything of it is fetched or run."""

from __future__ import annotations

import math
from math import prod

from qpart.errors import SegmentRejected, ShapeMismatch
from qpart.messages import Chosen, Live, ModelInfo, Segment
from qpart.network import INPUT, infer_shapes, showing_input
from qpart.ops import MAX_TENSOR_ITEMS
from qpart.pieces import ADDRESS_BYTES, step_bytes, steps_to
from qpart.profile import Request
from qpart.quantiser import MOST
from qpart.sizes import peak_items
from qpart.tables import WIDTHS


def inspect(segment: Segment, chosen: Chosen, model: ModelInfo, request: Request) -> dict[bytes, int]:
    """Check a segment, and say which pieces it needs.

    Returns:
        Bytes of every piece, by address, in the order in which they are needed.

    Raises:
        SegmentRejected: it is not what was planned, its shapes do not fit together, it sends what must stay on the
            device, or it needs more memory than the device gives.
    """
    if (segment.model_id, segment.input_shape) != (model.model_id, model.input_shape):
        raise SegmentRejected("the segment is for another model; ask for a plan again")
    bits = tuple(live.bits for live in segment.live)
    whole = chosen.cut == model.num_nodes
    if len(segment.nodes) != chosen.cut or bits != chosen.live_bits or whole == bool(bits):
        raise SegmentRejected("the segment is not what the plan says; ask for a plan again")
    try:
        shapes = infer_shapes({INPUT: segment.input_shape}, segment.nodes, MAX_TENSOR_ITEMS)
    except ShapeMismatch as error:
        raise SegmentRejected(f"the segment does not add up: {error}") from None
    if whole and shapes[-1] != (model.num_classes,):
        raise SegmentRejected(f"the segment answers with shape {shapes[-1]}, the model has {model.num_classes} classes")
    _check_live(segment.live, len(shapes), showing_input(segment.nodes) if request.raw_input_stays else ())
    pieces = _pieces(segment, chosen)
    kept = [live.value for live in segment.live] or [chosen.cut]
    each = (pieces[address] for row in segment.pieces for address in split_addresses(row))  # held by every layer alone
    need = sum(each) + 4 * peak_items(segment.nodes, shapes, kept)
    if need > request.device.memory_bytes:
        raise SegmentRejected(f"the segment needs {need} bytes, the device gives {request.device.memory_bytes}")
    return pieces


def _check_live(live: tuple[Live, ...], num_values: int, showing: tuple[bool, ...]) -> None:
    values = [item.value for item in live]
    if values != sorted(set(values)) or any(value >= num_values for value in values):
        raise SegmentRejected(f"the segment sends the values {values}, which cannot be; ask for a plan again")
    for item in live:
        if item.bits not in WIDTHS or not (0 <= item.scale <= MOST and math.fabs(item.offset) <= MOST):
            raise SegmentRejected(f"the segment sends value {item.value} in a way that cannot be; ask again")
        if showing and showing[item.value]:
            raise SegmentRejected("the segment sends what shows the input, which was to stay here; nothing was sent")


def _pieces(segment: Segment, chosen: Chosen) -> dict[bytes, int]:
    ops = [node.op for node in segment.nodes if node.op.weight_shape is not None]
    if segment.weight_bits != chosen.weight_bits or not len(ops) == len(segment.pieces) == len(chosen.weight_bits):
        raise SegmentRejected(
            f"the segment has {len(ops)} layers with weights, {len(segment.pieces)} rows of pieces and other widths "
            "than the plan; ask for a plan again"
        )
    sizes: dict[bytes, int] = {}
    for op, row, bits in zip(ops, segment.pieces, chosen.weight_bits, strict=True):
        if bits not in WIDTHS:
            raise SegmentRejected(f"the plan has a layer at {bits} bits, known are {WIDTHS}")
        assert op.weight_shape is not None
        steps, addresses = steps_to(prod(op.weight_shape), bits), split_addresses(row)
        if len(row) != ADDRESS_BYTES * len(steps) or len(set(addresses)) != len(steps):
            raise SegmentRejected(f"a layer at {bits} bits takes {len(steps)} pieces, each once; ask for a plan again")
        for address, step in zip(addresses, steps, strict=True):
            size = step_bytes(op.weight_shape, op.has_bias, step)
            if sizes.setdefault(address, size) != size:
                raise SegmentRejected(f"piece {address.hex()} is to be of two sizes; ask for a plan again")
    return sizes


def split_addresses(row: bytes) -> list[bytes]:
    """The addresses of a layer's pieces, as a segment joins them."""
    return [row[at : at + ADDRESS_BYTES] for at in range(0, len(row), ADDRESS_BYTES)]
