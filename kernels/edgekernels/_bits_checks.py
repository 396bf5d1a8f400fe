"""Checks of the arguments of packing: as in _checks, errors carry the offending value and say what to pass."""

import operator
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekernels import _checks

MAX_CODES = 1 << 59  # so that a count of bits fits 63 bits
LARGEST = float(np.finfo(np.float32).max)
REMEDIES = {-LARGEST: "finite float32 numbers", 0: "finite float32 numbers, 0 or more"}


def integer(name: str, value: object, low: int, high: int) -> int:
    """Insist on an integer from low to high."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} is {value!r}; pass an integer") from None
    if not low <= number <= high:
        raise ValueError(f"{name} is {number}; pass {low} .. {high}")
    return number


def bits(value: object) -> int:
    """Insist on a bit width of 1 to 8."""
    return integer("bits", value, 1, 8)


def values(value: object) -> npt.NDArray[np.float32]:
    """Insist on float32 values (rows, columns) with at least one column."""
    checked = _checks.array("values", value, np.float32, 2)
    if checked.shape[1] == 0:
        raise ValueError(f"values has shape {checked.shape}; pass at least one column")
    return checked


def output(name: str, value: Any, shape: tuple[int, ...], dtype: npt.DTypeLike, *sources: Any) -> npt.NDArray[Any]:
    """Insist on a writable array of this shape and dtype apart from the sources, or make one for None."""
    if value is None:
        return np.empty(shape, dtype)
    checked = _checks.array(name, value, dtype, len(shape))
    if checked.shape != shape:
        raise ValueError(f"{name} has shape {checked.shape}; pass shape {shape}")
    if not checked.flags.writeable:
        raise ValueError(f"{name} is read-only; pass an array that can be written")
    if any(isinstance(source, np.ndarray) and np.may_share_memory(checked, source) for source in sources):
        raise ValueError(f"{name} shares memory with an argument; pass an array of its own")
    return checked


def per_row(name: str, value: Any, rows: int, *, low: float = -LARGEST) -> npt.NDArray[np.float32]:
    """Spread a number over the rows, or insist on finite float32 (rows,); none below `low`."""
    if isinstance(value, float | int | np.floating) and not isinstance(value, bool):
        if not low <= value <= LARGEST:  # NaN fails, too
            raise ValueError(f"{name} is {value}; pass {REMEDIES[low]}")
        spread = np.empty(rows, np.float32)
        spread.fill(value)
        return spread
    checked = _checks.array(name, value, np.float32, 1)
    if checked.shape != (rows,):
        raise ValueError(f"{name} has shape {checked.shape}; pass a number or shape ({rows},)")
    if rows and not (np.minimum.reduce(checked) >= low and np.maximum.reduce(checked) <= LARGEST):
        row = int(np.argmin((checked >= low) & (checked <= LARGEST)))
        raise ValueError(f"{name}[{row}] is {checked[row]}; pass {REMEDIES[low]}")
    return checked
