"""Paged attention: many sessions, any number of new tokens each, keys and values in pages."""

from typing import Any

import numpy as np
import numpy.typing as npt

from edgekernels import _attention_checks, _select


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
    [[[3.3333334922790527, 4.333333492279053]]]
    """
    scale, window, softcap, num_threads = _attention_checks.settings(scale, window, softcap, num_threads)
    settings: dict[str, Any] = {"scale": scale, "window": window, "softcap": softcap, "num_threads": num_threads}
    attend, tables = _select.active_attend.attend, (page_table, page_starts, token_starts, past)
    answer = np.empty_like(query) if out is None and isinstance(query, np.ndarray) else out
    if attend(query, keys, values, *tables, out=answer, **settings):  # the kernels look at everything themselves,
        return answer
    arrays = _attention_checks.arguments(query, keys, values, *tables, out)  # and here is said what they do not like,
    if not attend(*arrays[:-1], out=arrays[-1], **settings):  # unless it was but another name for bits of bfloat16
        raise ValueError(_attention_checks.fault(*arrays[:2], *arrays[3:-1]))
    return arrays[-1]
