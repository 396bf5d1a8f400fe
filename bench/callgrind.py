"""Counts instructions of the kernels under valgrind and holds them against the committed counts.

`python -m bench.callgrind` fails if a case takes over 5 % more than in bench/results/callgrind.json;
`python -m bench.callgrind --record` writes that file. Counts do not depend on how busy the machine is, but on the
compiler: with another one nothing is held against anything, and it says so. valgrind knows no AVX-512, so the levels
are base and avx2.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench._callgrind_cases import COUNTED, cases
from bench.record import RESULTS, stamp

RECORDED = RESULTS / "callgrind.json"
LEVELS = ("base", "avx2")
GROWTH = 0.05
DUMP = """
#include <valgrind/callgrind.h>
void dump(const char *name) { CALLGRIND_DUMP_STATS_AT(name); }
"""

Counts = dict[str, dict[str, int]]


def symbols() -> list[str]:
    """Patterns of the C functions which Cython makes; callgrind knows one of those that are alike up to the star."""
    return [f"__pyx_pw_11edgekernels_{len(module)}{module}_*" for module in COUNTED]


def count(level: str) -> dict[str, int]:
    """Instructions of every case at one level."""
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/dump.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-xc", "-", "-o", library], input=DUMP, text=True, check=True)
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out", "--collect-atstart=no"]
        command += [f"--toggle-collect={symbol}" for symbol in symbols()]
        environment = os.environ | {"EDGEKERNELS_LEVEL": level, "EDGEKERNELS_BACKEND": "cython", "OMP_NUM_THREADS": "1"}
        environment |= {"OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        command += [sys.executable, "-m", "bench._callgrind_cases", library]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"callgrind: {' '.join(command)} failed:\n{done.stderr[-2000:]}")
        counts = dict(filter(None, map(named_total, sorted(Path(folder).glob("out.*")))))
    if empty := [name for name, _ in cases() if not counts.get(name)]:
        raise SystemExit(f"callgrind: nothing was counted for {', '.join(empty)}; are symbols stripped?")
    return {name: counts[name] for name, _ in cases()}


def named_total(path: Path) -> tuple[str, int] | None:
    """Name and instructions of one dump."""
    text = path.read_text()
    name = re.search(r"^desc: Trigger: Client Request: (.*)$", text, re.MULTILINE)
    total = re.search(r"^(?:totals|summary): (\d+)", text, re.MULTILINE)
    return (name[1], int(total[1])) if name and total else None


def compiler() -> str:
    """The C compiler as setup.py finds it."""
    command = os.environ.get("CC", "cc").split()[:1]
    return subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


def grown(counts: Counts, known: Counts) -> list[str]:
    """Cases that take more than they may."""
    return [
        f"{name} at {level}: {new:,} instructions instead of {old:,} ({new / old - 1:+.1%})"
        for level, of_level in counts.items()
        for name, new in of_level.items()
        if (old := known.get(level, {}).get(name)) and new > old * (1 + GROWTH)
    ]


def main() -> None:
    """Count, and compare or record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write bench/results/callgrind.json")
    record = parser.parse_args().record
    counts = {level: count(level) for level in LEVELS}
    known: dict[str, Any] = json.loads(RECORDED.read_text()) if RECORDED.is_file() else {}
    if record or not known:
        results = {"stamp": stamp(), "compiler": compiler(), "instructions": counts}
        RECORDED.write_text(json.dumps(results, indent=1) + "\n")
        print(f"callgrind: {sum(map(len, counts.values()))} counts in {RECORDED}")
        return
    if known["compiler"] != compiler():
        print(f"callgrind: recorded with {known['compiler']}, built with {compiler()}: not comparable; --record anew")
        return
    for line in (worse := grown(counts, known["instructions"])):
        print(f"callgrind: {line}")
    if worse:
        raise SystemExit(1)
    print(f"callgrind: none of {sum(map(len, counts.values()))} counts has grown by over {GROWTH:.0%}")


if __name__ == "__main__":
    main()
