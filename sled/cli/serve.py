"""`sled serve`: one target for every device that may connect."""

from __future__ import annotations

import json
import logging
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

import edgebus
from edgebus.cli.progress import load_bar
from edgebus.cli.serving import read_access, ready_line, stop_on_signals
from sled.errors import UnknownModel
from sled.messages import SERVICES
from sled.run.server import TargetServer, warm_up


class Dtype(StrEnum):
    """Arithmetic of the target."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def serve(
    model: Annotated[str, typer.Option(help="smollm2-135m, a .gguf file, or a model directory.")],
    bind: Annotated[str, typer.Option(help="Endpoint, e.g. tcp://0.0.0.0:5555; port 0 takes a free one.")],
    keys: Annotated[Path | None, typer.Option(help="Key directory made by `edgebus keygen DIR`.")] = None,
    allow: Annotated[
        str | None, typer.Option(help="Allow-list file, or `any` for every key; default KEYS/allowed_keys.")
    ] = None,
    dtype: Annotated[
        Dtype, typer.Option(help="float32 is exact, bfloat16 is faster where the CPU has it.")
    ] = Dtype.FLOAT32,
    max_window: Annotated[int, typer.Option(min=0, max=64, help="Drafts a device may send per round.")] = 16,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads for the target; 0 lets torch decide.")] = 0,
    insecure: Annotated[bool, typer.Option("--insecure", help="No encryption, no authentication.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the ready line as JSON.")] = False,
) -> None:
    """Serve a target model; prints one line with endpoint and public key when it is ready, ends on SIGTERM.

    Example:

        edgebus keygen server-keys && edgebus allow server-keys device-keys/node.key

        sled serve --model smollm2-135m --bind tcp://0.0.0.0:5555 --keys server-keys
    """
    logging.basicConfig(level=logging.WARNING, format="sled serve: %(levelname)s %(message)s")
    access = read_access("sled serve", keys=keys, allow=allow, insecure=insecure)
    with edgebus.Node(name="sled-server", keys=access.own, allow=access.allow, insecure=insecure) as node:
        # Bound before the model loads: an endpoint that cannot be had is known at once, and devices may wait already.
        inbox = node.serve(*SERVICES)
        endpoint = node.bind(bind)
        server = _load(inbox, model, dtype.value, max_window, threads)
        stop_on_signals(server.stop)
        ready = {"endpoint": endpoint, "public_key": access.public_key, "model": model, "dtype": dtype.value}
        print(json.dumps(ready) if as_json else ready_line(endpoint, access), flush=True)
        server.run()


def _load(inbox: edgebus.Inbox, model: str, dtype: str, max_window: int, threads: int) -> TargetServer:
    """The server with its target; torch is imported here, once the cheap checks have passed."""
    from sled.targets.catalog import find_model

    files = find_model(model)
    with load_bar(f"loading target {files.name}") as progress:
        try:
            import torch

            from sled.targets.causal_lm import load_target
        except ModuleNotFoundError as error:
            raise UnknownModel(f"serving needs {error.name}: pip install 'edgebus[server]'") from None
        if threads:
            torch.set_num_threads(threads)
        target = load_target(files, dtype=dtype, max_window=max_window, progress=progress)
        warm_up(target)
    print(
        f"target {files.name} ({dtype}, {torch.get_num_threads()} threads) loaded",
        file=sys.stderr,
        flush=True,
    )
    return TargetServer(inbox, target)
