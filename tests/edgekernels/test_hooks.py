"""Noise and acceptance tests of the user's own: called back or, where Numba is installed, compiled."""

import importlib.util
from functools import cache

import numpy as np
import pytest
from edgekernels import _hooks, accept, compile_noise, compile_test, gumbel, sample

MODES = ["called back", "compiled"]


@pytest.fixture(params=MODES)
def mode(request, monkeypatch):
    """Both ways to make a hook."""
    if request.param == "compiled":
        pytest.importorskip("numba")
    else:
        monkeypatch.setattr(_hooks, "_has_numba", lambda: False)
    return request.param


@cache
def hook(make, function, mode):
    """A hook of a function, made once for all engines, which have no part in it: compiling takes half a second."""
    return make(function)


def mixed(seed, position, token):
    """A multiplicative hash: not good enough for sampling, but it depends on all three."""
    return ((token * 2654435761 + position * 40503 + seed * 69069) >> 3) & 0xFFFFFFFF


def high_at_90(seed, position, token):
    return 4294967295 if token == 90 else 5


def raises_at_3(seed, position, token):
    if token == 3:
        raise ValueError("it raised at 3")
    return token


def no_word(seed, position, token):
    return None


def typical(p, q, u, largest):
    return p >= 0.5 * largest


def as_given(p, q, u, largest):
    return abs(p - 0.25) < 1e-5 and abs(largest - 0.5) < 1e-5 and q == 0.125


def always(p, q, u, largest):
    return True


def raises_above(p, q, u, largest):
    if p > 0.6:
        raise ValueError("it raised at 0.6")
    return True


def no_answer(p, q, u, largest):
    return None


def sometimes_no_answer(p, q, u, largest):
    if p < 0.5:
        return True
    return None


@pytest.mark.parametrize("filters", [{}, {"top_k": 7}, {"top_p": 0.5}])
def test_own_noise_decides(engine, mode, filters):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1, (4, 150)).astype(np.float32)
    noise = hook(compile_noise, mixed, mode)
    chosen = sample(logits, temperature=1.0, seed=3, position=np.arange(4), noise=noise, **filters)
    for i, row in enumerate(logits):
        words = np.array([mixed(3, i, t) for t in range(150)], np.uint32)
        scores = row.astype(np.float64) + gumbel(words)
        keep = np.argsort(-row)[: filters.get("top_k", 150)]
        if "top_p" not in filters:
            assert chosen[i] == keep[np.argmax(scores[keep])]
    verdict = accept(logits, chosen[:3], np.array([0, 4]), temperature=1.0, seed=3, noise=noise, **filters)
    assert (verdict.accepted[0], verdict.next_token[0]) == (3, chosen[3])


def test_own_noise_is_keyed_by_target_ids(engine, mode):
    ids = np.array([500, 2, 90], np.int32)
    noise = hook(compile_noise, high_at_90, mode)
    assert sample(np.zeros((1, 3), np.float32), temperature=1.0, token_ids=ids, noise=noise).tolist() == [90]


def test_own_acceptance_test_decides(engine, mode):
    """Typical acceptance: whatever is likely enough beside the likeliest token passes."""
    rule = hook(compile_test, typical, mode)
    logits = np.log(np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])).astype(np.float32)
    for drafts, accepted in (([1, 2], 1), ([2, 1], 0), ([0, 1], 2)):
        for seed in range(5):
            verdict = accept(
                logits, np.array(drafts, np.int32), np.array([0, 3]), temperature=1.0, rule=rule, seed=seed
            )
            assert verdict.accepted[0] == accepted
            if accepted < 2:
                assert verdict.next_token[0] != drafts[accepted]  # certain drafts have no residual mass


def test_own_acceptance_test_sees_probabilities(engine, mode):
    seen = hook(compile_test, as_given, mode)
    logits = np.log(np.array([[0.25, 0.5, 0.25], [1, 1, 1]])).astype(np.float32)
    q = np.array([[0.125, 0.5, 0.375]], np.float32)
    verdict = accept(logits, np.array([0], np.int32), np.array([0, 2]), temperature=1.0, rule=seen, q=q)
    assert verdict.accepted[0] == 1


@pytest.mark.parametrize("num_threads", [1, 2])
def test_hooks_may_be_called_from_several_threads(level, mode, num_threads):
    noise = hook(compile_noise, mixed, mode)
    logits = np.random.default_rng(1).normal(0, 1, (8, 40_000)).astype(np.float32)
    few = {"temperature": 1.0, "top_k": 3, "position": np.arange(8), "noise": noise}
    expected = sample(logits, **few)
    assert sample(logits, num_threads=num_threads, **few).tolist() == expected.tolist()
    assert sample(logits[:1], temperature=1.0, top_k=3, noise=noise, num_threads=num_threads)[0] == expected[0]


def test_hooks_are_refused_where_they_do_not_belong(mode):
    noise, own = hook(compile_noise, mixed, mode), hook(compile_test, always, mode)
    arguments = (np.zeros((1, 4), np.float32), np.empty(0, np.int32), np.array([0, 1]))
    with pytest.raises(ValueError, match="rule='coupled'"):
        accept(*arguments, temperature=1.0, rule="rejection", noise=noise)
    with pytest.raises(ValueError, match="rule='coupled'"):
        accept(*arguments, temperature=1.0, rule=own, noise=noise)


def test_what_a_hook_raises_comes_out_of_the_decision(engine, mode):
    """Called back its own exception, compiled one that says so; a later decision is free of it."""
    noise, rule = hook(compile_noise, raises_at_3, mode), hook(compile_test, raises_above, mode)
    equal, sure = np.zeros((2, 3), np.float32), np.log(np.array([[0.7, 0.3], [0.3, 0.7]])).astype(np.float32)
    for _ in range(2):
        with pytest.raises((ValueError, RuntimeError), match="raised"):
            sample(np.zeros((2, 4), np.float32), temperature=1.0, noise=noise, num_threads=2)
        assert sample(equal, temperature=1.0, noise=noise).tolist() == [2, 2]
        with pytest.raises((ValueError, RuntimeError), match="raised"):
            accept(sure, np.array([0], np.int32), np.array([0, 2]), temperature=1.0, rule=rule)
        assert accept(sure, np.array([1], np.int32), np.array([0, 2]), temperature=1.0, rule=rule).accepted[0] == 1


def test_a_hook_that_returns_nothing_is_an_error(engine, mode):
    logits = np.zeros((2, 3), np.float32)
    with pytest.raises((TypeError, RuntimeError)):
        sample(logits, temperature=1.0, noise=hook(compile_noise, no_word, mode))
    rule = hook(compile_test, no_answer, mode)
    with pytest.raises((TypeError, RuntimeError), match="None"):
        accept(logits, np.array([0], np.int32), np.array([0, 2]), temperature=1.0, rule=rule)


def test_a_hook_that_sometimes_returns_nothing_is_an_error(engine, mode):
    rule = hook(compile_test, sometimes_no_answer, mode)
    logits = np.log(np.array([[0.7, 0.3], [0.3, 0.7]])).astype(np.float32)
    with pytest.raises((TypeError, RuntimeError), match="None"):
        accept(logits, np.array([0], np.int32), np.array([0, 2]), temperature=1.0, rule=rule)


def test_what_is_no_function_is_refused(mode):
    with pytest.raises(TypeError, match="the noise is 5; pass a function"):
        compile_noise(5)
    with pytest.raises(TypeError, match="the acceptance test is 5; pass a function"):
        compile_test(5)


@pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="Numba is not installed")
def test_what_numba_cannot_compile_is_refused():
    with pytest.raises(TypeError, match="cannot compile"):
        compile_test(lambda p, q, u, largest: p.as_integer_ratio())
