"""The specification in numpy of fitting scales and offsets to groups of values (docs/spec/kernels-bits.md).

Every other backend finds the same floats: sums of squares are made in float32 in one order, sixteen running sums over
at most 4096 values and then a tree, and these are added up in float64.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]

ASYMMETRIC, SYMMETRIC, EVEN = range(3)
MOST_VALUE = 2.0**126  # so that differences and their squares stay finite
LEAST_SEARCHED = 2.0**-100  # a smaller scale is not searched for: its reciprocal is too large
UNITS = 128  # parts into which the range is divided
COARSE = 4  # of the first steps of a search, and the narrowest range
FINE = 3  # units to each side in its last steps
SUMS, PART = 16, 4096


class Task(NamedTuple):
    """Groups of values (groups, n) and what their grid is like; low and high are float64."""

    values: Floats
    bits: int
    grid: int
    low: Doubles
    high: Doubles

    @property
    def top(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    @property
    def reach(self) -> np.float32:
        """Codes from 0 on to the largest value, of the grids around 0."""
        whole = max((1 << (self.bits - 1)) - 1, 1)
        return np.float32(self.top / 2 if self.grid == EVEN else whole)

    def offset_around(self, scale: Floats) -> Floats:
        """The offset of a grid around 0."""
        return -(scale * (np.float32(1 << (self.bits - 1)) if self.grid == SYMMETRIC else self.reach))


def range_of(values: Floats) -> tuple[Floats, Floats]:
    """Least and largest value of every row in the order of their bits: -0 before 0, NaN beyond the infinities."""
    words = values.view(np.int32)
    keys = words ^ (words >> 31 & 0x7FFFFFFF)
    ends = np.stack([keys.min(axis=1), keys.max(axis=1)])
    low, high = (ends ^ (ends >> 31 & 0x7FFFFFFF)).view(np.float32)
    return low, high


def squares_of_steps(values: Floats, bits: int, scale: Floats, offset: Floats) -> Doubles:
    """Sum of the squared errors of every row, in steps."""
    low, inverse = offset[:, None], np.float32(1) / scale[:, None]
    total = np.zeros(len(values))
    for first in range(0, values.shape[1], PART):
        steps = (values[:, first : first + PART] - low) * inverse
        codes = np.rint(np.clip(steps, np.float32(0), np.float32((1 << bits) - 1)))
        squares = np.square(codes - steps)
        squares = np.pad(squares, ((0, 0), (0, -squares.shape[1] % SUMS))).reshape(len(values), -1, SUMS)
        sums = np.add.accumulate(squares, axis=1, dtype=np.float32)[:, -1]
        while sums.shape[1] > 1:
            half = sums.shape[1] // 2
            sums = sums[:, :half] + sums[:, half:]
        total += sums[:, 0]
    return total


class Search:
    """The best range of every group so far, from `begin` to `end` in units of its whole range."""

    def __init__(self, task: Task) -> None:
        self.task = task
        count = len(task.values)
        self.error = np.full(count, np.inf)
        self.scale, self.offset = np.zeros(count, np.float32), np.zeros(count, np.float32)
        self.begin, self.end = np.zeros(count, np.int64), np.zeros(count, np.int64)

    def consider(self, begin: Numbers | int, end: Numbers | int) -> None:
        """Take these ranges where they are allowed and better."""
        task = self.task
        begin, end = np.broadcast_to(begin, self.begin.shape), np.broadcast_to(end, self.end.shape)
        if task.grid == ASYMMETRIC:
            span = task.high - task.low
            scale = (span * ((end - begin) / UNITS) / task.top).astype(np.float32)
            offset = (task.low + span * (begin / UNITS)).astype(np.float32)
        else:
            scale = (task.high * (end / UNITS) / float(task.reach)).astype(np.float32)
            offset = task.offset_around(scale)
        allowed = np.flatnonzero((begin >= 0) & (end <= UNITS) & (end > begin))
        if not len(allowed):
            return
        squares = squares_of_steps(task.values[allowed], task.bits, scale[allowed], offset[allowed])
        error = np.full(len(scale), np.inf)
        error[allowed] = squares * np.square(scale[allowed].astype(np.float64))
        better = error < self.error
        for mine, new in (
            (self.error, error),
            (self.scale, scale),
            (self.offset, offset),
            (self.begin, begin),
            (self.end, end),
        ):
            mine[better] = new[better]

    def run(self) -> None:
        """Both ends at once, one after the other, and each again in small steps; symmetric grids have one end."""
        two_ends = self.task.grid == ASYMMETRIC
        if two_ends:
            for cut in range(0, (UNITS - COARSE) // 2 + 1, COARSE // 2):
                self.consider(cut, UNITS - cut)
            begin = self.begin.copy()
            for end in range(UNITS, 0, -COARSE):
                self.consider(begin, np.where(end >= begin + COARSE, end, -1))
            end_ = self.end.copy()
            for start in range(0, UNITS, COARSE):
                self.consider(np.where(start <= end_ - COARSE, start, -1), end_)
        else:
            for end in range(UNITS, 0, -COARSE):
                self.consider(0, end)
        steps = [step for step in range(-FINE, FINE + 1) if step]
        begin, end_ = self.begin.copy(), self.end.copy()
        for step in steps:
            self.consider(begin, end_ + step)
        begin, end_ = self.begin.copy(), self.end.copy()
        for step in steps if two_ends else ():
            self.consider(begin + step, end_)


def fit(values: Floats, bits: int, *, grid: int, search: bool, scale: Floats, offset: Floats) -> int:
    """Write the scale and offset of every row of values (groups, n), n at least 1.

    Args:
        values: float32 (groups, n).
        bits: width of a code.
        grid: ASYMMETRIC, SYMMETRIC or EVEN.
        search: for the least squared error, instead of the whole range.
        scale: float32 (groups,) to write.
        offset: float32 (groups,) to write.

    Returns:
        The first group with a number that is NaN or beyond 2**126, or -1; from it on nothing need be written.
    """
    low, high = range_of(values)
    with np.errstate(invalid="ignore"):
        good = (low >= -MOST_VALUE) & (high <= MOST_VALUE)
    if not good.all():
        return int(np.argmin(good))
    task = Task(values, bits, grid, low.astype(np.float64), high.astype(np.float64))
    if grid == ASYMMETRIC:
        scale[:] = (task.high - task.low) / task.top
        offset[:] = low
    else:
        task = task._replace(high=np.maximum(np.abs(task.low), np.abs(task.high)))
        scale[:] = task.high / float(task.reach)
        offset[:] = np.where(scale == 0, np.float32(0), task.offset_around(scale))
    chosen = np.flatnonzero(scale >= LEAST_SEARCHED)
    if search and len(chosen):
        best = Search(task._replace(values=values[chosen], low=task.low[chosen], high=task.high[chosen]))
        best.run()
        scale[chosen], offset[chosen] = best.scale, best.offset
    return -1
