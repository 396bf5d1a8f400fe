"""The cheapest cut without the fronts of all cuts, against all of them, and against trying everything."""

from __future__ import annotations

import time
from collections import Counter

import msgspec
import numpy as np
import pytest

from bench.macro import _optimality_cases as cases
from qpart import leading
from qpart.costs import Fixed, costs
from qpart.cuts import Choices
from qpart.errors import Infeasible
from qpart.leading import Leader, hull
from qpart.patterns import evaluate, uniform
from qpart.plan import Plan, plan
from qpart.profile import Channel, DeviceProfile, Request, Weights
from qpart.rows import CutTable
from qpart.solve import Solver
from qpart.tables import WIDTHS, BudgetMap
from tests.qpart.planner_cases import SERVER, by_trying, dense, every_pattern, random_tables, residual, tiny

NETWORKS = {"dense": dense(6, 5, 4, 3), "residual": residual(2, blocks=2), "deep": dense(*range(5, 24))}
SAME = ("pattern", "accuracy", "level", "level_index", "budget", "cost", "inferences", "weights")


def some_cache(tables, rng, kind):
    """Pieces of a layer up to a width, of all layers, of any width, all there are, or of a network that is none."""
    nodes = tables.network.parametric
    if kind == "increments":
        most = rng.choice(WIDTHS, len(nodes)).tolist()
        return frozenset((i, b) for i, top in zip(nodes, most, strict=True) for b in WIDTHS[:7] if b <= top)
    if kind == "scattered":
        return frozenset((i, b) for i in nodes for b in WIDTHS if rng.random() < 0.3)
    if kind == "few":
        return frozenset((int(rng.choice(nodes)), int(rng.choice(WIDTHS))) for _ in range(2))
    if kind == "all":
        return frozenset((i, b) for i in nodes for b in WIDTHS)
    return frozenset({(4000, 4)})


KINDS = ("increments", "scattered", "few", "all", "strange")


def some_request(tables, rng):
    """Accuracies, rates, amortisation and memory of any kind: some cannot be met, some weigh nothing but money."""
    sizes = [
        evaluate(tables, c, (4,) * tables.num_weights(c), (4,) * len(live)).device_bytes
        for c, live in enumerate(tables.network.live)
    ]
    tight = rng.random() < 0.4
    energy = float(rng.choice([0.0, 0.1, 1.0]))
    return Request(
        accuracy=float(10 ** rng.uniform(-3.5, -0.7)),
        device=DeviceProfile(
            macs_per_s=float(10 ** rng.uniform(2, 8)),
            joules_per_mac=1e-9,
            memory_bytes=max(1, int(rng.choice(sizes) * rng.uniform(0.5, 1.2))) if tight else 1 << 30,
        ),
        channel=Channel(
            up_bits_per_s=float(10 ** rng.uniform(3, 9)), down_bits_per_s=float(10 ** rng.uniform(3, 9)),
            round_trip_s=0.001, tx_watts=float(rng.choice([0.0, 1.0])), rx_watts=0.3,
        ),
        weights=Weights(time=float(rng.choice([0.0, 1.0, 1.0, 1.0])), energy=energy, price=1.0),
        inferences=int(10 ** rng.uniform(0, 6)),
        raw_input_stays=bool(rng.random() < 0.3),
        cached=some_cache(tables, rng, rng.choice(KINDS)),
    )  # fmt: skip


def both(solver, asked, shrink):
    """The plan without and with the table of all cuts; None where it is refused."""
    found = []
    for explain in (False, True):
        try:
            found.append(plan(solver, asked, SERVER, shrink=shrink, explain=explain))
        except Infeasible as refused:
            found.append(str(refused))
    return found


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", range(30))
def test_plan_without_the_table_is_the_one_of_the_table(seed, name):
    rng = np.random.default_rng(1000 + seed)
    tables = random_tables(NETWORKS[name], seed, law=seed % 3 == 1, whole=seed % 3 == 2)  # whole: many are equal
    seen = Counter()
    for _ in range(25):
        cut = int(rng.integers(tables.network.num_nodes + 1))
        shrink = {(cut, -1): 0.3, (cut, 1): 0.5, (0, 2): 0.0} if rng.random() < 0.3 else {}
        asked = some_request(tables, rng)
        short, full = both(Solver(tables), asked, shrink)  # a fresh one: nothing is remembered
        seen[type(full)] += 1
        if isinstance(full, str):
            assert short == full
            continue
        for field in SAME:
            assert getattr(short, field) == getattr(full, field), field
        assert short.row() == full.row()
        assert short.rows == (full.row(),)
        assert short.last_cut == full.last_cut == tables.network.num_nodes
    assert seen[Plan] > 5  # others are refused


@pytest.mark.native
@pytest.mark.parametrize("name", ["dense", "residual"])
@pytest.mark.parametrize("seed", range(20))
def test_leaders_are_what_trying_everything_finds(seed, name):
    """With as many widths as can be tried at the deepest cut, for each cut that leads."""
    network = {"dense": dense(6, 5, 4, 3), "residual": residual(2)}[name]
    tables, rng = random_tables(network, seed, widths=4, whole=seed % 2 == 1), np.random.default_rng(seed)
    solver, cuts = Solver(tables), network.num_nodes + 1
    cached = frozenset((i, b) for i in network.parametric for b in WIDTHS[:4] if rng.random() < 0.4)
    patterns = [list(every_pattern(tables, cut, widths=4, cached=cached)) for cut in range(cuts)]
    for share in (0.9, 1.0, 3.0, 1e3):
        budgets = np.array([solver.least_psi(cut) for cut in range(cuts)]) * share
        down, up = rng.lognormal(0, 2, 2).tolist()
        base = rng.lognormal(0, 3, cuts)
        found = solver.leading(
            budgets, base, down_weight=down, up_weight=up, memory_bytes=1 << 40, cached=cached or {(99, 2)}
        )
        least = [
            by_trying(each, float(budget), down_weight=down, up_weight=up)
            for each, budget in zip(patterns, budgets, strict=True)
        ]
        total = [np.inf if cost is None else base[cut] + cost for cut, cost in enumerate(least)]
        if min(total) == np.inf:
            assert not found
            continue
        assert int(np.argmin(total)) in {one.cut for one in found}
        for one in found:
            assert one == evaluate(tables, one.cut, one.weight_bits, one.live_bits, cached=cached)
            assert one.psi <= budgets[one.cut]
            assert down * one.download_bytes + up * one.up_bytes == least[one.cut]


@pytest.mark.parametrize("seed", range(3))
def test_fifty_layers_have_the_same_plan_without_the_table(seed):
    tables, rng = cases.tables_for(cases.fifty_layers(), seed, law=True), np.random.default_rng(seed)
    solver, same = Solver(tables), 0
    for _ in range(12):
        cache = some_cache(tables, rng, rng.choice(("increments", "scattered", "few")))
        short, full = both(solver, cases.random_request(rng, cache), {})
        assert isinstance(short, str) == isinstance(full, str)
        if not isinstance(full, str):
            same += 1
            assert [getattr(short, field) for field in SAME] == [getattr(full, field) for field in SAME]
            assert short.row() == full.row()
    assert same > 6


@pytest.mark.native
def test_new_cache_takes_about_as_long_as_none():
    """No cache is shown twice, so nothing can be remembered."""
    tables, rng = cases.tables_for(cases.fifty_layers(), 0, law=True), np.random.default_rng(0)
    solver, took = Solver(tables), []
    for _ in range(30):
        asked = cases.request_at(0.02, up_bits_per_s=float(10 ** rng.uniform(4, 8)))
        asked = msgspec.structs.replace(asked, cached=some_cache(tables, rng, "increments"))
        begun = time.process_time()
        plan(solver, asked, cases.SERVER, explain=False)
        took.append(time.process_time() - begun)
    assert min(took) < 0.002  # several times what is usual, a third of what the fronts would take
    assert not solver._joined
    assert not solver._kept


def test_without_a_compiler_all_cuts_are_looked_at(monkeypatch):
    monkeypatch.setattr(leading, "_search", None)
    tables, rng = random_tables(NETWORKS["residual"], 1), np.random.default_rng(1)
    solver, asked = Solver(tables), some_request(tables, rng)
    asked = msgspec.structs.replace(asked, cached=some_cache(tables, rng, "few"), accuracy=0.05)
    budgets = np.full(tables.network.num_nodes + 1, 1.0)
    found = solver.leading(
        budgets, budgets, down_weight=1.0, up_weight=1.0, memory_bytes=1 << 30, cached=asked.cached
    )  # fmt: skip
    assert found is None
    short, full = both(solver, asked, {})
    assert short.row() == full.row()


@pytest.mark.parametrize("seed", range(12))
def test_noise_that_vanishes_or_is_next_to_none_changes_no_plan(seed):
    """1 + 1e-17 is 1, and 1e-310 over 1 byte is a slope beyond all numbers: the rounded sum decides all the same."""
    rng = np.random.default_rng(seed)
    tables = random_tables(NETWORKS["residual"], seed)
    scale = dict(zip(tables.weight_psi, rng.choice([1e-320, 1e-305, 1e-17, 1.0], len(tables.weight_psi)), strict=True))
    weight_psi = {i: tuple(scale[i] * psi for psi in row) for i, row in tables.weight_psi.items()}
    tables = msgspec.structs.replace(tables, weight_psi=weight_psi)
    if seed % 2:  # as much noise as the budget has
        live_psi = tuple({v: (tables.budget.budget(0.01),) * 8 for v in live} for live in tables.network.live)
        tables = msgspec.structs.replace(tables, live_psi=live_psi)
    solver, same = Solver(tables), 0
    for _ in range(20):
        asked = msgspec.structs.replace(some_request(tables, rng), accuracy=float(rng.choice([0.01, 0.012, 0.05])))
        short, full = both(solver, asked, {})
        assert isinstance(short, str) == isinstance(full, str)
        if not isinstance(full, str):
            same += 1
            assert (short.pattern, short.row()) == (full.pattern, full.row())
    assert same > 3


@pytest.mark.parametrize("seed", range(8))
def test_budgets_below_what_sums_of_loud_widths_are_off_change_no_plan(seed):
    """Loud widths add up to 1, quiet ones to 1e-20 or 1e-200: what is left of a sum after subtracting is no number."""
    rng = np.random.default_rng(seed)
    tables = random_tables(NETWORKS["residual"], seed)

    def row():
        loud = int(rng.integers(1, 8))
        quiet = np.sort(10 ** rng.uniform(-250, -15, 8 - loud))[::-1]
        return (*np.sort(rng.random(loud))[::-1].tolist(), *quiet.tolist())

    tables = msgspec.structs.replace(
        tables,
        weight_psi={i: row() for i in tables.weight_psi},
        live_psi=tuple({v: row() for v in live} for live in tables.network.live),
        budget=BudgetMap((1e-40, 1e-20, 1e-12, 1.0), (0.001, 0.01, 0.02, 0.05)),
    )
    compared(Solver(tables), tables, rng)


@pytest.mark.parametrize("seed", range(6))
def test_bytes_that_cost_next_to_nothing_change_no_plan(seed):
    """What they cost has few digits then."""
    rng, tables = np.random.default_rng(seed), random_tables(NETWORKS["dense"], seed)
    budgets = np.full(tables.network.num_nodes + 1, 0.1)
    for _ in range(30):
        weights = rng.integers(1, 100, 2) * 5e-324
        leads_to_the_cheapest(tables, budgets, rng.integers(0, 1000, len(budgets)) * 5e-324, tuple(weights.tolist()))


def leads_to_the_cheapest(tables, budgets, base, weights):
    """Of the cuts the one with the least sum leads, with the pattern that the fronts of all cuts have, or none does."""
    asked = {"down_weight": weights[0], "up_weight": weights[1], "memory_bytes": 1 << 50}
    cached, solver = frozenset({(4000, 2)}), Solver(tables)
    found = solver.leading(budgets, base, cached=cached, **asked)
    every = solver.best_of_each(budgets, cached=cached, **asked)
    cost = base + weights[0] * every.download_bytes + weights[1] * every.up_bytes
    cut = int(np.argmin(np.where(every.exists, cost, np.inf)))
    assert every.exists[cut]
    if found is not None:
        leads = Choices.of([next((one for one in found if one.cut == k), None) for k in range(len(budgets))])
        assert leads.exists[cut]
        assert all(one[cut] == other[cut] for one, other in zip(leads, every, strict=True))


def compared(solver, tables, rng, **changes):
    """Plans with and without the table are the same, and some are no refusals."""
    same = 0
    for _ in range(30):
        accuracy = float(rng.choice([0.005, 0.01, 0.02, 0.05]))
        asked = msgspec.structs.replace(some_request(tables, rng), accuracy=accuracy, **changes)
        short, full = both(solver, asked, {})
        assert isinstance(short, str) == isinstance(full, str)
        if not isinstance(full, str):
            same += 1
            assert (short.pattern, short.row()) == (full.pattern, full.row())
    assert same > 3


@pytest.mark.parametrize("seed", range(20))
def test_costs_without_bytes_are_those_of_the_formula(seed):
    """To rounding: the search takes cuts for equal whose costs differ by less."""
    rng = np.random.default_rng(seed)
    tables = random_tables(NETWORKS["residual"], seed)
    fixed, asked = Fixed(tables), some_request(tables, rng)
    if seed % 2:
        layer_s = tuple((10 ** rng.uniform(-6, 0, tables.network.num_nodes)).tolist())
        asked = msgspec.structs.replace(asked, device=msgspec.structs.replace(asked.device, layer_s=layer_s, watts=2.5))
    compute = fixed.compute(asked, SERVER)
    found = fixed.without_bytes(asked, SERVER, compute)
    nothing = np.zeros(len(found))
    expected = costs(
        asked, SERVER, device_macs=compute.device_macs, device_s=compute.device_s, server_s=compute.server_s,
        download_bytes=nothing, up_bytes=nothing, answer_bytes=fixed.answer_bytes, round_trips=fixed.round_trips,
    )  # fmt: skip
    np.testing.assert_allclose(found, expected.objective, rtol=1e-14)


@pytest.mark.parametrize(("dearer", "looked_at"), [(True, [1]), (False, [1, 2])])
def test_no_front_is_made_for_a_cut_that_another_beats(monkeypatch, dearer, looked_at):
    """What fits costs no less than the cheapest that need not, and that of cut 2 costs more than what cut 1 has."""
    solver, asked = Solver(tiny()), []
    fitting = uniform(solver.tables, 1, 4)
    bytes_of = {0: 10**9, 1: 1, 2: fitting.download_bytes + fitting.up_bytes + (1 if dearer else -1)}
    leaders = [Leader(cut, cut == 0, 0.0, size, 0, 0, 0, b"", b"") for cut, size in bytes_of.items()]

    def fitting_at(cut, *_):
        asked.append(cut)
        return fitting if cut == 1 else None

    monkeypatch.setattr(solver._leading, "found", lambda *_: leaders[::-1])
    monkeypatch.setattr(solver, "_fitting", fitting_at)
    found = solver.leading(
        np.ones(3), np.zeros(3), down_weight=1.0, up_weight=1.0, memory_bytes=1, cached=frozenset({(0, 2)})
    )
    assert asked == looked_at
    assert {one.cut for one in found} == {0, 1}


@pytest.mark.native
def test_place_for_points_is_given_back():
    """Where one question took as much as few do, the next ones do not."""
    tables = cases.tables_for(cases.fifty_layers(), 0, law=True)
    solver = Solver(tables)
    search, cuts = solver._leading._search, tables.network.num_nodes + 1
    base = np.full(cuts, np.inf)
    base[-2] = 0.0
    few = search.room
    for budget in (0.02, 0.05, 0.3):
        assert len(search.run([(4000, 2)], np.full(cuts, budget), base, 1.0, 1e5, 1 << 40)) == 1
        assert few <= search.room <= 1 << 18


@pytest.mark.native
def test_search_goes_on_after_there_was_no_memory_to_give_place_back(monkeypatch):
    """Not busy for ever, and no more place on record than the smallest of the arrays has."""
    tables = cases.tables_for(cases.fifty_layers(), 0, law=True)
    search, cuts = Solver(tables)._leading._search, tables.network.num_nodes + 1
    base = np.full(cuts, np.inf)
    base[-2] = 0.0

    def run():
        return search.run([(4000, 2)], np.full(cuts, 0.1), base, 1.0, 1e5, 1 << 40)

    expected, few, given = run(), search.room, []

    class Short:
        """numpy that has memory for all but the third of the small arrays."""

        def __getattr__(self, name):
            return getattr(np, name)

        def empty(self, size, dtype):
            given.append(size)
            if given.count(few) == 3:
                raise MemoryError
            return np.empty(size, dtype)

    with monkeypatch.context() as patched:
        patched.setattr(leading._search, "np", Short())
        with pytest.raises(MemoryError):
            run()
    assert search.room == few
    assert run() == expected


@pytest.mark.native
@pytest.mark.parametrize("seed", range(5))
def test_loads_are_those_of_the_tables(seed):
    tables, rng = random_tables(NETWORKS["residual"], seed), np.random.default_rng(seed)
    if seed == 0:
        tables = msgspec.structs.replace(tables, piece_bytes={})
    solver, nodes = Solver(tables), tables.network.parametric
    for kind in KINDS:
        cached = some_cache(tables, rng, kind)
        expected = tables.load_bytes(cached)
        rows = [expected.get(node, tables.weight_bytes[node]) for node in nodes]
        assert solver._leading._search.loads(cached).tolist() == [list(row) for row in rows]


@pytest.mark.parametrize("seed", range(5))
def test_hull_has_the_points_that_some_price_of_noise_chooses(seed):
    rng = np.random.default_rng(seed)
    psi, size = np.sort(rng.lognormal(0, 2, 20))[::-1], np.cumsum(rng.integers(1, 50, 20))
    best = {int(np.argmin(size + price * psi)) for price in np.geomspace(1e-6, 1e9, 20000)}
    assert best <= set(hull(psi, size).tolist())
    assert hull(psi[:1], size[:1]).tolist() == [0]
    assert {0, 19} <= set(hull(psi, size).tolist())


def test_table_of_one_cut_says_so():
    found = plan(Solver(tiny()), cases.request_at(0.05, up_bits_per_s=1e4), SERVER)
    cut = found.pattern.cut
    one = CutTable.of([found.row()], last_cut=found.last_cut)
    assert one.row(cut) == found.row()
    assert one.last_cut == found.last_cut
    for other in {0, 1, 2} - {cut}:
        with pytest.raises(IndexError, match="explain=True"):
            one.row(other)
    with pytest.raises(IndexError):
        one.row(3)
    decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(one), type=CutTable)
    assert decoded == one
    with pytest.raises(ValueError, match="alone"):
        msgspec.structs.replace(found.table, only=(1, 2))
    with pytest.raises(ValueError, match="alone"):
        msgspec.structs.replace(one, only=(3, 2))
    with pytest.raises(ValueError, match="does not allow"):
        msgspec.structs.replace(found, table=msgspec.structs.replace(one, only=((cut + 1) % 3, 2)))
