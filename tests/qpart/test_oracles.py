"""The exact solver against trying everything at 2 to 8 bits, and against integer programming on larger networks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bench.macro import _optimality_cases as cases
from bench.macro.optimality import brute_force
from qpart.baselines import Case, exact
from qpart.heuristics import KINDS, make_solver
from qpart.patterns import evaluate
from qpart.solve import Solver


def test_exact_is_what_trying_everything_finds_with_caches_and_memory():
    counts = brute_force(30)
    for kind in ("plain", "memory", "cache"):
        assert counts[kind]["equal"] == counts[kind]["checks"] == 30, kind
    assert counts["memory"]["infeasible"] < 15
    both = counts["cache and memory"]  # a pattern is found whenever there is one, perhaps not the cheapest
    assert both["worst_excess"] < 0.5
    assert both["equal"] >= 24


def test_trying_everything_sums_as_evaluate_does():
    tables = cases.tables_for(cases.dense([3, 4, 2]), 1, law=False, tried=True)
    cut, cached = tables.network.num_nodes - 1, frozenset({(0, 3)})
    every = [
        evaluate(tables, cut, bits[:1], bits[1:], cached=cached) for bits in itertools.product(cases.TRIED, repeat=2)
    ]
    for budget in sorted(p.psi for p in every)[::7]:
        memory = sorted(p.device_bytes for p in every)[20]
        costs = [2 * p.download_bytes + 3 * p.up_bytes for p in every if p.psi <= budget and p.device_bytes <= memory]
        found = cases.by_trying(
            tables, cut, budget, down_weight=2.0, up_weight=3.0, memory_bytes=memory, cached=cached
        )  # fmt: skip
        assert found == min(costs, default=None)


@pytest.mark.parametrize(("size", "seed"), [(20, 0), (35, 1), (60, 2)])
def test_exact_is_what_integer_programming_finds(size, seed):
    network = cases.dense(np.random.default_rng(seed).integers(8, 200, size).tolist())
    tables = cases.tables_for(network, seed, law=bool(seed % 2))
    solver, cut = Solver(tables), network.num_nodes - 1
    assert tables.num_weights(cut) + len(network.live[cut]) == size - 1
    budget = solver.least_psi(cut) * 5.0
    found = solver.best(cut, budget, up_weight=2.0)
    peer = cases.by_integers(tables, cut, budget, down_weight=1.0, up_weight=2.0)
    assert peer["status"] == 0
    assert peer["psi"] <= budget * (1 + 1e-6)
    assert found.download_bytes + 2 * found.up_bytes == pytest.approx(peer["cost"], rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_no_other_solver_loads_less_at_any_cut(seed):
    tables = cases.tables_for(cases.residual(4, 2), seed, law=True)
    solver, others = Solver(tables), [make_solver(tables, kind) for kind in KINDS[1:]]
    for cut in range(tables.network.num_nodes + 1):
        for share in (1.5, 30.0):
            budget = solver.least_psi(cut) * share
            best = solver.best(cut, budget, up_weight=5.0)
            for other in others:
                found = other.best(cut, budget, up_weight=5.0)
                if found is not None:
                    cost = found.download_bytes + 5 * found.up_bytes
                    assert best.download_bytes + 5 * best.up_bytes <= cost * (1 + 1e-12)


def test_cost_falls_as_rates_rise_for_random_requests():
    rng = np.random.default_rng(3)
    solver = Solver(cases.tables_for(cases.residual(4, 2), 5, law=True))
    for _ in range(20):
        asked = cases.random_request(rng)
        costs = []
        for factor in (1.0, 2.0, 8.0):
            channel = asked.channel
            faster = type(channel)(
                up_bits_per_s=channel.up_bits_per_s * factor, down_bits_per_s=channel.down_bits_per_s * factor,
                round_trip_s=channel.round_trip_s, tx_watts=channel.tx_watts, rx_watts=channel.rx_watts,
            )  # fmt: skip
            request = type(asked)(**{**{f: getattr(asked, f) for f in asked.__struct_fields__}, "channel": faster})
            found = exact(Case(solver, request, cases.SERVER))
            if found is not None:
                costs.append(found.row.objective)
        assert len(costs) in (0, 3)
        assert all(after <= before * (1 + 1e-12) for before, after in itertools.pairwise(costs))
