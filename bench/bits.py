"""Runs the benchmarks of low-bit codes and writes their results and figures.

`python -m bench.bits` runs all; `-k EXPRESSION` some of them, whose rows replace those in bench/results/bits.json.
What is held against a limit is held against that of the same run.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from bench import record
from bench.run import MICRO, run_micro

COMMAND = "python -m bench.bits"


def figures_of(rows: list[dict[str, Any]], stamped: dict[str, Any]) -> dict[str, record.Figure]:
    """Headline figures of what this run has measured."""

    def figure(value: float, unit: str, peer: str) -> record.Figure:
        return record.figure(round(value, 3), unit, peer, COMMAND, stamped)

    figures = {}
    for place, key in (("memory", "kernels.dequant_share_write_limit_min"), ("caches", "kernels.dequant_share_l3_min")):
        shares = [row["share"] for row in rows if row.get("share_of") == place]
        if len(shares) == 8:
            size = "128 MiB, beyond the caches" if place == "memory" else "16 MiB, within L3"
            unit = f"bytes/s over the faster way of writing, float32 out, group 64, {size}, worst of 1 .. 8 bits"
            figures[key] = figure(min(shares), unit, "stores alone, measured in turn")
    for way in ("pack", "unpack", "split", "merge"):
        rates = [row["codes"] / row["median_s"] / 1e9 for row in rows if row.get("rate_of") == way]
        if len(rates) == 8:
            figures[f"kernels.bits.{way}_gcodes_min"] = figure(min(rates), "10^9 codes/s, worst of 1 .. 8 bits", "")
    both = {row["threads"]: row["median_s"] for row in rows if "threads" in row}
    if len(both) == 2:
        figures["kernels.bits.two_threads"] = figure(both[1] / both[2], "speed of two Python threads over one, fit", "")
    for name in ("ggml", "bitsandbytes", "torchao", "gguf"):
        figures |= ratios(rows, name, stamped)
    return figures


def ratios(rows: list[dict[str, Any]], peer: str, stamped: dict[str, Any]) -> dict[str, record.Figure]:
    """A library's time over ours for dequantising as many values at the same width."""
    times = {(row["peer"], row["bits"]): row["median_s"] for row in rows if row.get("way") == "dequantise"}
    figures = {}
    for bits in (2, 3, 4, 8):
        if (peer, bits) in times and ("edgekernels", bits) in times:
            ratio = round(times[peer, bits] / times["edgekernels", bits], 2)
            unit = "time theirs / ours, 8 MiB of float32"
            figures[f"kernels.bits.dequantise_b{bits}.x_{peer}"] = record.figure(ratio, unit, peer, COMMAND, stamped)
    return figures


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", default="", help="as for pytest: which benchmarks")
    chosen = parser.parse_args().k
    stamped = record.stamp()
    rows = run_micro(MICRO / "test_bits.py", MICRO / "test_bits_limits.py", chosen=chosen)
    path = record.RESULTS / "bits.json"
    known = json.loads(path.read_text())["benchmarks"] if path.is_file() else []
    names = {row["name"] for row in rows}
    merged = [*(row for row in known if row["name"] not in names), *rows]
    figures = figures_of(rows, stamped)
    record.write("bits", {"benchmarks": merged}, figures, stamped)
    for key, entry in figures.items():
        print(key, entry["value"])


if __name__ == "__main__":
    main()
