"""Nested codes: one 8-bit code per weight, of which the first b bits are a good code of b bits.

Pure: numpy only. The grid of an output channel is `scale * gain * shape(u)` at the middles u of 2^b equal parts of
-1 .. 1, where `shape(u) = (1 - a) u + a u^3` makes the parts narrow where weights are many and wide at the ends. One
grid has to serve widths from few bits to many: few want it narrow, many want it wide, and a bent one is both. The
layout stands in docs/spec/qpart-protocol.md, the measurements behind the choices in docs/adr/0014.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qpart.errors import UnsupportedModel

Floats = npt.NDArray[np.float32]
Halves = npt.NDArray[np.float16]
Codes = npt.NDArray[np.uint8]

TOP = 8
"""Bits of the whole code."""
NESTED = (2, 3, 4, 5, 6, 7, 8)
"""Widths that are first bits of it."""
BENDS = (0, 2, 4, 6, 8, 10, 12)
"""Sixteenths of a that are tried; every number up to the last is a grid."""
MAX_BEND = BENDS[-1]

_SHARES = np.geomspace(0.35, 1.15, 18)  # of the largest weight, where a channel's range may end
_EMPHASIS = (0.25, 1.0, 1.0, 1.0, 1.0, 0.5, 0.25)  # of the widths' log errors in the choice of a range
_BINS = 2048  # of the histogram of a channel's magnitudes; the narrowest cell that is tried has four
_ROWS_AT_ONCE, _ROWS_FOR_BEND = 256, 64


class Chain(NamedTuple):
    """The nested code of a weight.

    Attributes:
        bend: sixteenths of a, 0 .. 12.
        scale: (channels,) end of every channel's range.
        gain: one factor for each of `NESTED`, the least squares fit of what the first bits stand for.
        codes: (channels, columns) of 8 bits.
    """

    bend: int
    scale: Halves
    gain: Halves
    codes: Codes


@cache
def grid(bend: int, bits: int) -> Floats:
    """shape(u) of every code of so many bits, exact in float64 and rounded once.

    >>> grid(0, 2).tolist(), grid(8, 2).tolist()
    ([-0.75, -0.25, 0.25, 0.75], [-0.5859375, -0.1328125, 0.1328125, 0.5859375])
    """
    values = _shape(bend, (2 * np.arange(2**bits) + 1) / 2**bits - 1).astype(np.float32)
    values.setflags(write=False)
    return values


def nest(rows: Floats) -> Chain:
    """The nested code of a weight (channels, columns): bend, ranges, gains and codes.

    Raises:
        UnsupportedModel: numbers too large for float16 scales.
    """
    most = np.abs(rows).max(axis=1, initial=0)
    if most.max(initial=0) * _SHARES[-1] > np.finfo(np.float16).max:
        raise UnsupportedModel(f"a weight of {most.max()} is too large for a float16 scale; rescale the layer")
    some = slice(None, None, -(-len(rows) // _ROWS_FOR_BEND) or 1)
    counts, wide = _histograms(rows[some], most[some]), np.square(most[some], dtype=np.float64)
    bend = min(BENDS, key=lambda tried: _layer_cost(counts, wide, tried))
    parts = (slice(start, start + _ROWS_AT_ONCE) for start in range(0, len(rows), _ROWS_AT_ONCE))
    shares = [_best_shares(_errors(_histograms(rows[part], most[part]), bend)) for part in parts]
    scale = (_SHARES[np.concatenate(shares)] * most).astype(np.float16)
    codes = _codes(rows, scale, bend)
    return Chain(bend, scale, _gains(rows, scale, bend, codes), codes)


def _shape(bend: int, u: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return (16 - bend) / 16 * u + bend / 16 * u**3


@cache
def _edges(bend: int) -> Floats:
    """Where one 8-bit code ends and the next begins; those of fewer bits are some of them."""
    return _shape(bend, np.arange(1, 256) / 128 - 1).astype(np.float32)


def _codes(rows: Floats, scale: Halves, bend: int) -> Codes:
    wide = scale.astype(np.float32)[:, None]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        shares = np.where(wide > 0, rows / wide, np.float32(0))
    return np.searchsorted(_edges(bend), shares, side="right").astype(np.uint8)


def _histograms(rows: Floats, most: Floats) -> npt.NDArray[np.float64]:
    """How many weights of each channel have which share of its largest one (channels, bins)."""
    reach = np.where(most > 0, most, np.float32(1))[:, None]
    bins = np.minimum((np.abs(rows) / reach * np.float32(_BINS)).astype(np.intp), _BINS - 1)
    bins += np.arange(len(rows))[:, None] * _BINS
    return np.bincount(bins.ravel(), minlength=len(rows) * _BINS).reshape(len(rows), _BINS).astype(np.float64)


@cache
def _costs_of_bins(bend: int) -> npt.NDArray[np.float64]:
    """Squared error of a weight in the middle of each bin, for a largest one of 1: (bins, shares * widths)."""
    middles = (np.arange(_BINS) + 0.5) / _BINS
    found = np.empty((_BINS, len(_SHARES), len(NESTED)))
    for i, share in enumerate(_SHARES):
        codes = np.searchsorted(_edges(bend), middles / share, side="right")
        for j, bits in enumerate(NESTED):
            found[:, i, j] = np.square(grid(bend, bits)[codes >> (TOP - bits)] * share - middles)
    return found.reshape(_BINS, -1)


def _errors(counts: npt.NDArray[np.float64], bend: int) -> npt.NDArray[np.float64]:
    """Squared error (channels, shares, widths), in squares of each channel's largest weight.

    In float64, so that another order of summing does not change which is least: pieces are addressed by their bytes.
    """
    return (counts @ _costs_of_bins(bend)).reshape(len(counts), len(_SHARES), len(NESTED))


def _best_shares(errors: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    """For each channel, which share has the least weighted log error."""
    return np.asarray(np.argmin(np.log(errors + 1e-30) @ np.array(_EMPHASIS), axis=1))


def _layer_cost(counts: npt.NDArray[np.float64], wide: npt.NDArray[np.float64], bend: int) -> float:
    """Weighted log error of a layer whose channels have the best ranges."""
    errors = _errors(counts, bend)
    best = errors[np.arange(len(errors)), _best_shares(errors)]
    return float(np.log(wide @ best + 1e-30) @ np.array(_EMPHASIS))


def _gains(rows: Floats, scale: Halves, bend: int, codes: Codes) -> Halves:
    """For every width the factor of least squared error over the layer; 1 where nothing can be said."""
    wide = scale.astype(np.float32)[:, None]
    gains = []
    for bits in NESTED:
        made = grid(bend, bits)[codes >> (TOP - bits)] * wide
        power = float(np.square(made, dtype=np.float64).sum())
        gains.append(float(np.multiply(made, rows, dtype=np.float64).sum()) / power if power else 1.0)
    return np.array(gains, np.float16)
