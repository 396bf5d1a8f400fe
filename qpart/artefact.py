"""A calibrated model in one file: network, parameters, noise and bytes of every tensor, and what was measured.

The file is a safetensors file, arrays and one JSON text in its header; nothing in it is executed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edgebus.files import write_whole
from qpart import sizes
from qpart.effort import Effort
from qpart.errors import ArtefactError, QpartError
from qpart.inputs import as_float
from qpart.messages import MAX_NAME
from qpart.network import Network, Parameters
from qpart.noise import Law
from qpart.pieces import ADDRESS_BYTES, content_id
from qpart.quantiser import MOST, Floats, Range
from qpart.tables import WIDTHS, Tables
from qpart.verify import PatternKey

FORMAT = 3  # 2: budgets from bounds that were not exact (docs/adr/0017)
_KEY = "qpart"
# What reading a file of anybody's raises; safetensors has no error of its own for a type that numpy does not know.
_DAMAGED = msgspec.DecodeError, ValueError, LookupError, TypeError, AttributeError, RecursionError, QpartError


class Shrink(msgspec.Struct, frozen=True):
    """What is left of the noise budget of a level at a cut, after patterns were run as a whole."""

    cut: int
    level: int
    factor: float


class Trial(msgspec.Struct, frozen=True):
    """One random pattern of the budget map.

    Attributes:
        psi: predicted noise, the sum over its tensors.
        joint_psi: noise as a whole.
        changed: predictions that changed, of `inputs`.
        drop: of the accuracy, where labels are known.
    """

    psi: float
    joint_psi: float
    changed: int
    inputs: int
    drop: float | None = None

    @property
    def share(self) -> float:
        """Of the predictions that changed."""
        return self.changed / self.inputs


class Verified(msgspec.Struct, frozen=True):
    """One pattern that was run as a whole when levels were verified."""

    cut: int
    weight_bits: tuple[int, ...]
    live_bits: tuple[int, ...]
    psi: float
    changed: float
    drop: float | None = None

    @property
    def key(self) -> PatternKey:
        """What makes it this pattern."""
        return self.cut, self.weight_bits, self.live_bits


class Extent(msgspec.Struct, frozen=True, kw_only=True):
    """How much was run.

    Attributes:
        effort: inputs and patterns of each stage.
        row_inputs: inputs of the longest row of the noise table, which ends early where noise is known well enough.
        rows: tensors that were measured alone.
        row_forwards: inputs times widths of all rows together.
        accuracy: share of the calibration inputs that the model answers rightly; None without labels.
    """

    effort: Effort
    row_inputs: int
    rows: int
    row_forwards: int
    accuracy: float | None = None


class _Version(msgspec.Struct, frozen=True):
    """What is read first: the rest of the record is as its format has it."""

    format: int


class _Header(msgspec.Struct, frozen=True):
    """Of a safetensors file: what it says besides its arrays."""

    metadata: dict[str, str] = msgspec.field(default={}, name="__metadata__")


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about an artefact that is not an array."""

    format: int
    name: str
    tables: Tables
    ranges: dict[int, tuple[tuple[float, float], ...]]
    piece_ids: dict[int, tuple[bytes, ...]]
    margin: float
    shrink: tuple[Shrink, ...]
    trials: tuple[Trial, ...]
    seed: int
    weight_laws: dict[int, Law]
    value_laws: dict[int, Law]
    verified: tuple[Verified, ...]
    extent: Extent


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """A calibrated model.

    Attributes:
        name: how a server offers it.
        tables: for the planner.
        parameters: full precision, by node.
        ranges: of every value that may travel, at each of `WIDTHS`.
        piece_ids: address of every layer's piece that takes it to each of `WIDTHS`; empty where there is none.
        inputs: calibration inputs (n, *input_shape), float32 or uint8 pixels.
        logits: the model's answers to them, float32 (n, classes).
        margin: half the mean squared margin of these.
        shrink: by (cut, index of level).
        trials: what the budget map was fitted to.
        seed: of the random patterns.
        weight_laws: the law of noise fitted to every weight, by node: a fast bound, never a decision.
        value_laws: likewise of every value that may travel, where it first may.
        verified: patterns of the levels that were run as a whole.
        extent: how much was run.
        model_id: hash of the file; empty before it is written.
    """

    name: str
    tables: Tables
    parameters: Mapping[int, Parameters]
    ranges: Mapping[int, tuple[Range, ...]]
    piece_ids: Mapping[int, tuple[bytes, ...]]
    inputs: npt.NDArray[Any]
    logits: Floats
    margin: float
    shrink: Mapping[tuple[int, int], float]
    trials: tuple[Trial, ...]
    seed: int
    weight_laws: Mapping[int, Law]
    value_laws: Mapping[int, Law]
    verified: tuple[Verified, ...]
    extent: Extent
    model_id: bytes = field(default=b"")

    @property
    def network(self) -> Network:
        return self.tables.network

    def known(self) -> dict[PatternKey, Verified]:
        """What need not be run again: patterns that were verified on all inputs."""
        if self.extent.effort.verify_inputs < len(self.inputs):
            return {}
        return {one.key: one for one in self.verified}

    @property
    def num_classes(self) -> int:
        return int(self.logits.shape[1])

    def float_inputs(self) -> Floats:
        """Calibration inputs as the network takes them."""
        return as_float(self.inputs, self.network.input_shape)


def save(artefact: Artefact, path: str | Path) -> Artefact:
    """Write the file, whole or not at all; returns the artefact with its `model_id`.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors.numpy import save as to_bytes

    record = Record(
        format=FORMAT,
        name=artefact.name,
        tables=artefact.tables,
        ranges={value: tuple((r.scale, r.offset) for r in row) for value, row in artefact.ranges.items()},
        piece_ids=dict(artefact.piece_ids),
        margin=artefact.margin,
        shrink=tuple(Shrink(cut, level, factor) for (cut, level), factor in sorted(artefact.shrink.items())),
        trials=artefact.trials,
        seed=artefact.seed,
        weight_laws=dict(artefact.weight_laws),
        value_laws=dict(artefact.value_laws),
        verified=artefact.verified,
        extent=artefact.extent,
    )
    arrays = {"inputs": artefact.inputs, "logits": artefact.logits}
    for node, (weight, bias) in artefact.parameters.items():
        arrays[f"{node}.weight"] = weight
        if bias is not None:
            arrays[f"{node}.bias"] = bias
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    content = to_bytes(arrays, metadata={_KEY: msgspec.json.encode(record).decode()})
    write_whole(Path(path), content)
    return replace(artefact, model_id=content_id(content))


def load(path: str | Path) -> Artefact:
    """Read and check a file that `save` wrote.

    Raises:
        ArtefactError: there is no such file, or it is damaged, or of another version.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load as arrays_of
    except ModuleNotFoundError:
        raise ArtefactError("reading an artefact needs safetensors: pip install 'edgebus[server]'") from None
    path = Path(path)
    try:
        content = path.read_bytes()
        text = _record_of(content)
        if text is None:
            raise ArtefactError(f"{path} is not a calibrated model; make one with `qpart calibrate`")
        # first: another version may have arrays that numpy does not know
        _check_format(path, msgspec.json.decode(text, type=_Version).format)
        record = msgspec.json.decode(text, type=Record)
        return _checked(record, arrays_of(content), content_id(content))
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ArtefactError(f"{path} cannot be read: {why}; make it with `qpart calibrate`") from None
    except _DAMAGED as error:
        if isinstance(error, ArtefactError):
            raise
        raise ArtefactError(f"{path} is damaged or of another version: {error}; calibrate again") from None


def _record_of(content: bytes) -> str | None:
    """The record's JSON in the header of a safetensors file; None where there is none."""
    size = int.from_bytes(content[:8], "little")
    try:
        return msgspec.json.decode(content[8 : 8 + size], type=_Header).metadata.get(_KEY)
    except (msgspec.DecodeError, RecursionError):
        return None


def _check_format(path: Path, found: int) -> None:
    """Only what this version wrote keeps the promises that this version makes."""
    if found > FORMAT:
        raise ArtefactError(
            f"{path} is of a later version (format {found}, this one reads {FORMAT}); "
            "update edgebus, or calibrate again"
        )
    if found < FORMAT:
        raise ArtefactError(
            f"{path} was calibrated by an older version (format {found}, now {FORMAT}), whose bounds of the accuracy "
            f"drop were not exact; calibrate again: qpart calibrate MODEL --data DATA --out {path}"
        )


def _checked(record: Record, arrays: dict[str, npt.NDArray[Any]], model_id: bytes) -> Artefact:
    network = record.tables.network
    _check_record(record)
    parameters = {}
    for node in network.parametric:
        op = network.nodes[node].op
        assert op.weight_shape is not None
        weight = _floats(arrays, f"{node}.weight", op.weight_shape)
        bias = _floats(arrays, f"{node}.bias", op.weight_shape[:1]) if op.has_bias else None
        parameters[node] = Parameters(weight, bias)
    num_classes = network.items(network.num_nodes)
    inputs = arrays["inputs"]
    as_float(inputs, network.input_shape)
    return Artefact(
        name=record.name,
        tables=record.tables,
        parameters=parameters,
        ranges={value: tuple(Range(*r) for r in row) for value, row in record.ranges.items()},
        piece_ids=record.piece_ids,
        inputs=inputs,
        logits=_floats(arrays, "logits", (len(inputs), num_classes)),
        margin=record.margin,
        shrink={(s.cut, s.level): s.factor for s in record.shrink},
        trials=record.trials,
        seed=record.seed,
        weight_laws=record.weight_laws,
        value_laws=record.value_laws,
        verified=record.verified,
        extent=record.extent,
        model_id=model_id,
    )


def _check_record(record: Record) -> None:
    """Numbers that would otherwise be believed: what planning and the wire rely on."""
    tables, network = record.tables, record.tables.network
    live = {value for values in network.live for value in values}
    complete = set(record.ranges) == live and set(record.piece_ids) == set(network.parametric)
    rows = (*record.ranges.values(), *record.piece_ids.values())
    if not complete or any(len(row) != len(WIDTHS) for row in rows):
        raise ValueError("ranges or addresses are missing")
    for node, row in record.piece_ids.items():
        if any(
            len(address) != (ADDRESS_BYTES if size else 0)
            for address, size in zip(row, tables.piece_bytes[node], strict=True)
        ):
            raise ValueError("an address has another length")
    if not all(0 <= scale <= MOST and abs(offset) <= MOST for row in record.ranges.values() for scale, offset in row):
        raise ValueError("a range is no range of float32")
    if not 0 < record.margin < inf or not 1 <= len(record.name) <= MAX_NAME:
        raise ValueError("margin or name are out of range")
    cuts, levels = network.num_nodes + 1, len(tables.levels)
    if not all(0 <= s.cut < cuts and 0 <= s.level < levels and 0 <= s.factor <= 1 for s in record.shrink):
        raise ValueError("a shrunk budget is out of range")
    if set(record.weight_laws) != set(network.parametric) or set(record.value_laws) != live:
        raise ValueError("laws are missing")
    if not record.trials or any(not 0 <= trial.changed <= trial.inputs or not trial.inputs for trial in record.trials):
        raise ValueError("random patterns are missing or impossible")
    if any(getattr(tables, field) != found for field, found in sizes.all_sizes(network)._asdict().items()):
        raise ValueError("sizes are not those of this version")


def _floats(arrays: dict[str, npt.NDArray[Any]], name: str, shape: tuple[int, ...]) -> Floats:
    array = arrays[name]
    if array.dtype != np.float32 or array.shape != shape or not np.isfinite(array).all():
        raise ValueError(f"{name} is {array.dtype} {array.shape}, or not finite; expected float32 {shape}")
    return array
