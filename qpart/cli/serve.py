"""`qpart serve`: calibrated models for every device that may connect."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

import edgebus
from edgebus.cli.serving import read_access, ready_line, stop_on_signals
from qpart.messages import SERVICES
from qpart.run.models import load_artefacts, make_served
from qpart.run.server import PlanServer


def serve(
    artefacts: Annotated[list[Path], typer.Argument(help="Files made by `qpart calibrate`, each with its own name.")],
    bind: Annotated[str, typer.Option(help="Endpoint, e.g. tcp://0.0.0.0:5556; port 0 takes a free one.")],
    keys: Annotated[Path | None, typer.Option(help="Key directory made by `edgebus keygen DIR`.")] = None,
    allow: Annotated[
        str | None, typer.Option(help="Allow-list file, or `any` for every key; default KEYS/allowed_keys.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="No encryption, no authentication.")] = False,
    macs_per_s: Annotated[
        float | None,
        typer.Option(help="Multiply-accumulates per second of this server; measured model by model if left out."),
    ] = None,
    price_per_s: Annotated[float, typer.Option(help="What a second of this server costs.")] = 0.0,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 lets torch decide.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the ready line as JSON.")] = False,
) -> None:
    """Serve models; prints one line with endpoint and public key when it is ready, ends on SIGTERM.

    Example:

        edgebus keygen server-keys && edgebus allow server-keys device-keys/node.key

        qpart serve fc.qpart --bind tcp://0.0.0.0:5556 --keys server-keys
    """
    logging.basicConfig(level=logging.WARNING, format="qpart serve: %(levelname)s %(message)s")
    access = read_access("qpart serve", keys=keys, allow=allow, insecure=insecure)
    with edgebus.Node(name="qpart-server", keys=access.own, allow=access.allow, insecure=insecure) as node:
        # Bound before the models load: an endpoint that cannot be had is known at once, and devices may wait already.
        inbox = node.serve(*SERVICES)
        endpoint = node.bind(bind)
        models, described = [], []
        for artefact in load_artefacts(artefacts):
            model, profile = make_served(artefact, macs_per_s=macs_per_s, price_per_s=price_per_s, threads=threads)
            models.append(model)
            described.append(
                {"name": artefact.name, "model_id": artefact.model_id.hex(), "macs_per_s": profile.macs_per_s}
            )
            print(f"{artefact.name}: {profile.macs_per_s:.3g} multiply-accumulates per second", file=sys.stderr)
        server = PlanServer(inbox, models)
        stop_on_signals(server.stop)
        ready = {"endpoint": endpoint, "public_key": access.public_key, "models": described}
        print(json.dumps(ready) if as_json else ready_line(endpoint, access), flush=True)
        server.run()
