"""Paged attention: many sessions, any number of new tokens each, keys and values in pages."""

from typing import Any

import numpy as np
import numpy.typing as npt

from edgekernels import _attention_checks, _bits_checks, _checks, _select


def paged_attention(
    query: npt.NDArray[Any],
    keys: npt.NDArray[Any],
    values: npt.NDArray[Any],
    page_table: npt.NDArray[np.int32],
    page_starts: npt.NDArray[np.int64],
    token_starts: npt.NDArray[np.int64],
    past: npt.NDArray[np.int64],
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    out: npt.NDArray[Any] | None = None,
    num_threads: int = 1,
) -> npt.NDArray[Any]:
    """Causal attention of the new tokens of several spans, each over its own pages.

    The keys and values of the new tokens are in the pages already. Query row i of a span stands at position past + i
    and looks at positions 0 .. past + i; position t lies in page t // page_tokens of the span, slot t % page_tokens.
    Query head h uses key-value head h // (heads / kv_heads). An answer depends on its own row and span alone: other
    rows, other spans, the pages and the number of threads change no bit of it.

    Args:
        query: (tokens, heads, dim), float32 or bits of bfloat16 (uint16), C-contiguous.
        keys, values: (pages, kv_heads, page_tokens, dim) of the same dtype; each page C-contiguous, pages may lie
            further apart than they are long. heads is a multiple of kv_heads.
        page_table: int32 (n,), page numbers; span s owns page_table[page_starts[s] : page_starts[s + 1]].
        page_starts: int64 (spans + 1,), rising from 0 to n.
        token_starts: int64 (spans + 1,), rising from 0 to tokens; span s owns these rows of the query.
        past: int64 (spans,), tokens of each span before the new ones.
        scale: of a dot product, often dim ** -0.5.
        window: a row looks at this many last positions only, itself included; 0 is all.
        softcap: scores become softcap * tanh(score / softcap); 0 leaves them.
        out: (tokens, heads, dim) of the query's dtype to write and return instead of a new array.
        num_threads: threads that share the work, at most.

    Returns:
        (tokens, heads, dim) of the query's dtype.

    Raises:
        TypeError: an argument has another type or dtype.
        ValueError: an argument has another shape or is out of its range.

    Source: online softmax, Milakov and Gimelshein (arXiv 1805.02867); tiles, Dao et al. (arXiv 2205.14135); pages, Kwon
    et al. (arXiv 2309.06180).

    >>> query = np.zeros((1, 1, 2), np.float32)  # all scores are 0: the mean of the values
    >>> pages = np.arange(8, dtype=np.float32).reshape(2, 1, 2, 2)
    >>> table, starts = np.array([1, 0], np.int32), np.array([0, 2])
    >>> paged_attention(query, pages, pages, table, starts, np.array([0, 1]), np.array([2]), scale=1.0).tolist()
    [[[3.3333332538604736, 4.333333492279053]]]
    """
    query = _attention_checks.query(query)
    keys = _attention_checks.pool("keys", keys, query)
    values = _attention_checks.pool("values", values, query)
    if values.shape != keys.shape:
        raise ValueError(f"values has shape {values.shape}; pass that of keys, {keys.shape}")
    page_table = _checks.array("page_table", page_table, np.int32, 1)
    page_starts = _checks.array("page_starts", page_starts, np.int64, 1)
    token_starts = _checks.array("token_starts", token_starts, np.int64, 1)
    past = _checks.array("past", past, np.int64, 1)
    for name, starts in (("page_starts", page_starts), ("token_starts", token_starts)):
        if len(starts) != len(past) + 1:
            raise ValueError(f"{name} has {len(starts)} entries; pass {len(past) + 1}, one more than past has")
    scale = _attention_checks.number("scale", scale, low=1, remedy="a number from 1e-30 to 1e30")
    softcap = _attention_checks.number("softcap", softcap, low=0, remedy="0, or a number from 1e-30 to 1e30")
    window = _bits_checks.integer("window", window, 0, _attention_checks.MAX_POSITIONS)
    if num_threads != 1:
        num_threads = _checks.num_threads(num_threads)
    out = _attention_checks.output(out, query, keys, values)
    arrays = (page_table, page_starts, token_starts, past)
    if not _select.active_attend.attend(
        query, keys, values, *arrays, scale=scale, window=window, softcap=softcap, out=out, num_threads=num_threads
    ):
        raise ValueError(_attention_checks.fault(query, keys, *arrays))
    return out
