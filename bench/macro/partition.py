"""Do plans keep their promise on inputs nobody has seen, and what do they save against simpler ways?

`python -m bench.macro.partition` trains and calibrates the demonstration's nets (those in demo-out/ are reused), takes
the pattern of every cut and accuracy level, runs it on all held-out images, and counts violations. Beside it stand the
best uniform width and the paper's closed form. Results go to bench/results/partition.json.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import numpy as np

from bench import record, report
from qpart.artefact import Artefact
from qpart.calibrate import calibrate, measure
from qpart.closed_form import closed_form
from qpart.demo.train import train_all
from qpart.errors import Infeasible
from qpart.executors.simulator import Simulator
from qpart.graph import load_model
from qpart.inputs import as_float
from qpart.plan import plan
from qpart.profile import Channel, DeviceProfile, Request, ServerProfile
from qpart.run.served import ServedModel
from qpart.solve import Solver, uniform
from qpart.tables import WIDTHS

OUT = Path(__file__).parents[2] / "demo-out" / "qpart"
CALIBRATION = 2000
BALANCED = Request(
    accuracy=0.01,
    device=DeviceProfile(macs_per_s=1e9, joules_per_mac=1e-10, memory_bytes=1 << 24),
    channel=Channel(up_bits_per_s=1e6, down_bits_per_s=4e6),
    inferences=1000,
)


class Held:
    """Held-out images with labels, and what full precision says of them."""

    def __init__(self, artefact: Artefact) -> None:
        network = artefact.network
        self.simulator = Simulator(network, artefact.parameters, artefact.ranges)
        self.inputs = as_float(np.load(OUT / "test_images.npy"), network.input_shape)
        self.labels = np.load(OUT / "test_labels.npy")
        self.float_predictions = self._float_predictions(network.num_nodes)
        self.float_accuracy = float((self.float_predictions == self.labels).mean())

    def _float_predictions(self, last: int) -> np.ndarray:
        parts = (self.inputs[i : i + 500] for i in range(0, len(self.inputs), 500))
        run = self.simulator.executor.run_arrays
        return np.concatenate([run({0: part}, 0, last, [last])[last].argmax(axis=1) for part in parts])

    def measure(self, cut: int, weight_bits: tuple[int, ...], live_bits: tuple[int, ...]) -> dict[str, float]:
        """Accuracy drop and share of changed predictions on the held-out images."""
        found = self.simulator.logits(cut, weight_bits, live_bits, self.inputs).argmax(axis=1)
        return {
            "drop": self.float_accuracy - float((found == self.labels).mean()),
            "changed": float((found != self.float_predictions).mean()),
        }


def rows_of(artefact: Artefact) -> list[dict[str, Any]]:
    """One row for every cut and level that has a pattern."""
    tables, solver, held = artefact.tables, Solver(artefact.tables), Held(artefact)
    seen: dict[Any, dict[str, float]] = {}
    rows = []
    for cut in range(artefact.network.num_nodes + 1):
        for level, accuracy in enumerate(tables.levels):
            budget = tables.budget.budget(accuracy) * artefact.shrink.get((cut, level), 1.0)
            pattern = solver.best(cut, budget)
            if pattern is None:
                continue
            key = cut, pattern.weight_bits, pattern.live_bits
            if key not in seen:
                seen[key] = held.measure(*key)
            total = pattern.download_bytes + pattern.up_bytes
            rows.append(
                {
                    "net": artefact.name, "cut": cut, "level": accuracy, "weight_bits": pattern.weight_bits,
                    "live_bits": pattern.live_bits, "bytes": total, "psi": pattern.psi, "budget": budget,
                    **seen[key], **peers(solver, cut, budget),
                }
            )  # fmt: skip
        print(f"{artefact.name}: cut {cut} of {artefact.network.num_nodes} measured", file=sys.stderr, flush=True)
    return rows


def peers(solver: Solver, cut: int, budget: float) -> dict[str, Any]:
    """Bytes of the smallest uniform width within the budget, and of the closed form if it keeps to the budget."""
    tables = solver.tables
    flat = [uniform(tables, cut, bits) for bits in WIDTHS]
    fitting = [p.download_bytes + p.up_bytes for p in flat if p.psi <= budget]
    law = closed_form(tables, cut, budget)
    return {
        "uniform_bytes": min(fitting, default=None),
        "closed_form_bytes": law.pattern.download_bytes + law.pattern.up_bytes,
        "closed_form_holds": law.meets_budget,
    }


def served_rows(artefact: Artefact, count: int = 40, seed: int = 0) -> list[dict[str, Any]]:
    """Plans as a server gives them: random rates, accuracies, memories and caches, run on the held-out images."""
    held, random = Held(artefact), np.random.default_rng(seed)
    run = measure(held.simulator, artefact.float_inputs(), artefact.logits, artefact.margin)
    executor = held.simulator.executor
    model = ServedModel(replace(artefact, model_id=bytes(16)), executor, run, ServerProfile(macs_per_s=5e10))
    rows = []
    for _ in range(count):
        request = Request(
            accuracy=float(10 ** random.uniform(-2.6, -1)),
            device=DeviceProfile(
                macs_per_s=float(10 ** random.uniform(6, 10)),
                joules_per_mac=1e-10,
                memory_bytes=int(10 ** random.uniform(5, 8)),
            ),
            channel=Channel(
                up_bits_per_s=float(10 ** random.uniform(4, 8)), down_bits_per_s=float(10 ** random.uniform(4, 8))
            ),
            inferences=int(10 ** random.uniform(0, 6)),
            raw_input_stays=bool(random.integers(2)),
        )
        cached = [row[i] for row in artefact.piece_ids.values() for i in range(len(row)) if random.random() < 0.2]
        try:
            found = model.plan(request, tuple(cached)).plan
        except Infeasible:
            continue
        pattern = found.pattern
        measured = held.measure(pattern.cut, pattern.weight_bits, pattern.live_bits)
        rows.append({"net": artefact.name, "cut": pattern.cut, "accuracy": request.accuracy, **measured})
    return rows


def plan_ms(artefact: Artefact) -> float:
    """Median milliseconds of one plan."""
    solver, server = Solver(artefact.tables), ServerProfile(macs_per_s=5e10)
    times = []
    for _ in range(50):
        start = time.perf_counter()
        plan(solver, BALANCED, server, shrink=artefact.shrink)
        times.append(time.perf_counter() - start)
    return 1e3 * median(times)


def figures(
    rows: list[dict[str, Any]], served: list[dict[str, Any]], plans_ms: dict[str, float], sizes: dict[str, float]
) -> dict[str, float | int]:
    """Headline figures."""
    whole = [row for row in rows if row["cut"] and row["uniform_bytes"]]
    return {
        "qpart.promise.patterns": len(rows),
        "qpart.promise.accuracy_violations": sum(row["drop"] > row["level"] for row in rows),
        "qpart.promise.changed_violations": sum(row["changed"] > row["level"] for row in rows),
        "qpart.promise.served_plans": len(served),
        "qpart.promise.served_violations": sum(row["changed"] > row["accuracy"] for row in served),
        "qpart.bytes.uniform_over_exact": round(geometric_mean(r["uniform_bytes"] / r["bytes"] for r in whole), 3),
        "qpart.closed_form.holds_share": round(sum(r["closed_form_holds"] for r in whole) / len(whole), 3),
        **{f"qpart.plan.{net}_ms": round(ms, 2) for net, ms in plans_ms.items()},
        **{f"qpart.bytes.{net}_float32_over_1pct": round(ratio, 2) for net, ratio in sizes.items()},
    }


def float_ratio(artefact: Artefact, rows: list[dict[str, Any]]) -> float:
    """Bytes of all weights in float32 over those of the all-device plan at an accuracy drop of 1 %."""
    whole = [row for row in rows if row["cut"] == artefact.network.num_nodes and row["level"] == 0.01]
    full = sum(4 * (p.weight.size + (0 if p.bias is None else p.bias.size)) for p in artefact.parameters.values())
    return full / whole[0]["bytes"]


def main() -> None:
    """Train, calibrate, measure, record, render."""
    stamped = record.stamp()
    summary = train_all(OUT, say=lambda line: print(line, file=sys.stderr))
    images = np.load(OUT / "calibration_images.npy")[:CALIBRATION]
    rows, served, plans_ms, sizes = [], [], {}, {}
    for name, trained in summary.nets.items():
        network, parameters = load_model(str(OUT / trained.file))
        artefact = calibrate(network, parameters, images, name=name)
        found = rows_of(artefact)
        rows += found
        served += served_rows(artefact)
        plans_ms[name], sizes[name] = plan_ms(artefact), float_ratio(artefact, found)
    data = {
        "dataset": summary.dataset,
        "calibration_inputs": len(images),
        "float_accuracy": {},
        "rows": rows,
        "served": served,
    }
    data["float_accuracy"] = {name: trained.accuracy for name, trained in summary.nets.items()}
    record.write("partition", data, figures(rows, served, plans_ms, sizes), stamped)
    report.render()


if __name__ == "__main__":
    main()
