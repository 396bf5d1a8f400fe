"""Paged attention in numpy: the specification (docs/spec/kernels-attention.md)."""

from typing import Any

import numpy as np
import numpy.typing as npt

from edgekernels import _attention_checks

NAME = "numpy"


def widened(array: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Elements, float32 or bits of bfloat16, as float64."""
    if array.dtype == np.uint16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float64)


def narrowed(numbers: npt.NDArray[np.float64], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Round to float32, and from there to bits of bfloat16 if that is the dtype; halves to even."""
    floats = numbers.astype(np.float32)
    if np.dtype(dtype) == np.float32:
        return floats
    bits = floats.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(floats), bits >> 16 | 0x40, rounded).astype(np.uint16)


def attend(
    query: npt.NDArray[Any],
    keys: npt.NDArray[Any],
    values: npt.NDArray[Any],
    page_table: npt.NDArray[np.int32],
    page_starts: npt.NDArray[np.int64],
    token_starts: npt.NDArray[np.int64],
    past: npt.NDArray[np.int64],
    *,
    scale: float,
    window: int,
    softcap: float,
    out: npt.NDArray[Any],
    num_threads: int,
) -> bool:
    """Write the answers of all rows; False, and nothing done, if the numbers in the arrays do not fit together."""
    query, keys, values, page_table, page_starts, token_starts, past, out = _attention_checks.arguments(
        query, keys, values, page_table, page_starts, token_starts, past, out
    )
    if _attention_checks.fault(query, keys, page_table, page_starts, token_starts, past) is not None:
        return False
    group = query.shape[1] // keys.shape[1]
    for span in range(len(past)):
        pages = page_table[page_starts[span] : page_starts[span + 1]]
        for i, token in enumerate(range(token_starts[span], token_starts[span + 1])):
            end = int(past[span]) + i + 1
            begin = max(0, end - window) if window else 0
            at = np.arange(begin, end)
            page, slot = pages[at // keys.shape[2]], at % keys.shape[2]
            seen = [widened(a[page, :, slot]).swapaxes(0, 1) for a in (keys, values)]  # (kv_heads, positions, dim)
            rows = widened(query[token]).reshape(keys.shape[1], group, -1)
            with np.errstate(all="ignore"):
                scores = rows @ seen[0].swapaxes(1, 2) * scale
                if softcap:
                    scores = softcap * np.tanh(scores / softcap)
                weights = np.exp(scores - scores.max(axis=2, keepdims=True))
                mixed = weights / weights.sum(axis=2, keepdims=True) @ seen[1]
            out[token] = narrowed(mixed.reshape(out.shape[1:]), out.dtype)
    return True
