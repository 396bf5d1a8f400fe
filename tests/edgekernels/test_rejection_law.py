"""Rejection sampling follows the target's law, and its known mistakes fail the same test.

Each sequence plays rounds with one draft until two tokens are out, with a seed of its own; the drafts of a sequence are
sampled with a generator that knows nothing of that seed.
"""

import numpy as np
import pytest
from edgekernels import SparseQ, _reference, _select, accept, compile_test

from tests.edgekernels.cases import sparse

P = np.array(
    [
        [0.30, 0.25, 0.20, 0.10, 0.10, 0.05],
        [0.10, 0.15, 0.30, 0.05, 0.25, 0.15],
        [0.20, 0.10, 0.10, 0.30, 0.10, 0.20],
    ]
)
FULL_Q = np.array(
    [
        [0.10, 0.15, 0.45, 0.15, 0.05, 0.10],
        [0.20, 0.10, 0.20, 0.10, 0.20, 0.20],
        [0.20, 0.10, 0.10, 0.30, 0.10, 0.20],
    ]
).astype(np.float32)
SPARSE_Q = np.where(FULL_Q >= 0.15, FULL_Q, 0)
SPARSE_Q = (SPARSE_Q / SPARSE_Q.sum(axis=1, keepdims=True)).astype(np.float32)
RIGHT, WRONG = 1e-5, 1e-10  # a few dozen tests of fixed seeds: Bonferroni leaves room; mutants fail by orders more
MUTANT_RUNS = 20_000


def pick(rng, law, n):
    """Ids (n,) of a law (vocab,)."""
    law = law.astype(np.float64)
    return np.searchsorted(np.cumsum(law), rng.random(n) * law.sum(), side="right").astype(np.int32)


def residual(p, q):
    rest = np.maximum(p - q, 0)
    return rest / rest.sum() if rest.sum() > 0 else p


def kernel_round(sampled, verified, form, rule="rejection"):
    """One round of each sequence with one draft: (accepted, next tokens)."""

    def play(seeds, position, rng):
        n = len(seeds)
        drafts = pick(rng, sampled[position], n)
        logits = np.tile(np.log(P[position : position + 2]).astype(np.float32), (n, 1))
        q = np.tile(verified[position], (n, 1))
        law = {"dense": lambda: q, "sparse": lambda: sparse(q, q > 0), "certain": lambda: None}[form]()
        verdict = accept(
            logits, drafts, np.arange(0, 2 * n + 1, 2), temperature=1.0, rule=rule, q=law, seed=seeds, position=position
        )
        return drafts, verdict.accepted, verdict.next_token

    return play


def numpy_round(sampled, verified, *, inclusive=False, on_reject="residual", seeded=False):
    """The rule in numpy, its decisions left open."""

    def play(seeds, position, rng):
        n = len(seeds)
        p, q = P[position], verified[position]
        drafts = pick(rng, sampled[position], n)
        u = rng.random(n)
        accepted = u * q[drafts] <= p[drafts] if inclusive else u * q[drafts] < p[drafts]
        law = {"residual": residual(p, q), "p": p, "argmax": np.eye(6)[np.argmax(residual(p, q))]}[on_reject]
        cumulative = np.cumsum(law)
        number = u if seeded else rng.random(n)  # the number of the test once more: not independent of it
        others = np.searchsorted(cumulative, number * cumulative[-1], side="right")
        return drafts, accepted.astype(int), np.where(accepted, pick(rng, P[position + 1], n), others)

    return play


def emitted(play, runs):
    """First and second tokens (runs, 2) of sequences with seeds 0 .. runs - 1."""
    rng, seeds = np.random.default_rng(6), np.arange(runs)
    tokens = np.full((runs, 2), -1)
    drafts, accepted, token = play(seeds, 0, rng)
    agreed = np.asarray(accepted) == 1
    tokens[:, 0] = np.where(agreed, drafts, token)
    tokens[agreed, 1] = np.asarray(token)[agreed]
    late = seeds[~agreed]
    if len(late):
        drafts, accepted, token = play(late, 1, rng)
        tokens[late, 1] = np.where(np.asarray(accepted) == 1, drafts, token)
    return tokens


def p_values(tokens, p_value):
    """First token, second token, and both together."""
    yield p_value(tokens[:, 0], P[0])
    yield p_value(tokens[:, 1], P[1])
    yield p_value(tokens[:, 0] * 6 + tokens[:, 1], np.outer(P[0], P[1]).reshape(-1))


LAWS = {
    "dense": (FULL_Q, FULL_Q, "dense"),
    "sparse": (SPARSE_Q, SPARSE_Q, "sparse"),
    "sparse, laid out": (SPARSE_Q, SPARSE_Q, "dense"),
    "certain": (np.eye(6)[[2, 0, 1]], FULL_Q, "certain"),
    "taken for certain": (FULL_Q, FULL_Q, "certain"),  # never wrong: accepted with p, replaced by one of the others
    "q = p": (P.astype(np.float32), P.astype(np.float32), "dense"),
}


@pytest.mark.parametrize("law", LAWS)
def test_law_of_the_kernels_is_p(engine, law, p_value):
    runs = 3_000 if engine in ("numpy", "numba") else 50_000
    assert min(p_values(emitted(kernel_round(*LAWS[law]), runs), p_value)) > RIGHT


@pytest.mark.parametrize("law", ["dense", "sparse", "certain"])
def test_law_of_the_numpy_rule_is_p(law, p_value):
    sampled, verified, form = LAWS[law]
    verified = sampled if form == "certain" else verified
    assert min(p_values(emitted(numpy_round(sampled, verified), MUTANT_RUNS), p_value)) > RIGHT


@pytest.fixture(scope="module")
def own():
    """The rule as a test of the user's own."""
    return compile_test(lambda p, q, u, largest: u * q < p)


@pytest.mark.parametrize("law", LAWS)
def test_own_test_of_the_same_formula_is_the_same_rule(law, own):
    runs = 300
    expected = emitted(kernel_round(*LAWS[law]), runs)
    assert emitted(kernel_round(*LAWS[law], rule=own), runs).tolist() == expected.tolist()


MUTANTS = {
    "sampled from the whole q, verified with a sparse one": kernel_round(FULL_Q, SPARSE_Q, "sparse"),
    "sampled from a sparse q, verified with the whole one": kernel_round(SPARSE_Q, FULL_Q, "dense"),
    "p on a rejection": numpy_round(FULL_Q, FULL_Q, on_reject="p"),
    "argmax on a rejection": numpy_round(FULL_Q, FULL_Q, on_reject="argmax"),
    "one number for the test and for the token": numpy_round(FULL_Q, FULL_Q, seeded=True),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_wrong_variants_fail(mutant, p_value):
    assert min(p_values(emitted(MUTANTS[mutant], MUTANT_RUNS), p_value)) < WRONG


@pytest.mark.native
def test_lenient_acceptance_fails_the_law(p_value):
    """Accepting a quarter more often than allowed is seen: the test has the power that the kernels are held to."""
    lenient = compile_test(lambda p, q, u, largest: 0.8 * u * q < p)
    assert min(p_values(emitted(kernel_round(FULL_Q, FULL_Q, "dense", rule=lenient), MUTANT_RUNS), p_value)) < WRONG


def test_accepting_at_equality_emits_impossible_tokens(p_value):
    """With u on a grid which starts at 0, `u * q <= p` accepts a token of probability 0; `<` never does."""
    p, q = np.array([0.25, 0.75, 0.0]), np.array([0.5, 0.25, 0.25])  # ratios on the grid, so `<` stays exact
    rng = np.random.default_rng(6)
    for inclusive, right in ((False, True), (True, False)):
        drafts, u = pick(rng, q, MUTANT_RUNS), rng.integers(0, 8, MUTANT_RUNS) / 8
        accepted = u * q[drafts] <= p[drafts] if inclusive else u * q[drafts] < p[drafts]
        tokens = np.where(accepted, drafts, pick(rng, residual(p, q), MUTANT_RUNS))
        assert (p_value(tokens, p) > RIGHT) == right


@pytest.mark.parametrize("form", ["dense", "sparse", "certain"])
@pytest.mark.parametrize("impossible", [-np.inf, -200.0])
def test_impossible_drafts_are_never_accepted_nor_emitted(engine, form, impossible):
    n = 200 if engine in ("numpy", "numba") else 5_000
    logits = np.tile(np.array([[0.0, impossible, 1.0]], np.float32), (2 * n, 1))
    q = np.tile(np.array([[0.2, 0.8, 0.0]], np.float32), (n, 1))
    law = {"dense": q, "sparse": sparse(q, q > 0), "certain": None}[form]
    verdict = accept(
        logits, np.ones(n, np.int32), np.arange(0, 2 * n + 1, 2), temperature=0.5, rule="rejection", q=law,
        seed=np.arange(n),
    )  # fmt: skip
    assert not verdict.accepted.any()
    assert set(verdict.next_token.tolist()) <= {0, 2}


def test_u_of_zero_accepts_nothing_impossible(monkeypatch):
    monkeypatch.setattr(_reference, "uniform", lambda seed, position, stream: 0.0)
    before = _select.active
    _select.use(_reference)
    try:
        logits = np.array([[0, -np.inf, 1], [0, 0, 0]], np.float32)
        verdict = accept(logits, np.array([1], np.int32), np.array([0, 2]), temperature=1.0, rule="rejection")
        assert (verdict.accepted[0], verdict.next_token[0]) == (0, 0)
        verdict = accept(logits, np.array([2], np.int32), np.array([0, 2]), temperature=1.0, rule="rejection")
        assert verdict.accepted[0] == 1
    finally:
        _select.use(before)


def test_a_draft_without_mass_in_its_own_law_is_not_accepted(engine):
    logits, starts = np.zeros((2, 3), np.float32), np.array([0, 2])
    empty = SparseQ(np.empty(0, np.int32), np.empty(0, np.float32), np.array([0, 0]))
    for q in (np.array([[0.5, 0.0, 0.5]], np.float32), empty):
        for seed in range(20):
            verdict = accept(logits, np.array([1], np.int32), starts, temperature=1.0, rule="rejection", q=q, seed=seed)
            assert verdict.accepted[0] == 0


@pytest.mark.parametrize("q", [[0.25, np.nan, 0.5, 0.25], [np.inf, -1.0, 0.5, 0.25], [2.0, 2.0, 2.0, 2.0]])
def test_nonsense_in_a_dense_q_decides_something(engine, q):
    for draft in range(4):
        verdict = accept(
            np.zeros((2, 4), np.float32), np.array([draft], np.int32), np.array([0, 2]), temperature=1.0,
            rule="rejection", q=np.array([q], np.float32),
        )  # fmt: skip
        assert 0 <= verdict.next_token[0] < 4


def test_greedy_is_its_limit(engine):
    logits = np.array([[0, 2, 1], [3, 0, 0]], np.float32)
    for draft, verdict in ((1, (1, 0)), (0, (0, 1))):
        got = accept(logits, np.array([draft], np.int32), np.array([0, 2]), temperature=0, rule="rejection")
        assert (got.accepted[0], got.next_token[0]) == verdict
