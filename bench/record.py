"""Writes results: one JSON per benchmark with its machine and versions, and the headline figures in one flat file."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypedDict

RESULTS = Path(__file__).parent / "results"
FIGURES = RESULTS / "figures.json"
_PACKAGES = ("edgebus", "pyzmq", "msgspec", "numpy", "torch", "transformers")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    told = os.environ.get("BENCH_COMMIT")  # of a copy without its history, on a machine without git
    if told:
        return told
    commit = _git("describe", "--always")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":/!bench/results", ":/!README.md")
    return (commit or "unknown") + ("-dirty" if changed else "")  # results are written while others are measured


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()


def stamp() -> dict[str, Any]:
    """Machine, versions, commit and kernel backend of this run."""
    import edgekernels

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in _PACKAGES},
        "commit": _commit(),
        "kernel_backend": edgekernels.backend(),
    }


class Figure(TypedDict):
    """A headline figure that says what it is and where it comes from."""

    value: float
    unit: str
    peer: str
    machine: str
    commit: str
    command: str


def figure(value: float, unit: str, peer: str, command: str, stamped: dict[str, Any] | None = None) -> Figure:
    """A headline figure with its origin.

    Args:
        value: as measured, whether it meets its goal or not.
        unit: of what, and how it was taken.
        peer: what it is held against.
        command: that measures it again.
        stamped: the stamp of the run; by default one is made now.
    """
    stamped = stamped or stamp()
    machine = f"{stamped['cpu']}, {stamped['cores']} cores"
    return Figure(value=value, unit=unit, peer=peer, machine=machine, commit=stamped["commit"], command=command)


def value_of(entry: float | Figure) -> float:
    """The number of an entry of the flat file, whichever form it has."""
    return entry["value"] if isinstance(entry, dict) else entry


def write(
    name: str,
    results: dict[str, Any],
    figures: Mapping[str, float | Figure],
    stamped: dict[str, Any] | None = None,
) -> None:
    """Write `results/NAME.json`, and the headline figures into `results/figures.json` beside those of others.

    Args:
        name: of the file.
        results: what was measured.
        figures: headline figures, plain numbers or with their origin.
        stamped: the stamp of a long run's start; by default one is made now.
    """
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({"stamp": stamped or stamp(), **results}, indent=1) + "\n")
    known = json.loads(FIGURES.read_text()) if FIGURES.is_file() else {}
    known.update(figures)
    FIGURES.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")
