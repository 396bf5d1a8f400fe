"""`qpart calibrate`: from a model and inputs to the file that servers and planners read."""

from __future__ import annotations

import json
import os
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from edgebus.cli.progress import load_bar
from qpart.artefact import Artefact
from qpart.errors import RequestError
from qpart.inputs import load_inputs
from qpart.messages import MAX_NAME
from qpart.ops import Shape
from qpart.run.models import require_torch
from qpart.tables import MAX_LEVELS

_LEVELS = "0.0025,0.005,0.01,0.02,0.03,0.05,0.1"


def calibrate(
    model: Annotated[str, typer.Argument(help="A .pt2 file of torch.export, or package.module:factory.")],
    inputs: Annotated[Path, typer.Option(help=".npy, (n, *shape) float32 or uint8 pixels; 1,000 or more, no labels.")],
    out: Annotated[Path, typer.Option(help="File to write, e.g. fc.qpart.")],
    name: Annotated[str | None, typer.Option(help="How a server offers the model; default: the file's name.")] = None,
    levels: Annotated[str, typer.Option(help="Accuracy drops to verify patterns for, ascending.")] = _LEVELS,
    patterns: Annotated[int, typer.Option(min=20, help="Random patterns for the map from noise to accuracy.")] = 200,
    limit: Annotated[int | None, typer.Option(min=100, help="Use the first N inputs only.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the random patterns.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 lets torch decide.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
) -> None:
    """Measure a model once: the noise of every tensor at every width, and how much an accuracy drop allows.

    MODEL runs code of whoever wrote it (a factory, or torch.export.load): use your own models only.

    Example:

        qpart calibrate net.pt2 --inputs images.npy --out net.qpart
    """
    _check_writable(out)
    called, asked = _check_name(out.stem if name is None else name), _parse_levels(levels)
    require_torch("calibrating")
    import torch

    from qpart import artefact, graph
    from qpart.calibrate import calibrate as run

    if threads:
        torch.set_num_threads(threads)
    network, parameters = graph.load_model(model)
    samples = _samples(inputs, network.input_shape)[:limit]
    with load_bar(f"calibrating {called}") as progress:
        found = run(
            network, parameters, samples, name=called, levels=asked, num_patterns=patterns, seed=seed, progress=progress
        )
    summary = _summary(artefact.save(found, out), out)
    print(json.dumps(summary) if as_json else _text(summary))


def _check_name(name: str) -> str:
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise RequestError(f"the name is {name!r}, give 1 to {MAX_NAME} printable characters (--name)")
    return name


def _parse_levels(text: str) -> tuple[float, ...]:
    try:
        levels = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise RequestError(f"levels are {text!r}, give numbers with commas between them") from None
    if not all(0 < level < 1 for level in levels) or any(b <= a for a, b in pairwise(levels)):
        raise RequestError(f"levels are {text!r}, give ascending accuracy drops between 0 and 1")
    if len(levels) > MAX_LEVELS:
        raise RequestError(f"{len(levels)} levels are given, {MAX_LEVELS} are the most")
    return levels


def _check_writable(out: Path) -> None:
    """Known before the work and not after it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise RequestError(f"{out} cannot be written; name a file in a directory of yours (--out)")


def _samples(path: Path, shape: Shape) -> npt.NDArray[Any]:
    """Inputs, checked; pixels stay bytes, which makes the artefact a quarter of the size."""
    numbers = load_inputs(path, shape)
    raw = np.load(path, allow_pickle=False)
    return raw if raw.dtype == np.uint8 and raw.shape == numbers.shape else numbers


def _summary(artefact: Artefact, out: Path) -> dict[str, Any]:
    tables = artefact.tables
    shrunk = Counter(level for _, level in artefact.shrink)
    return {
        "name": artefact.name,
        "model_id": artefact.model_id.hex(),
        "file": str(out),
        "file_bytes": out.stat().st_size,
        "nodes": artefact.network.num_nodes,
        "cuts": artefact.network.num_nodes + 1,
        "inputs": len(artefact.inputs),
        "margin": artefact.margin,
        "levels": [
            {"accuracy": level, "budget": tables.budget.budget(level), "cuts_shrunk": shrunk[i]}
            for i, level in enumerate(tables.levels)
        ],
        "patterns": len(artefact.trials),
    }


def _text(summary: dict[str, Any]) -> str:
    lines = [
        f"{summary['name']}: {summary['nodes']} nodes, {summary['cuts']} cuts, {summary['inputs']} inputs, "
        f"{summary['patterns']} patterns, half the mean squared margin {summary['margin']:.4g}",
        *(
            f"accuracy drop {level['accuracy']:<7g} noise budget {level['budget']:<10.4g} "
            f"shrunk at {level['cuts_shrunk']} of {summary['cuts']} cuts"
            for level in summary["levels"]
        ),
        f"{summary['file']}: {summary['file_bytes']:,} bytes, model {summary['model_id']}",
    ]
    return "\n".join(lines)
