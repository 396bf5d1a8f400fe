"""Patterns: the bit widths of everything that is shipped at a cut, and what they come to. Pure: numpy only."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec
import numpy as np

from qpart.fronts import Ints
from qpart.leading import Leader
from qpart.problems import NO_LOADS, Loads
from qpart.tables import WIDTHS, BitList, Tables


class Pattern(msgspec.Struct, frozen=True, kw_only=True):
    """The widths of everything that is shipped at a cut, and what follows from them.

    Attributes:
        cut: the device runs nodes[:cut].
        weight_bits: one per node with weights among them, in order.
        live_bits: one per value that crosses the cut, in order.
        psi: summed noise.
        download_bytes: manifest, addresses, and the pieces that the device does not have.
        segment_bytes: manifest, addresses and all pieces.
        up_bytes: one inference request.
        device_bytes: what the device holds: segment, activations, a dequantised layer.
    """

    cut: int
    weight_bits: BitList
    live_bits: BitList
    psi: float
    download_bytes: int
    segment_bytes: int
    up_bytes: int
    device_bytes: int


def evaluate(
    tables: Tables,
    cut: int,
    weight_bits: Sequence[int],
    live_bits: Sequence[int],
    *,
    cached: Collection[tuple[int, int]] = frozenset(),
) -> Pattern:
    """What given widths come to.

    Noise is the sum over the weights, first to last, plus the sum over the live values, first to last: everybody
    who compares it with a budget sums in this order.

    Args:
        tables: of the network.
        cut: 0 .. L.
        weight_bits: one of `WIDTHS` per node with weights in nodes[:cut].
        live_bits: one per value in network.live[cut].
        cached: (node, bits) of the pieces that the device has: those that take a layer to this width.

    Raises:
        ValueError: another number of widths, or a width that is none.
    """
    return evaluate_loading(tables, cut, weight_bits, live_bits, tables.load_bytes(cached) if cached else NO_LOADS)


def evaluate_loading(
    tables: Tables, cut: int, weight_bits: Sequence[int], live_bits: Sequence[int], loads: Loads
) -> Pattern:
    """The same, where what is to be loaded of layers with cached pieces is known."""
    nodes, values = tables.network.parametric[: tables.num_weights(cut)], tables.network.live[cut]
    if len(weight_bits) != len(nodes) or len(live_bits) != len(values):
        raise ValueError(
            f"cut {cut} takes {len(nodes)} and {len(values)} widths, got {len(weight_bits)} and {len(live_bits)}"
        )
    weights, lives = [_width(bits) for bits in weight_bits], [_width(bits) for bits in live_bits]
    weight_psi = live_psi = 0.0
    for node, width in zip(nodes, weights, strict=True):
        weight_psi += tables.weight_psi[node][width]
    for value, width in zip(values, lives, strict=True):
        live_psi += tables.live_psi[cut][value][width]
    sizes = [tables.weight_bytes[node][width] for node, width in zip(nodes, weights, strict=True)]
    new = [
        loads[node][width] if node in loads else size for node, width, size in zip(nodes, weights, sizes, strict=True)
    ]
    segment = tables.manifest_bytes[cut] + sum(sizes)
    return Pattern(
        cut=cut,
        weight_bits=tuple(weight_bits),
        live_bits=tuple(live_bits),
        psi=weight_psi + live_psi,
        download_bytes=tables.manifest_bytes[cut] + sum(new),
        segment_bytes=segment,
        up_bytes=tables.infer_bytes[cut]
        + sum(tables.live_bytes[cut][value][width] for value, width in zip(values, lives, strict=True)),
        device_bytes=segment + 4 * tables.device_items[cut],
    )


def of_leader(one: Leader) -> Pattern:
    """The pattern of what leads, without its cost."""
    return Pattern(
        cut=one.cut,
        weight_bits=tuple(one.weight_bits),
        live_bits=tuple(one.live_bits),
        psi=one.psi,
        download_bytes=one.download_bytes,
        segment_bytes=one.segment_bytes,
        up_bytes=one.up_bytes,
        device_bytes=one.device_bytes,
    )


def _width(bits: int) -> int:
    if bits not in WIDTHS:
        raise ValueError(f"a width of {bits} bits is none of {WIDTHS}")
    return WIDTHS.index(bits)


def least_bytes(tables: Tables) -> Ints:
    """(cuts,) the least that the device holds at a cut, whatever the noise."""
    smallest = [min(tables.weight_bytes[node]) for node in tables.network.parametric]
    sums = np.concatenate([[0], np.cumsum(smallest, dtype=np.int64)])
    held = sums[[tables.num_weights(cut) for cut in range(tables.network.num_nodes + 1)]]
    found: Ints = held + np.array(tables.manifest_bytes) + 4 * np.array(tables.device_items)
    return found


def uniform(tables: Tables, cut: int, bits: int, *, cached: Collection[tuple[int, int]] = frozenset()) -> Pattern:
    """The pattern with one width everywhere: the heuristic to beat.

    Raises:
        ValueError: not one of `WIDTHS`.
    """
    num_weights, num_live = tables.num_weights(cut), len(tables.network.live[cut])
    return evaluate(tables, cut, (bits,) * num_weights, (bits,) * num_live, cached=cached)
