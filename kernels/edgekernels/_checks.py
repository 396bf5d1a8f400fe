"""Checks of arguments: errors carry the offending value and say what to pass instead."""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

MAX_VOCAB = 1 << 22  # so that sums of masses fit 63 bits
MIN_TEMPERATURE = 1e-30  # finite logits stay finite after division
MAX_TEMPERATURE = 1e30
MAX_ID = (1 << 31) - 1
TEMPERATURES = f"0 for greedy, or a number from {MIN_TEMPERATURE} to {MAX_TEMPERATURE}"


def array(name: str, value: object, dtype: npt.DTypeLike, ndim: int) -> npt.NDArray[Any]:
    """Insist on a C-contiguous array of this dtype and number of dimensions."""
    wanted = np.dtype(dtype)
    if not isinstance(value, np.ndarray) or value.dtype != wanted:
        found = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise TypeError(f"{name} is {found}; pass numpy.asarray({name}, numpy.{wanted})")
    if value.ndim != ndim:
        raise ValueError(f"{name} has shape {value.shape}; pass {ndim} dimension(s)")
    if not value.flags.c_contiguous:
        raise ValueError(f"{name} has strides {value.strides}; pass numpy.ascontiguousarray({name})")
    return value


def logits(value: object) -> npt.NDArray[np.float32]:
    """Insist on float32 logits (rows, vocab) with a vocabulary of sane size."""
    checked = array("logits", value, np.float32, 2)
    if not 1 <= checked.shape[1] <= MAX_VOCAB:
        raise ValueError(f"logits has shape {checked.shape}; pass a vocabulary of 1 to {MAX_VOCAB} columns")
    return checked


def row_starts(value: object, num_rows: int) -> npt.NDArray[np.int64]:
    """Insist on strictly increasing offsets from 0 to the number of rows."""
    checked = array("row_starts", value, np.int64, 1)
    if len(checked) < 1 or checked[0] != 0 or checked[-1] != num_rows:
        ends = f"{checked[0]} .. {checked[-1]}" if len(checked) else "nothing"
        raise ValueError(f"row_starts covers {ends}; pass offsets from 0 to {num_rows}, the number of rows")
    starts = checked.tolist()  # plain integers: faster than numpy for the few sequences of a batch
    if not all(map(operator.lt, starts, starts[1:])):
        b = int(np.argmin(checked[1:] > checked[:-1]))
        raise ValueError(f"row_starts[{b}:{b + 2}] is {starts[b : b + 2]}; give every sequence at least one row")
    return checked


def per_sequence(
    name: str, value: Any, count: int, *, dtype: type[np.number], good: Callable[[Any], Any], remedy: str
) -> npt.NDArray[Any]:
    """Spread a scalar over the batch, or insist on one number for each sequence; all of them good."""
    integers = issubclass(dtype, np.integer)
    if type(value) is int or (type(value) is float and not integers):  # the common case, without array arithmetic
        if not good(value):
            raise ValueError(f"{name} is {value}; pass {remedy}")
        spread = np.empty(count, dtype)  # this and fill are faster than numpy.full
        spread.fill(value)
        return spread
    numbers = np.asarray(value)
    if numbers.dtype.kind not in ("iu" if integers else "iuf"):
        raise TypeError(f"{name} is {value!r}; pass {'integers' if integers else 'real numbers'}, {remedy}")
    if numbers.shape not in ((), (count,)):
        raise ValueError(f"{name} has shape {numbers.shape}; pass a scalar or shape ({count},)")
    verdict = np.asarray(good(numbers))
    if not verdict.all():
        raise ValueError(f"{name} is {numbers[~verdict].flat[0]}; pass {remedy}")
    return np.full(count, numbers, dtype)


def temperature(value: Any, count: int) -> npt.NDArray[np.float64]:
    """Insist on 0 or a sane positive temperature."""
    return per_sequence(
        "temperature",
        value,
        count,
        dtype=np.float64,
        good=lambda t: (t == 0) | ((t >= MIN_TEMPERATURE) & (t <= MAX_TEMPERATURE)),
        remedy=TEMPERATURES,
    )


def top_k(value: Any, count: int) -> npt.NDArray[np.int64]:
    """Insist on counts; 0 is off."""
    return per_sequence(
        "top_k",
        value,
        count,
        dtype=np.int64,
        good=lambda k: (k >= 0) & (k < 1 << 62),
        remedy="1 or more, or 0 to switch it off",
    )


def top_p(value: Any, count: int) -> npt.NDArray[np.float64]:
    """Insist on probabilities in (0, 1]; 1 is off."""
    return per_sequence(
        "top_p",
        value,
        count,
        dtype=np.float64,
        good=lambda p: (p > 0) & (p <= 1),
        remedy="a number in (0, 1], 1 to switch it off",
    )


def seed(value: Any, count: int) -> npt.NDArray[np.uint64]:
    """Insist on seeds of 64 bits."""
    return per_sequence(
        "seed",
        value,
        count,
        dtype=np.uint64,
        good=lambda s: (s >= 0) & (s < 1 << 64),
        remedy="integers 0 .. 2**64 - 1",
    )


def position(value: Any, count: int) -> npt.NDArray[np.uint64]:
    """Insist on absolute positions, which leave room for the rows that follow."""
    return per_sequence(
        "position",
        value,
        count,
        dtype=np.uint64,
        good=lambda p: (p >= 0) & (p < 1 << 62),
        remedy="integers 0 .. 2**62 - 1",
    )


def token_ids(value: object, count: int) -> npt.NDArray[np.int32]:
    """Insist on one non-negative target id for each column."""
    checked = array("token_ids", value, np.int32, 1)
    if checked.shape != (count,):
        raise ValueError(f"token_ids has shape {checked.shape}; pass one id for each of the {count} columns")
    if checked.min() < 0:
        raise ValueError(f"token_ids holds {checked.min()}; pass target ids from 0 on")
    return checked


def output(name: str, value: object, count: int) -> npt.NDArray[np.int32]:
    """Insist on a writable int32 array (count,), or make one for None."""
    if value is None:
        return np.empty(count, np.int32)
    checked = array(name, value, np.int32, 1)
    if checked.shape != (count,):
        raise ValueError(f"{name} has shape {checked.shape}; pass shape ({count},)")
    if not checked.flags.writeable:
        raise ValueError(f"{name} is read-only; pass an array that can be written")
    return checked


def num_threads(value: object) -> int:
    """Insist on at least one thread."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"num_threads is {value!r}; pass an integer") from None
    if not 1 <= number <= 1024:
        raise ValueError(f"num_threads is {number}; pass 1 .. 1024")
    return number
