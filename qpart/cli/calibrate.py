"""`qpart calibrate`: from a model and inputs to the file that servers and planners read."""

from __future__ import annotations

import json
import logging
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer

from edgebus.cli.progress import stage_bar
from qpart import journal
from qpart.cli import calibrated
from qpart.cli.options import check_writable
from qpart.datasets import load_data
from qpart.errors import RequestError
from qpart.inputs import check_labels, load_labels
from qpart.messages import MAX_NAME
from qpart.run.models import require_torch
from qpart.tables import MAX_LEVELS

_LEVELS = "0.0025,0.005,0.01,0.02,0.03,0.05,0.1"


def calibrate(
    model: Annotated[str, typer.Argument(help="A .pt2 file of torch.export, or package.module:factory.")],
    inputs: Annotated[
        Path,
        typer.Option(
            "--data",
            "--inputs",
            help=".npy or .npz, (n, *shape) float32 or uint8, or a directory of pictures; 1,000 up.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="File to write, e.g. fc.qpart.")],
    name: Annotated[str | None, typer.Option(help="How a server offers the model; default: the file's name.")] = None,
    labels: Annotated[Path | None, typer.Option(help=".npy, (n,): report accuracy too; decides nothing.")] = None,
    levels: Annotated[str, typer.Option(help="Accuracy drops to verify patterns for, ascending.")] = _LEVELS,
    patterns: Annotated[int | None, typer.Option(min=20, help="Random patterns; default 200 or fewer.")] = None,
    effort: Annotated[float, typer.Option(min=0.01, max=1000, help="Times the work that a large model gets.")] = 1.0,
    limit: Annotated[int | None, typer.Option(min=100, help="Use the first N inputs only.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the random patterns.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 lets torch decide.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
) -> None:
    """Measure a model once: the noise of every tensor at every width, and how much an accuracy drop allows.

    MODEL runs code of whoever wrote it (a factory, or torch.export.load): use your own models only. Whoever is killed
    goes on where it was: results on the way are kept in OUT.partial until OUT stands.

    Example:

        qpart calibrate net.pt2 --data images.npy --out net.qpart
    """
    logging.basicConfig(level=logging.WARNING, format="qpart calibrate: %(levelname)s %(message)s")
    check_writable(out)
    called, asked = _check_name(out.stem if name is None else name), _parse_levels(levels)
    known = None if labels is None else load_labels(labels)
    require_torch("calibrating")
    import torch

    from qpart import artefact, graph
    from qpart.calibrate import calibrate as run

    if threads:
        torch.set_num_threads(threads)
    network, parameters = graph.load_model(model)
    samples = load_data(inputs, network.input_shape, tokens=network.takes_tokens)
    if known is not None:
        known = check_labels(known, len(samples), network.items(network.num_nodes))[:limit]
    partial = out.with_name(out.name + journal.SUFFIX)
    with stage_bar(f"calibrating {called}") as progress:
        found = run(
            network, parameters, samples[:limit], name=called, labels=known, levels=asked, num_patterns=patterns,
            effort=effort, seed=seed, partial=partial, progress=progress,
        )  # fmt: skip
        saved = artefact.save(found, out)
        partial.unlink(missing_ok=True)
    if as_json:
        print(json.dumps(calibrated.summary(saved, out)))
    else:
        calibrated.show(saved, out)


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
