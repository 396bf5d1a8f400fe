"""Ranges of activations: the scale and offset of least squared error, for every width.

Pure: numpy only. The sample is sorted once. The error of a candidate then follows from where its codes begin and end
in it and from running sums of the numbers and of their squares, in time that depends on the codes alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qpart.errors import UnsupportedModel
from qpart.quantiser import HALF, MOST, Floats, Range
from qpart.tables import WIDTHS

_SHARES = np.geomspace(0.2, 1.0, 28)


def fit_widths(sample: Floats) -> tuple[Range, ...]:
    """Ranges of least squared error for an activation at every one of `WIDTHS`; see `fit_range`."""
    ordered = _Ordered(sample)
    return tuple(_of_halves(sample) if bits == HALF else ordered.best(bits) for bits in WIDTHS)


def fit_range(sample: Floats, bits: int) -> Range:
    """Range of least squared error for an activation, from a sample of its values (any shape).

    What is never negative may keep 0 as its lowest value, and does so where 0 occurs (after a ReLU).

    Raises:
        UnsupportedModel: numbers that are not finite, or too large.
    """
    return _of_halves(sample) if bits == HALF else _Ordered(sample).best(bits)


class _Ordered:
    """A sample in ascending order, with running sums: of numbers and squares from the lowest one."""

    def __init__(self, sample: Floats) -> None:
        numbers = np.sort(np.asarray(sample, np.float32), axis=None)
        self.low, self.high = float(numbers[0]), float(numbers[-1])
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.high - self.low < MOST):
            raise UnsupportedModel(
                f"an activation goes from {self.low} to {self.high}; check the inputs, or rescale the model"
            )
        self._numbers = numbers.astype(np.float64)
        above = self._numbers - self.low
        self._sums = np.concatenate(([0.0], np.cumsum(above)))
        self._power = float(np.square(above, out=above).sum())

    def best(self, bits: int) -> Range:
        """The range whose codes are nearest; the first of several."""
        if self.high == self.low:
            return Range(0.0, self.low)
        return min(self._candidates(bits), key=lambda found: self._error(bits, found))

    def _candidates(self, bits: int) -> Iterator[Range]:
        for share in _SHARES:
            for bottom in (0.0, self.low) if self.low >= 0 else (self.low, self.low * share):
                top = self.high * share if self.high > 0 else self.high
                if top > bottom:
                    yield Range(float(np.float32((top - bottom) / (2**bits - 1))), float(np.float32(bottom)))

    def _error(self, bits: int, found: Range) -> float:
        """Squared error of the sample, each number at the nearest code."""
        codes, scale, offset = np.arange(2**bits), np.float32(found.scale), np.float32(found.offset)
        stands_for = (codes.astype(np.float32) * scale + offset).astype(np.float64) - self.low
        edges = (codes[1:] - 0.5) * found.scale + found.offset
        bounds = np.concatenate(([0], np.searchsorted(self._numbers, edges), [len(self._numbers)]))
        counts, sums = np.diff(bounds), np.diff(self._sums[bounds])
        return float(self._power + (stands_for * (counts * stands_for - 2 * sums)).sum())


def _of_halves(sample: Floats) -> Range:
    return Range(1.0, 0.0) if _are_tokens(sample) else Range(0.0, 0.0)


def _are_tokens(sample: Floats) -> bool:
    """Integers that float16 would round, and 16 bits hold: indices into a table."""
    most = float(sample.max())
    return 2048 < most < 1 << 16 and float(sample.min()) >= 0 and bool((sample == np.rint(sample)).all())
