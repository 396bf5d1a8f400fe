"""`qpart profile`: measure the machine this runs on, and write what `--profile` reads."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from edgebus.files import write_whole
from qpart import artefact as files
from qpart import explain, profiles
from qpart.artefact import Artefact
from qpart.cli.options import Computes
from qpart.errors import RequestError
from qpart.executors import Executor
from qpart.executors.devices import ExecutorKind, check_kind, make_executor
from qpart.pieces import Layer, encode_pieces, steps_to
from qpart.run.speed import Speed, measure
from qpart.tables import WIDTHS

_SHARE_OF_MEMORY = 2


def profile(
    artefact: Annotated[Path, typer.Argument(help="File made by `qpart calibrate`.")],
    out: Annotated[Path | None, typer.Option(help="File to write; without it the profile is printed.")] = None,
    server: Annotated[bool, typer.Option("--server", help="Measure the server's executor, torch, instead.")] = False,
    executor: Annotated[
        Computes | None, typer.Option(help="What the device computes with; numpy unless said otherwise.")
    ] = None,
    threads: Annotated[
        int, typer.Option(min=0, help="CPU threads of the server's forwards; 0 takes one, or all if much faster.")
    ] = 0,
    bits: Annotated[int, typer.Option(help="Width of the packed weights that a device unpacks on each run.")] = 4,
    device: Annotated[str | None, typer.Option(help="Take power numbers from the profile of this board.")] = None,
    runs: Annotated[int, typer.Option(min=1, help="Whose median is taken.")] = 9,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure how long each node of a network takes here, one sample at a time, as a device runs it.

    Power cannot be measured without instruments: it comes from `--device`, or is left out. Rates of the channel are
    for you to say.

    Example:

        qpart profile net.qpart --device rpi5 --out here.toml

        qpart plan net.qpart --profile here.toml --accuracy 0.01 --explain
    """
    if bits not in WIDTHS:
        raise RequestError(f"a width of {bits} bits is none of {WIDTHS}")
    if server and executor is not None:
        raise RequestError("a server computes with torch: leave --executor out, it is what a device computes with")
    if threads and not server:
        raise RequestError("--threads are those of a server: give --server as well")
    known = profiles.board(device) if device is not None else {}
    loaded = files.load(artefact)
    measured, runs_on = (
        _server(loaded, threads) if server else _device(loaded, bits, (executor or Computes.NUMPY).value)
    )
    speed = measure(loaded.network, measured, np.ascontiguousarray(loaded.float_inputs()[:1]), runs=runs)
    settings = _settings(known, speed, server)
    settings["measured"] = {
        "model": loaded.name,
        "nodes": loaded.network.num_nodes,
        "executor": runs_on,
        "machine": f"{platform.machine()} {platform.node()}",
        "cores": len(os.sched_getaffinity(0)),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    text = profiles.written(settings, head=[f"`qpart profile {artefact.name}`: seconds of every node, one sample"])
    if out is not None:
        write_whole(out, text.encode())
    if as_json:
        print(json.dumps({"whole_s": speed.whole_s, **settings}))
    elif out is None:
        print(text, end="")
    else:
        print("\n".join(_summary(loaded, speed, runs_on)))
        print(f"{out}: give it to `qpart {'plan --server-profile' if server else 'plan --profile'}`")


def available_memory() -> int:
    """Bytes that the machine could give away now; what it has in all where nobody says."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _device(loaded: Artefact, bits: int, kind: ExecutorKind = "numpy") -> tuple[Executor, str]:
    """As a device runs it: layers are held as `qpart.head` holds them."""
    check_kind(kind)
    nodes, layers = loaded.network.nodes, {}
    for node, known in loaded.parameters.items():
        pieces = dict(zip(WIDTHS, encode_pieces(known), strict=True))
        steps = steps_to(known.weight.size, bits)
        layers[node] = Layer([pieces[step.first] for step in steps], nodes[node].op, bits)
    executor = make_executor(
        kind, nodes, lambda node: layers[node].parameters(), lambda node, x: layers[node].product(x)
    )
    return executor, f"{kind} {version(kind)}, weights at {bits} bits"


def _server(loaded: Artefact, threads: int) -> tuple[Executor, str]:
    """As `qpart serve` runs it."""
    from qpart.run.models import make_executor as make_torch_executor

    executor = make_torch_executor(loaded, threads=threads)
    return executor, f"torch {version('torch')}, {executor.threads} thread{'s' if executor.threads > 1 else ''}"


def _settings(known: profiles.Settings, speed: Speed, server: bool) -> profiles.Settings:
    if server:
        return {"server": {"macs_per_s": speed.macs_per_s, "layer_s": speed.layer_s}}
    found = {
        "joules_per_mac": 0.0,
        **known.get("device", {}),
        "macs_per_s": speed.macs_per_s,
        "memory_bytes": available_memory() // _SHARE_OF_MEMORY,
        "layer_s": speed.layer_s,
    }
    return {**known, "device": found}


def _summary(loaded: Artefact, speed: Speed, runs_on: str) -> list[str]:
    slowest = sorted(range(len(speed.layer_s)), key=lambda i: -speed.layer_s[i])[:5]
    shares: list[Any] = [
        f"{loaded.network.name_of(i + 1)} {explain.seconds(speed.layer_s[i])} "
        f"({speed.layer_s[i] / max(speed.whole_s, 1e-12):.0%})"
        for i in slowest
    ]
    return [
        f"{loaded.name} on {runs_on}: {explain.seconds(speed.whole_s)} for one sample, "
        f"{speed.macs_per_s:.3g} multiply-accumulates per second",
        f"slowest: {', '.join(shares)}",
    ]
