"""numpy arrays to frames and back: copied on the way out, read-only views on the way in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgebus.messages import ArraySpec
from edgebus.wire import ITEM_BYTES

Array = npt.NDArray[Any]


def pack_arrays(arrays: Sequence[Array]) -> tuple[tuple[ArraySpec, ...], tuple[bytes, ...]]:
    """Describe and copy arrays for sending.

    The copy is what makes a resend safe: the caller may overwrite its buffer at once.

    Args:
        arrays: any shape of at most 8 dimensions; dtypes of wire.ITEM_BYTES.

    Raises:
        TypeError: not an array, or a dtype that does not travel.
        ValueError: more than 8 dimensions.
    """
    specs = []
    frames = []
    for array in arrays:
        if not isinstance(array, np.ndarray):
            raise TypeError(f"arrays must be numpy arrays, got {type(array).__name__}")
        code = f"{array.dtype.kind}{array.dtype.itemsize}"
        if code not in ITEM_BYTES:
            raise TypeError(f"dtype {array.dtype} does not travel; use one of {' '.join(ITEM_BYTES)}")
        if array.ndim > 8:
            raise ValueError(f"array has {array.ndim} dimensions, at most 8 travel")
        specs.append(ArraySpec(code, array.shape))
        frames.append(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return tuple(specs), tuple(frames)


def view_arrays(specs: Sequence[ArraySpec], frames: Sequence[bytes]) -> tuple[Array, ...]:
    """Read-only arrays over received frames, whose sizes wire.decode has checked."""
    return tuple(
        np.ndarray(spec.shape, dtype=f"<{spec.dtype}", buffer=frame) for spec, frame in zip(specs, frames, strict=True)
    )
