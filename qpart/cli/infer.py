"""`qpart infer`: a device plans, fetches its part and answers inputs from a file."""

from __future__ import annotations

import io
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
import typer

from edgebus.cli.options import safe
from edgebus.cli.progress import load_bar
from edgebus.config import check_transport
from edgebus.files import write_whole
from qpart.cli.options import Computes, check_writable
from qpart.cli.show import console, plan_lines, plan_object, plan_table, printable
from qpart.inputs import as_float, check_labels, load_array, load_labels
from qpart.profile import Request
from qpart.quantiser import Floats
from qpart.run.cache import PieceCache
from qpart.run.device import Device
from qpart.run.stream import MAX_DEPTH
from qpart.run.traffic import Traffic


class Loss(StrEnum):
    """What to do without a server."""

    FAIL = "fail"
    LOCAL = "local"
    WAIT = "wait"


class Ran(NamedTuple):
    """Logits of all samples, the seconds of it all, and those until each answer after the one before."""

    logits: Floats
    seconds: float
    times_s: list[float]


def infer(
    request: Request,
    server: Annotated[
        list[str], typer.Option(help="The server's endpoint, e.g. tcp://10.0.0.5:5556; more of the same artefact too.")
    ],
    inputs: Annotated[
        Path,
        typer.Option("--inputs", "--input", help=".npy, one sample or (n, *shape); float32, or uint8 for pixels."),
    ],
    server_key: Annotated[
        list[str] | None,
        typer.Option(help="The server's public key: its node.key file or 40 characters; one, or one for each."),
    ] = None,
    keys: Annotated[Path | None, typer.Option(help="This device's key directory (`edgebus keygen DIR`).")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="No encryption, no authentication.")] = False,
    model: Annotated[str | None, typer.Option(help="Needed where the server has several.")] = None,
    labels: Annotated[Path | None, typer.Option(help=".npy, (n,) whole numbers; accuracy is reported.")] = None,
    inferences: Annotated[
        int | None,
        typer.Option(min=1, max=10**12, help="Over how many the download counts; default: the inputs that are run."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Inputs in one request.")] = 1,
    depth: Annotated[
        int, typer.Option(min=1, max=MAX_DEPTH, help="Requests on their way at once: heads run while tails are away.")
    ] = 2,
    on_loss: Annotated[
        Loss, typer.Option(help="When no server answers any more: fail, finish locally, or wait for one.")
    ] = Loss.FAIL,
    adapt: Annotated[
        bool, typer.Option("--adapt", help="Change the plan when channel or device are not what was said.")
    ] = False,
    executor: Annotated[
        Computes, typer.Option(help="What to compute with; torch may be faster where convolutions are large.")
    ] = Computes.NUMPY,
    limit: Annotated[int | None, typer.Option(min=1, help="Run the first N inputs only.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the logits to this .npy file.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Where pieces are kept; default ~/.cache/edgebus/pieces.")] = None,
    publisher: Annotated[
        str | None, typer.Option(help="Run only what this key signed: a publisher.key file, or 64 hexadecimal digits.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the server, each time.")] = 30.0,
    explain: Annotated[bool, typer.Option("--explain", help="Show every cut, and not the chosen one only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
) -> None:
    """Ask for a plan, load the device's part of the network, and answer inputs together with the server.

    Example:

        qpart infer --server tcp://10.0.0.5:5556 --server-key server.key --keys ./device --inputs x.npy --accuracy 0.01
    """
    if insecure and (server_key or keys):
        raise typer.BadParameter("--insecure sends plaintext: drop --server-key and --keys")
    for endpoint in server:
        check_transport(endpoint)
    answers = None if labels is None else load_labels(labels)
    array = load_array(inputs)  # what is wrong with files is known before anybody is asked for anything
    if out is not None:
        check_writable(out)
    with Device(
        server,
        model=model,
        server_key=server_key,
        keys=keys,
        insecure=insecure,
        timeout_s=timeout,
        cache=None if cache is None else PieceCache(cache),
        on_loss=on_loss.value,
        adapt=adapt,
        publisher=publisher,
        executor=executor.value,
    ) as device:
        samples = as_float(array, device.model.input_shape, name=str(inputs), tokens=device.model.takes_tokens)
        answers = None if answers is None else check_labels(answers, len(samples), device.model.num_classes)[:limit]
        samples = samples[:limit]
        planned = device.prepare(msgspec.structs.replace(request, inferences=inferences or len(samples)), explain=True)
        if not as_json:
            shown = printable(planned.plan)
            for line in plan_lines(shown):
                console().print(line, markup=False)
            if explain:
                console().print(plan_table(shown))
        with load_bar(f"inferring with {safe(device.model.name, 64)}", quiet=as_json) as progress:
            ran = _run(device, samples, batch, depth, progress)
        result = {
            "model": device.model.name,
            "model_id": device.model.model_id.hex(),
            "plan": plan_object(planned.plan, rows=explain),
            "batch": batch,
            "predictions": len(ran.logits),
            "local_answers": device.local_answers,
            "switches": device.switches,
            "accuracy": None if answers is None else float((ran.logits.argmax(axis=1) == answers).mean()),
            "traffic": asdict(device.traffic),
            "seconds": ran.seconds,
            "seconds_per_inference": ran.seconds / len(ran.logits),
            "median_request_s": statistics.median(ran.times_s),
        }
    if out is not None:
        _write_logits(out, ran.logits)
    if as_json:
        print(json.dumps(result))
    else:
        console().print("\n".join(_figures(result, device.traffic)), markup=False)


def _run(device: Device, samples: Floats, batch: int, depth: int, progress: Callable[[float], None]) -> Ran:
    """Answer all samples, so many at once."""
    parts, times_s, began = [], [], time.perf_counter()
    batches = (samples[start : start + batch] for start in range(0, len(samples), batch))
    before = began
    for logits in device.infer_stream(batches, depth):
        parts.append(logits)
        now = time.perf_counter()
        times_s.append(now - before)
        before = now
        progress(min(1.0, len(parts) * batch / len(samples)))
    return Ran(np.concatenate(parts), before - began, times_s)


def _write_logits(path: Path, logits: Floats) -> None:
    content = io.BytesIO()
    np.save(content, logits)
    write_whole(path, content.getvalue())


def _figures(result: dict[str, Any], traffic: Traffic) -> list[str]:
    lines = [
        f"bytes, planned and counted: {traffic.planned_download_bytes:,} and {traffic.download_bytes:,} loaded, "
        f"{traffic.planned_up_bytes:,} and {traffic.up_bytes:,} up, "
        f"{traffic.planned_answer_bytes:,} and {traffic.answer_bytes:,} answers; "
        f"{traffic.control_bytes:,} for planning, {traffic.wire_bytes:,} on the wire with headers",
        f"{result['predictions']:,} inferences in {result['seconds']:.2f} s, "
        f"{1e3 * result['seconds_per_inference']:.2f} ms each",
    ]
    if result["local_answers"]:
        lines.append(f"{result['local_answers']:,} of them on this device alone")
    if result["switches"]:
        lines.append(f"the plan was changed {result['switches']} times")
    return lines if result["accuracy"] is None else [*lines, f"accuracy {result['accuracy']:.2%}"]
