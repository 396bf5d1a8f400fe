"""Operations that move numbers about, on numpy; what they return is contiguous, so that nothing copies it again."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qpart.ops import Concat, Expand, Pad, Permute, Slice

Array = NDArray[np.float32]


def permute(op: Permute, x: Array) -> Array:
    return np.ascontiguousarray(x.transpose(0, *(axis + 1 for axis in op.order)))


def slice_(op: Slice, x: Array) -> Array:
    along = (slice(None),) * (op.axis + 1)
    return x[(*along, slice(op.start, op.stop, op.step))].copy()  # a view would keep all of x


def concat(op: Concat, *tensors: Array) -> Array:
    return np.concatenate(tensors, axis=op.axis + 1)


def pad(op: Pad, x: Array) -> Array:
    shape = (len(x), *map(sum, zip(x.shape[1:], op.before, op.after, strict=True)))
    y = np.full(shape, op.value, np.float32)
    y[(slice(None), *(slice(b, b + n) for b, n in zip(op.before, x.shape[1:], strict=True)))] = x
    return y


def expand(op: Expand, x: Array) -> Array:
    return np.ascontiguousarray(np.broadcast_to(x, (len(x), *op.shape)))
