"""Window limits under every load: what they commit beside window 0 and every fixed window, on a virtual clock.

`python -m bench.macro.goodput`, some forty minutes on two cores; writes bench/results/goodput.json and the figure
`sled.server.goodput_ratio_min`. Every policy runs in the same simulation (`bench/macro/_goodput_world.py`); ours learns
all it knows while it runs. Nothing here is timed, so other work on the machine changes no number.

Each cell, and each phase of a load that changes, is the mean of twelve runs, a seed each: single runs deviate
(`single_run_deviation_max`), so the worst of 216 means of three runs tells more of chance than of the policy. What the
first three runs (of changing loads the first) alone come to is recorded, too. The best fixed window is that of the same
run; how much better that is than the one that is best in all other runs is recorded (`best_of_same_run_gains_mean`).
"""

from __future__ import annotations

import argparse
import statistics
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from bench import record
from bench.macro._goodput_world import STEP_TIMES, Drafter, Fixed, Fleet, Phase, World
from sled.goodput import GoodputPolicy

COMMAND = "python -m bench.macro.goodput"
PEER = "the better of window 0 and the best fixed window, same simulation"
FIXED = (0, 1, 2, 3, 4, 6, 8)
MAX_WINDOW = 8
LOADS = (1, 4, 16, 64, 128, 512)
LINKS_S = (0.001, 0.005, 0.04, 0.15)
TABLES = ("h100", "cpu_bf16", "cpu_fp32")
MIXED_LOADS = (4, 64, 16, 128, 2, 32)

# Acceptance by position as measured with SmolLM2-135M (sled.md, 7); later positions survive a little better.
DISTILLED = Drafter((0.724, 0.73, 0.74, 0.75, 0.76, 0.77), 0.003)
LAYERS = Drafter((0.784, 0.79, 0.8, 0.8), 0.02)
NGRAM = Drafter((0.16, 0.45, 0.6, 0.65, 0.7), 0.0002)
JUNK = Drafter((0.05,), 0.003)
REPLAYED = Drafter((0.724,), 0.0, 4)
SERVED_LOADS, SERVED_LINK_S, SERVED_ANSWER, SERVED_PROMPT = (1, 4, 16, 64), 0.002, 64, 30
SERVED_SETTLE_S, SERVED_S = 4.0, 8.0
BOARD = Drafter((0.724,), 1.0 / 55.0, 4, ahead=True)  # rpi5 of `sled swarm`, window 4
SWARM_LOADS, SWARM_LINK_S, SWARM_MAX_WINDOW = (2, 4, 8, 16, 32), 0.005, 16
SWARM_SETTLE_S, SWARM_S = 4.0, 12.0
GOOD, POOR = Drafter((0.9,), 0.003), Drafter((0.03,), 0.003)
ENDING_TABLES, ENDING_LOADS, ENDING_ANSWERS, ENDING_LINK_S = ("h100", "cpu_bf16"), (32, 128), (64, 200), 0.005
FIRST_RUNS = 3  # of each cell, whose mean is recorded beside that of all
MIXTURES = {
    "distilled": ((DISTILLED, 1.0),),
    "ngram": ((NGRAM, 1.0),),
    "mixed": ((DISTILLED, 2.0), (NGRAM, 1.0), (LAYERS, 1.0), (JUNK, 1.0)),
}
ENDING = {"halves": ((GOOD, 1.0), (POOR, 1.0)), "mixed": MIXTURES["mixed"]}


def phase_for(table: str, sessions: int, scale: float) -> Phase:
    """Long enough for some hundred steps before counting and as many after."""
    step_s = STEP_TIMES[table](float(sessions), float(sessions))
    settle_s = max(4.0, 250.0 * step_s) * scale
    return Phase(sessions, settle_s + max(4.0, 200.0 * step_s) * scale, settle_s)


def cell(table: str, mixture: str, link_s: float, sessions: int, scale: float = 1.0, seed: int = 0) -> dict[str, Any]:
    """One cell of the grid: goodput, tokens/s, of every policy."""
    world = World(STEP_TIMES[table], Fleet(MIXTURES[mixture], link_s), MAX_WINDOW, seed=seed)
    phases = [phase_for(table, sessions, scale)]
    fixed = {window: world.run(Fixed(window), phases).goodput[0] for window in FIXED}
    policy = GoodputPolicy(MAX_WINDOW)
    ours = world.run(policy, phases)
    best = max(fixed, key=fixed.__getitem__)
    return {
        "table": table,
        "mixture": mixture,
        "link_s": link_s,
        "sessions": sessions,
        "ours": round(ours.goodput[0], 2),
        "window_0": round(fixed[0], 2),
        "best_fixed": best,
        "best_fixed_goodput": round(fixed[best], 2),
        "fixed": fixed,
        "ratio": round(ours.goodput[0] / fixed[best], 4),
        "gain_over_window_0": round(ours.goodput[0] / fixed[0], 4),
        "mean_limit": round(ours.mean_limit[0], 3),
        "plans": policy.plans,
    }


def rising_and_falling(table: str, mixture: str, link_s: float, scale: float = 1.0, seed: int = 0) -> dict[str, Any]:
    """A load that rises and falls; the policy goes through all of it, each phase held against its own best window."""
    world = World(STEP_TIMES[table], Fleet(MIXTURES[mixture], link_s), MAX_WINDOW, seed=seed)
    phases = [phase_for(table, sessions, scale) for sessions in MIXED_LOADS]
    fixed = {window: world.run(Fixed(window), phases).goodput for window in FIXED}
    ours = world.run(GoodputPolicy(MAX_WINDOW), phases)
    best = [max(values) for values in zip(*fixed.values(), strict=True)]
    return {
        "table": table,
        "mixture": mixture,
        "link_s": link_s,
        "loads": MIXED_LOADS,
        "ratios": [round(a / b, 4) for a, b in zip(ours.goodput, best, strict=True)],
        "best_single_window": round(
            sum(a.seconds * g for a, g in zip(phases, ours.goodput, strict=True))
            / max(sum(a.seconds * g for a, g in zip(phases, values, strict=True)) for values in fixed.values()),
            4,
        ),
    }


def served(sessions: int, seed: int = 0) -> dict[str, Any]:
    """The load of the serving benchmark: slow steps, short answers that end and begin, and few steps to learn from."""
    fleet = Fleet(((REPLAYED, 1.0),), SERVED_LINK_S)
    phase = Phase(sessions, SERVED_SETTLE_S + SERVED_S, SERVED_SETTLE_S)
    return _short_answers("serving", fleet, phase, MAX_WINDOW, SERVED_ANSWER, seed)


def swarmed(sessions: int, seed: int = 0) -> dict[str, Any]:
    """Boards as `sled swarm` plays them: they draft while a round is away, four at most, whatever they are allowed."""
    fleet = Fleet(((BOARD, 1.0),), SWARM_LINK_S)
    phase = Phase(sessions, SWARM_SETTLE_S + SWARM_S, SWARM_SETTLE_S)
    return _short_answers("serving", fleet, phase, SWARM_MAX_WINDOW, SERVED_ANSWER, seed)


def ending(table: str, mixture: str, answer: int, sessions: int, seed: int = 0) -> dict[str, Any]:
    """Good and poor devices whose answers are short: each ends one and begins the next, over and over."""
    fleet = Fleet(ENDING[mixture], ENDING_LINK_S)
    of = {"table": table, "mixture": mixture, "answer": answer}
    return of | _short_answers(table, fleet, phase_for(table, sessions, 1.0), MAX_WINDOW, answer, seed)


def _short_answers(table: str, fleet: Fleet, phase: Phase, max_window: int, answer: int, seed: int) -> dict[str, Any]:
    world = World(STEP_TIMES[table], fleet, max_window, seed=seed, answer=answer, prompt=SERVED_PROMPT)
    phases = [phase]
    fixed = {window: world.run(Fixed(window), phases).goodput[0] for window in FIXED}
    ours = world.run(GoodputPolicy(max_window), phases)
    best = max(fixed, key=fixed.__getitem__)
    return {
        "sessions": phase.sessions,
        "seed": seed,
        "ours": round(ours.goodput[0], 2),
        "window_0": round(fixed[0], 2),
        "best_fixed": best,
        "best_fixed_goodput": round(fixed[best], 2),
        "ratio": round(ours.goodput[0] / fixed[best], 4),
        "mean_limit": round(ours.mean_limit[0], 3),
    }


def _cell(arguments: tuple[str, str, float, int, tuple[int, ...]]) -> dict[str, Any]:
    """One cell, mean over the seeds: in a single run chance moves a ratio by some hundredths, either way."""
    *of, seeds = arguments
    runs = [cell(*of, seed=seed) for seed in seeds]
    ratios = [run["ratio"] for run in runs]
    first = round(statistics.mean(ratios[:FIRST_RUNS]), 4)
    gain = round(statistics.mean(run["gain_over_window_0"] for run in runs), 4)
    ratio = round(statistics.mean(ratios), 4)
    gained = _gained([run.pop("fixed") for run in runs])
    return runs[0] | {
        "ratio": ratio,
        "ratio_of_first_runs": first,
        "ratios": ratios,
        "gain_over_window_0": gain,
        "best_of_same_run_gains": gained,
    }


def _gained(runs: list[dict[int, float]]) -> float:
    """What the best fixed window of each run commits more there than the one that is best in all others, in parts."""
    gains = []
    for i, own in enumerate(runs if len(runs) > 1 else ()):
        rest = runs[:i] + runs[i + 1 :]
        others = {window: sum(run[window] for run in rest) for window in own}
        gains.append(max(own.values()) / own[max(others, key=others.__getitem__)] - 1.0)
    return round(statistics.mean(gains or [0.0]), 6)


def _rising(arguments: tuple[str, str, float, tuple[int, ...]]) -> dict[str, Any]:
    """A load that rises and falls, each phase the mean over the seeds."""
    *of, seeds = arguments
    runs = [rising_and_falling(*of, seed=seed) for seed in seeds]
    return runs[0] | {
        "ratios": [round(statistics.mean(phase), 4) for phase in zip(*(run["ratios"] for run in runs), strict=True)],
        "best_single_window": round(statistics.mean(run["best_single_window"] for run in runs), 4),
        "ratios_of_first_run": runs[0]["ratios"],
    }


def _ending(arguments: tuple[str, str, int, int, tuple[int, ...]]) -> dict[str, Any]:
    """One cell of answers that end, mean over the seeds."""
    *of, seeds = arguments
    runs = [ending(*of, seed=seed) for seed in seeds]
    ratios = [run["ratio"] for run in runs]
    return runs[0] | {"ratio": round(statistics.mean(ratios), 4), "ratios": ratios}


def _mean_ratio(rows: list[dict[str, Any]], sessions: int) -> float:
    return round(statistics.mean(row["ratio"] for row in rows if row["sessions"] == sessions), 4)


def gains(cells: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """Tokens/s of ours over window 0, by table and load, distilled drafters on the shortest link."""
    out: dict[str, dict[int, float]] = {}
    for row in cells:
        if row["mixture"] == "distilled" and row["link_s"] == LINKS_S[0]:
            out.setdefault(row["table"], {})[row["sessions"]] = row["gain_over_window_0"]
    return out


def main() -> None:
    """Run the grid, record, print the worst cells."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1, help="of the first run; constants were chosen with 0")
    parser.add_argument("--runs", type=int, default=12, help="of each cell, a seed each")
    arguments = parser.parse_args()
    seed = arguments.seed
    seeds = tuple(range(seed, seed + arguments.runs))
    grid = [(t, m, link, n, seeds) for n in reversed(LOADS) for t in TABLES for m in MIXTURES for link in LINKS_S]
    waves = [(t, m, 0.005, seeds) for t in TABLES for m in ("distilled", "mixed")]
    ends = [
        (t, m, answer, n, seeds)
        for t in ENDING_TABLES
        for m in ENDING
        for answer in ENDING_ANSWERS
        for n in ENDING_LOADS
    ]
    with ProcessPoolExecutor(arguments.workers) as pool:
        cells = list(pool.map(_cell, grid))
        rising = list(pool.map(_rising, waves))
        ended = sorted(pool.map(_ending, ends), key=lambda row: float(row["ratio"]))
    serving = [served(sessions, seed + more) for sessions in SERVED_LOADS for more in range(4)]
    swarm = [swarmed(sessions, seed + more) for sessions in SWARM_LOADS for more in range(4)]
    cells.sort(key=lambda row: row["ratio"])
    worst = cells[0]["ratio"]
    for row in cells[:20]:
        keys = ("table", "mixture", "link_s", "sessions", "ratio", "ratios", "best_fixed", "mean_limit")
        print({key: row[key] for key in keys})
    by_load = {n: min(row["ratio"] for row in cells if row["sessions"] == n) for n in LOADS}
    summary = {
        "ratio_min": worst,
        "ratio_median": statistics.median(row["ratio"] for row in cells),
        "ratio_max": cells[-1]["ratio"],
        "ratio_min_single_run": min(min(row["ratios"]) for row in cells),
        "single_run_deviation_max": round(max(abs(r - row["ratio"]) for row in cells for r in row["ratios"]), 4),
        "best_of_same_run_gains_mean": round(statistics.mean(row["best_of_same_run_gains"] for row in cells), 6),
        "seeds": seeds,
        "cells": len(cells),
        "cells_below_0.98": sum(row["ratio"] < 0.98 for row in cells),
        f"ratio_min_of_first_{FIRST_RUNS}_runs": min(row["ratio_of_first_runs"] for row in cells),
        f"cells_below_0.98_of_first_{FIRST_RUNS}_runs": sum(row["ratio_of_first_runs"] < 0.98 for row in cells),
        "ratio_min_by_load": by_load,
        "gain_over_window_0": gains(cells),
        "serving_ratio_mean": {n: _mean_ratio(serving, n) for n in SERVED_LOADS},
        "swarm_ratio_mean": {n: _mean_ratio(swarm, n) for n in SWARM_LOADS},
        "ending_min": ended[0]["ratio"],
        "ending_median": statistics.median(row["ratio"] for row in ended),
        "rising_and_falling_min": min(min(row["ratios"]) for row in rising),
        "rising_and_falling_min_of_first_run": min(min(row["ratios_of_first_run"]) for row in rising),
    }
    print(summary)
    for row in [*rising, *ended]:
        print(row)
    unit = (
        f"tokens/s ours / peer, worst of {len(cells)} simulated cells (tables x mixtures x links x loads 1..512), "
        f"mean of {len(seeds)} runs of each; worst single run {summary['ratio_min_single_run']}"
    )
    figures = {"sled.server.goodput_ratio_min": record.figure(worst, unit, PEER, COMMAND)}
    found = {"summary": summary, "cells": cells, "rising_and_falling": rising, "ending": ended}
    found |= {"serving": serving, "swarm": swarm}
    record.write("goodput", found, figures)


if __name__ == "__main__":
    main()
