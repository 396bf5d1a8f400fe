"""What others would do: by hand, and never better than the exact plan where they keep to the same rules."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from qpart import baselines
from qpart.baselines import BASELINES, Case, exact, float_bytes
from qpart.errors import Infeasible
from qpart.heuristics import KINDS, make_solver
from qpart.limits import allowances, at_each_cut
from qpart.patterns import evaluate
from qpart.plan import cost_row, plan
from qpart.solve import Solver
from qpart.tables import WIDTHS
from tests.qpart.planner_cases import SERVER, TINY_SERVER, dense, random_tables, request, residual, tiny, tiny_request

NETWORKS = {"dense": dense(6, 5, 4, 3), "residual": residual(2, blocks=2)}


def test_baselines_hand_worked():
    """Tiny: one layer of 8 weights; bytes at 8 bits are 40; the answer is 10 bytes, a request 5 besides its values."""
    case = Case(Solver(tiny()), tiny_request(inferences=10), TINY_SERVER)
    pixels = baselines.all_server_pixels(case)
    assert (pixels.row.cut, pixels.row.up_bytes, pixels.row.download_bytes) == (0, 5 + 4, 0)
    assert baselines.all_server_pixels(case, input_bytes=2.4).row.up_bytes == 7
    floats = baselines.all_device_float32(case)
    assert float_bytes(case.tables, 1) == 4 * (8 + 2)
    assert (floats.row.cut, floats.row.download_bytes, floats.row.up_bytes) == (2, 10 + 40, 0)
    assert (floats.row.device_time_s, floats.row.channel_time_s) == (2.0, 50 * 8 / 40 / 10)
    eight = baselines.all_device_int8(case)
    assert (eight.row.download_bytes, eight.row.weight_bits, eight.psi, eight.holds) == (10 + 40, (8,), 0.5, True)
    split = baselines.neurosurgeon(case)
    assert split.row.cut == 2  # sending 4 float32 numbers takes 2.1 s, and half a second to and fro
    warm = baselines.neurosurgeon(Case(case.solver, case.request, TINY_SERVER, float_weights_present=True))
    assert warm.row.download_bytes == 10
    at_8 = baselines.jalad(case)  # the device's weights are at 8 bits, so only cut 0 and 1 have anything to choose
    assert (at_8.row.cut, at_8.row.weight_bits) == (2, (8,))
    one_width = baselines.uniform_at_best_cut(case)
    assert (one_width.row.cut, one_width.row.weight_bits) == (2, (3,))


def test_memory_and_privacy_hold_for_everybody():
    asked = tiny_request(memory_bytes=60, inferences=10, raw_input_stays=True)  # 16 float32 numbers need 64
    case = Case(Solver(tiny()), asked, TINY_SERVER)
    assert all(decide(case) is None for decide in BASELINES.values())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", range(8))
def test_nobody_who_keeps_the_rules_beats_the_exact_plan(seed, name):
    tables, rng = random_tables(NETWORKS[name], seed, law=seed % 2 == 0), np.random.default_rng(seed)
    pieces = frozenset((i, b) for i in tables.network.parametric for b in WIDTHS if rng.random() < 0.2)
    for inferences in (1, 1000):
        asked = request(
            0.03,
            up=float(10 ** rng.uniform(3, 7)),
            inferences=inferences,
            cached=pieces if seed % 3 == 0 else frozenset(),
        )
        case = Case(Solver(tables), asked, SERVER)
        best = exact(case)
        for name_of, decide in BASELINES.items():
            if name_of in ("all_server_pixels", "all_device_float32", "neurosurgeon"):
                continue  # they have other bytes to choose from
            found = decide(case)
            if found is not None and found.holds:
                assert best.row.objective <= found.row.objective * (1 + 1e-12), name_of


@pytest.mark.parametrize("kind", KINDS)
def test_every_solver_plans_within_the_budget_and_prices_what_it_plans(kind):
    tables = random_tables(NETWORKS["residual"], 4, law=True)
    asked = request(0.05, up=2e4, inferences=20)
    solver = make_solver(tables, kind)
    found = plan(solver, asked, SERVER)
    budgets = at_each_cut(allowances(tables, asked.accuracy), len(found.rows), {}).budget
    assert solver.kind == kind
    for row in found.rows:
        if row.allowed:
            pattern = evaluate(tables, row.cut, row.weight_bits, row.live_bits)
            assert pattern.psi <= budgets[row.cut]
            assert cost_row(tables, pattern, asked, SERVER) == row
    exactly = plan(make_solver(tables), asked, SERVER)
    assert exactly.cost.objective <= found.cost.objective * (1 + 1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_repair_ends_within_the_budget_wherever_anything_is(seed):
    """Fronts are quiet enough at the largest widths, and repair may take every step."""
    tables = random_tables(NETWORKS["dense"], seed, law=True)
    solver, exact_one = make_solver(tables, "floor_repair"), Solver(tables)
    for cut in range(NETWORKS["dense"].num_nodes + 1):
        for share in (1.0, 1.5, 20.0):
            budget = exact_one.least_psi(cut) * share
            found = solver.best(cut, budget)
            assert found is not None
            assert found.psi <= budget


def test_refusal_of_another_solver_says_so():
    tables = tiny(weight_psi={1: (1.5,) * 8}, live_psi=({0: (2.0,) * 8}, {1: (2.0,) * 8}, {}))
    for kind in KINDS[1:]:
        with pytest.raises(Infeasible, match=f"the {kind} solver finds no widths"):
            plan(make_solver(tables, kind), tiny_request(), TINY_SERVER)
    with pytest.raises(ValueError, match="no solver 'magic'"):
        make_solver(tables, "magic")


def test_measured_seconds_replace_the_speed():
    tables = tiny()
    asked = tiny_request(inferences=10)
    measured = msgspec.structs.replace(asked.device, layer_s=(0.25, 1.0), watts=3.0)
    server = msgspec.structs.replace(TINY_SERVER, layer_s=(0.125, 0.5))
    found = plan(Solver(tables), msgspec.structs.replace(asked, device=measured), server)
    assert [row.device_time_s for row in found.rows] == [0.0, 0.25, 1.25]
    assert [row.server_time_s for row in found.rows] == [0.625, 0.5, 0.0]
    assert found.rows[2].energy_j == pytest.approx(0.5 * 8 + 3.0 * 1.25 + 1.0 * 0.5)
    wrong = msgspec.structs.replace(asked.device, layer_s=(0.25,))
    with pytest.raises(ValueError, match="times of 1 nodes, the network has 2"):
        plan(Solver(tables), msgspec.structs.replace(asked, device=wrong), TINY_SERVER)
