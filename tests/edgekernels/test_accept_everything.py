"""All rules, dtypes, filters, penalties and laws at once: each backend and level answers as the reference does."""

import numpy as np
import pytest
from edgekernels import Bias, History, _reference, _select, accept, sample
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.edgekernels.cases import case, in_dtype, sparse


def on_reference(*arguments, **keywords):
    before = _select.active
    _select.use(_reference)
    try:
        return accept(*arguments, **keywords)
    finally:
        _select.use(before)


def assert_equal(verdict, expected, note):
    assert verdict.accepted.tolist() == expected.accepted.tolist(), note
    assert verdict.next_token.tolist() == expected.next_token.tolist(), note


@settings(
    deadline=None, max_examples=120, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32 - 1), num_threads=st.integers(1, 3))
def test_any_batch_equals_the_reference(engine, seed, num_threads):
    arguments, parameters = case(seed)
    expected = on_reference(*arguments, **parameters)
    assert_equal(accept(*arguments, num_threads=num_threads, **parameters), expected, seed)


def test_cases_decide_something():
    """Neither all drafts pass, nor none."""
    batches = [case(seed) for seed in range(200)]
    drafts = sum(len(arguments[1]) for arguments, _ in batches)
    accepted = sum(on_reference(*arguments, **parameters).accepted.sum() for arguments, parameters in batches)
    assert 0.2 * drafts < accepted < 0.8 * drafts


def peaked(rng, rows, vocab):
    """Rows with a bulk and a head, as language models have."""
    logits = rng.standard_normal((rows, vocab)).astype(np.float32) * np.float32(2.5)
    for row in logits:
        row[rng.choice(vocab, 64, replace=False)] = 16 - 1.6 * np.log(np.arange(1, 65))
    return logits


SHAPES = {
    "peaked": peaked,
    "flat": lambda rng, rows, vocab: rng.standard_normal((rows, vocab)).astype(np.float32) * np.float32(1e-3),
    "wide": lambda rng, rows, vocab: rng.standard_normal((rows, vocab)).astype(np.float32) * np.float32(2),
    "rising": lambda rng, rows, vocab: np.sort(rng.standard_normal((rows, vocab)).astype(np.float32) * 3, axis=1),
}
FILTERS = ({}, {"top_p": 0.9}, {"top_p": 0.99}, {"top_k": 50}, {"top_k": 3000, "min_p": 0.01})


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [0, 1, 2])
def test_large_vocabularies_equal_the_reference(level, shape, dtype):
    """Where bounds decide instead of exact masses, and a row is split over threads."""
    vocab, rng = 50_257, np.random.default_rng(7)
    logits = in_dtype(SHAPES[shape](rng, 4, vocab), dtype)
    plain = np.stack([_reference.as_float32(row, dtype) for row in logits])
    q = np.exp(0.5 * (plain[:3] + np.roll(plain[:3], 1, axis=0)) - 8)
    q = (q / q.sum(axis=1, keepdims=True)).astype(np.float32)
    likely = plain[:3].argmax(axis=1).astype(np.int32)
    drawn = np.array([np.searchsorted(np.cumsum(row.astype(float)), 0.99 * rng.random()) for row in q], np.int32)
    history = History(np.arange(3000, dtype=np.int32) * 7, np.array([0, 3000]))
    laws = [(likely, None), (drawn, q), (drawn, sparse(q, q >= np.sort(q, axis=1)[:, -64:-63]))]
    for number, filters in enumerate((*FILTERS, {"history": history, "repetition_penalty": 1.2})):
        drafts, law = laws[number % 3]
        parameters = {"temperature": 0.8, "seed": number, **filters}
        for rule in ({"rule": "coupled"}, {"rule": "rejection", "q": law}):
            expected = on_reference(logits, drafts, np.array([0, 4]), **parameters, **rule)
            for num_threads in (1, 2):
                verdict = accept(logits, drafts, np.array([0, 4]), num_threads=num_threads, **parameters, **rule)
                assert_equal(verdict, expected, (filters, rule["rule"], num_threads))


def test_bounds_that_do_not_apply_are_not_used(level):
    """A huge logit that the bias takes away, temperatures at both ends, and logits far from 0."""
    logits = np.random.default_rng(1).normal(0, 3, (2, 1000)).astype(np.float32)
    logits[:, 77] = 1e6
    ban = Bias(np.array([77], np.int32), np.array([-np.inf], np.float32), np.array([0, 1]))
    drafts, starts = logits[:1, :70].argmax(axis=1).astype(np.int32), np.array([0, 2])
    for shift in (0, 3000, -1e5):
        for temperature in (1e-9, 0.01, 1.0, 1e9):
            for seed in range(5):
                arguments = (logits + np.float32(shift), drafts, starts)
                parameters = {"temperature": temperature, "bias": ban, "rule": "rejection", "seed": seed, "top_p": 0.95}
                assert_equal(accept(*arguments, **parameters), on_reference(*arguments, **parameters), shift)


@pytest.mark.parametrize("rule", ["coupled", "rejection", "greedy"])
@pytest.mark.parametrize("value", [0.0, np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("vocab", [1, 2, 65])
def test_rows_of_one_value_are_decided(engine, rule, value, vocab):
    logits = np.full((3, vocab), value, np.float32)
    verdict = accept(logits, np.array([0, vocab], np.int32), np.array([0, 3]), temperature=1.0, rule=rule)
    expected = on_reference(logits, np.array([0, vocab], np.int32), np.array([0, 3]), temperature=1.0, rule=rule)
    assert_equal(verdict, expected, (value, vocab))
    assert 0 <= verdict.next_token[0] < vocab
    if value != 0 or vocab == 1 or rule == "greedy":
        assert verdict.accepted[0] == 1  # the second draft is outside the vocabulary
        assert verdict.next_token[0] == 0


@pytest.mark.parametrize("rule", ["coupled", "rejection", "greedy"])
def test_no_drafts_and_no_sequences(engine, rule):
    logits = np.random.default_rng(0).normal(0, 1, (2, 50)).astype(np.float32)
    none = np.empty(0, np.int32)
    verdict = accept(logits, none, np.array([0, 1, 2]), temperature=0.7, rule=rule, q=None)
    assert verdict.accepted.tolist() == [0, 0]
    if rule == "coupled":
        assert verdict.next_token.tolist() == sample(logits, temperature=0.7).tolist()
    assert len(accept(logits[:0], none, np.array([0]), temperature=0.7, rule=rule).accepted) == 0
