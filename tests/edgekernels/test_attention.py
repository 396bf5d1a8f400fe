"""Paged attention: every backend and level against the reference, and what an answer may depend on."""

import math

import numpy as np
import pytest
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
    past, new = np.array(spans, np.int64).reshape(-1, 2).T.copy()
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
    """Answers of the reference."""
    out = np.empty_like(arguments[0])
    assert reference.attend(*arguments, scale=scale, window=window, softcap=softcap, out=out, num_threads=1)
    return out


def check(found, wanted):
    """Within the errors which docs/spec/kernels-attention.md allows for values of about 1."""
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
    arguments = problem(rng, spans=spans, narrow=narrow, **sizes)
    options = {"scale": dim**-0.5, "window": window, "softcap": softcap}
    check(paged_attention(*arguments, num_threads=threads, **options), expected(arguments, **options))


def worked(dtype):
    """One head of one dimension; with scale ln 2 the keys are exponents of 2: weights 1, 2, 4 of values 3, 6, 12."""
    rows = [np.array(numbers, np.float32) for numbers in ([1, 1, 1], [0, 1, 2, 9], [3, 6, 12, 99])]
    if dtype == np.uint16:
        rows = [bfloat16(row) for row in rows]
    query, keys, values = (
        row.reshape(shape) for row, shape in zip(rows, [(3, 1, 1), *[(2, 1, 2, 1)] * 2], strict=True)
    )
    table, starts = np.array([1, 0], np.int32), np.array([0, 2])
    return query, keys[::-1].copy(), values[::-1].copy(), table, starts, np.array([0, 3]), np.array([0])


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
@pytest.mark.parametrize(("window", "answers"), [(0, [3, 5, 9]), (2, [3, 5, 10]), (1, [3, 6, 12]), (10**9, [3, 5, 9])])
def test_weights_are_powers_in_the_worked_example(attend_engine, dtype, window, answers):
    found = paged_attention(*worked(dtype), scale=math.log(2), window=window)
    np.testing.assert_allclose(
        reference.widened(found).reshape(-1), answers, rtol=1e-6 if dtype == np.float32 else 4e-3
    )


def test_softcap_bounds_the_scores_in_the_worked_example(attend_engine):
    """Scores of 1e9 and -1e9 become ln 2 and -ln 2: weights 4 : 1 of the values 0 and 5."""
    query, pages = np.ones((1, 1, 1), np.float32), np.array([1e9, -1e9], np.float32).reshape(1, 1, 2, 1)
    values = np.array([0, 5], np.float32).reshape(1, 1, 2, 1)
    found = paged_attention(
        query, pages, values, np.zeros(1, np.int32), np.array([0, 1]), np.array([0, 1]), np.array([1]),
        scale=1, softcap=math.log(2),
    )  # fmt: skip
    np.testing.assert_allclose(found, [[[1]]], rtol=1e-6)


def alone(arguments, span, row, *, page_tokens):
    """The problem of one row of one span, its positions moved to new pages of another size."""
    query, keys, values, table, page_starts, token_starts, past = arguments
    total = int(past[span]) + row + 1
    pages = table[page_starts[span] : page_starts[span + 1]]
    at = np.arange(total)
    moved = []
    for pool in (keys, values):
        flat = pool[pages[at // pool.shape[2]], :, at % pool.shape[2]]  # (positions, kv_heads, dim)
        fresh = np.zeros((-(-total // page_tokens), page_tokens, *flat.shape[1:]), pool.dtype)
        fresh.reshape(-1, *flat.shape[1:])[:total] = flat
        moved.append(fresh.swapaxes(1, 2).copy())
    token = token_starts[span] + row
    table, counts = np.arange(len(moved[0]), dtype=np.int32), np.array([0, len(moved[0])])
    return query[token : token + 1], *moved, table, counts, np.array([0, 1]), np.array([total - 1])


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("options", [{}, {"window": 100}, {"softcap": 5.0}], ids=str)
def test_an_answer_depends_on_its_own_row_alone(attend_level, narrow, options):
    """To the bit: not on other rows and spans, on the pages, or on the number of threads."""
    rng = np.random.default_rng(3)
    spans = [(300, 1), (0, 70), (511, 6), (40, 5)]
    arguments = problem(rng, spans=spans, kv_heads=2, group=3, dim=40, page_tokens=16, narrow=narrow)
    together = paged_attention(*arguments, scale=0.2, **options)
    for threads in (2, 5):
        assert np.array_equal(paged_attention(*arguments, scale=0.2, num_threads=threads, **options), together)
    for span, row in ((0, 0), (1, 0), (1, 33), (1, 69), (2, 0), (2, 5), (3, 2)):
        own = paged_attention(*alone(arguments, span, row, page_tokens=7), scale=0.2, **options)
        assert np.array_equal(own[0], together[arguments[5][span] + row]), (span, row)


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("spoilt", [np.nan, np.inf])
def test_what_is_not_finite_reaches_only_rows_which_see_it(attend_engine, narrow, spoilt):
    rng = np.random.default_rng(4)
    arguments = problem(rng, spans=[(0, 40), (10, 3)], kv_heads=1, group=2, dim=24, page_tokens=64, narrow=narrow)
    before = paged_attention(*arguments, scale=0.2, window=9)
    values = arguments[2]
    page = values[arguments[3][0]]
    page[0, 17, 5] = bfloat16(np.array(spoilt, np.float32)) if narrow else spoilt
    after = paged_attention(*arguments, scale=0.2, window=9)
    changed = reference.widened(after) != reference.widened(before)
    assert np.flatnonzero(changed.any(axis=(1, 2))).tolist() == list(range(17, 26))  # row 17 and the 8 behind it
    assert not np.isfinite(reference.widened(after)[17:26, :, 5]).any()
    assert not changed[:, :, :5].any()


@pytest.mark.parametrize("spoil", ["query", "keys"])
def test_nan_is_not_hidden(attend_engine, spoil):
    arguments = problem(np.random.default_rng(5), spans=[(20, 4)], kv_heads=1, group=2, dim=16, page_tokens=32)
    if spoil == "query":
        arguments[0][1, 0, 3] = np.nan
    else:
        arguments[1][arguments[3][0], 0, 21, 3] = np.nan
    rows = np.isnan(paged_attention(*arguments, scale=0.2)).all(axis=2)
    assert rows.tolist() == [[False] * 2, [True, spoil == "keys"], [spoil == "keys"] * 2, [spoil == "keys"] * 2]


def test_pages_may_be_a_slice_of_a_bigger_pool(attend_engine):
    """Layers in one array, keys and values side by side: pages lie further apart than they are long."""
    arguments = problem(np.random.default_rng(6), spans=[(30, 2), (5, 1)], kv_heads=2, group=2, dim=16, page_tokens=8)
    whole = np.full((len(arguments[1]), 3, 2, *arguments[1].shape[1:]), np.nan, np.float32)
    whole[:, 1, 0], whole[:, 1, 1] = arguments[1], arguments[2]
    out = np.empty_like(arguments[0])
    sliced = (arguments[0], whole[:, 1, 0], whole[:, 1, 1], *arguments[3:])
    assert paged_attention(*sliced, scale=0.2, out=out) is out
    assert np.array_equal(out, paged_attention(*arguments, scale=0.2))


def test_nothing_to_do_is_done(attend_engine):
    arguments = problem(np.random.default_rng(7), spans=[(0, 0), (9, 0)], kv_heads=1, group=2, dim=8, page_tokens=4)
    assert paged_attention(*arguments, scale=1.0).shape == (0, 2, 8)
    nobody = (arguments[0], *arguments[1:3], np.zeros(0, np.int32), *[np.zeros(1, np.int64)] * 2, np.zeros(0, np.int64))
    assert paged_attention(*nobody, scale=1.0).shape == (0, 2, 8)


WRONG = {
    "query is list": ({"query": [[0.0]]}, TypeError),
    "query is float64": ({"query": np.zeros((4, 2, 8))}, TypeError),
    "query has shape": ({"query": np.zeros((4, 16), np.float32)}, ValueError),
    "query has strides": ({"query": np.zeros((4, 8, 2), np.float32).swapaxes(1, 2)}, ValueError),
    "keys is uint16, query is float32": ({"keys": np.zeros((3, 1, 4, 8), np.uint16)}, TypeError),
    "keys has 9 dimensions": ({"keys": np.zeros((3, 1, 4, 9), np.float32)}, ValueError),
    "keys has 3 heads": ({"keys": np.zeros((3, 3, 4, 8), np.float32)}, ValueError),
    "keys has strides": ({"keys": np.zeros((3, 4, 1, 8), np.float32)[:, ::2].swapaxes(1, 2)}, ValueError),
    "values has shape": ({"values": np.zeros((4, 1, 4, 8), np.float32)}, ValueError),
    "page_table is int64": ({"page_table": np.array([2, 0, 1])}, TypeError),
    r"page_table\[1\] is 3; pass pages 0 .. 2": ({"page_table": np.array([2, 3, 1], np.int32)}, ValueError),
    r"page_table\[2\] is -1": ({"page_table": np.array([2, 0, -1], np.int32)}, ValueError),
    "page_starts has 2 entries": ({"page_starts": np.array([0, 3])}, ValueError),
    r"page_starts has 3 entries, 0 .. 4; pass 3 offsets from 0 to 3": (
        {"page_starts": np.array([0, 2, 4])},
        ValueError,
    ),
    r"page_starts\[0:2\] is \[0, 4\]|page_starts\[1:3\] is": ({"page_starts": np.array([0, 4, 3])}, ValueError),
    r"token_starts has 3 entries, 1 .. 4": ({"token_starts": np.array([1, 3, 4])}, ValueError),
    r"token_starts\[1:3\] is \[5, 4\]": ({"token_starts": np.array([0, 5, 4])}, ValueError),
    r"past\[1\] is -1": ({"past": np.array([0, -1])}, ValueError),
    r"span 0 has 6 past and 3 new tokens, its 2 pages hold 8; pass 3": ({"past": np.array([6, 0])}, ValueError),
    r"span 1 has 9223372036854775807 past": ({"past": np.array([0, 2**63 - 1])}, ValueError),
    "past is int32": ({"past": np.array([0, 0], np.int32)}, TypeError),
    "scale is 0": ({"scale": 0}, ValueError),
    "scale is nan": ({"scale": math.nan}, ValueError),
    "scale is None": ({"scale": None}, TypeError),
    "softcap is -1": ({"softcap": -1.0}, ValueError),
    "window is -1": ({"window": -1}, ValueError),
    "window is 2.0": ({"window": 2.0}, TypeError),
    "num_threads is 0": ({"num_threads": 0}, ValueError),
    "out is float64": ({"out": np.zeros((4, 2, 8))}, TypeError),
    "out has shape": ({"out": np.zeros((4, 2, 9), np.float32)}, ValueError),
    "out is read-only": ({"out": np.broadcast_to(np.float32(0), (4, 2, 8)).copy()}, ValueError),
    "out shares memory": ({}, ValueError),
}


numpy_and_compiled = pytest.mark.parametrize(  # what does not differ between levels
    "attend_engine", ["numpy", pytest.param("base", marks=pytest.mark.native)], indirect=True
)


@numpy_and_compiled
@pytest.mark.parametrize("message", WRONG)
def test_bad_arguments_are_named_with_a_remedy(attend_engine, message):
    changes, error = WRONG[message]
    pool = np.zeros((3, 1, 4, 8), np.float32)
    given = {
        "query": np.zeros((4, 2, 8), np.float32), "keys": pool, "values": pool.copy(),
        "page_table": np.array([2, 0, 1], np.int32), "page_starts": np.array([0, 2, 3]),
        "token_starts": np.array([0, 3, 4]), "past": np.array([5, 3]), "scale": 1.0,
    }  # fmt: skip
    paged_attention(**given)
    given |= changes
    if message == "out is read-only":
        given["out"].flags.writeable = False
    if message == "out shares memory":
        given["out"] = given["query"]
    with pytest.raises(error, match=message):
        paged_attention(**given)


@numpy_and_compiled
def test_bfloat16_of_ml_dtypes_is_taken_as_it_is(attend_engine):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    arguments = problem(
        np.random.default_rng(8), spans=[(9, 2)], kv_heads=1, group=1, dim=8, page_tokens=16, narrow=True
    )
    named = [array.view(ml_dtypes.bfloat16) for array in arguments[:3]]
    assert np.array_equal(paged_attention(*named, *arguments[3:], scale=1.0), paged_attention(*arguments, scale=1.0))


def test_powers_of_two_keep_their_stated_error(attend_level):
    """Two keys, one of them 0 and the other x: the weight of the second over that of the first is e^x."""
    x = -np.linspace(0, 80, 4096, dtype=np.float32)
    keys = np.zeros((len(x), 1, 2, 1), np.float32)
    keys[:, 0, 1, 0] = x
    values = np.broadcast_to(np.array([[[0], [1]]], np.float32), keys.shape).copy()
    query, table, starts = np.ones((len(x), 1, 1), np.float32), np.arange(len(x), dtype=np.int32), np.arange(len(x) + 1)
    found = paged_attention(query, keys, values, table, starts, starts, np.ones(len(x), np.int64), scale=1.0)[:, 0, 0]
    exact = 1 / (1 + np.exp(-x.astype(np.float64)))
    assert np.abs(found / exact - 1).max() < 2e-7 + 80 * 2.0**-23  # of the polynomial, and of an exponent of 80
    near = np.abs(x) < 1
    assert np.abs(found / exact - 1)[near].max() < 6e-7


@pytest.mark.parametrize("softcap", [0.0, 30.0])
@pytest.mark.parametrize("size", [1, 10, 100])
def test_errors_stay_within_the_stated_bound(attend_level, size, softcap):
    arguments = problem(np.random.default_rng(9), spans=[(900, 5)], kv_heads=1, group=2, dim=128, page_tokens=16)
    query = arguments[0] * np.float32(size)
    arguments = (query, *arguments[1:])
    scale, u = 0.1, 2.0**-24
    seen = np.abs(arguments[1][np.isfinite(arguments[1])].reshape(-1, 128).astype(np.float64))  # one head: rows of keys
    largest = scale * (np.abs(query).reshape(-1, 128) @ seen.T).max()
    bound = 2 * np.nanmax(np.abs(arguments[2])) * (136 * u * largest + 516 * u + 4e-7 * (1 + softcap))
    found = paged_attention(*arguments, scale=scale, softcap=softcap)
    error = np.abs(found - expected(arguments, scale=scale, softcap=softcap)).max()
    assert error < bound
    assert size > 1 or error < 1e-6
