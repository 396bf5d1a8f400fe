"""`sled serve`: one target for every device that may connect."""

from __future__ import annotations

import json
import logging
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

import edgebus
from sled.cli.progress import load_bar
from sled.errors import ParameterError, UnknownModel
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
    if not insecure and keys is None:
        raise ParameterError("give --keys DIR (made by `edgebus keygen DIR`), or --insecure to go without")
    own = None if insecure or keys is None else edgebus.load_keys(keys)
    allow_list = None if insecure or keys is None else _allow_list(keys, allow)
    with edgebus.Node(name="sled-server", keys=own, allow=allow_list, insecure=insecure) as node:
        # Bound before the model loads: an endpoint that cannot be had is known at once, and devices may wait already.
        inbox = node.serve(*SERVICES)
        ready = {"endpoint": node.bind(bind), "public_key": own.public if own else None}
        server = _load(inbox, model, dtype.value, max_window, threads)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: server.stop())
        ready |= {"model": model, "dtype": dtype.value}
        line = f"ready {ready['endpoint']} key {ready['public_key'] or 'none (insecure)'}"
        print(json.dumps(ready) if as_json else line, flush=True)
        server.run()


def _allow_list(keys: Path, allow: str | None) -> edgebus.AllowList:
    if allow == "any":
        return edgebus.AllowList.any()
    path = Path(allow) if allow is not None else keys / "allowed_keys"
    if allow is not None and not path.is_file():
        raise ParameterError(f"no allow-list {path}; make it with `edgebus allow {keys} PUBLIC_KEY_FILE`, or say any")
    if not path.is_file():
        print(
            f"sled serve: nobody may connect yet; let devices in with `edgebus allow {keys} NODE_KEY`", file=sys.stderr
        )
    return edgebus.AllowList.from_file(path)


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
