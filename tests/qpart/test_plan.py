"""Plans: the right cut by hand and by trying all, hostile numbers, words."""

from __future__ import annotations

import itertools
import math
import time

import msgspec
import pytest

from edgebus.payloads import Payload, decode
from qpart.closed_form import closed_form
from qpart.errors import RequestError
from qpart.explain import parts, reason, table
from qpart.limits import BELOW_ALL
from qpart.patterns import evaluate, uniform
from qpart.plan import MAX_LEVELS, Plan, byte_weights, cost_row, plan
from qpart.profile import DeviceProfile, Request, ServerProfile, Weights
from qpart.rows import CutTable
from qpart.solve import Solver
from qpart.tables import WIDTHS
from tests.qpart.planner_cases import (
    SERVER,
    TINY_SERVER,
    dense,
    every_pattern,
    random_tables,
    request,
    residual,
    tiny,
    tiny_request,
)

NETWORKS = {"dense": dense(6, 5, 4, 3), "residual": residual(2)}


def test_plan_hand_worked():
    """Budget 1 at level 0.02, so 3 bits. Cut 0 sends 20 bytes: 2 s up, 2 s down, 0.5 s round trip, 1 s server.

    Energy 2 * 2 + 1 * 2 = 6 J, price 5, so U = 5.5 + 3 + 0.5 = 9. Cut 1 loads 5 bytes more for 10 inferences: 0.1 s.
    Cut 2 loads 25 bytes: 0.5 s and 0.5 J; 8 MACs: 2 s and 4 J; U = 2.5 + 2.25 = 4.75.
    """
    found = plan(Solver(tiny()), tiny_request(inferences=10), TINY_SERVER)
    server, flat, device = found.rows
    assert (server.up_bytes, server.download_bytes, server.live_bits, server.weight_bits) == (20, 0, (3,), ())
    assert (server.device_time_s, server.channel_time_s, server.server_time_s) == (0.0, 4.5, 1.0)
    assert (server.energy_j, server.price, server.objective) == (6.0, 5.0, 9.0)
    assert (flat.after, flat.channel_time_s) == ("flat", pytest.approx(4.6))
    assert flat.objective == pytest.approx(9.15)
    assert (device.device_time_s, device.channel_time_s, device.server_time_s) == (2.0, 0.5, 0.0)
    assert (device.energy_j, device.price, device.objective) == (4.5, 0.0, 4.75)
    assert (found.pattern.cut, found.pattern.weight_bits, found.pattern.psi) == (2, (3,), 1.0)
    assert (found.accuracy, found.level, found.budget, found.inferences) == (0.02, 0.02, 1.0, 10)
    assert (found.cost.time_s, found.cost.energy_j, found.cost.price, found.cost.objective) == (2.5, 4.5, 0.0, 4.75)


def test_one_inference_does_not_pay_for_the_weights():
    found = plan(Solver(tiny()), tiny_request(), TINY_SERVER)
    assert (found.pattern.cut, found.rows[2].objective) == (0, 4.75 + 0.9 * 7.5)


def test_equal_objectives_are_decided_by_bytes():
    """Only the server's price counts, and a reshape costs it nothing; cut 2 is too noisy."""
    sizes = (10, 15, 20, 25, 30, 35, 40, 80)
    tables = tiny(weight_psi={1: (9.0,) * 8}, live_bytes=({0: tuple(n + 9 for n in sizes)}, {1: sizes}, {}))
    asked = msgspec.structs.replace(tiny_request(), weights=Weights(time=0.0, price=1.0))
    found = plan(Solver(tables), asked, TINY_SERVER)
    assert [row.objective for row in found.rows[:2]] == [5.0, 5.0]
    assert found.pattern.cut == 1


@pytest.mark.parametrize("accuracy", [0.02, 0.049, 0.05, 0.9])
def test_budget_is_that_of_the_level_reached(accuracy):
    found = plan(Solver(tiny()), tiny_request(accuracy), TINY_SERVER)
    assert found.level == (0.02 if accuracy < 0.05 else 0.05)
    assert found.budget == tiny().budget.budget(found.level)


def test_budget_below_all_levels_is_that_of_the_accuracy():
    tables = tiny(weight_psi={1: (0.1,) * 8})
    found = plan(Solver(tables), tiny_request(0.015, inferences=100), TINY_SERVER, shrink={(2, 0): 0.5})
    assert (found.pattern.cut, found.level, found.level_index) == (2, 0.015, BELOW_ALL)
    assert found.budget == tables.budget.budget(0.015) * 0.5


def test_budget_below_all_levels_has_a_shrink_of_its_own():
    """What failed below the first level says nothing about that level."""
    tables = tiny(weight_psi={1: (0.1,) * 8})
    shrink = {(2, 0): 0.5, (2, BELOW_ALL): 0.4}
    below = plan(Solver(tables), tiny_request(0.015, inferences=100), TINY_SERVER, shrink=shrink)
    assert (below.level_index, below.budget) == (BELOW_ALL, tables.budget.budget(0.015) * 0.4)
    at_level = plan(Solver(tables), tiny_request(0.02, inferences=100), TINY_SERVER, shrink=shrink)
    assert (at_level.level_index, at_level.budget) == (0, 0.5)


def test_plan_names_its_level_within_bounds():
    found = plan(Solver(tiny()), tiny_request(0.06), TINY_SERVER)
    assert (found.level, found.level_index) == (0.05, 1)
    values = msgspec.to_builtins(found)
    for index in (BELOW_ALL, MAX_LEVELS - 1):
        assert msgspec.convert(values | {"level_index": index}, Plan).level_index == index
    for index in (BELOW_ALL - 1, MAX_LEVELS, 2**70, 0.5, None):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(values | {"level_index": index}, Plan)


def test_budget_shrinks_at_its_cut_and_level_only():
    solver = Solver(tiny())
    shrunk = plan(solver, tiny_request(), TINY_SERVER, shrink={(2, 0): 0.5, (1, 0): 0.01, (0, 1): 0.01})
    assert [row.allowed for row in shrunk.rows] == [True, False, True]
    assert (shrunk.rows[2].weight_bits, shrunk.rows[0].live_bits) == ((4,), (3,))


def test_budget_of_a_tighter_level_serves_where_the_looser_shrank_more():
    found = plan(Solver(tiny()), tiny_request(0.05, inferences=10), TINY_SERVER, shrink={(2, 1): 0.1})
    assert (found.pattern.cut, found.level, found.budget) == (2, 0.02, 1.0)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", range(6))
def test_plan_is_the_best_of_all_cuts_and_patterns(seed, name):
    network = NETWORKS[name]
    tables = random_tables(network, seed, widths=4)
    cached = frozenset({(network.parametric[0], 3), (network.parametric[1], 2)}) if seed % 2 else frozenset()
    asked = request(0.02, up=10.0 ** (4 + seed % 3), inferences=1 + 40 * (seed % 3), cached=cached)
    found = plan(Solver(tables), asked, SERVER)
    budget = tables.budget.budget(0.02)
    objectives = [
        cost_row(tables, p, asked, SERVER).objective
        for cut in range(network.num_nodes + 1)
        for p in every_pattern(tables, cut, widths=4, cached=cached)
        if p.psi <= budget
    ]
    assert found.cost.objective == pytest.approx(min(objectives), rel=1e-12)
    assert found.pattern == evaluate(
        tables, found.pattern.cut, found.pattern.weight_bits, found.pattern.live_bits, cached=cached
    )


def test_objective_is_linear_in_bytes():
    tables, asked = random_tables(NETWORKS["residual"], 3), request(inferences=7)
    down, up = byte_weights(asked)
    one, other = (uniform(tables, 4, bits) for bits in (3, 8))
    gain = cost_row(tables, other, asked, SERVER).objective - cost_row(tables, one, asked, SERVER).objective
    expected = down * (other.download_bytes - one.download_bytes) + up * (other.up_bytes - one.up_bytes)
    assert gain == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_objective_falls_as_rates_accuracy_and_inferences_rise(seed):
    solver = Solver(random_tables(residual(3, blocks=2), seed))
    for ask in (
        lambda x: request(0.03, up=1e3 * 2**x),
        lambda x: request(0.03, down=1e3 * 2**x),
        lambda x: request(0.03, up=1e5, down=1e4, inferences=2**x),
        lambda x: request(min(0.02 * 1.2**x, 0.9), up=1e4, down=1e4),
        lambda x: request(0.03, up=1e4, down=1e4, memory_bytes=2000 + 200 * x),
    ):
        values = [plan(solver, ask(x), SERVER).cost.objective for x in range(20)]
        assert all(after <= before * (1 + 1e-12) for before, after in itertools.pairwise(values))


@pytest.mark.parametrize("seed", range(8))
def test_plan_is_never_worse_than_uniform_or_closed_form(seed):
    tables = random_tables(residual(3), seed, law=seed % 2 == 0)
    solver, asked = Solver(tables), request(0.05, up=2e4, inferences=20)
    found = plan(solver, asked, SERVER)
    down, up = byte_weights(asked)
    peers = [uniform(tables, cut, bits) for cut in range(tables.network.num_nodes + 1) for bits in WIDTHS]
    for cut in range(tables.network.num_nodes + 1):
        peers.append(closed_form(tables, cut, found.budget, down_weight=down, up_weight=up).pattern)
    met = [p for p in peers if p.psi <= found.budget]
    assert met
    for p in met:
        assert found.cost.objective <= cost_row(tables, p, asked, SERVER).objective * (1 + 1e-12)


# Numbers from outside


@pytest.mark.parametrize(
    ("where", "field", "value"),
    [
        ("", "accuracy", 0.0),
        ("", "accuracy", 1.0),
        ("", "accuracy", math.nan),
        ("", "inferences", 0),
        ("", "inferences", 10**13),
        ("", "cached", [[0, 9]]),
        ("", "cached", [[-1, 4]]),
        ("", "cached", [[4096, 4]]),
        ("", "cached", [[n, 4] for n in range(32769)]),
        ("device", "macs_per_s", 0.0),
        ("device", "macs_per_s", math.inf),
        ("device", "joules_per_mac", -1.0),
        ("device", "memory_bytes", 0),
        ("channel", "up_bits_per_s", 1e-300),
        ("channel", "down_bits_per_s", math.nan),
        ("channel", "round_trip_s", -0.1),
        ("channel", "tx_watts", math.inf),
        ("channel", "rx_watts", math.nan),
        ("weights", "time", -1.0),
        ("weights", "energy", math.nan),
        ("weights", "price", 1e10),
    ],
)
def test_number_out_of_range_is_refused_made_and_decoded(where, field, value):
    good = msgspec.msgpack.decode(msgspec.msgpack.encode(request()))
    bad = good | {field: value} if not where else good | {where: good[where] | {field: value}}
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(bad), type=Request)
    with pytest.raises(ValueError, match="not a valid Asked"):
        decode(Asked, msgspec.msgpack.encode([bad]))
    part = getattr(request(), where) if where else request()
    with pytest.raises(RequestError, match=r"give|at most"):
        msgspec.structs.replace(part, **{field: frozenset(map(tuple, value)) if field == "cached" else value})


class Asked(Payload, frozen=True, array_like=True):
    """As the bus carries a request."""

    request: Request


def test_other_numbers_out_of_range_are_refused():
    with pytest.raises(RequestError, match="all weights are 0"):
        Weights(time=0.0)
    with pytest.raises(RequestError, match="macs_per_s is 0"):
        ServerProfile(macs_per_s=0)
    with pytest.raises(RequestError, match="price_per_s is nan"):
        ServerProfile(macs_per_s=1e9, price_per_s=math.nan)
    with pytest.raises(RequestError, match="clock_hz is 0"):
        DeviceProfile.from_clock(clock_hz=0, cycles_per_mac=2, kappa=1e-28, memory_bytes=1)


def test_profile_from_clock_is_the_analytic_model():
    device = DeviceProfile.from_clock(clock_hz=2e9, cycles_per_mac=4.0, kappa=1e-28, memory_bytes=5)
    assert (device.macs_per_s, device.joules_per_mac) == (5e8, pytest.approx(1e-28 * 4e18 * 4))


def test_request_and_plan_survive_json_and_msgpack():
    asked = request(cached=frozenset({(0, 3), (2, 8)}), raw_input_stays=True)
    found = plan(Solver(random_tables(NETWORKS["residual"], 1)), request(0.05, raw_input_stays=True), SERVER)
    for value, kind in ((asked, Request), (found, Plan)):
        assert msgspec.json.decode(msgspec.json.encode(value), type=kind) == value
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=kind) == value


def test_plan_for_a_cut_that_it_lacks_is_refused():
    found = msgspec.to_builtins(plan(Solver(tiny()), tiny_request(), TINY_SERVER))
    with pytest.raises(msgspec.ValidationError, match="cut 3, which its table does not allow"):
        msgspec.convert(found | {"pattern": found["pattern"] | {"cut": 3}}, Plan)


@pytest.mark.parametrize("name", CutTable.__struct_fields__[:-1])  # all but what says of which cut they are
def test_table_with_a_column_that_is_too_short_is_refused(name):
    found = plan(Solver(tiny()), tiny_request(), TINY_SERVER).table
    with pytest.raises(ValueError, match=r"as long as there are cuts, got \[2, 3\]"):
        msgspec.structs.replace(found, **{name: getattr(found, name)[1:]})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"why": b"\0\0\4"}, "by its position from 1; got 4"),
        ({"weight_bits": (b"", b"", b"\1")}, "a width in a plan's table is none of"),
        ({"live_bits": (b"\x09", b"", b"")}, "a width in a plan's table is none of"),
    ],
)
def test_table_with_numbers_that_mean_nothing_is_refused(change, said):
    found = plan(Solver(tiny()), tiny_request(), TINY_SERVER).table
    hostile = msgspec.to_builtins(found, builtin_types=(bytes,))
    for name, value in change.items():
        hostile[CutTable.__struct_fields__.index(name)] = value
    with pytest.raises(msgspec.ValidationError, match=said):
        msgspec.convert(hostile, CutTable)


def test_table_of_the_rows_of_a_table_is_that_table():
    table = plan(Solver(tiny()), tiny_request(raw_input_stays=True), TINY_SERVER).table
    assert [row.why for row in table.rows()] == ["raw_input_stays", "raw_input_stays", ""]
    assert CutTable.of(table.rows()) == table


def test_cuts_from_the_end_are_those_cuts():
    found = plan(Solver(tiny()), tiny_request(), TINY_SERVER)
    assert found.row(-1) == found.rows[-1] == found.row(found.last_cut)
    with pytest.raises(IndexError):
        found.row(3)


# Words


def test_table_has_a_row_per_cut_and_marks_the_choice():
    tables = tiny()
    header, rows = table(plan(Solver(tables), tiny_request(raw_input_stays=True), TINY_SERVER))
    assert [len(row) for row in rows] == [len(header)] * 3
    assert [row[-1] for row in rows] == ["shows the input", "shows the input", "chosen"]
    assert rows[2][:6] == ["2", "fc", "3", "-", "25 B", "0 B"]


def test_reason_names_winner_margins_and_what_decides():
    solver = Solver(tiny())
    found = plan(solver, tiny_request(inferences=10), TINY_SERVER)
    assert reason(found) == (
        "all-device wins with U = 4.75: 47.2% less than the runner-up, all-server. "
        "What decides against the runner-up is channel time: 4 of U."
    )
    only = reason(plan(solver, tiny_request(raw_input_stays=True), TINY_SERVER))
    assert "no other cut is allowed" in only
    for row in found.rows:
        assert sum(parts(found, row).values()) == pytest.approx(row.objective)


@pytest.mark.parametrize("seed", range(10))
def test_reason_is_short_whatever_wins(seed):
    solver = Solver(random_tables(residual(3, blocks=2), seed))
    for up in (1e3, 1e5, 1e7):
        for stays in (False, True):
            text = reason(plan(solver, request(0.05, up=up, inferences=100, raw_input_stays=stays), SERVER))
            assert "wins with U" in text
            assert len(text) < 400


@pytest.mark.parametrize("network", [dense(784, 512, 256, 128, 64, 32, 10), residual(16, blocks=4)], ids=["fc", "res"])
def test_planning_takes_milliseconds_at_most(network):
    solver = Solver(random_tables(network, 0))
    asked = request(0.05, inferences=100)
    took = []
    for _ in range(5):
        begun = time.process_time()
        plan(solver, asked, SERVER)
        took.append(time.process_time() - begun)
    assert network.num_nodes in (12, 24)
    assert min(took) < 0.05  # ten times what is usual on a slow machine
