"""Runs the micro benchmarks beside their peers, writes results and figures, and renders the README's table.

`python -m bench.run`; results go to bench/results/micro.json and bench/results/figures.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import record, report

MICRO = Path(__file__).parent / "micro"
_KEYS = {"transformers": "transformers", "numpy, lazy": "lazy_numpy"}


def run_micro(*paths: Path, chosen: str = "") -> list[dict[str, Any]]:
    """Group, parameters and median, seconds, of every micro benchmark, or of those in some files or chosen by `-k`."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        command = [
            sys.executable,
            "-m",
            "pytest",
            *map(str, paths or [MICRO]),
            *(["-k", chosen] if chosen else []),
            "-q",
            f"--benchmark-json={out.name}",
            "-o",
            "timeout=600",
        ]
        subprocess.run(command, check=True)
        measured = json.load(out)["benchmarks"]
    return [
        {
            "name": b["name"],
            "group": b["group"],
            "median_s": b["stats"]["median"],
            "min_s": b["stats"]["min"],
            "rounds": b["stats"]["rounds"],
            **b["extra_info"],
        }
        for b in measured
    ]


def acceptance_figures(results: list[dict[str, Any]]) -> dict[str, float]:
    """Ratio of each peer's median to ours, one thread, all drafts accepted, at the target's vocabulary and above."""
    groups: dict[str, dict[str, float]] = {}
    for row in results:
        if "peer" in row:
            groups.setdefault(row["group"], {})[row["peer"]] = row["median_s"]
    wanted = {
        "V=49152 B=1 greedy all": "v49152_b1_greedy",
        "V=49152 B=8 greedy all": "v49152_b8_greedy",
        "V=49152 B=1 T=0.8 all": "v49152_b1_sampled",
        "V=49152 B=8 T=0.8 all": "v49152_b8_sampled",
        "V=128000 B=8 T=0.8 all": "v128000_b8_sampled",
        "V=128000 B=8 T=0.8 top_p=0.9 all": "v128000_b8_top_p",
    }
    figures = {}
    for group, name in wanted.items():
        ours = groups[group]["edgekernels"]
        for peer, key in _KEYS.items():
            figures[f"kernels.accept.{name}.x_{key}"] = round(groups[group][peer] / ours, 2)
    return figures


def bits_figures(results: list[dict[str, Any]]) -> dict[str, float]:
    """Ratio of each peer's median to ours for low-bit codes, one thread, 4096 x 512 values."""
    groups: dict[str, dict[str, float]] = {}
    figures = {}
    for row in results:
        if "way" in row:
            groups.setdefault(f"{row['way']}_b{row['bits']}", {})[row["peer"]] = row["median_s"]
            if (row["peer"], row["way"], row["bits"]) == ("edgekernels", "dequantise", 4):
                figures["kernels.bits.dequantise_b4.gb_per_s"] = round(row["float_bytes"] / row["median_s"] / 1e9, 1)
    for name, medians in groups.items():
        for peer in ("numpy", "torch"):
            if peer in medians:
                figures[f"kernels.bits.{name}.x_{peer}"] = round(medians[peer] / medians["edgekernels"], 2)
    return figures


def main() -> None:
    """Measure, record, render."""
    results = run_micro()
    figures = {**acceptance_figures(results), **bits_figures(results)}
    record.write("micro", {"benchmarks": results}, figures)
    report.render()


if __name__ == "__main__":
    main()
