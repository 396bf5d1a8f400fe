"""Checks of the arguments of paged attention: errors carry the offending value and say what to pass instead."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekernels import _bits_checks, _checks

DTYPES = (np.dtype(np.float32), np.dtype(np.uint16))
MAX_DIM, MAX_POSITIONS = 1024, 1 << 40


def elements(name: str, value: Any, ndim: int) -> npt.NDArray[Any]:
    """Insist on float32, or bits of bfloat16 as uint16, of this number of dimensions."""
    if isinstance(value, np.ndarray) and value.dtype.name == "bfloat16":  # of ml_dtypes
        value = value.view(np.uint16)
    if not isinstance(value, np.ndarray) or value.dtype not in DTYPES:
        found = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise TypeError(f"{name} is {found}; pass numpy.asarray({name}, numpy.float32), or bits of bfloat16 as uint16")
    if value.ndim != ndim:
        raise ValueError(f"{name} has shape {value.shape}; pass {ndim} dimensions")
    return value


def query(value: Any) -> npt.NDArray[Any]:
    """Insist on contiguous rows (tokens, heads, dim)."""
    checked = elements("query", value, 3)
    if not checked.flags.c_contiguous:
        raise ValueError(f"query has strides {checked.strides}; pass numpy.ascontiguousarray(query)")
    if checked.shape[1] < 1 or not 1 <= checked.shape[2] <= MAX_DIM:
        raise ValueError(f"query has shape {checked.shape}; pass at least one head, of 1 to {MAX_DIM} dimensions")
    return checked


def pool(name: str, value: Any, query: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Insist on pages (pages, kv_heads, page_tokens, dim) of the query's dtype, each of them contiguous."""
    checked = elements(name, value, 4)
    _, kv_heads, page_tokens, dim = checked.shape
    if checked.dtype != query.dtype:
        raise TypeError(f"{name} is {checked.dtype}, query is {query.dtype}; pass both in the same dtype")
    if dim != query.shape[2]:
        raise ValueError(f"{name} has {dim} dimensions, query has {query.shape[2]}; pass as many")
    if kv_heads < 1 or query.shape[1] % kv_heads:
        raise ValueError(f"{name} has {kv_heads} heads; pass a divisor of the query's {query.shape[1]}")
    if page_tokens < 1:
        raise ValueError(f"{name} has shape {checked.shape}; pass pages of at least one token")
    page_bytes, between = kv_heads * page_tokens * dim * checked.itemsize, checked.strides[0]
    strided = len(checked) > 1 and (between < page_bytes or between % checked.itemsize != 0)
    if len(checked) and (strided or not checked[0].flags.c_contiguous):
        raise ValueError(f"{name} has strides {checked.strides}; pass pages which are contiguous, one behind the other")
    return checked


def settings(scale: Any, window: Any, softcap: Any, num_threads: Any) -> tuple[float, int, float, int]:
    """Insist on a scale, a window, a softcap and a number of threads."""
    if type(scale) is not float or not 1e-30 <= scale <= 1e30:
        scale = number("scale", scale, low=1e-30, remedy="a number from 1e-30 to 1e30")
    if window != 0 or type(window) is not int:
        window = _bits_checks.integer("window", window, 0, MAX_POSITIONS)
    if softcap != 0 or type(softcap) is not float:
        softcap = number("softcap", softcap, low=0, remedy="0, or a number from 1e-30 to 1e30")
    if num_threads != 1:
        num_threads = _checks.num_threads(num_threads)
    return scale, window, softcap, num_threads


def arguments(
    query_of: Any,
    keys: Any,
    values: Any,
    page_table: Any,
    page_starts: Any,
    token_starts: Any,
    past: Any,
    out: Any,
) -> tuple[npt.NDArray[Any], ...]:
    """Insist on arrays of the right dtypes, shapes and strides; the numbers in them are not looked at.

    Returns:
        The arguments in their order, bfloat16 as uint16, and an output if there was none.
    """
    rows = query(query_of)
    pools = [pool("keys", keys, rows), pool("values", values, rows)]
    if pools[0].shape != pools[1].shape:
        raise ValueError(f"values has shape {pools[1].shape}; pass that of keys, {pools[0].shape}")
    tables = [_checks.array("page_table", page_table, np.int32, 1)]
    for name, array in (("page_starts", page_starts), ("token_starts", token_starts), ("past", past)):
        tables.append(_checks.array(name, array, np.int64, 1))
    for name, starts in (("page_starts", tables[1]), ("token_starts", tables[2])):
        if len(starts) != len(tables[3]) + 1:
            raise ValueError(f"{name} has {len(starts)} entries; pass {len(tables[3]) + 1}, one more than past has")
    return rows, *pools, *tables, output(out, rows, *pools)


def number(name: str, value: Any, *, low: float, remedy: str) -> float:
    """Insist on a real number of sane size above 0, or 0 if `low` is 0."""
    try:
        real = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {value!r}; pass {remedy}") from None
    if not (math.isfinite(real) and (real == low == 0 or 1e-30 <= real <= 1e30)):
        raise ValueError(f"{name} is {value}; pass {remedy}")
    return real


def output(value: Any, query: npt.NDArray[Any], *sources: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Insist on a writable array like the query apart from the sources, or make one for None."""
    if value is None:
        return np.empty_like(query)
    checked = elements("out", value, 3)
    if checked.dtype != query.dtype:
        raise TypeError(f"out is {checked.dtype}, query is {query.dtype}; pass both in the same dtype")
    if checked.shape != query.shape or not checked.flags.c_contiguous:
        raise ValueError(
            f"out has shape {checked.shape} and strides {checked.strides}; pass a contiguous {query.shape}"
        )
    if not checked.flags.writeable:
        raise ValueError("out is read-only; pass an array that can be written")
    if any(np.may_share_memory(checked, source) for source in (query, *sources)):
        raise ValueError("out shares memory with an argument; pass an array of its own")
    return checked


def fault(
    query: npt.NDArray[Any],
    keys: npt.NDArray[Any],
    page_table: npt.NDArray[np.int32],
    page_starts: npt.NDArray[np.int64],
    token_starts: npt.NDArray[np.int64],
    past: npt.NDArray[np.int64],
) -> str | None:
    """What is wrong with the numbers in arrays of the right dtypes and sizes, or None."""
    for name, starts, total in (
        ("token_starts", token_starts, len(query)),
        ("page_starts", page_starts, len(page_table)),
    ):
        try:
            _checks.offsets(name, starts, len(past), total)
        except ValueError as error:
            return str(error)
    tokens, owned = np.diff(token_starts), np.diff(page_starts)
    for s in np.flatnonzero(past < 0)[:1]:
        return f"past[{s}] is {past[s]}; pass 0 or more"
    room = owned * keys.shape[2]
    for s in np.flatnonzero(past > room - tokens)[:1]:
        return (
            f"span {s} has {past[s]} past and {tokens[s]} new tokens, its {owned[s]} pages hold {room[s]}; "
            f"pass {-(-(int(past[s]) + int(tokens[s])) // keys.shape[2])} pages"
        )
    for i in np.flatnonzero((page_table < 0) | (page_table >= len(keys)))[:1]:
        return f"page_table[{i}] is {page_table[i]}; pass pages 0 .. {len(keys) - 1}"
    return None
