"""10,000 simulated answers under everything that may go wrong: is each of them the undisturbed one?

`python -m bench.macro.sim_answers`, about three minutes on two cores; writes bench/results/sim_answers.json and the
figures `sled.sim.answers` and `sled.sim.answers_wrong`. Each answer comes from one seed (`bench/macro/_sim_world.py`):
loss, duplication, reordering, partitions, half-open connections, resets, frozen nodes and wrong clocks, deaths of
servers and of the device, takeovers, streams and rounds in turns, drafters from good to junk, stop texts, every policy.
A seed that fails prints itself; `--seed N` runs it alone. Beside it run wrong devices and servers
(`_sim_mutants.py`), each of which must be found out. Nothing here is timed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from bench import record
from bench.macro import _sim_mutants, _sim_world
from bench.macro._sim_plan import plan

COMMAND = "python -m bench.macro.sim_answers"
CHUNK = 50
MUTANT_SEEDS = 400


def some(seeds: range) -> tuple[int, Counter[str], list[dict[str, Any]]]:
    """Run some answers; returns how many, what happened, and what failed."""
    happened, failed = Counter[str](), list[dict[str, Any]]()
    for seed in seeds:
        try:
            happened.update(_sim_world.run(seed))
        except Exception as error:
            failed.append({"seed": seed, "what": f"{type(error).__name__}: {error}"})
    return len(seeds), happened, failed


def main() -> int:
    """Run all of them, record, print what failed; 1 if anything did."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, help="run this one alone, with all it says")
    options = parser.parse_args()
    if options.seed is not None:
        print(plan(options.seed))
        print(_sim_world.run(options.seed))
        return 0
    began, stamped = time.monotonic(), record.stamp()
    happened, failed, answers = Counter[str](), list[dict[str, Any]](), 0
    chunks = [range(start, min(start + CHUNK, options.answers)) for start in range(0, options.answers, CHUNK)]
    with ProcessPoolExecutor(options.workers) as pool:
        mutants = {name: pool.submit(_sim_mutants.found, name, range(MUTANT_SEEDS)) for name in _sim_mutants.MUTANTS}
        for count, what, wrong in pool.map(some, chunks):
            answers += count
            happened.update(what)
            failed += wrong
            for each in wrong:
                print(f"seed {each['seed']}: {each['what']} ({COMMAND} --seed {each['seed']})", flush=True)
        found = {name: future.result() for name, future in mutants.items()}
    publish(answers, happened, failed, found, time.monotonic() - began, stamped)
    return 1 if failed or None in found.values() else 0


def publish(
    answers: int,
    happened: Counter[str],
    failed: list[dict[str, Any]],
    found: dict[str, int | None],
    wall_s: float,
    stamped: dict[str, Any],
) -> None:
    """Write the results and the figures."""
    print(f"{answers} answers, {len(failed)} wrong, {wall_s:.0f} s: {dict(happened)}")
    print(f"mutants found out by seed: {found}")
    missed = [name for name, seed in found.items() if seed is None]
    peer = f"{len(found) - len(missed)} of {len(found)} wrong devices and servers found out, same seeds"
    figures = {
        "sled.sim.answers": record.figure(float(answers), "simulated answers; goal: 10,000", peer, COMMAND, stamped),
        "sled.sim.answers_wrong": record.figure(
            float(len(failed)),
            "of them with a token wrong, lost or repeated, or without an end; goal: 0",
            peer,
            COMMAND,
            stamped,
        ),
    }
    results = {
        "answers": answers,
        "failed": failed,
        "happened": dict(sorted(happened.items())),
        "mutants_found_by_seed": found,
        "wall_s": round(wall_s, 1),
    }
    record.write("sim_answers", results, figures, stamped)


if __name__ == "__main__":
    sys.exit(main())
