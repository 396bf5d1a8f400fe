"""`qpart plan`: what a server would answer, without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from qpart import artefact as files
from qpart.cli.show import console, plan_lines, plan_object, plan_table
from qpart.profile import Request
from qpart.run.models import make_served


def plan(
    artefact: Annotated[Path, typer.Argument(help="File made by `qpart calibrate`.")],
    request: Request,
    inferences: Annotated[int, typer.Option(help="Over how many inferences the download counts.")] = 1,
    server_macs_per_s: Annotated[float, typer.Option(help="Multiply-accumulates per second of the server.")] = 1e10,
    server_price_per_s: Annotated[float, typer.Option(help="What a second of it costs.")] = 0.0,
    explain: Annotated[bool, typer.Option("--explain", help="Show every cut, and not the chosen one only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Plan without a server: cut, widths, bytes, costs, and why; checked on the calibration inputs as a server does.

    Example:

        qpart plan net.qpart --accuracy 0.01 --inferences 1000 --up-bits-per-s 1e5 --explain
    """
    asked = msgspec.structs.replace(request, inferences=inferences)
    loaded = files.load(artefact)
    model, _ = make_served(loaded, macs_per_s=server_macs_per_s, price_per_s=server_price_per_s)
    found = model.plan(asked).plan
    if as_json:
        about = {"model": loaded.name, "model_id": loaded.model_id.hex()}
        print(json.dumps({**about, "plan": plan_object(found, rows=explain)}))
        return
    out = console()
    for line in plan_lines(found):
        out.print(line, markup=False)
    if explain:
        out.print(plan_table(found))
