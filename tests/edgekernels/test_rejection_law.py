"""Rejection sampling with a sparse draft law, and its known mistakes: the test can tell them apart.

The kernels do not offer this rule yet. The rule and its mutants stand here in numpy so that the test which it
will have to pass is known to fail for each of them.
"""

import numpy as np
import pytest

P = np.array([0.30, 0.25, 0.20, 0.10, 0.10, 0.05])
FULL_Q = np.array([0.10, 0.15, 0.45, 0.15, 0.05, 0.10])
SPARSE_Q = np.where(FULL_Q >= 0.15, FULL_Q, 0) / FULL_Q[FULL_Q >= 0.15].sum()
RUNS = 20_000


def pick(rng, law, n):
    return np.searchsorted(np.cumsum(law), rng.random(n) * law.sum(), side="right")


def residual(p, q):
    rest = np.maximum(p - q, 0)
    return rest / rest.sum()


def first_tokens(p=P, sampled=SPARSE_Q, verified=SPARSE_Q, *, inclusive=False, on_reject="residual", grid=None):
    """First tokens (RUNS,): draft from `sampled`, accept with u * q < p, else emit."""
    rng = np.random.default_rng(6)
    drafts = pick(rng, sampled, RUNS)
    u = rng.random(RUNS) if grid is None else rng.integers(0, grid, RUNS) / grid
    left, right = u * verified[drafts], p[drafts]
    accepted = left <= right if inclusive else left < right
    others = {
        "residual": lambda: pick(rng, residual(p, verified), RUNS),
        "p": lambda: pick(rng, p, RUNS),
        "argmax": lambda: np.full(RUNS, np.argmax(residual(p, verified))),
    }[on_reject]()
    return np.where(accepted, drafts, others)


def test_rejection_sampling_follows_p(p_value):
    assert p_value(first_tokens(), P) > 1e-5
    assert p_value(first_tokens(sampled=FULL_Q, verified=FULL_Q), P) > 1e-5


@pytest.mark.parametrize(
    "mistake",
    [
        {"sampled": FULL_Q, "verified": SPARSE_Q},  # sampled from the whole q, verified with the sparse one
        {"on_reject": "p"},
        {"on_reject": "argmax"},
    ],
)
def test_wrong_variants_fail(mistake, p_value):
    assert p_value(first_tokens(**mistake), P) < 1e-10


def test_accepting_at_equality_emits_impossible_tokens(p_value):
    """With u on a grid which starts at 0, `u * q <= p` accepts a token of probability 0; `<` never does."""
    p, q = np.array([0.25, 0.75, 0.0]), np.array([0.5, 0.25, 0.25])  # ratios on the grid, so `<` stays exact
    assert p_value(first_tokens(p, q, q, grid=8), p) > 1e-5
    assert p_value(first_tokens(p, q, q, grid=8, inclusive=True), p) < 1e-10
