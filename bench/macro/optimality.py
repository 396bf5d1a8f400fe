"""Are plans optimal, what do simpler ways lose, and how long does a plan take?

`python -m bench.macro.optimality [NET.qpart ...]`, about five minutes. The exact solver is held against trying
everything (2 to 8 bits, up to seven tensors, with caches and memory limits) and against integer programming (HiGHS, 20
to 60 tensors). Then random requests are planned by it and by others, over random nets and over the calibrated nets that
are named. Planning times are of one process, one request after the other, garbage collection as it is, of a net of 54
layers with weights. Results go to bench/results/optimality.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, geometric_mean, median
from typing import Any, NamedTuple

import msgspec
import numpy as np

from bench import others, record
from bench.macro import _optimality_cases as cases
from qpart import artefact as files
from qpart.baselines import BASELINES, Case, exact
from qpart.errors import Infeasible
from qpart.heuristics import KINDS, make_solver
from qpart.limits import NO_SHRINK, Shrink
from qpart.plan import byte_weights, plan
from qpart.profile import Request, ServerProfile
from qpart.solve import Solver
from qpart.tables import WIDTHS, Tables

COMMAND = "python -m bench.macro.optimality"
GAPS = ("closed_form", "uniform", "floor_repair", "neurosurgeon", "jalad")


class Timed(NamedTuple):
    """Milliseconds of a plan by the clock and of its thread, and whether there was one and no refusal."""

    ms: float
    cpu_ms: float
    served: bool


QUANTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


def brute_force(instances: int) -> dict[str, Any]:
    """How often the exact solver finds what trying everything finds, without and with caches and limited memory."""
    kinds = ("plain", "memory", "cache", "cache and memory")
    counts = {kind: {"checks": 0, "equal": 0, "infeasible": 0, "excess": []} for kind in kinds}
    for seed in range(instances):
        rng = np.random.default_rng(seed)
        sizes_of = rng.integers(3, 30, rng.integers(4, 8)).tolist()
        network = cases.residual(2, 2) if seed % 2 else cases.dense(sizes_of)
        tables = cases.tables_for(network, seed, law=bool(rng.random() < 0.5), tried=True)
        solver = Solver(tables)
        few = [c for c in range(network.num_nodes + 1) if tables.num_weights(c) + len(network.live[c]) <= 7]
        cut = int(rng.choice(few[len(few) // 2 :]))
        cached = frozenset((i, b) for i in network.parametric for b in cases.TRIED if rng.random() < 0.25)
        budget = solver.least_psi(cut) * float(rng.choice([1.0, 1.3, 3.0, 30.0, 1000.0]))
        down, up = rng.lognormal(0, 2, 2).tolist()
        smallest = solver.best(cut, budget, down_weight=1.0, up_weight=0.0)
        assert smallest is not None
        memory = int(smallest.device_bytes * rng.uniform(0.97, 1.4))
        for kind in kinds:
            asked: dict[str, Any] = {"down_weight": down, "up_weight": up}
            asked |= {"cached": cached} if "cache" in kind else {}
            asked |= {"memory_bytes": memory} if "memory" in kind else {}
            _compare(counts[kind], solver, cut, budget, asked)
    for row in counts.values():
        excess = row.pop("excess")
        row["worst_excess"] = max(excess, default=0.0)
    return counts


def _compare(row: dict[str, Any], solver: Solver, cut: int, budget: float, asked: dict[str, Any]) -> None:
    least, found = cases.by_trying(solver.tables, cut, budget, **asked), solver.best(cut, budget, **asked)
    row["checks"] += 1
    if least is None or found is None:
        row["infeasible"] += 1
        row["equal"] += (least is None) == (found is None)
        return
    cost = asked["down_weight"] * found.download_bytes + asked["up_weight"] * found.up_bytes
    row["equal"] += abs(cost - least) <= 1e-12 * least
    row["excess"].append(cost / least - 1)


def integer_programmes(instances: int) -> dict[str, Any]:
    """The exact solver beside HiGHS on 20 to 60 tensors."""
    rows = []
    for seed in range(instances):
        rng = np.random.default_rng(1000 + seed)
        size = int(rng.integers(20, 61))
        network = cases.dense(rng.integers(8, 200, size).tolist())
        tables = cases.tables_for(network, seed, law=bool(seed % 2))
        begun = time.perf_counter()
        solver, cut = Solver(tables), network.num_nodes - 1
        built_s = time.perf_counter() - begun
        budget = solver.least_psi(cut) * float(rng.choice([1.5, 5.0, 50.0]))
        down, up = 1.0, float(rng.lognormal(0, 1))
        begun = time.perf_counter()
        found = solver.best(cut, budget, down_weight=down, up_weight=up)
        took_s = time.perf_counter() - begun
        assert found is not None
        begun = time.perf_counter()
        peer = cases.by_integers(tables, cut, budget, down_weight=down, up_weight=up)
        peer_s = time.perf_counter() - begun
        rows.append(
            {
                "tensors": tables.num_weights(cut) + len(network.live[cut]),
                "cost": down * found.download_bytes + up * found.up_bytes, "budget": budget, "psi": found.psi,
                "ms": 1e3 * took_s, "all_fronts_ms": 1e3 * built_s, "milp": peer,
                "milp_ms": 1e3 * peer_s,
            }
        )  # fmt: skip
        print(f"integer programme {seed + 1} of {instances}", file=sys.stderr, flush=True)
    solved = [row for row in rows if row["milp"]["status"] == 0]
    valid = [row for row in solved if row["milp"]["psi"] <= row["budget"]]
    return {
        "instances": len(rows),
        "solved_by_milp": len(solved),
        "milp_within_budget": len(valid),
        "equal": sum(abs(row["cost"] - row["milp"]["cost"]) <= 1e-6 * row["cost"] for row in solved),
        "exact_dearer": sum(row["cost"] > row["milp"]["cost"] * (1 + 1e-9) for row in valid),
        "median_ms": median(row["ms"] for row in rows),
        "all_fronts_median_ms": median(row["all_fronts_ms"] for row in rows),
        "milp_median_ms": median(row["milp_ms"] for row in rows),
        "rows": rows,
    }


def gaps(tables: Tables, name: str, requests: int, shrink: Shrink = NO_SHRINK, seed: int = 0) -> list[dict[str, Any]]:
    """For random requests: the objective of the exact plan, and that of the others over it."""
    solver, rng, rows = Solver(tables), np.random.default_rng(seed), list[dict[str, Any]]()
    rules = {kind: make_solver(tables, kind) for kind in KINDS[1:]}
    while len(rows) < requests:
        case = Case(solver, cases.random_request(rng), cases.SERVER, shrink)
        best = exact(case)
        if best is None:
            continue
        down, up = byte_weights(case.request)
        row: dict[str, Any] = {"net": name, "cut": best.row.cut, "objective": best.row.objective}
        for name_of, decide in BASELINES.items():
            found = decide(case)
            row[name_of] = None if found is None or not found.holds else found.row.objective / best.row.objective - 1
        for kind, other in rules.items():
            there = other.best(best.row.cut, case.budgets[best.row.cut], down_weight=down, up_weight=up)
            row[f"{kind}_holds"] = there is not None
        rows.append(row)
    return rows


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of every other way: how often it has an answer that keeps the rules, and by how much that is dearer."""
    found = {}
    for name in BASELINES:
        excess = [row[name] for row in rows if row[name] is not None]
        split = [row[name] for row in rows if row[name] is not None and row["cut"]]
        found[name] = {
            "requests": len(rows), "answered": len(excess), "cheaper": sum(x < -1e-9 for x in excess),
            "gap": _ratio(excess), "gap_where_the_device_computes": _ratio(split),
            "median_gap": median(excess) if excess else None, "mean_gap": fmean(excess) if excess else None,
            "p90_gap": float(np.quantile(excess, 0.9)) if excess else None,
        }  # fmt: skip
    for kind in ("closed_form", "uniform", "floor_repair"):
        found[kind]["keeps_the_budget_at_the_best_cut"] = fmean(row[f"{kind}_holds"] for row in rows)
    return found


def _ratio(excess: list[float]) -> float | None:
    """Geometric mean of what is paid over the least, less one: a mean would tell of a few extremes only."""
    return float(geometric_mean([1 + x for x in excess]) - 1) if excess else None


def planning_times(requests: int, with_table: int) -> dict[str, Any]:
    """Milliseconds of a plan, by what the device shows, and of plans with the table of all cuts.

    In a fleet every device has a cache of its own, so the headline is of caches of which none is shown twice: by turns
    what an earlier plan left behind, and pieces scattered over all layers. Rounds in which other processes ran are
    forgotten and repeated, some times as many at most.

    Args:
        requests: plans of each kind.
        with_table: likewise, with the table of all cuts, where that takes new fronts.
    """
    tables = cases.tables_for(cases.fifty_layers(), 0, law=True)
    begun = time.perf_counter()
    solver = Solver(tables)
    built_ms = 1e3 * (time.perf_counter() - begun)
    rng, nodes = np.random.default_rng(7), tables.network.parametric

    def scattered() -> frozenset[tuple[int, int]]:
        return frozenset((i, b) for i in nodes for b in WIDTHS if rng.random() < 0.2)

    def earlier() -> frozenset[tuple[int, int]]:
        return _after_a_plan(solver, rng)

    def fresh(count: int, *makers: Callable[[], frozenset[tuple[int, int]]]) -> Callable[[], list[Request]]:
        return lambda: [cases.random_request(rng, makers[k % len(makers)]()) for k in range(count)]

    known = [_with_memory(cases.random_request(rng, scattered()), 10**9) for _ in range(8)]  # as many are kept
    kinds = {
        "new_cache": Kind(requests // 100, fresh(100, earlier, scattered)),
        "no_cache": Kind(requests // 200, fresh(200, frozenset)),
        "known_cache": Kind(requests // 1000, lambda: known * 25),
        "no_cache_with_table": Kind(requests // 200, fresh(200, frozenset), explain=True),
        "known_cache_with_table": Kind(requests // 1000, lambda: known * 25, explain=True),
        "new_cache_of_an_earlier_plan_with_table": Kind(with_table // 10, fresh(10, earlier), explain=True, tries=4),
        "new_cache_scattered_with_table": Kind(with_table // 10, fresh(10, scattered), explain=True, tries=4),
    }
    found: dict[str, Any] = {
        "nodes": tables.network.num_nodes, "layers_with_weights": len(nodes),
        "points_on_the_fronts": sum(solver.front_sizes()), "solver_built_ms": built_ms,
        "gc_thresholds": gc.get_threshold(),
    }  # fmt: skip
    for name, kind in kinds.items():
        if name.startswith("known"):
            _times(solver, known, kind.explain)
        found[name] = _in_rounds(solver, kind)
    found["first_plan_of_a_server"] = _first_plans(tables, fresh(20, earlier, scattered)())
    found["loop_as_long_as_a_plan"] = _loop_times(found["new_cache"]["median"])
    return found


class Kind(NamedTuple):
    """Plans of one kind: rounds, what is asked in one, whether the table comes along, how many rounds may be spent."""

    rounds: int
    make: Callable[[], list[Request]]
    explain: bool = False
    tries: int = 12


def _first_plans(tables: Tables, asked: list[Request]) -> dict[str, Any]:
    """Each of a solver that has planned nothing before."""
    return _summed([_time(Solver(tables), request) for request in asked])


def _loop_times(as_long_ms: float, times: int = 4000) -> dict[str, float]:
    """A loop that does the same each time: what of a quantile of plans is the machine's."""

    def once(turns: int) -> float:
        begun, total = time.perf_counter(), 0
        for turn in range(turns):
            total += turn
        return 1e3 * (time.perf_counter() - begun)

    turns = max(1, round(10_000 * as_long_ms / median(once(10_000) for _ in range(50))))
    found = [once(turns) for _ in range(times)]
    return {name: float(np.quantile(found, q)) for name, q in QUANTILES.items()}


def _in_rounds(solver: Solver, kind: Kind) -> dict[str, Any]:
    alone, all_of_them, counted, rounds = list[Timed](), list[Timed](), 0, max(1, kind.rounds)
    asked = kind.make()
    for _, counts in others.undisturbed(rounds, tries=kind.tries):
        times = [_time(solver, request, explain=kind.explain) for request in asked]
        all_of_them += times
        if counts():
            alone += times
            counted += 1
        asked = kind.make()  # outside of the time that is watched for others
    used = alone or all_of_them
    return {**_summed(used), "rounds": counted, "rounds_wanted": rounds, "undisturbed": bool(alone)}


def _with_memory(request: Request, memory_bytes: int) -> Request:
    device = msgspec.structs.replace(request.device, memory_bytes=memory_bytes)
    return msgspec.structs.replace(request, device=device, accuracy=0.02)


def _after_a_plan(solver: Solver, rng: np.random.Generator) -> frozenset[tuple[int, int]]:
    """What a device has that was served before, with everything up to a random cut."""
    while True:
        cut = int(rng.integers(10, solver.tables.network.num_nodes + 1))
        pattern = solver.best(cut, float(10 ** rng.uniform(-2, 0.5)))
        if pattern is not None:
            return cases.pieces_of(solver.tables, pattern.weight_bits)


def _times(solver: Solver, requests: list[Request], explain: bool) -> dict[str, Any]:
    return _summed([_time(solver, request, explain=explain) for request in requests])


def _summed(times: list[Timed]) -> dict[str, Any]:
    """Of plans; refusals, which look for what would do instead, stand beside them."""
    planned, refused = [one for one in times if one.served], [one.ms for one in times if not one.served]
    found: dict[str, Any] = {"plans": len(planned)}
    for name, q in QUANTILES.items():
        found[name] = float(np.quantile([one.ms for one in planned], q))
        found[f"cpu_{name}"] = float(np.quantile([one.cpu_ms for one in planned], q))
    return {**found, "refusals": len(refused), "refusal_median": median(refused) if refused else None}


def _time(solver: Solver, request: Request, server: ServerProfile = cases.SERVER, *, explain: bool = False) -> Timed:
    begun, cpu, served = time.perf_counter(), time.thread_time(), True
    try:
        plan(solver, request, server, explain=explain)
    except Infeasible:
        served = False
    return Timed(1e3 * (time.perf_counter() - begun), 1e3 * (time.thread_time() - cpu), served)


def p99(row: dict[str, Any]) -> str:
    """Where nothing ran alone, the clock tells of other processes: the thread's own time is what is left to say."""
    return "p99" if row["undisturbed"] else "cpu_p99"


def clock(row: dict[str, Any]) -> str:
    """What `p99` is measured by."""
    return "ms" if row["undisturbed"] else "ms of processor time (the machine was never idle)"


def figures(result: dict[str, Any], stamped: dict[str, Any]) -> dict[str, record.Figure]:
    """Headline figures."""
    tried, random = result["brute_force"], result["gaps"]["random"]
    plain = [tried[kind] for kind in ("plain", "memory", "cache")]
    checks, equal = sum(row["checks"] for row in plain), sum(row["equal"] for row in plain)
    whole = result["integer_programmes"]
    times = result["planning_ms"]
    new_times, whole_times = times["new_cache"], times["new_cache_of_an_earlier_plan_with_table"]
    made = {
        "qpart.dp_equals_bruteforce": (
            int(checks == equal), f"1 if equal in all of {checks:,} instances, else 0", "trying all patterns"
        ),
        "qpart.dp_equals_milp": (
            round(whole["equal"] / whole["instances"], 4), f"share of {whole['instances']} instances, 20-60 tensors",
            "HiGHS",
        ),
        "qpart.plan_ms_p99": (
            round(new_times[p99(new_times)], 3), f"{clock(new_times)} of one plan for a cache that was never shown, "
            f"{times['layers_with_weights']} layers with weights, {times['nodes']} nodes, "
            f"{new_times['plans']:,} requests", "goal: 1 ms",
        ),
        **{
            f"qpart.plan_{name}_ms_p99": (
                round(times[name][p99(times[name])], 3), f"{clock(times[name])} of one plan", "goal: 1 ms"
            )
            for name in ("no_cache", "known_cache", "no_cache_with_table", "known_cache_with_table")
        },
        "qpart.plan_new_cache_ms_p99": (
            round(whole_times[p99(whole_times)], 2),
            f"{clock(whole_times)} of the first plan with the table of all cuts for a cache not seen before",
            "a plan without the table",
        ),
    }  # fmt: skip
    for name in GAPS:
        row = random[name]
        made[f"qpart.gap.{name}"] = (
            round(row["gap_where_the_device_computes"], 4),
            "excess of the objective, geometric mean, where the device computes; "
            f"{row['answered']} of {row['requests']} requests answered",
            "the exact plan",
        )
    return {key: record.figure(value, unit, peer, COMMAND, stamped) for key, (value, unit, peer) in made.items()}


def main() -> None:
    """Check, compare, time, record."""
    parser = argparse.ArgumentParser(prog=COMMAND)
    parser.add_argument("nets", nargs="*", type=Path, help="calibrated nets, beside the random ones")
    parser.add_argument("--times", action="store_true", help="planning times only; what else is known stays")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything, and nothing is recorded")
    asked = parser.parse_args()
    share = 10 if asked.quick else 1
    stamped = record.stamp()
    timed = {**planning_times(5000 // share, 200 // share), "stamp": stamped}  # first: little else is alive yet
    if asked.times:
        known = json.loads((record.RESULTS / "optimality.json").read_text())
        result = {**known, "planning_ms": timed}
        print(json.dumps(timed, indent=1))
        record.write("optimality", result, figures(result, stamped), result.pop("stamp"))
        return
    random_rows: list[dict[str, Any]] = []
    for seed in range(20):
        network = cases.residual(8, 4) if seed % 2 else cases.dense([784, 512, 256, 128, 64, 32, 10])
        random_rows += gaps(cases.tables_for(network, seed, law=seed % 4 < 2), f"random {seed}", 50 // share, seed=seed)
    by_net = {"random": summary(random_rows)}
    for path in asked.nets:
        loaded = files.load(path)
        by_net[loaded.name] = summary(gaps(loaded.tables, loaded.name, 200 // share, loaded.shrink))
        print(f"{loaded.name}: compared", file=sys.stderr, flush=True)
    result = {
        "gaps": by_net,
        "planning_ms": timed,
        "brute_force": brute_force(500 // share),
        "integer_programmes": integer_programmes(60 // share),
    }
    for key in ("brute_force", "planning_ms", "gaps"):
        print(msgspec.json.format(msgspec.json.encode(result[key])).decode())
    print({k: v for k, v in result["integer_programmes"].items() if k != "rows"})
    if not asked.quick:
        record.write("optimality", result, figures(result, stamped), stamped)


if __name__ == "__main__":
    main()
