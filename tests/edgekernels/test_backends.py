"""Every level of the compiled kernels equals the numpy reference, token by token."""

import numpy as np
import pytest
from edgekernels import _reference, _select, accept, sample
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

SPECIAL = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 3.4e38, -3.4e38, 1e-45, 88.0]
TEMPERATURES = [0.0, 1e-30, 1e-3, 0.3, 0.8, 1.0, 5.0, 1e4, 1e30]
FILTERS = (
    {},
    {"top_k": 50},
    {"top_k": 3000},
    {"top_p": 0.9},
    {"top_p": 0.9, "temperature": 50.0},
    {"top_k": 40, "top_p": 0.95},
    {"top_k": 9000, "top_p": 0.99},
)
relaxed = settings(
    deadline=None,
    max_examples=60,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def on_reference(function, *arguments, **keywords):
    before = _select.active
    _select.use(_reference)
    try:
        return function(*arguments, **keywords)
    finally:
        _select.use(before)


@st.composite
def batches(draw):
    """A ragged batch: rows of one of several kinds, drafts that agree for a while, and its parameters."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    vocab = draw(st.integers(1, 70) | st.integers(1, 5000) | st.sampled_from([63, 64, 65, 128, 4096]))
    drafted = draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
    starts = np.concatenate([[0], np.cumsum(np.array(drafted) + 1)]).astype(np.int64)
    shape = (int(starts[-1]), vocab)
    logits = rng.standard_normal(shape, np.float32)
    logits *= np.float32(draw(st.sampled_from([0.0, 0.01, 1.0, 4.0, 40.0])))
    if draw(st.booleans()):
        logits = np.round(logits)  # many ties
    if draw(st.booleans()):
        spoilt = rng.random(shape) < draw(st.sampled_from([0.01, 0.3, 0.98]))
        logits[spoilt] = rng.choice(draw(st.lists(st.sampled_from(SPECIAL), min_size=1)), spoilt.sum())
    batch = len(drafted)
    parameters = {
        "temperature": rng.choice(TEMPERATURES, batch),
        "top_k": rng.choice([0, 0, 1, 2, 20, 300, 4000], batch),
        "top_p": rng.choice([1.0, 1.0, 1e-9, 0.5, 0.9, 0.999999], batch),
        "seed": rng.integers(0, 2**64, batch, dtype=np.uint64),
        "position": rng.integers(0, 2**40, batch),
    }
    by_row = {name: np.repeat(values, np.diff(starts)) for name, values in parameters.items()}
    by_row["position"] = by_row["position"] + np.arange(len(logits)) - np.repeat(starts[:-1], np.diff(starts))
    chosen = on_reference(sample, logits, **by_row)
    agreed = np.delete(chosen, starts[1:] - 1)
    drafts = np.where(rng.random(len(agreed)) < 0.8, agreed, rng.integers(-2, vocab + 2, len(agreed)))
    return logits, drafts.astype(np.int32), starts, parameters


@relaxed
@given(batch=batches(), num_threads=st.integers(1, 3))
def test_accept_equals_the_reference(level, batch, num_threads):
    logits, drafts, starts, parameters = batch
    expected = on_reference(accept, logits, drafts, starts, **parameters)
    verdict = accept(logits, drafts, starts, num_threads=num_threads, **parameters)
    assert verdict.accepted.tolist() == expected.accepted.tolist()
    assert verdict.next_token.tolist() == expected.next_token.tolist()


@relaxed
@given(
    row=arrays.arrays(
        np.float32,
        st.integers(1, 200),
        elements=st.one_of(st.sampled_from(SPECIAL), st.floats(-50, 50, width=32), st.floats(width=32)),
    ),
    temperature=st.sampled_from(TEMPERATURES),
    filters=st.tuples(st.integers(0, 210), st.just(1.0) | st.floats(1e-12, 1.0)),
    position=st.integers(0, 2**62 - 1),
)
def test_sample_of_any_row_equals_the_reference(level, row, temperature, filters, position):
    row = row.reshape(1, -1)
    parameters = {"temperature": temperature, "seed": 1, "position": position}
    parameters |= {"top_k": filters[0], "top_p": filters[1]}
    assert sample(row, **parameters).tolist() == on_reference(sample, row, **parameters).tolist()


@relaxed
@given(batch=batches(), spread=st.sampled_from([1, 3, 1000]), data=st.data())
def test_mapped_sample_equals_the_reference(level, batch, spread, data):
    logits, _, _, parameters = batch
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    ids = (rng.permutation(logits.shape[1]) * spread).astype(np.int32)
    own = {name: values[0] for name, values in parameters.items()} | {"token_ids": ids}
    assert sample(logits, **own).tolist() == on_reference(sample, logits, **own).tolist()


@pytest.mark.parametrize("vocab", [32_000, 50_257, 128_256])
def test_real_sizes_equal_the_reference(level, vocab):
    rng = np.random.default_rng(vocab)
    for scale in (0.0, 0.5, 3.0):
        row = (rng.standard_normal((1, vocab)) * scale).astype(np.float32)
        for filters in FILTERS:
            parameters = {"temperature": 0.8, "seed": 5, "position": vocab} | filters
            assert sample(row, **parameters).tolist() == on_reference(sample, row, **parameters).tolist()


@pytest.mark.parametrize("top_k", [2, 50, 3000])
@pytest.mark.parametrize("allowed", [1, 3, 400])
def test_masked_rows_equal_the_reference(level, allowed, top_k):
    """Most logits -inf, as under a grammar: fewer ids left than top_k asks for."""
    rng = np.random.default_rng(allowed)
    row = np.full((1, 60_000), -np.inf, np.float32)
    row[0, rng.choice(60_000, allowed, replace=False)] = rng.normal(0, 3, allowed)
    parameters = {"temperature": 0.8, "top_k": top_k, "top_p": 0.97, "position": 3}
    assert sample(row, **parameters).tolist() == on_reference(sample, row, **parameters).tolist()
