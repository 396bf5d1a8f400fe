"""Runs the benchmarks of paged attention and writes their results and figures.

`python -m bench.attention` runs all; `-k EXPRESSION` some of them, whose rows replace those in
bench/results/attention.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from statistics import geometric_mean
from typing import Any

from bench import record
from bench.run import MICRO, run_micro

COMMAND = "python -m bench.attention"
PEERS = {"torch": "torch_contiguous", "torch, gathered": "torch_gathered"}


def ratios(rows: list[dict[str, Any]], peer: str, *, prompt: bool) -> Iterator[float]:
    """A peer's time over ours in each case on one thread: those of a prompt, or those of few tokens."""
    medians: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["num_threads"] == 1 and ("q=512" in row["group"]) == prompt:
            medians.setdefault(row["group"], {})[row["peer"]] = row["median_s"]
    for found in medians.values():
        if peer in found and "edgekernels" in found:
            yield found[peer] / found["edgekernels"]


def figures_of(rows: list[dict[str, Any]], stamped: dict[str, Any]) -> dict[str, record.Figure]:
    """Headline figures: the mean and the worst case beside each peer."""
    figures = {}
    for peer, key in PEERS.items():
        for prompt, name in ((False, "decode"), (True, "prefill")):
            found = list(ratios(rows, peer, prompt=prompt))
            for kind, of in (("mean", geometric_mean), ("min", min)):
                if found:
                    unit = f"time theirs / ours, one thread, {kind} of {len(found)} cases at context 512"
                    entry = record.figure(round(of(found), 2), unit, peer, COMMAND, stamped)
                    figures[f"kernels.attention.{name}_{kind}.x_{key}"] = entry
    return figures


def table(rows: list[dict[str, Any]]) -> str:
    """Each case in a line, as Markdown."""
    cases: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        cases.setdefault(row["group"], {})[row["peer"]] = row
    lines = [
        "| case | us | GB/s of keys and values | Gflop/s | x torch | x torch, gathered |",
        "|---|---|---|---|---|---|",
    ]
    for group, found in cases.items():
        ours = found["edgekernels"]
        seconds = ours["median_s"]
        rates = f"{ours['kv_bytes'] / seconds / 1e9:.1f} | {ours['operations'] / seconds / 1e9:.0f}"
        beside = " | ".join(f"{found[peer]['median_s'] / seconds:.2f}" if peer in found else "-" for peer in PEERS)
        lines.append(f"| {group} | {seconds * 1e6:.0f} | {rates} | {beside} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", default="", help="as for pytest: which benchmarks")
    stamped = record.stamp()
    rows = run_micro(MICRO / "test_attention.py", chosen=parser.parse_args().k)
    path = record.RESULTS / "attention.json"
    known = json.loads(path.read_text())["benchmarks"] if path.is_file() else []
    names = {row["name"] for row in rows}
    merged = [*(row for row in known if row["name"] not in names), *rows]
    record.write("attention", {"benchmarks": merged}, figures_of(merged, stamped), stamped)
    print(table(merged))


if __name__ == "__main__":
    main()
