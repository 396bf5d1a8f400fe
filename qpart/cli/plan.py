"""`qpart plan`: what a server would answer, without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from qpart import artefact as files
from qpart.artefact import Artefact
from qpart.cli.options import (
    SOLVER_HELP,
    ServerFile,
    ServerPrice,
    ServerSpeed,
    check_solver,
    server_from,
)
from qpart.cli.show import console, plan_lines, plan_object, plan_table
from qpart.heuristics import Kind, make_solver
from qpart.plan import Plan
from qpart.plan import plan as decide
from qpart.profile import Request, ServerProfile
from qpart.run.models import make_served


def plan(
    artefact: Annotated[Path, typer.Argument(help="File made by `qpart calibrate`.")],
    request: Request,
    inferences: Annotated[int, typer.Option(help="Over how many inferences the download counts.")] = 1,
    server_profile: ServerFile = None,
    server_macs_per_s: ServerSpeed = None,
    server_price_per_s: ServerPrice = None,
    solver: Annotated[str, typer.Option(help=SOLVER_HELP)] = "exact",
    explain: Annotated[bool, typer.Option("--explain", help="Show every cut, and not the chosen one only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Plan without a server: cut, widths, bytes, costs, and why; checked on the calibration inputs as a server does.

    Plans of another solver than the exact one are not checked: they are for comparison.

    Example:

        qpart plan net.qpart --accuracy 0.01 --inferences 1000 --up-bits-per-s 1e5 --explain

        qpart plan net.qpart --accuracy 0.01 --device rpi4b --weight-energy 0.1 --explain
    """
    asked, kind = msgspec.structs.replace(request, inferences=inferences), check_solver(solver)
    server = server_from(server_profile, server_macs_per_s, server_price_per_s)
    loaded = files.load(artefact)
    found = _decided(loaded, asked, server, kind)
    if as_json:
        about = {"model": loaded.name, "model_id": loaded.model_id.hex(), "solver": kind}
        print(json.dumps({**about, "plan": plan_object(found, rows=explain)}))
        return
    out = console()
    for line in plan_lines(found):
        out.print(line, markup=False)
    if explain:
        out.print(plan_table(found, width=out.width))


def _decided(loaded: Artefact, asked: Request, server: ServerProfile, kind: Kind) -> Plan:
    if kind != "exact":
        return decide(make_solver(loaded.tables, kind), asked, server, shrink=loaded.shrink)
    model, _ = make_served(loaded, profile=server)
    return model.plan(asked).plan
