"""Checks of the arguments of packing: as in _checks, errors carry the offending value and say what to pass."""

import math
import operator
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekernels import _checks
from edgekernels._bits_backend import DTYPES, FORMATS

LINE, LARGE = 64, 1 << 16  # bytes
MAX_CODES = 1 << 59  # so that a count of bits fits 63 bits
MOST_VALUE = 2.0**126  # of what a scale is fitted to
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


def aligned(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """A new array; a large one begins with a cache line, for stores are twice as slow where they cross lines."""
    num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    if num_bytes < LARGE:
        return np.empty(shape, dtype)
    memory = np.empty(num_bytes + LINE, np.uint8)
    skip = -memory.ctypes.data % LINE
    return memory[skip : skip + num_bytes].view(dtype).reshape(shape)


def output(name: str, value: Any, shape: tuple[int, ...], dtype: npt.DTypeLike, *sources: Any) -> npt.NDArray[Any]:
    """Insist on a writable array of this shape and dtype apart from the sources, or make one for None."""
    if value is None:
        return aligned(shape, dtype)
    checked = _checks.array(name, value, dtype, len(shape))
    if checked.shape != shape:
        raise ValueError(f"{name} has shape {checked.shape}; pass shape {shape}")
    if not checked.flags.writeable:
        raise ValueError(f"{name} is read-only; pass an array that can be written")
    if any(isinstance(source, np.ndarray) and np.may_share_memory(checked, source) for source in sources):
        raise ValueError(f"{name} shares memory with an argument; pass an array of its own")
    return checked


def choice(name: str, value: object, among: tuple[str, ...]) -> int:
    """Insist on one of some words; returns its place among them."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r}; pass one of {', '.join(map(repr, among))}")
    if value not in among:
        raise ValueError(f"{name} is {value!r}; pass one of {', '.join(map(repr, among))}")
    return among.index(value)


def stored_as(dtype: Any) -> np.dtype[Any]:
    """Insist on a format for values; returns the dtype of the array which holds them."""
    name = dtype if isinstance(dtype, str) else getattr(dtype, "name", getattr(dtype, "__name__", dtype))
    return np.dtype(DTYPES[choice("dtype", name, FORMATS)])


def scales_shape(rows: int, columns: int, group: object) -> tuple[int, ...]:
    """Shape of the scales of a matrix: one for each row, or for each group of columns."""
    if group is None:
        return (rows,)
    width = integer("group", group, 1, MAX_CODES)
    if columns % width:
        raise ValueError(f"group is {width}; pass a divisor of the {columns} columns")
    return (rows, columns // width)


def per_group(name: str, value: Any, shape: tuple[int, ...], *, low: float = -LARGEST) -> npt.NDArray[np.float32]:
    """Spread a number over all groups, or insist on finite float32 of this shape; none below `low`. Returns it flat."""
    if isinstance(value, float | int | np.floating) and not isinstance(value, bool):
        if isinstance(value, np.floating):
            value = float(value)  # float16 would round the bound to its infinity
        if not low <= value <= LARGEST:  # NaN fails, too
            raise ValueError(f"{name} is {value}; pass {REMEDIES[low]}")
        spread = np.empty(shape, np.float32)
        spread.fill(value)
        return spread.reshape(-1)
    checked = _checks.array(name, value, np.float32, len(shape))
    if checked.shape != shape:
        raise ValueError(f"{name} has shape {checked.shape}; pass a number or shape {shape}")
    flat = checked.reshape(-1)
    if len(flat) and not (np.minimum.reduce(flat) >= low and np.maximum.reduce(flat) <= LARGEST):
        first = int(np.argmin((flat >= low) & (flat <= LARGEST)))
        place = ", ".join(str(i) for i in np.unravel_index(first, shape))
        raise ValueError(f"{name}[{place}] is {flat[first]}; pass {REMEDIES[low]}")
    return flat
