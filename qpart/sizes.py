"""What everything weighs, before it exists: bytes on the wire and numbers in the device's memory."""

from __future__ import annotations

from math import prod

from qpart.messages import infer_bytes, manifest_bytes
from qpart.network import Network
from qpart.pieces import WIDTHS, piece_bytes
from qpart.quantiser import activation_bytes

BytesPerWidth = tuple[int, ...]


def weight_sizes(network: Network) -> dict[int, BytesPerWidth]:
    """Bytes of every layer's piece, by node and width."""
    sizes = {}
    for i in network.parametric:
        op = network.nodes[i].op
        assert op.weight_shape is not None
        sizes[i] = tuple(piece_bytes(op.weight_shape, op.has_bias, bits) for bits in WIDTHS)
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
    return (*(4 * network.items(network.num_nodes) for _ in range(network.num_nodes)), 0)


def device_items(network: Network) -> tuple[int, ...]:
    """Float32 numbers a device holds at most, by cut: values in use and the layer being dequantised, one sample."""
    return tuple(_peak_items(network, cut) for cut in range(network.num_nodes + 1))


def _peak_items(network: Network, cut: int) -> int:
    last_use = {value: i for i in range(cut) for value in network.nodes[i].inputs}
    last_use |= dict.fromkeys(network.live[cut] or (cut,), cut)
    peak = network.items(0)
    for i in range(cut):
        in_use = sum(network.items(value) for value in range(i + 2) if last_use.get(value, i) >= i)
        peak = max(peak, in_use + prod(network.nodes[i].op.weight_shape or (0,)))
    return peak
