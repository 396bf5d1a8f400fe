"""`qpart serve`: calibrated models for every device that may connect."""

from __future__ import annotations

import json
import logging
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

import edgebus
from edgebus.cli.serving import ended_by_signals, read_access, ready_line
from edgebus.daemon.daemon import version
from edgebus.daemon.exporter import Exporter
from edgebus.daemon.http import MetricsServer
from qpart.batching import BatchLimits
from qpart.messages import SERVICES
from qpart.metrics import ServerReport, render
from qpart.run.models import load_artefacts, make_served
from qpart.run.published import serve_pieces
from qpart.run.server import PlanServer
from qpart.signing import load_signer

_NODE_NAME = "qpart-server"
SWITCH_S = 0.0005
"""A forward lets go of the interpreter at every operation, and must not wait 5 ms, Python's default, to have it back
from the thread that moves messages: with four devices that is 2 to 4 times the tails per second."""


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
    sign: Annotated[
        Path | None, typer.Option(help="Directory made by `qpart keygen DIR`: sign what devices are to run.")
    ] = None,
    threads: Annotated[
        int,
        typer.Option(
            min=0, help="CPU threads of a forward; 0 takes one, or all if a model is faster by a quarter then."
        ),
    ] = 0,
    max_batch: Annotated[
        int, typer.Option(min=1, help="Samples of several devices in one forward; 1 computes each request alone.")
    ] = BatchLimits().max_batch,
    queue: Annotated[
        int, typer.Option(min=1, help="Inference requests that may wait; one device holds at most half of the places.")
    ] = BatchLimits().max_waiting,
    drain_s: Annotated[
        float, typer.Option(min=0, max=3600, help="After SIGTERM, what was accepted is finished within so long.")
    ] = 10.0,
    metrics: Annotated[str, typer.Option(help="HOST:PORT for Prometheus, or off.")] = "off",
    as_json: Annotated[bool, typer.Option("--json", help="Print the ready line as JSON.")] = False,
) -> None:
    """Serve models; prints one line with endpoint and public key when it is ready, drains on SIGTERM.

    Requests that wait while a forward runs are computed together in the next one. Plans are made beside them.

    Example:

        edgebus keygen server-keys && edgebus allow server-keys device-keys/node.key

        qpart serve fc.qpart --bind tcp://0.0.0.0:5556 --keys server-keys
    """
    logging.basicConfig(level=logging.WARNING, format="qpart serve: %(levelname)s %(message)s")
    signer = None if sign is None else load_signer(sign)
    access = read_access("qpart serve", keys=keys, allow=allow, insecure=insecure)
    exporter = Exporter[ServerReport](lambda report: render(report, name=_NODE_NAME, version=version()))
    with ExitStack() as stack:
        exported = None
        if metrics != "off":
            exported = MetricsServer(metrics, exporter.text)
            stack.callback(exported.close)
        node = stack.enter_context(
            edgebus.Node(name=_NODE_NAME, keys=access.own, allow=access.allow, insecure=insecure)
        )
        # Bound before the models load: an endpoint that cannot be had is known at once, and devices may wait already.
        inbox = node.serve(*SERVICES)
        endpoint = node.bind(bind)
        models, described = [], []
        for artefact in load_artefacts(artefacts):
            model, profile = make_served(
                artefact, macs_per_s=macs_per_s, price_per_s=price_per_s, threads=threads, sign=signer
            )
            models.append(model)
            described.append(
                {"name": artefact.name, "model_id": artefact.model_id.hex(), "macs_per_s": profile.macs_per_s}
            )
            print(f"{artefact.name}: {profile.macs_per_s:.3g} multiply-accumulates per second", file=sys.stderr)
        sys.setswitchinterval(SWITCH_S)
        limits = BatchLimits(max_batch=max_batch, max_waiting=queue)
        server = PlanServer(inbox, models, limits, drain_s=drain_s, on_report=exporter.tell)
        ready = {
            "endpoint": endpoint,
            "public_key": access.public_key,
            "models": described,
            "metrics": exported.address if exported else None,
        }
        pieces = [model.published for model in models]
        with serve_pieces(node, pieces), ended_by_signals(server.drain, server.stop):
            print(json.dumps(ready) if as_json else ready_line(endpoint, access), flush=True)
            server.run()
