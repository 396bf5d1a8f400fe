"""`qpart plot`: payload against accuracy, cost against bandwidth, bits by layer; pictures, or characters."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import typer

import edgebus
from qpart import artefact as files
from qpart import charts, explain, sweeps
from qpart.artefact import Artefact
from qpart.baselines import BASELINES, Case, exact
from qpart.cli.options import ServerFile, ServerPrice, ServerSpeed, server_from
from qpart.cli.show import console
from qpart.errors import Infeasible, RequestError
from qpart.heuristics import Kind, make_solver
from qpart.profile import Request
from qpart.solve import Solver
from qpart.tables import WIDTHS

LABELS = {
    "plan": "plan (exact)", "all_server_pixels": "all-server, pixels", "all_device_float32": "all-device, float32",
    "all_device_int8": "all-device, 8 bits", "uniform": "uniform width", "neurosurgeon": "Neurosurgeon",
    "jalad": "JALAD", "closed_form": "closed form", "floor_repair": "floor + repair",
}  # fmt: skip
_KINDS: tuple[Kind, ...] = ("exact", "uniform", "closed_form")
_RATES, _RATES_SHOWN = 61, 31
_SLOWEST, _FASTEST = 1e4, 1e8


class What(StrEnum):
    """Which picture."""

    ALL = "all"
    PAYLOAD = "payload"
    COST = "cost"
    BITS = "bits"


def plot(
    artefact: Annotated[Path, typer.Argument(help="File made by `qpart calibrate`.")],
    request: Request,
    out: Annotated[Path | None, typer.Option(help="Directory for PNG files; without it, characters.")] = None,
    what: Annotated[What, typer.Option(help="Which of them.")] = What.ALL,
    cut: Annotated[int | None, typer.Option(min=0, help="Bits and payload at this cut; default: of each plan.")] = None,
    inferences: Annotated[int, typer.Option(min=1, help="Over how many inferences the download counts.")] = 1000,
    server_profile: ServerFile = None,
    server_macs_per_s: ServerSpeed = None,
    server_price_per_s: ServerPrice = None,
) -> None:
    """Draw what plans come to: bytes against accuracy, cost against bandwidth with the chosen cut, bits by layer.

    Example:

        qpart plot net.qpart --device rpi4b --inferences 1000 --out pictures
    """
    if out is not None and importlib.util.find_spec("matplotlib") is None:
        raise edgebus.ConfigError("pictures need matplotlib: pip install 'edgebus[plots]'; leave --out away for text")
    loaded = files.load(artefact)
    if cut is not None and cut > loaded.network.num_nodes:
        raise RequestError(f"there is no cut {cut}; the network has 0 to {loaded.network.num_nodes}")
    server = server_from(server_profile, server_macs_per_s, server_price_per_s)
    asked = msgspec.structs.replace(request, inferences=inferences)
    case = Case(Solver(loaded.tables), asked, server, loaded.shrink)
    pictures = {What.PAYLOAD: _payload, What.COST: _cost, What.BITS: _bits}
    for kind, draw in pictures.items():
        if what in (What.ALL, kind):
            lines = draw(loaded, case, cut, out)
            (console().print if out is None else sys.stdout.write)("\n".join(lines) + "\n")


def _payload(loaded: Artefact, case: Case, cut: int | None, out: Path | None) -> Sequence[str]:
    solvers = {kind: case.solver if kind == "exact" else make_solver(loaded.tables, kind) for kind in _KINDS}
    curves = {
        LABELS.get(kind, LABELS["plan"]): sweeps.payload_by_level(
            solver, case.request, case.server, cut=cut, shrink=loaded.shrink
        )
        for kind, solver in solvers.items()
    }
    curves = {label: points for label, points in curves.items() if points}
    if not curves:
        raise Infeasible("no calibrated accuracy can be had", constraint="accuracy", nearest_accuracy=None)
    title = f"{loaded.name}: bytes per inference over {case.request.inferences:,} inferences"
    if out is not None:
        from qpart import plots

        return [_drawn(plots.payload_by_accuracy, out / f"{loaded.name}-payload.png", curves, title)]
    rows = [
        (
            f"{label}, drop {point.accuracy:g}",
            point.bytes_per_inference,
            f"{point.bytes_per_inference:,.0f} B, cut {point.cut}",
        )
        for label, points in curves.items()
        for point in points
    ]
    return [title + ", log scale", *charts.bars(rows, width=console().width, log=True), ""]


def _cost(loaded: Artefact, case: Case, cut: int | None, out: Path | None) -> Sequence[str]:
    rates = np.geomspace(_SLOWEST, _FASTEST, _RATES if out is not None else _RATES_SHOWN).tolist()
    curves = {LABELS["plan"]: sweeps.cost_by_rate(case, rates, exact)}
    curves |= {LABELS[name]: sweeps.cost_by_rate(case, rates, decide) for name, decide in BASELINES.items()}
    curves = {label: points for label, points in curves.items() if any(point.objective for point in points)}
    planned = curves.get(LABELS["plan"])
    if planned is None:
        text = "no rate makes a plan possible; `qpart plan` says why"
        raise Infeasible(text, constraint="accuracy", nearest_accuracy=None)
    title = f"{loaded.name}: cost of one inference, accuracy drop {case.request.accuracy:g}"
    names = [loaded.network.name_of(at) for at in range(loaded.network.num_nodes + 1)]
    if out is not None:
        from qpart import plots

        return [_drawn(plots.cost_by_bandwidth, out / f"{loaded.name}-cost.png", curves, names, title)]
    points = {
        label: [(point.up_bits_per_s, point.objective) for point in some if point.objective]
        for label, some in curves.items()
    }
    cuts = [
        f"from {explain.rate(start.up_bits_per_s)}: cut {start.cut} (after {names[start.cut or 0]})"
        for start in sweeps.changes(planned)
    ]
    lines = charts.scatter(points, width=console().width, x_unit="bit/s up", y_unit="U of one inference")
    return [title, *lines, *cuts, ""]


def _bits(loaded: Artefact, case: Case, cut: int | None, out: Path | None) -> Sequence[str]:
    plans = sweeps.widths_by_level(case.solver, case.request, case.server, cut=cut, shrink=loaded.shrink)
    if not plans:
        raise Infeasible("no calibrated accuracy can be had", constraint="accuracy", nearest_accuracy=None)
    title = f"{loaded.name}: bits by layer"
    if out is not None:
        from qpart import plots

        return [_drawn(plots.bits_by_layer, out / f"{loaded.name}-bits.png", plans, title)]
    lines = [title]
    for one in plans:
        rows = [*one.layers, *((f"{name} (sent)", bits) for name, bits in one.sent)]
        lines.append(f"accuracy drop {one.accuracy:g}, cut {one.cut}")
        lines += charts.bars([(name, bits, str(bits)) for name, bits in rows], width=60, most=WIDTHS[-1])
    return [*lines, ""]


def _drawn(draw: Callable[..., None], path: Path, *content: Any) -> str:
    draw(path, *content)
    return str(path)
