"""The paper's closed form: shares by hand, the box, and never better than the exact solution."""

from __future__ import annotations

from math import exp, log

import numpy as np
import pytest
from scipy.optimize import minimize

from qpart.closed_form import closed_form, fit_law, real_widths
from qpart.solve import Solver
from qpart.tables import WIDTHS
from tests.qpart.planner_cases import dense, random_tables, residual


def test_each_tensor_gets_the_share_of_the_noise_that_it_has_of_the_payload():
    scales, slopes, alpha, budget = np.array([50.0, 80.0, 20.0]), np.array([1.0, 2.0, 5.0]), 1.3, 0.5
    bits = real_widths(scales, slopes, alpha, budget)
    np.testing.assert_allclose(scales * np.exp(-alpha * bits) / budget, slopes / slopes.sum())
    np.testing.assert_allclose(bits, np.log(scales / slopes * slopes.sum() / budget) / alpha)


def test_box_hand_worked():
    """Alpha ln 4, equal slopes: s = 4^10 wants 10 bits for half of budget 2; with 8 it makes 16, nothing is left."""
    bits = real_widths(np.array([4.0**10, 4.0**2]), np.ones(2), log(4.0), 2.0)
    assert bits.tolist() == [8.0, 8.0]
    bits = real_widths(np.array([4.0**5, 4.0**-3]), np.ones(2), log(4.0), 1.0 + 4.0**-5)
    np.testing.assert_allclose(bits, [5.0, 2.0])  # the second is fixed at 2 and spares for the first


@pytest.mark.parametrize("seed", range(10))
def test_real_widths_are_what_a_general_solver_finds(seed):
    rng = np.random.default_rng(seed)
    scales, slopes, alpha = rng.lognormal(3, 2, 6), rng.lognormal(0, 1, 6), 1.35
    budget = float((scales * exp(-alpha * rng.uniform(3, 6))).sum())
    bits = real_widths(scales, slopes, alpha, budget)
    assert ((bits >= 2) & (bits <= 8)).all()
    assert (scales * np.exp(-alpha * bits)).sum() <= budget * (1 + 1e-9)
    found = minimize(
        lambda b: slopes @ b,
        np.full(6, 7.9),
        jac=lambda b: slopes,
        bounds=[(2, 8)] * 6,
        constraints={"type": "ineq", "fun": lambda b: 1 - (scales * np.exp(-alpha * b)).sum() / budget},
        options={"maxiter": 500},
    )
    assert found.success
    assert slopes @ bits == pytest.approx(found.fun, rel=1e-4)


def test_law_is_recovered():
    bits = np.array(WIDTHS, float)
    psi = [(s * np.exp(-1.3 * bits)).tolist() for s in (5.0, 70.0)]
    alpha, scales = fit_law([*psi, [0.0] * 8, [0.0, 70.0 * exp(-3.9)] + [0.0] * 6])
    assert alpha == pytest.approx(1.3)
    np.testing.assert_allclose(scales, [5.0, 70.0, 0.0, 70.0])


def test_law_of_nothing_has_the_alpha_of_the_source():
    assert fit_law([])[0] == pytest.approx(log(4.0))
    assert fit_law([[0.0] * 8])[0] == pytest.approx(log(4.0))
    assert fit_law([[1.0] * 8])[0] == pytest.approx(log(4.0))


def test_silent_and_free_tensors():
    bits = real_widths(np.array([0.0, 1.0, 5.0]), np.array([1.0, 0.0, 1.0]), log(4.0), 0.3)
    assert bits[:2].tolist() == [2.0, 8.0]
    assert real_widths(np.ones(2), np.ones(2), 1.3, 0.0).tolist() == [8.0, 8.0]
    assert real_widths(np.zeros(0), np.zeros(0), 1.3, 1.0).tolist() == []


@pytest.mark.parametrize("network", [dense(30, 20, 10, 5), residual(3)], ids=["dense", "residual"])
@pytest.mark.parametrize("law", [False, True])
def test_closed_form_is_never_better_than_the_exact_solution(network, law):
    met = 0
    for seed in range(10):
        tables = random_tables(network, seed, law=law)
        solver = Solver(tables)
        for cut in range(network.num_nodes + 1):
            for budget in (0.03, 0.3):
                peer = closed_form(tables, cut, budget, up_weight=2.0)
                assert peer.meets_budget == (peer.pattern.psi <= budget)
                if peer.meets_budget:
                    met += 1
                    best = solver.best(cut, budget, up_weight=2.0)
                    assert (
                        best.download_bytes + 2 * best.up_bytes
                        <= peer.pattern.download_bytes + 2 * peer.pattern.up_bytes
                    )
    assert met >= 20
