"""Products of packed weights beside their peers: `python -m bench.micro.gemm [--bits N] [--place NAME] [--quick]`.

4096 x 4096, groups of 64, 1 and 8 rows of activations, 1 and 2 threads; the weights stay in L3, or are so many copies
that they come from DRAM. Contenders take turns, so that noise meets all alike; every answer is checked before it is
timed; what reading the same bytes takes at best is measured as one of them. Writes bench/results/gemm.json and the
headline figures; widths and places that were not asked for keep what they had. --quick shows that it works and
records nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from bench import limits, record
from bench.micro import _gemm_peers as peers
from bench.others import undisturbed
from bench.peers.stats import ratio

COMMAND = "python -m bench.micro.gemm"
THREADS = (1, 2)
ROWS_OF_X = (1, 8)
PLACES = ("L3", "DRAM")
ROUNDS = {"L3": 15, "DRAM": 9}
QUICK_ROUNDS = 3
LIMIT = "limit"
_PAUSE_S = 0.004  # threads of another library's pool go on spinning for a while
_SLOW_S = 0.03  # a turn that takes longer is repeated less


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _stamp() -> dict[str, Any]:
    from edgekernels import _gemm

    packages = ("torch", "torchao", "bitsandbytes", "llama-cpp-python", "gguf")
    return {**record.stamp(), "level": _gemm.level(), "peer_versions": {name: _version(name) for name in packages}}


def _built(case: peers.Case) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Contenders that answer rightly with any number of threads, and what is known of each; the limit besides."""
    found: dict[str, Any] = {}
    known: dict[str, dict[str, Any]] = {}
    for name, make in peers.contenders(case.bits).items():
        try:
            contender = make(case)
            for count in THREADS:
                contender.prepare(count)
                contender.turn()
                known[name] = {"bits_per_weight": round(contender.bits_per_weight, 4), **peers.check(contender, case)}
        except (AssertionError, ImportError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            known[name] = {"absent": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
            continue
        found[name] = contender
    return {**found, LIMIT: peers.Limit(case)}, known


def _timed(contenders: dict[str, Any], num_threads: int, rounds: int) -> tuple[dict[str, dict[int, float]], bool]:
    """Seconds of one product by round; a slow contender rests in two rounds of three.

    A round in which other processes ran is forgotten, unless ours has no others in the end.

    Returns:
        The times, and whether they are of disturbed rounds.
    """
    times: dict[str, dict[int, float]] = {name: {} for name in contenders}
    disturbed: dict[str, dict[int, float]] = {name: {} for name in contenders}
    order = list(contenders)
    for number, counts in undisturbed(rounds):
        order.reverse()
        found = {}
        for name in order:
            before = {**times[name], **disturbed[name]}
            if before and min(before.values()) * contenders[name].products > _SLOW_S and number % 3:
                continue
            found[name] = _turn(contenders[name], num_threads)
        kept = times if counts() else disturbed
        for name, seconds in found.items():
            kept[name][number] = seconds
    if times["edgekernels"]:
        return {name: times[name] or disturbed[name] for name in contenders}, False
    return disturbed, True


def _turn(contender: Any, num_threads: int) -> float:
    """Seconds of one product, of a turn after one that is not timed."""
    time.sleep(_PAUSE_S)
    contender.prepare(num_threads)
    contender.turn()
    started = time.perf_counter()
    contender.turn()
    return (time.perf_counter() - started) / contender.products


def measure(bits: int, place: str, rounds: int) -> dict[str, Any]:
    """All cases of one width with the weights in one place.

    Returns:
        `cases`, a row for each contender in each; `ratio_ggml`, the fastest ggml's time over ours, round by round.
    """
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    for m in ROWS_OF_X:
        case = peers.case_of(bits, m, place)
        contenders, known = _built(case)
        for num_threads in THREADS:
            times, disturbed = _timed(contenders, num_threads, rounds)
            medians = {name: statistics.median(values.values()) for name, values in times.items()}
            for name in (*known, LIMIT):
                row = _row(name, known.get(name, {}), times.get(name, {}), medians)
                rows.append({"m": m, "threads": num_threads, **row, **({"disturbed": True} if disturbed else {})})
            if disturbed:
                print(f"  {bits} bits {place} m={m} threads={num_threads}: other processes never rested", flush=True)
            elif theirs := [name for name in medians if name.startswith("ggml")]:
                best, key = min(theirs, key=medians.__getitem__), f"m={m} threads={num_threads}"
                both = sorted(times[best].keys() & times["edgekernels"].keys())
                ratios[key] = ratio(*([times[name][turn] for turn in both] for name in (best, "edgekernels")))
                ours_us = 1e6 * medians["edgekernels"]
                print(f"  {bits} bits {place} {key}: {ours_us:.0f} us, x{ratios[key]} {best}", flush=True)
    return {"cases": rows, "ratio_ggml": ratios}


def _row(name: str, known: dict[str, Any], times: dict[int, float], medians: dict[str, float]) -> dict[str, Any]:
    """One contender in one case; its share is what the limit takes for our bytes over what it takes itself."""
    if not times:
        return {"contender": name, **known}
    return {
        "contender": name,
        "median_us": round(1e6 * medians[name], 1),
        "min_us": round(1e6 * min(times.values()), 1),
        "rounds": len(times),
        "share_of_limit": round(medians[LIMIT] / medians[name], 3),
        **{key: round(value, 5) for key, value in known.items()},
    }


def figures(bits: int, place: str, result: dict[str, Any], stamped: dict[str, Any]) -> dict[str, record.Figure]:
    """The headline figures of one width and place: one row of activations, two threads; none of disturbed rounds."""
    command = f"{COMMAND} --bits {bits} --place {place}"
    found = {}
    if place == "L3" and (key := "m=1 threads=2") in result["ratio_ggml"]:
        unit = "ggml's fastest time over ours, 4096 x 4096, 1 row of activations, 2 threads, weights in L3"
        found[f"kernels.gemv{bits}_ratio_ggml"] = record.figure(
            result["ratio_ggml"][key], unit, "ggml in llama-cpp-python", command, stamped
        )
    for row in result["cases"]:
        if (row["contender"], row["m"], row["threads"]) == ("edgekernels", 1, 2) and not row.get("disturbed"):
            unit = f"time to read our bytes from {place} over our time, 4096 x 4096, 1 row of activations, 2 threads"
            found[f"kernels.gemv{bits}_share_{place.lower()}"] = record.figure(
                row["share_of_limit"], unit, f"reading from {place}", command, stamped
            )
    return found


def main() -> None:
    """Measure, show, record."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--bits", action="append", type=int, choices=peers.WIDTHS, help="default: all")
    parser.add_argument("--place", action="append", choices=PLACES, help="default: all")
    parser.add_argument("--quick", action="store_true", help="a short try; records nothing")
    arguments = parser.parse_args()
    stamped = _stamp()
    reading = limits.table(THREADS)
    path = record.RESULTS / "gemm.json"
    results = json.loads(path.read_text())["widths"] if path.is_file() and not arguments.quick else {}
    found = {}
    for bits in arguments.bits or peers.WIDTHS:
        for place in arguments.place or PLACES:
            result = measure(bits, place, QUICK_ROUNDS if arguments.quick else ROUNDS[place])
            result = {"stamp": stamped, "read_gb_per_s": reading, **result}
            results.setdefault(str(bits), {})[place] = result
            found |= figures(bits, place, result, stamped)
    if arguments.quick:
        print(json.dumps(results, indent=1))
        return
    record.write("gemm", {"widths": dict(sorted(results.items()))}, found, stamped)


if __name__ == "__main__":
    main()
