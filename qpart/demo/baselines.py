"""What else a device could do: payload per inference and accuracy, with the planner's own sizes."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qpart.demo.held_out import HeldOut
from qpart.limits import allowances, at_cut
from qpart.patterns import Pattern, uniform
from qpart.plan import cost_row
from qpart.profile import Request, ServerProfile
from qpart.tables import WIDTHS, Tables

PIXEL_BITS = 8
_NOT_ALLOWED = "not allowed here"


@dataclass(frozen=True, slots=True)
class Way:
    """One way to get an answer.

    Attributes:
        payload_bytes: per inference: download divided by the inferences, request and answer.
        accuracy: on the held-out images.
        note: why it is out of the question here, if it is.
    """

    name: str
    cut: int
    payload_bytes: float
    accuracy: float
    note: str = ""


def payload(tables: Tables, pattern: Pattern, inferences: int) -> float:
    """Bytes per inference: the download amortised, the request and the answer."""
    return pattern.download_bytes / inferences + pattern.up_bytes + tables.answer_bytes[pattern.cut]


def raw(held: HeldOut, request: Request) -> Way:
    """Everything on the server: the image travels as its bytes."""
    pattern = uniform(held.artefact.tables, 0, PIXEL_BITS)
    note = _NOT_ALLOWED if request.raw_input_stays else ""
    return Way(
        "all-server, raw image",
        0,
        payload(held.artefact.tables, pattern, request.inferences),
        held.accuracy(held.simulated(pattern)),
        note,
    )


def png(held: HeldOut, request: Request) -> Way | None:
    """As `raw`, with the image as PNG; None where Pillow is not installed."""
    size = png_bytes(held.images)
    if size is None:
        return None
    tables = held.artefact.tables
    note = _NOT_ALLOWED if request.raw_input_stays else ""
    total = size + tables.infer_bytes[0] + tables.answer_bytes[0]
    return Way("all-server, image as PNG", 0, total, held.accuracy(held.full), note)


def png_bytes(images: npt.NDArray[np.uint8]) -> float | None:
    """Mean size of images (n, 1, height, width) as PNG files."""
    try:
        from PIL import Image
    except ModuleNotFoundError:
        return None
    sizes = []
    for image in images[:, 0]:
        content = io.BytesIO()
        Image.fromarray(image).save(content, "PNG", optimize=True)
        sizes.append(len(content.getvalue()))
    return float(np.mean(sizes))


def full_precision(held: HeldOut, request: Request) -> Way:
    """Everything on the device, in float32."""
    artefact = held.artefact
    tables, last = artefact.tables, artefact.network.num_nodes
    weights = sum(p.weight.nbytes + (0 if p.bias is None else p.bias.nbytes) for p in artefact.parameters.values())
    load = tables.manifest_bytes[last] + weights
    fits = load + 4 * tables.device_items[last] <= request.device.memory_bytes
    note = "" if fits else "too large for it"
    return Way("all-device, float32", last, load / request.inferences, held.accuracy(held.full), note)


def one_width(held: HeldOut, request: Request, server: ServerProfile) -> Way | None:
    """The best cut with the same width for everything, within the same noise; None if there is none."""
    tables, shrink = held.artefact.tables, held.artefact.shrink
    granted, found = allowances(tables, request.accuracy), []
    for cut in range(tables.network.num_nodes + 1):
        if request.raw_input_stays and tables.network.shows_input(cut):
            continue
        budget = at_cut(granted, cut, dict(shrink)).budget
        for bits in WIDTHS:
            pattern = uniform(tables, cut, bits)
            if pattern.psi <= budget and pattern.device_bytes <= request.device.memory_bytes:
                found.append((cost_row(tables, pattern, request, server).objective, bits, pattern))
    if not found:
        return None
    _, bits, best = min(found, key=lambda one: one[:2])
    return Way(
        f"best cut, {bits} bits everywhere",
        best.cut,
        payload(tables, best, request.inferences),
        held.accuracy(held.simulated(best)),
    )
