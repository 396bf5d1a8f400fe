"""What a device script pays before its first line: `python -m bench.micro.importing`, seconds.

Whole processes above an empty one, beside numpy, which every drafter needs, and asyncio. Writes
bench/results/importing.json.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from bench import record
from bench.macro.serving.worker import ROOT

ROUNDS = 15
STATEMENTS = {
    "empty": "pass",
    "sled": "import sled",
    "sled.Device": "import sled; sled.Device",
    "sled.AsyncDevice": "import sled; sled.AsyncDevice",
    "numpy": "import numpy",
    "asyncio": "import asyncio",
}


def _ms(statement: str) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True, cwd=ROOT, timeout=60)
    return (time.perf_counter() - begun) * 1e3


def main() -> None:
    """See the module."""
    spent: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for number in range(ROUNDS + 1):
        took = {name: _ms(statement) for name, statement in STATEMENTS.items()}
        if number:  # the first fills the caches
            for name, value in took.items():
                spent[name].append(value - took["empty"] if name != "empty" else value)
    rows = {name: round(statistics.median(values), 1) for name, values in spent.items()}
    print(rows)
    figure = record.figure(
        rows["sled.Device"],
        "ms above an empty Python until sled.Device is there, median of 15 processes",
        f"import numpy alone: {rows['numpy']} ms; import sled alone: {rows['sled']} ms",
        "python -m bench.micro.importing",
    )
    record.write("importing", {"ms": rows}, {"sled.device.import_ms": figure})


if __name__ == "__main__":
    main()
