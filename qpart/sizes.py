"""What everything weighs, before it exists: bytes on the wire and numbers in the device's memory."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import accumulate
from math import prod
from typing import NamedTuple

from edgebus.blobs.messages import framing_bytes
from qpart.matrices import FEW_TOKENS, filled_columns, is_matrix, matrix_bytes
from qpart.messages import ANSWERED_BYTES, infer_bytes, manifest_bytes
from qpart.nesting import NESTED
from qpart.network import INPUT, Network, Node
from qpart.ops import AnyOp, Conv2d, Linear, Shape
from qpart.ops.base import buffered
from qpart.pieces import ADDRESS_BYTES, Step, ladder, step_bytes, steps_to
from qpart.quantiser import HALF, activation_bytes, dequantise_items
from qpart.tables import WIDTHS

BytesPerWidth = tuple[int, ...]


class Sizes(NamedTuple):
    """Everything a network weighs; the fields are those of `qpart.tables.Tables`."""

    weight_bytes: dict[int, BytesPerWidth]
    piece_bytes: dict[int, BytesPerWidth]
    live_bytes: tuple[dict[int, BytesPerWidth], ...]
    manifest_bytes: tuple[int, ...]
    infer_bytes: tuple[int, ...]
    answer_bytes: tuple[int, ...]
    device_items: tuple[int, ...]


def all_sizes(network: Network) -> Sizes:
    """What this version ships and holds for a network."""
    return Sizes(
        weight_sizes(network),
        piece_sizes(network),
        live_sizes(network),
        manifest_sizes(network),
        infer_sizes(network),
        answer_sizes(network),
        device_items(network),
    )


def weight_sizes(network: Network) -> dict[int, BytesPerWidth]:
    """Bytes of everything that a layer needs at a width, addresses and framing included, by node and width."""
    sizes = {}
    for node, row in piece_sizes(network).items():
        *nested, half = (ADDRESS_BYTES + size if size else 0 for size in row)
        sizes[node] = (*accumulate(nested), half)
    return sizes


def piece_sizes(network: Network) -> dict[int, BytesPerWidth]:
    """Bytes that each piece of a layer is as a blob on the link, by node and the first width that needs it."""
    sizes = {}
    for i in network.parametric:
        op = network.nodes[i].op
        assert op.weight_shape is not None
        row = dict.fromkeys(WIDTHS, 0)
        for step in (*ladder(prod(op.weight_shape)), Step(HALF, HALF)):
            size = step_bytes(op.weight_shape, op.has_bias, step)
            row[step.first] = size + framing_bytes(size)
        sizes[i] = tuple(row.values())
    return sizes


def live_sizes(network: Network) -> tuple[dict[int, BytesPerWidth], ...]:
    """Bytes of every live value of one sample, by cut, value and width."""
    return tuple(
        {value: tuple(activation_bytes(network.items(value), bits) for bits in WIDTHS) for value in live}
        for live in network.live
    )


def manifest_sizes(network: Network) -> tuple[int, ...]:
    """Bytes of the segment's description, by cut."""
    return tuple(manifest_bytes(network, cut) for cut in range(network.num_nodes + 1))


def infer_sizes(network: Network) -> tuple[int, ...]:
    """Bytes of an inference request besides its activations, by cut."""
    return tuple(infer_bytes(network, cut) for cut in range(network.num_nodes + 1))


def answer_sizes(network: Network) -> tuple[int, ...]:
    """Bytes of one sample's answer, by cut."""
    return (*(ANSWERED_BYTES + 4 * network.items(network.num_nodes) for _ in range(network.num_nodes)), 0)


def device_items(network: Network) -> tuple[int, ...]:
    """Float32 numbers a device holds at most, by cut; see `peak_items`."""
    return tuple(
        peak_items(network.nodes[:cut], network.shapes, network.live[cut] or (cut,))
        for cut in range(network.num_nodes + 1)
    )


def peak_items(nodes: Sequence[Node], shapes: Sequence[Shape], kept: Collection[int]) -> int:
    """Float32 numbers held at once when nodes run for one sample: values, scratch, and a dequantised weight.

    Never less than what an executor on numpy takes. What packed weights take beyond their pieces is in it as well.

    Args:
        nodes: what runs.
        shapes: by value id, at least of everything they make.
        kept: values needed when they have run; the input stays with its owner anyway.
    """
    last_use = {value: i for i, node in enumerate(nodes) for value in node.inputs}
    last_use |= dict.fromkeys((INPUT, *kept), len(nodes))
    held = peak = prod(shapes[INPUT])
    for i, node in enumerate(nodes):
        held += prod(shapes[i + 1])
        peak = max(peak, held + _scratch_items(node.op, [shapes[value] for value in node.inputs], shapes[i + 1]))
        held -= sum(prod(shapes[value]) for value in {*node.inputs, i + 1} if last_use.get(value, i) <= i)
    sent = [prod(shapes[value]) for value in kept]
    at_16_bits = sum(sent) // 2 + len(sent)
    peak = max(peak, held + at_16_bits + max(sent, default=0))  # one value is made ready at a time
    return peak + sum(_beyond_pieces(node.op) for node in nodes)


def _scratch_items(op: AnyOp, inputs: Sequence[Shape], output: Shape) -> int:
    """Numbers besides inputs and output, of the dearest way an executor may go: it depends on width and machine."""
    scratch, shape = op.scratch_items(*inputs), op.weight_shape
    if shape is None:
        return scratch
    bias = buffered(prod(output)) if op.has_bias and isinstance(op, Linear) else 0  # added while the weight is there
    most = prod(shape) + max(dequantise_items(shape), bias)
    if is_matrix(op):
        filled, columns, is_conv = filled_columns(shape), prod(shape[1:]), isinstance(op, Conv2d)
        wider = filled > columns
        most = max(most, shape[0] * (filled + (columns if wider and is_conv else 0)), shape[0] * filled + bias)
        tokens = prod(output) // shape[0]
        if tokens <= FEW_TOKENS:  # they are filled up like the matrix; a convolution turns its product round
            most = max(most, tokens * ((filled if wider else 0) + (shape[0] if is_conv else 0)))
    return scratch + most


def _beyond_pieces(op: AnyOp) -> int:
    """What a weight that is held as a matrix takes more than its pieces, at the width where that is most."""
    shape = op.weight_shape
    if shape is None or not is_matrix(op):
        return 0
    bias, most = 4 * shape[0] if op.has_bias else 0, 0
    for bits in NESTED:
        shipped = sum(step_bytes(shape, op.has_bias, step) for step in steps_to(prod(shape), bits))
        most = max(most, matrix_bytes(shape, bits) + bias - shipped)
    return -(-most // 4)
