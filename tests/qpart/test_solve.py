"""The exact solution against trying everything, against integer programming, and by hand."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from qpart.fronts import Chain
from qpart.network import Network, Node
from qpart.ops import Linear
from qpart.patterns import evaluate, uniform
from qpart.solve import MAX_KEPT_PROBLEMS, MIXES, TO_LOAD, Solver
from qpart.tables import WIDTHS, BudgetMap, Tables
from tests.qpart.planner_cases import by_trying, dense, every_pattern, random_tables, residual

NETWORKS = {"dense": dense(6, 5, 4, 3), "residual": residual(2)}


def tiny() -> Tables:
    """Two layers; the last six widths are of no use."""
    network = Network((2,), (Node(Linear(2, 2), (0,)), Node(Linear(2, 2), (1,))))
    rest = ((9.0,) * 6, (99,) * 6)
    return Tables(
        network=network,
        weight_psi={0: (8.0, 1.0, *rest[0]), 1: (4.0, 2.0, *rest[0])},
        weight_bytes={0: (10, 20, *rest[1]), 1: (10, 30, *rest[1])},
        live_psi=({0: (1.0, 0.0, *rest[0])}, {1: (3.0, 1.0, *rest[0])}, {}),
        live_bytes=({0: (5, 6, *rest[1])}, {1: (2, 4, *rest[1])}, {}),
        manifest_bytes=(0, 7, 9),
        infer_bytes=(3, 3, 0),
        answer_bytes=(8, 8, 0),
        device_items=(2, 2, 2),
        budget=BudgetMap((1.0, 16.0), (0.01, 0.1)),
        levels=(0.01, 0.05),
    )


def test_pattern_hand_worked():
    """Cut 1, budget 4: layer at 3 bits (psi 1, 20 bytes) and value at 2 (psi 3, 2 bytes), or both at 3 (2, 24)."""
    solver = Solver(tiny())
    pattern = solver.best(1, 4.0)
    assert (pattern.weight_bits, pattern.live_bits, pattern.psi) == ((3,), (2,), 4.0)
    assert (pattern.download_bytes, pattern.segment_bytes, pattern.up_bytes) == (27, 27, 5)
    assert pattern.device_bytes == 27 + 8
    assert solver.best(1, math.nextafter(4.0, 0)).live_bits == (3,)
    assert solver.best(1, 9.0, up_weight=4.0).weight_bits == (2,)  # 17 + 4 * 7 = 45 against 27 + 4 * 5 = 47
    assert solver.best(1, 9.0, up_weight=6.0).weight_bits == (3,)  # 17 + 6 * 7 = 59 against 27 + 6 * 5 = 57
    assert solver.best(2, 12.0).weight_bits == (2, 2)
    assert solver.best(2, 11.0).weight_bits == (3, 2)
    assert solver.best(2, 4.9).weight_bits == (3, 3)
    assert solver.best(2, 2.9) is None
    assert solver.least_psi(2) == 3.0
    assert solver.least_psi(2, memory_bytes=9 + 8 + 49) == 5.0
    assert solver.least_psi(2, memory_bytes=9 + 8 + 19) == math.inf


def weights_of(seed):
    rng = np.random.default_rng(seed)
    down, up = rng.lognormal(0, 2, 2).tolist()
    return {"down_weight": 0.0 if seed % 11 == 0 else down, "up_weight": 0.0 if seed % 13 == 0 else up}


def budgets_of(patterns, seed):
    psi = np.array([p.psi for p in patterns])
    rng = np.random.default_rng(seed)
    exact = [float(psi[rng.integers(len(psi))]), float(psi.min())]
    return [*np.quantile(psi, (0.01, 0.1, 0.5)).tolist(), *exact, math.nextafter(float(psi.min()), -1), math.inf]


def most_widths(tables, cut, patterns=3000):
    """How many widths can be tried in all combinations."""
    num_tensors = tables.num_weights(cut) + len(tables.network.live[cut])
    return max(w for w in range(2, 9) if w == 2 or w**num_tensors <= patterns)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", range(40))
def test_best_is_what_trying_everything_finds(seed, name):
    network = NETWORKS[name]
    cut = network.num_nodes - seed % (network.num_nodes + 1)
    widths = most_widths(random_tables(network, seed), cut)
    tables = random_tables(network, seed, widths=widths)
    solver = Solver(tables)
    patterns = list(every_pattern(tables, cut, widths=widths))
    for budget in budgets_of(patterns, seed):
        for memory in (None, int(np.median([p.device_bytes for p in patterns]))):
            asked = {**weights_of(seed), "memory_bytes": memory}
            found = solver.best(cut, budget, **asked)
            cost = by_trying(patterns, budget, **asked)
            assert (found is None) == (cost is None)
            if found is not None:
                assert found == evaluate(tables, cut, found.weight_bits, found.live_bits)
                assert by_trying([found], budget, **asked) == cost
            fits = [p.psi for p in patterns if memory is None or p.device_bytes <= memory]
            assert solver.least_psi(cut, memory) == min(fits, default=math.inf)


@pytest.mark.parametrize("seed", range(6))
def test_best_of_seven_tensors_is_what_trying_everything_finds(seed):
    network = residual(2, blocks=2)
    tables = random_tables(network, seed, widths=4)
    cut = next(c for c in range(network.num_nodes) if tables.num_weights(c) == 5 and len(network.live[c]) == 2)
    patterns = list(every_pattern(tables, cut, widths=4))
    for budget in budgets_of(patterns, seed):
        found = Solver(tables).best(cut, budget, **weights_of(seed))
        cost = by_trying(patterns, budget, **weights_of(seed))
        assert cost is None if found is None else by_trying([found], budget, **weights_of(seed)) == cost


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", range(20))
def test_cached_pieces_cost_nothing_to_load(seed, name):
    network = NETWORKS[name]
    tables = random_tables(network, seed, widths=4)
    rng = np.random.default_rng(seed)
    pieces = frozenset((i, b) for i in network.parametric for b in WIDTHS[:4] if rng.random() < 0.3)
    cached = pieces | {(4000, 4), (network.parametric[0], 9)}
    solver, cut = Solver(tables), network.num_nodes - seed % 4
    patterns = list(every_pattern(tables, cut, widths=4, cached=cached))
    for budget in budgets_of(patterns, seed):
        found = solver.best(cut, budget, cached=cached, **weights_of(seed))
        cost = by_trying(patterns, budget, **weights_of(seed))
        assert cost is None if found is None else by_trying([found], budget, **weights_of(seed)) == cost
        for memory in np.quantile([p.device_bytes for p in patterns], (0.0, 0.05, 0.3)).astype(int).tolist():
            asked = {**weights_of(seed), "memory_bytes": memory}
            tight, least = solver.best(cut, budget, cached=cached, **asked), by_trying(patterns, budget, **asked)
            assert (tight is None) == (least is None)  # it finds one whenever there is one
            if tight is not None:
                cost = by_trying([tight], budget, **asked)
                without = solver.best(cut, budget, **asked)
                again = evaluate(tables, cut, without.weight_bits, without.live_bits, cached=cached)
                assert least <= cost <= by_trying([again], budget, **asked)


def test_loads_with_a_cache_hand_worked():
    """Pieces of 5, 4, 0, 3 ... bytes behind addresses of 2: a cached one is saved at its width and above."""
    whole, pieces = (7, 13, 13, 18, 18, 18, 18, 40), (5, 4, 0, 3, 0, 0, 0, 38)
    tables = msgspec.structs.replace(
        tiny(), weight_bytes={0: whole, 1: whole}, piece_bytes=dict.fromkeys((0, 1), pieces)
    )
    assert tables.load_bytes({(0, 3), (0, 5), (9, 2)}) == {0: (7, 9, 9, 11, 11, 11, 11, 40)}
    assert tables.load_bytes({(1, 16), (1, 4)}) == {1: (7, 13, 13, 18, 18, 18, 18, 2)}
    assert tables.load_bytes({(0, b) for b in WIDTHS}) == {0: (2, 4, 4, 6, 6, 6, 6, 2)}
    assert evaluate(tables, 1, (4,), (2,), cached={(0, 3)}).download_bytes == 7 + 9
    assert evaluate(tables, 1, (4,), (2,), cached={(0, 3)}).segment_bytes == 7 + 13
    without = msgspec.structs.replace(tiny(), weight_bytes={0: whole, 1: whole})
    assert without.load_bytes({(0, 2), (0, 5)}) == {0: (0, 6, 6, 6, 6, 6, 6, 40)}


@pytest.mark.parametrize(
    "pieces", [{0: (1,) * 8}, {0: (1,) * 8, 1: (1,) * 7}, {0: (2,) * 8, 1: (20,) * 8}, {0: (-1,) * 8, 1: (1,) * 8}]
)
def test_pieces_that_cannot_be_are_refused(pieces):
    with pytest.raises(ValueError, match="piece"):
        msgspec.structs.replace(tiny(), piece_bytes=pieces)


def test_fronts_with_a_cache_are_those_made_from_the_start():
    tables = random_tables(NETWORKS["dense"], 1)
    nodes, pieces = tables.network.parametric, frozenset({(3, 4)})
    load, solver = [tables.load_bytes(pieces).get(i, tables.weight_bytes[i]) for i in nodes], Solver(tables)
    for down, hold in (TO_LOAD, *MIXES):
        rows = zip(nodes, load, strict=True)
        mixed = [[down * n + hold * m for n, m in zip(row, tables.weight_bytes[i], strict=True)] for i, row in rows]
        expected, found = Chain(mixed, [tables.weight_psi[i] for i in nodes]), solver._with_cache(pieces, (down, hold))
        for column in ("num_bytes", "psi", "steps", "starts"):
            np.testing.assert_array_equal(getattr(found.chain, column), getattr(expected, column))


def test_caches_kept_are_bounded():
    solver = Solver(random_tables(NETWORKS["dense"], 0))
    for bits in WIDTHS:
        for more in ((), ((3, 4),), ((5, 2),)):
            solver.best(6, 1.0, cached={(1, bits), *more})
    assert len(solver._kept) == MAX_KEPT_PROBLEMS


def test_same_question_has_same_answer():
    tables = random_tables(residual(3, blocks=2), 5)
    one, other = (Solver(tables).best(7, 0.3, cached={(0, 4), (2, 3)}) for _ in range(2))
    assert one == other


def milp_cost(tables: Tables, cut, budget, down_weight, up_weight) -> float:
    """The optimum by integer programming: one binary for each tensor and width."""
    rows = [(tables.weight_psi[i], tables.weight_bytes[i], down_weight) for i in tables.network.parametric if i < cut]
    rows += [(tables.live_psi[cut][v], tables.live_bytes[cut][v], up_weight) for v in tables.network.live[cut]]
    psi = np.concatenate([row[0] for row in rows])
    cost = np.concatenate([weight * np.array(sizes, float) for _, sizes, weight in rows])
    one_each = np.kron(np.eye(len(rows)), np.ones(8))
    found = milp(
        cost,
        integrality=np.ones(len(cost)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(psi[None, :], -np.inf, budget)],
        options={"mip_rel_gap": 0.0},
    )
    assert found.success
    fixed = down_weight * tables.manifest_bytes[cut] + up_weight * tables.infer_bytes[cut]
    return float(cost @ np.round(found.x)) + fixed


@pytest.mark.parametrize("seed", range(3))
def test_best_of_twenty_tensors_is_the_integer_programme_s(seed):
    network = dense(*np.random.default_rng(seed).integers(4, 40, 21).tolist())
    tables = random_tables(network, seed, whole=True)
    cut = network.num_nodes - 1
    assert tables.num_weights(cut) + len(network.live[cut]) == 20
    solver = Solver(tables)
    for share in (1.2, 3.0, 30.0):
        budget = math.floor(solver.least_psi(cut) * share + 20) + 0.5  # psi are whole: no rounding can matter
        found = solver.best(cut, budget, down_weight=1.0, up_weight=3.0)
        assert found.download_bytes + 3 * found.up_bytes == pytest.approx(
            milp_cost(tables, cut, budget, 1, 3), abs=1e-6
        )


@pytest.mark.parametrize("seed", range(5))
def test_payload_falls_as_the_budget_rises(seed):
    tables = random_tables(residual(3, blocks=2), seed)
    solver = Solver(tables)
    for cut in (3, 4, 9, tables.network.num_nodes):
        budgets = solver.least_psi(cut) * np.geomspace(1, 1000, 30)
        sizes = [p.download_bytes + p.up_bytes for b in budgets.tolist() if (p := solver.best(cut, b))]
        assert len(sizes) >= 29
        assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("seed", range(10))
def test_best_is_never_worse_than_uniform(seed):
    tables = random_tables(residual(3, blocks=2), seed)
    solver = Solver(tables)
    for cut in range(tables.network.num_nodes + 1):
        for bits in WIDTHS:
            peer = uniform(tables, cut, bits)
            best = solver.best(cut, peer.psi, memory_bytes=peer.device_bytes)
            assert best.download_bytes + best.up_bytes <= peer.download_bytes + peer.up_bytes


def test_noise_that_vanishes_beside_another_is_no_obstacle():
    """1 + 1e-17 is 1: the sum as it is rounded decides, and the cheapest such pattern is found."""
    tables = tiny()
    psi = (1e-17, 1e-18, 1e-19, 1e-20, 1e-21, 1e-22, 1e-23, 0.0)
    tables = msgspec.structs.replace(
        tables,
        weight_psi={0: psi, 1: psi},
        weight_bytes={0: tuple(range(10, 18)), 1: tuple(range(10, 18))},
        live_psi=(tables.live_psi[0], {1: (1.0,) * 8}, {}),
    )
    assert Solver(tables).best(1, 1.0).weight_bits == (2,)


def test_widths_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="takes 1 and 1 widths"):
        evaluate(tiny(), 1, (3, 3), (3,))
    with pytest.raises(ValueError, match="9 bits"):
        uniform(tiny(), 1, 9)


def test_budget_map_hand_worked():
    budgets = BudgetMap((1.0, 2.0, 4.0, 8.0), (0.1, 0.2, 0.2, 0.6))
    assert [budgets.budget(a) for a in (0.0, 0.05, 0.1, 0.2, 0.6, 0.9)] == [0.0, 0.25, 1.0, 4.0, 8.0, 8.0]
    assert budgets.budget(0.15) == pytest.approx(1.5)
    assert budgets.budget(0.4) == pytest.approx(6.0)
    assert [budgets.accuracy_of(p) for p in (0.0, 0.25, 1.0, 3.0, 8.0, 8.1)] == [0.0, 0.05, 0.1, 0.2, 0.6, math.inf]
    for call in (budgets.budget, budgets.accuracy_of):
        for bad in (-1.0, math.nan):
            with pytest.raises(ValueError, match="give 0 or more"):
                call(bad)


@given(data=st.data(), size=st.integers(1, 6))
@settings(max_examples=200, deadline=None)
def test_budget_map_inverts_itself(data, size):
    number = st.floats(1e-9, 1e3)
    psi = tuple(sorted(data.draw(st.sets(number, min_size=size, max_size=size))))
    accuracy = tuple(sorted(data.draw(st.lists(number, min_size=size, max_size=size))))
    budgets = BudgetMap(psi, accuracy)
    for wanted in [*psi, data.draw(st.floats(psi[0] / 1e6, psi[-1]))]:
        found = budgets.accuracy_of(wanted)
        assert budgets.budget(found) >= wanted
        assert budgets.budget(found * (1 - 1e-6)) <= wanted * (1 + 1e-12) or wanted in psi


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("weight_psi", {0: (1.0,) * 8}, "weight tables are for"),
        ("weight_psi", {0: (1.0,) * 7, 1: (1.0,) * 8}, "8 finite numbers"),
        ("weight_psi", {0: (-1.0,) * 8, 1: (1.0,) * 8}, "8 finite numbers"),
        ("weight_psi", {0: (math.nan,) * 8, 1: (1.0,) * 8}, "8 finite numbers"),
        ("weight_bytes", {0: (0,) * 8, 1: (1,) * 8}, "8 counts"),
        ("live_psi", ({}, {}, {}), "cut 0 live"),
        ("manifest_bytes", (0, 1), "3 cuts"),
        ("device_items", (0, -1, 0), "negative"),
        ("answer_bytes", (1, 1, 1), "must be 0"),
        ("levels", (0.2, 0.1), "ascend"),
        ("levels", (0.2, 1.0), "ascend"),
    ],
)
def test_tables_that_do_not_fit_are_refused(field, value, words):
    with pytest.raises(ValueError, match=words):
        msgspec.structs.replace(tiny(), **{field: value})


@pytest.mark.parametrize(
    ("psi", "accuracy"), [((), ()), ((1.0,), ()), ((1.0, 1.0), (0.1, 0.2)), ((1.0, 2.0), (0.2, 0.1)), ((0.0,), (0.1,))]
)
def test_budget_map_that_is_none_is_refused(psi, accuracy):
    with pytest.raises(ValueError, match="budget map"):
        BudgetMap(psi, accuracy)


def test_tables_survive_msgpack():
    tables = random_tables(residual(3), 1)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(tables), type=Tables) == tables
