"""Checks of arguments: errors carry the offending value and say what to pass instead."""

import operator
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekernels._hooks import Noise
from edgekernels._task import BFLOAT16, FLOAT16, FLOAT32, Bias, History, SparseQ

_LOGITS = {np.dtype(np.float32): FLOAT32, np.dtype(np.float16): FLOAT16, np.dtype(np.uint16): BFLOAT16}
MAX_VOCAB = 1 << 22  # so that sums of masses fit 63 bits
MAX_ID = (1 << 31) - 1
MAX_PROBABILITY = 1.0001  # rounding of a law made elsewhere


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


def logits(value: object) -> tuple[npt.NDArray[Any], int]:
    """Insist on logits (rows, vocab) of a vocabulary of sane size; also says which of the three dtypes they have."""
    dtype = _LOGITS.get(value.dtype) if isinstance(value, np.ndarray) else None
    if dtype is None:
        if isinstance(value, np.ndarray) and value.dtype.name == "bfloat16":  # of ml_dtypes
            return logits(value.view(np.uint16))
        found = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise TypeError(
            f"logits is {found}; pass numpy.asarray(logits, numpy.float32), or float16, or bits of bfloat16 as uint16"
        )
    checked = array("logits", value, value.dtype, 2)  # type: ignore[attr-defined]
    if not 1 <= checked.shape[1] <= MAX_VOCAB:
        raise ValueError(f"logits has shape {checked.shape}; pass a vocabulary of 1 to {MAX_VOCAB} columns")
    return checked, dtype


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


def offsets(name: str, value: object, count: int, total: int) -> npt.NDArray[np.int64]:
    """Insist on rising offsets (count + 1,) from 0 to `total`; a part may be empty."""
    checked = array(name, value, np.int64, 1)
    if len(checked) != count + 1 or checked[0] != 0 or checked[-1] != total:
        ends = f"{checked[0]} .. {checked[-1]}" if len(checked) else "nothing"
        raise ValueError(f"{name} has {len(checked)} entries, {ends}; pass {count + 1} offsets from 0 to {total}")
    if (checked[1:] < checked[:-1]).any():
        b = int(np.argmax(checked[1:] < checked[:-1]))
        raise ValueError(f"{name}[{b}:{b + 2}] is {checked[b : b + 2].tolist()}; pass offsets that do not fall")
    return checked


def columns(name: str, value: object, vocab: int) -> npt.NDArray[np.int32]:
    """Insist on ids (n,) within the vocabulary."""
    checked = array(name, value, np.int32, 1)
    if checked.size and not 0 <= checked.min() <= checked.max() < vocab:
        raise ValueError(f"{name} spans {checked.min()} .. {checked.max()}; pass ids 0 .. {vocab - 1}")
    return checked


def history(value: object, count: int, vocab: int) -> History | None:
    """Insist on ids within the vocabulary and on prompts no longer than their histories."""
    if value is None:
        return None
    if not isinstance(value, History):
        raise TypeError(f"history is {type(value).__name__}; pass edgekernels.History(ids, starts)")
    ids = columns("history.ids", value.ids, vocab)
    starts = offsets("history.starts", value.starts, count, len(ids))
    lengths = starts[1:] - starts[:-1]
    remedy = "0 or more, at most the number of tokens"
    prompt = per_sequence(
        "history.num_prompt", value.num_prompt, count, integers=True, good=_is_position, remedy=remedy
    )
    spread = np.full(count, prompt, np.int64)
    if (spread > lengths).any():
        b = int(np.argmax(spread > lengths))
        raise ValueError(f"history.num_prompt is {spread[b]} of {lengths[b]} tokens; pass at most their number")
    return History(ids, starts, spread)


def bias(value: object, count: int, vocab: int) -> Bias | None:
    """Insist on one value, not NaN, for each id, and on ids within the vocabulary."""
    if value is None:
        return None
    if not isinstance(value, Bias):
        raise TypeError(f"bias is {type(value).__name__}; pass edgekernels.Bias(ids, values, starts)")
    ids = columns("bias.ids", value.ids, vocab)
    values = array("bias.values", value.values, np.float32, 1)
    if values.shape != ids.shape:
        raise ValueError(f"bias.values has shape {values.shape}; pass one for each of the {len(ids)} ids")
    if np.isnan(values).any():
        raise ValueError("bias.values holds nan; pass numbers, or -inf to forbid an id")
    return Bias(ids, values, offsets("bias.starts", value.starts, count, len(ids)))


def law_of_drafts(value: object, num_drafts: int, vocab: int) -> npt.NDArray[np.float32] | SparseQ | None:
    """Insist on a dense q (drafts, vocab), or on a sparse one whose ids rise; None is a certain draft."""
    if value is None:
        return None
    if not isinstance(value, SparseQ):
        dense = array("q", value, np.float32, 2)
        if dense.shape != (num_drafts, vocab):
            raise ValueError(f"q has shape {dense.shape}; pass {(num_drafts, vocab)}, or edgekernels.SparseQ")
        return dense
    ids = columns("q.ids", value.ids, vocab)
    probabilities = array("q.probabilities", value.probabilities, np.float32, 1)
    if probabilities.shape != ids.shape:
        raise ValueError(f"q.probabilities has shape {probabilities.shape}; pass one for each of the {len(ids)} ids")
    if not ((probabilities >= 0) & (probabilities <= MAX_PROBABILITY)).all():
        wrong = probabilities[~((probabilities >= 0) & (probabilities <= MAX_PROBABILITY))][0]
        raise ValueError(f"q.probabilities holds {wrong}; pass numbers from 0 to 1")
    starts = offsets("q.starts", value.starts, num_drafts, len(ids))
    rising = ids[1:] > ids[:-1]
    rising[starts[(starts > 0) & (starts < len(ids))] - 1] = True  # from one draft to the next they may fall
    if not rising.all():
        i = int(np.argmin(rising))
        raise ValueError(f"q.ids[{i}:{i + 2}] is {ids[i : i + 2].tolist()}; sort the ids of each draft, each once")
    return SparseQ(ids, probabilities, starts)


def _as_array(name: str, value: Any, count: int, integers: bool) -> npt.NDArray[Any]:
    try:
        numbers = np.asarray(value)
    except ValueError:  # lists of different lengths
        raise ValueError(f"{name} is {value!r}; pass a scalar or shape ({count},)") from None
    if numbers.dtype.kind != "f":
        return numbers
    if not integers:
        return numbers.astype(np.float64, copy=False)  # float16 would round the bounds to its infinity
    whole = np.asarray(value, object)  # of 1 and 2**63 numpy makes floats
    return whole if _is_whole(whole) else numbers


def _is_whole(numbers: npt.NDArray[Any]) -> bool:
    """Whether these are Python's integers, of which no dtype of numpy holds all."""
    return numbers.dtype.kind == "O" and numbers.size > 0 and all(type(number) is int for number in numbers.flat)


def per_sequence(
    name: str, value: Any, count: int, *, integers: bool = False, good: Callable[[Any], Any], remedy: str
) -> Any:
    """Insist on a scalar, or on one number for each sequence; all of them good."""
    if type(value) is int or (type(value) is float and not integers):  # the common case, without array arithmetic
        if not good(value):
            raise ValueError(f"{name} is {value}; pass {remedy}")
        return value
    numbers = _as_array(name, value, count, integers)
    if numbers.dtype.kind not in ("iu" if integers else "iuf") and not (integers and _is_whole(numbers)):
        raise TypeError(f"{name} is {value!r}; pass {'integers' if integers else 'real numbers'}, {remedy}")
    if numbers.shape not in ((), (count,)):
        raise ValueError(f"{name} has shape {numbers.shape}; pass a scalar or shape ({count},)")
    verdict = np.asarray(good(numbers))
    if not verdict.all():
        raise ValueError(f"{name} is {numbers[~verdict].flat[0]}; pass {remedy}")
    return numbers.astype(np.uint64) if numbers.dtype.kind == "O" else numbers


def seed(value: Any, count: int) -> Any:
    """Insist on seeds of 64 bits."""
    return per_sequence("seed", value, count, integers=True, good=_is_seed, remedy="0 .. 2**64 - 1")


def position(value: Any, count: int) -> Any:
    """Insist on absolute positions, which leave room for the rows that follow."""
    return per_sequence("position", value, count, integers=True, good=_is_position, remedy="0 .. 2**62 - 1")


def _is_seed(value: Any) -> Any:
    return (value >= 0) & (value < 1 << 64)


def _is_position(value: Any) -> Any:
    return (value >= 0) & (value < 1 << 62)


def token_ids(value: object, count: int) -> npt.NDArray[np.int32]:
    """Insist on one non-negative target id for each column."""
    checked = array("token_ids", value, np.int32, 1)
    if checked.shape != (count,):
        raise ValueError(f"token_ids has shape {checked.shape}; pass one id for each of the {count} columns")
    if checked.min() < 0:
        raise ValueError(f"token_ids holds {checked.min()}; pass target ids from 0 on")
    return checked


def noise(value: object) -> Noise | None:
    """Insist on a noise which was made for the kernels."""
    if value is not None and not isinstance(value, Noise):
        raise TypeError(f"noise is {value!r}; pass edgekernels.compile_noise(function)")
    return value


def _shares(array: npt.NDArray[Any], other: object) -> bool:
    if isinstance(other, tuple):  # History, Bias, SparseQ
        return any(_shares(array, part) for part in other)
    return isinstance(other, np.ndarray) and np.may_share_memory(array, other)


def output(name: str, value: object, count: int, *sources: object) -> npt.NDArray[np.int32]:
    """Insist on a writable int32 array (count,) apart from the sources, or make one for None."""
    if value is None:
        return np.empty(count, np.int32)
    checked = array(name, value, np.int32, 1)
    if checked.shape != (count,):
        raise ValueError(f"{name} has shape {checked.shape}; pass shape ({count},)")
    if not checked.flags.writeable:
        raise ValueError(f"{name} is read-only; pass an array that can be written")
    if _shares(checked, sources):
        raise ValueError(f"{name} shares memory with an argument or the other output; pass an array of its own")
    return checked


def processors() -> int:
    """Processors this process may run on: more threads would only wait for each other."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def num_threads(value: object) -> int:
    """Insist on at least one thread; returns as many of them as there are processors for."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"num_threads is {value!r}; pass an integer") from None
    if not 1 <= number <= 1024:
        raise ValueError(f"num_threads is {number}; pass 1 .. 1024")
    return min(number, processors()) if number > 1 else number
