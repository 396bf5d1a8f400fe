"""All cuts at once against one cut after the other, and how long a plan takes."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from bench.macro import _optimality_cases as cases
from qpart import fronts
from qpart.limits import BELOW_ALL, allowances, at_cut, at_each_cut
from qpart.network import Network, Node
from qpart.ops import Relu
from qpart.patterns import evaluate
from qpart.plan import plan
from qpart.solve import Solver
from qpart.tables import WIDTHS
from tests.qpart.planner_cases import dense, random_tables, residual, tiny

NETWORKS = {"dense": dense(6, 5, 4, 3), "residual": residual(2, blocks=2)}


def some_pieces(tables, rng):
    return frozenset((node, bits) for node in tables.network.parametric for bits in WIDTHS if rng.random() < 0.3)


def widths_of(found, cut):
    return tuple(found.weight_bits[cut]), tuple(found.live_bits[cut])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", range(12))
def test_best_of_each_cut_is_what_best_finds_there(seed, name):
    tables, rng = random_tables(NETWORKS[name], seed), np.random.default_rng(seed)
    solver, cuts = Solver(tables), NETWORKS[name].num_nodes + 1
    quiet = np.array([solver.least_psi(cut) for cut in range(cuts)])
    sizes = [evaluate(tables, c, (3,) * tables.num_weights(c), (3,) * len(tables.network.live[c])) for c in range(cuts)]
    for cached in (frozenset(), some_pieces(tables, rng), some_pieces(tables, rng) | {(4000, 4)}):
        for memory_bytes in (None, int(np.median([one.device_bytes for one in sizes])), 0):
            budgets = quiet * rng.choice([0.5, 1.0, 2.0, 50.0], cuts)
            down, up = rng.lognormal(0, 2, 2).tolist()
            asked = {"down_weight": down, "up_weight": up, "memory_bytes": memory_bytes, "cached": cached}
            found = solver.best_of_each(budgets, **asked)
            for cut in range(cuts):
                one = solver.best(cut, float(budgets[cut]), **asked)
                assert found.exists[cut] == (one is not None)
                if one is None:
                    continue
                if memory_bytes is None or not cached:  # with both, fronts up to a budget may hold another good pattern
                    assert widths_of(found, cut) == (one.weight_bits, one.live_bits)
                again = evaluate(tables, cut, found.weight_bits[cut], found.live_bits[cut], cached=cached)
                assert again.psi <= budgets[cut]
                assert (again.download_bytes, again.up_bytes) == (found.download_bytes[cut], found.up_bytes[cut])
                assert again.device_bytes == found.device_bytes[cut]
                assert memory_bytes is None or again.device_bytes <= memory_bytes


@pytest.mark.native
@pytest.mark.parametrize("seed", range(8))
def test_points_within_a_budget_are_found_compiled_as_by_numpy(seed, monkeypatch):
    """Budgets below all noise, above all, between, exactly that of a point, and infinite ones."""
    tables, rng = random_tables(NETWORKS["residual"], seed), np.random.default_rng(seed)
    solver, cuts = Solver(tables), NETWORKS["residual"].num_nodes + 1
    joined = solver._plain_joined
    noise = np.array([solver.least_psi(cut) for cut in range(cuts)])
    exact = rng.choice(joined._chain.psi, cuts) + rng.choice(joined._pairs.psi, cuts)
    for budgets in (noise * rng.choice([0.5, 1.0, 2.0, 50.0], cuts), noise, exact, noise * 0, noise + math.inf):
        assert fronts.compiled is not None
        found = joined._searched_one_by_one(budgets)
        for one, other in zip(found, joined._searched(budgets), strict=True):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype
        monkeypatch.setattr(joined, "_searched", lambda budgets: pytest.fail("compiled code was there"))
        joined.positions(budgets)
        monkeypatch.undo()


@pytest.mark.native
@pytest.mark.parametrize("seed", range(8))
def test_best_pairs_and_their_widths_are_found_compiled_as_by_numpy(seed, monkeypatch):
    """With weights of bytes that make all equal, with memory that some or all lack, with and without a cache."""
    tables, rng = random_tables(NETWORKS["residual"], seed), np.random.default_rng(seed)
    solver, cuts = Solver(tables), NETWORKS["residual"].num_nodes + 1
    budgets = np.array([solver.least_psi(cut) for cut in range(cuts)]) * rng.choice([0.5, 1.0, 2.0, 50.0], cuts)
    pieces = solver._relevant(cuts - 1, some_pieces(tables, rng))
    plain, cached = solver._plain_joined, solver._joined_fronts(pieces, float(budgets.max()))
    room = int(np.median(plain.choices(plain.cheapest(plain.positions(budgets), 1.0, 1.0, None)).device_bytes))
    for joined, memories in ((plain, (None, room, 0)), (cached, (None,))):
        positions = joined.positions(budgets)
        for memory_bytes in memories:
            for weights in ((0.0, 0.0), (1.0, 1.0), (0.0, 1.0), tuple(rng.lognormal(0, 2, 2).tolist())):
                found = joined.cheapest(positions, *weights, memory_bytes)
                chosen = joined.choices(found)
                with monkeypatch.context() as patched:
                    patched.setattr(fronts, "compiled", None)
                    expected = joined.cheapest(positions, *weights, memory_bytes)
                    for one, other in zip(found, expected, strict=True):
                        np.testing.assert_array_equal(one, other)
                        assert one.dtype == other.dtype
                    for one, other in zip(chosen, joined.choices(expected), strict=True):
                        np.testing.assert_array_equal(one, other)


def test_what_fits_is_what_any_pattern_fits():
    tables = random_tables(NETWORKS["residual"], 3)
    solver = Solver(tables)
    for memory_bytes in (0, 300, 1000, 2000, 10**6):
        expected = [solver.least_psi(cut, memory_bytes) < math.inf for cut in range(tables.network.num_nodes + 1)]
        assert solver.fitting(memory_bytes).tolist() == expected


@pytest.mark.parametrize("accuracy", [0.015, 0.02, 0.03, 0.9])
def test_allowances_of_each_cut_are_those_of_one_cut(accuracy):
    tables = tiny()
    shrink = {(2, 0): 0.5, (1, 1): 0.2, (0, 1): 0.0, (0, 0): 0.9, (1, BELOW_ALL): 0.3}
    granted = allowances(tables, accuracy)
    for some in ({}, shrink):
        found = at_each_cut(granted, 3, some)
        for cut in range(3):
            one = at_cut(granted, cut, some)
            assert (found.budget[cut], found.level[cut], found.level_index[cut]) == one


def test_equal_costs_are_decided_by_bytes_then_noise():
    """Bytes cost nothing: the fewest bytes within the budget win, as they do for one cut."""
    tables = random_tables(NETWORKS["residual"], 1)
    solver, cuts = Solver(tables), NETWORKS["residual"].num_nodes + 1
    found = solver.best_of_each(np.full(cuts, 0.5), down_weight=0.0, up_weight=0.0)
    for cut in range(cuts):
        one = solver.best(cut, 0.5, down_weight=0.0, up_weight=0.0)
        assert widths_of(found, cut) == (one.weight_bits, one.live_bits)


def test_plan_of_fifty_layers_takes_about_a_millisecond():
    """54 layers with weights, 121 nodes, residual sums; a request like no other, so that nothing is remembered."""
    network = cases.fifty_layers()
    assert (len(network.parametric), network.num_nodes) == (54, 121)
    solver, rng, took = Solver(cases.tables_for(network, 0, law=True)), np.random.default_rng(0), []
    for accuracy in rng.uniform(0.002, 0.05, 30).tolist():
        asked = cases.request_at(accuracy, up_bits_per_s=float(10 ** rng.uniform(4, 8)))
        begun = time.process_time()
        found = plan(solver, asked, cases.SERVER)
        took.append(time.process_time() - begun)
        assert len(found.rows) == 122
    assert min(took) < 0.004  # several times what is usual


def test_network_without_weights_is_planned():
    network = Network((4,), (Node(Relu(), (0,), "relu"), Node(Relu(), (1,), "again")))
    found = plan(Solver(random_tables(network, 0)), cases.request_at(0.05, up_bits_per_s=1e6), cases.SERVER)
    assert [row.weight_bits for row in found.rows] == [(), (), ()]
    assert found.pattern.cut == 2
