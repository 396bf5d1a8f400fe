"""What everything weighs, before it exists: bytes on the wire and numbers in the device's memory."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import accumulate
from math import prod
from typing import NamedTuple

from edgebus.blobs.messages import framing_bytes
from qpart.messages import ANSWERED_BYTES, infer_bytes, manifest_bytes
from qpart.network import INPUT, Network, Node
from qpart.ops import Shape
from qpart.pieces import ADDRESS_BYTES, Step, ladder, step_bytes
from qpart.quantiser import HALF, activation_bytes
from qpart.tables import WIDTHS

BytesPerWidth = tuple[int, ...]
FILLED = 32  # columns that a packed matrix is filled up to multiples of


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


def _weight_items(shape: Shape) -> int:
    """Float32 numbers of a weight that is dequantised: a packed matrix fills its columns up.

    >>> _weight_items((10, 3, 3, 3)), _weight_items((7,))
    (320, 7)
    """
    columns = prod(shape[1:])
    return shape[0] * (-(-columns // FILLED) * FILLED if len(shape) > 1 else 1)


def peak_items(nodes: Sequence[Node], shapes: Sequence[Shape], kept: Collection[int]) -> int:
    """Float32 numbers held at once when nodes run for one sample: values, scratch, and a dequantised weight.

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
        scratch = node.op.scratch_items(*(shapes[value] for value in node.inputs))
        peak = max(peak, held + scratch + _weight_items(node.op.weight_shape or (0,)))
        held -= sum(prod(shapes[value]) for value in {*node.inputs, i + 1} if last_use.get(value, i) <= i)
    return peak
