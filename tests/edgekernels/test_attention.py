"""Paged attention: every backend and level against the reference, and what an answer may depend on."""

import numpy as np
from edgekernels import _attention_reference as reference
from edgekernels import paged_attention
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

relaxed = settings(
    deadline=None, max_examples=40, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def bfloat16(values):
    return reference.narrowed(values.astype(np.float64), np.uint16)


def starts_of(counts):
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def problem(rng, *, spans, kv_heads, group, dim, page_tokens, narrow=False, spare=2):
    """Arguments for spans of (past, new) tokens; pages in any order, unused ones full of NaN."""
    past, new = (np.array(column, np.int64) for column in zip(*spans, strict=True))
    owned = -(-(past + new) // page_tokens) + rng.integers(0, 2, len(spans))
    pages = int(owned.sum()) + spare
    table = rng.permutation(pages)[: owned.sum()].astype(np.int32)
    shape = (pages, kv_heads, page_tokens, dim)
    query = rng.normal(0, 1, (int(new.sum()), kv_heads * group, dim)).astype(np.float32)
    keys, values = (rng.normal(0, 1, shape).astype(np.float32) for _ in range(2))
    starts = starts_of(owned)
    for s, total in enumerate(past + new):
        for n, page in enumerate(table[starts[s] : starts[s + 1]]):
            keys[page, :, max(0, total - n * page_tokens) :] = np.nan  # never written
            values[page, :, max(0, total - n * page_tokens) :] = np.nan
    unused = np.setdiff1d(np.arange(pages), table)
    keys[unused] = values[unused] = np.nan
    if narrow:
        query, keys, values = bfloat16(query), bfloat16(keys), bfloat16(values)
    return query, keys, values, table, starts, starts_of(new), past


def expected(arguments, *, scale, window=0, softcap=0.0):
    """Answers of the reference, float64 before they were rounded would differ by half a last place."""
    out = np.empty_like(arguments[0])
    assert reference.attend(*arguments, scale=scale, window=window, softcap=softcap, out=out, num_threads=1)
    return out


def check(found, wanted):
    """Within a float32 error, or within two last places and what narrow weights cost (docs/spec/kernels-attention.md)."""
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    tolerance = 1.2e-2 if found.dtype == np.uint16 else 6e-6
    difference = np.abs(reference.widened(found) - reference.widened(wanted))
    assert difference.max(initial=0) <= tolerance, difference.max()


@relaxed
@given(
    seed=st.integers(0, 2**32),
    spans=st.lists(st.tuples(st.integers(0, 90) | st.sampled_from([255, 256, 300]), st.integers(0, 9)), max_size=4)
    | st.lists(st.tuples(st.integers(0, 70), st.integers(30, 70)), min_size=1, max_size=1),
    kv_heads=st.integers(1, 3), group=st.sampled_from([1, 2, 3, 4, 7]),
    dim=st.integers(1, 40) | st.sampled_from([64, 80, 96, 100, 128, 256]),
    page_tokens=st.integers(1, 64), narrow=st.booleans(), threads=st.integers(1, 3),
    window=st.sampled_from([0, 0, 1, 5, 64, 130]), softcap=st.sampled_from([0.0, 0.0, 2.5, 50.0]),
)  # fmt: skip
def test_any_batch_equals_the_reference(
    attend_engine, seed, spans, kv_heads, group, dim, page_tokens, narrow, threads, window, softcap
):
    rng = np.random.default_rng(seed)
    sizes = {"kv_heads": kv_heads, "group": group, "dim": dim, "page_tokens": page_tokens}
    spans = spans or [(0, 0)]
    arguments = problem(rng, spans=spans, narrow=narrow, **sizes)
    options = {"scale": dim**-0.5, "window": window, "softcap": softcap}
    check(paged_attention(*arguments, num_threads=threads, **options), expected(arguments, **options))
