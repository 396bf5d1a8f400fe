"""The paper's widths in closed form: a fast bound, and the peer that the exact solution is measured against.

Pure: numpy only. The law psi = s e^(-alpha b) is fitted to the measured table; the answer is judged by the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, exp, log
from typing import NamedTuple

import numpy as np

from qpart.fronts import Floats
from qpart.patterns import Pattern, evaluate
from qpart.tables import WIDTHS, Tables

LOWEST, HIGHEST = 2, 8
ZHOU_ALPHA = log(4.0)
_BITS = np.array(WIDTHS[: WIDTHS.index(HIGHEST) + 1], np.float64)


class ClosedForm(NamedTuple):
    """Widths by the law, and whether they meet the budget by the measured table."""

    pattern: Pattern
    meets_budget: bool


def closed_form(
    tables: Tables, cut: int, budget: float, *, down_weight: float = 1.0, up_weight: float = 1.0
) -> ClosedForm:
    """Fit the law to every tensor of a cut, solve for real widths, round up to whole ones.

    Args:
        tables: of the network.
        cut: 0 .. L.
        budget: most summed noise.
        down_weight: cost of a byte to load.
        up_weight: cost of a byte of one request.

    Source: arXiv 2506.23934; the law is Zhou et al., AAAI 2018.
    """
    nodes, live = tables.network.parametric[: tables.num_weights(cut)], tables.network.live[cut]
    psi = [tables.weight_psi[i] for i in nodes] + [tables.live_psi[cut][v] for v in live]
    alpha, scales = fit_law(psi)
    slopes = bit_slopes(tables, cut, down_weight, up_weight)
    bits = [ceil(b - 1e-9) for b in real_widths(scales, slopes, alpha, budget)]
    pattern = evaluate(tables, cut, bits[: len(nodes)], bits[len(nodes) :])
    return ClosedForm(pattern, pattern.psi <= budget)


def bit_slopes(tables: Tables, cut: int, down_weight: float, up_weight: float) -> Floats:
    """(tensors,) what one bit more costs, of the weights first and then of the live values."""
    nodes, live = tables.network.parametric[: tables.num_weights(cut)], tables.network.live[cut]
    slopes = [down_weight * _bytes_per_bit(tables.weight_bytes[i]) for i in nodes]
    return np.array(slopes + [up_weight * _bytes_per_bit(tables.live_bytes[cut][v]) for v in live])


def fit_law(psi: Sequence[Sequence[float]]) -> tuple[float, Floats]:
    """Least squares of log psi at 2 to 8 bits: one alpha for all tensors, one s for each.

    One alpha, because the closed form needs it. Zeros have no logarithm and are left out; a tensor of zeros has
    s = 0. Where nothing can be fitted, or noise does not fall with bits, alpha is ln 4.

    Args:
        psi: (tensors, widths) noise at `WIDTHS`.

    Returns:
        alpha, (tensors,) s.
    """
    rows = np.array([row[: len(_BITS)] for row in psi], np.float64).reshape(-1, len(_BITS))
    known = rows > 0
    count = np.maximum(known.sum(axis=1), 1)
    logs = np.log(np.where(known, rows, 1.0))
    mean_bits, mean_logs = (known * _BITS).sum(axis=1) / count, logs.sum(axis=1) / count
    away = known * (_BITS - mean_bits[:, None])
    spread = float((away**2).sum())
    alpha = -float((away * (logs - mean_logs[:, None])).sum()) / spread if spread else 0.0
    if alpha <= 0:
        alpha = ZHOU_ALPHA
    return alpha, np.where(known.any(axis=1), np.exp(mean_logs + alpha * mean_bits), 0.0)


def real_widths(scales: Floats, slopes: Floats, alpha: float, budget: float) -> Floats:
    """Widths that cost least in total with sum s e^(-alpha b) = budget, within 2 to 8.

    b = (1 / alpha) ln[s / z * sum of z / budget]: each tensor gets the share of the noise that it has of the
    payload. What leaves the box is fixed at its side, first the side that matters more for the sum, and the rest is
    solved again with what is left of the budget.

    >>> real_widths(np.array([64.0, 64.0]), np.array([1.0, 3.0]), log(4.0), 1.0).round(3).tolist()
    [4.0, 3.208]

    Args:
        scales: (tensors,) s.
        slopes: (tensors,) z, cost of a bit; a tensor whose bits cost nothing gets 8.
        alpha: of the law, above 0.
        budget: most summed noise.

    Returns:
        (tensors,) widths.

    Source: the fixing order is Bitran and Hax, Management Science 27 (1981).
    """
    bits = np.full(len(scales), float(HIGHEST))
    bits[(scales == 0) & (slopes > 0)] = LOWEST
    free = (scales > 0) & (slopes > 0)
    left = budget - float((scales * np.exp(-alpha * bits))[~free].sum())
    while free.any() and left > 0:
        share = left * slopes / slopes[free].sum()
        real = np.log(np.where(free, scales, 1.0) / np.where(free, share, 1.0)) / alpha
        low, high = free & (real < LOWEST), free & (real > HIGHEST)
        if not (low | high).any():
            bits[free] = real[free]
            break
        spared = float((share - scales * exp(-alpha * LOWEST))[low].sum())
        lacking = float((scales * exp(-alpha * HIGHEST) - share)[high].sum())
        fixed, at = (low, LOWEST) if spared >= lacking else (high, HIGHEST)
        bits[fixed] = at
        free &= ~fixed
        left -= float((scales * exp(-alpha * at))[fixed].sum())
    return bits


def _bytes_per_bit(num_bytes: Sequence[int]) -> float:
    sizes = np.array(num_bytes[: len(_BITS)], np.float64)
    away = _BITS - _BITS.mean()
    return float((away * sizes).sum() / (away**2).sum())
