"""`qpart infer`: a device plans, fetches its part and answers inputs from a file."""

from __future__ import annotations

import io
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
import typer

from edgebus.cli.progress import load_bar
from edgebus.files import write_whole
from qpart.cli.show import console, plan_lines, plan_object, plan_table
from qpart.errors import ArtefactError, ShapeMismatch
from qpart.inputs import load_inputs
from qpart.profile import Request
from qpart.quantiser import Floats
from qpart.run.cache import PieceCache
from qpart.run.device import Device, Traffic


def infer(
    request: Request,
    server: Annotated[str, typer.Option(help="The server's endpoint, e.g. tcp://10.0.0.5:5556.")],
    inputs: Annotated[Path, typer.Option(help=".npy, one sample or (n, *shape); float32, or uint8 for pixels.")],
    server_key: Annotated[
        str | None, typer.Option(help="The server's public key: its node.key file or 40 characters.")
    ] = None,
    keys: Annotated[Path | None, typer.Option(help="This device's key directory (`edgebus keygen DIR`).")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="No encryption, no authentication.")] = False,
    model: Annotated[str | None, typer.Option(help="Needed where the server has several.")] = None,
    labels: Annotated[Path | None, typer.Option(help=".npy, (n,) whole numbers; accuracy is reported.")] = None,
    inferences: Annotated[
        int | None, typer.Option(help="Over how many the download counts; default: the inputs that are run.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Inputs in one request.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Run the first N inputs only.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the logits to this .npy file.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Where pieces are kept; default ~/.cache/edgebus/pieces.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the server, each time.")] = 30.0,
    explain: Annotated[bool, typer.Option("--explain", help="Show every cut, and not the chosen one only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
) -> None:
    """Ask for a plan, load the device's part of the network, and answer inputs together with the server.

    Example:

        qpart infer --server tcp://10.0.0.5:5556 --server-key server.key --keys ./device --inputs x.npy --accuracy 0.01
    """
    answers = None if labels is None else _load_labels(labels)
    with Device(
        server,
        model=model,
        server_key=server_key,
        keys=keys,
        insecure=insecure,
        timeout_s=timeout,
        cache=None if cache is None else PieceCache(cache),
    ) as device:
        samples = load_inputs(inputs, device.model.input_shape)
        answers = None if answers is None else _check_labels(answers, samples, device.model.num_classes)[:limit]
        samples = samples[:limit]
        planned = device.prepare(msgspec.structs.replace(request, inferences=inferences or len(samples)))
        if not as_json:
            for line in plan_lines(planned.plan):
                console().print(line, markup=False)
            if explain:
                console().print(plan_table(planned.plan))
        with load_bar(f"inferring with {device.model.name}", quiet=as_json) as progress:
            logits, times_s = _run(device, samples, batch, progress)
        result = {
            "model": device.model.name,
            "model_id": device.model.model_id.hex(),
            "plan": plan_object(planned.plan, rows=explain),
            "batch": batch,
            "predictions": len(logits),
            "accuracy": None if answers is None else float((logits.argmax(axis=1) == answers).mean()),
            "traffic": asdict(device.traffic),
            "seconds": sum(times_s),
            "seconds_per_inference": sum(times_s) / len(logits),
            "median_request_s": statistics.median(times_s),
        }
    if out is not None:
        _write_logits(out, logits)
    if as_json:
        print(json.dumps(result))
    else:
        console().print("\n".join(_figures(result, device.traffic)), markup=False)


def _run(device: Device, samples: Floats, batch: int, progress: Callable[[float], None]) -> tuple[Floats, list[float]]:
    """Logits of all samples, and the seconds of every batch."""
    parts, times_s = [], []
    for start in range(0, len(samples), batch):
        began = time.perf_counter()
        parts.append(device.infer(samples[start : start + batch]))
        times_s.append(time.perf_counter() - began)
        progress(min(1.0, (start + batch) / len(samples)))
    return np.concatenate(parts), times_s


def _load_labels(path: Path) -> npt.NDArray[Any]:
    try:
        labels = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ArtefactError(f"labels {path} cannot be read: {error}; write them with numpy.save") from None
    if not isinstance(labels, np.ndarray) or labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ArtefactError(f"labels {path} must be one array (n,) of whole numbers")
    return labels


def _check_labels(labels: npt.NDArray[Any], samples: Floats, num_classes: int) -> npt.NDArray[Any]:
    if len(labels) != len(samples):
        raise ShapeMismatch(f"{len(labels)} labels are given for {len(samples)} inputs")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ShapeMismatch(f"labels go from {labels.min()} to {labels.max()}, the model has {num_classes} classes")
    return labels


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
    return lines if result["accuracy"] is None else [*lines, f"accuracy {result['accuracy']:.2%}"]
