"""Cheaper copies of a decoder: without some layers, or with fewer bits."""

from collections.abc import Callable, Collection
from dataclasses import fields, replace
from typing import Any

import numpy as np

from edgekernels import _bits_checks
from edgekernels._matrix import PackedMatrix
from edgekernels.decoder.config import DecoderError
from edgekernels.decoder.model import Decoder
from edgekernels.decoder.weights import GROUPS, Layer, Linear


def reduced(
    decoder: Decoder,
    *,
    skip: Collection[int] = (),
    bits: int | None = None,
    group: int = 64,
    progress: Callable[[float], None] | None = None,
) -> Decoder:
    """A copy that costs less and says almost the same; it shares what it does not change.

    Args:
        decoder: the model.
        skip: numbers of layers to leave out.
        bits: width, 1 .. 8, of the layers' matrices; None leaves them. Embedding and head stay as they are.
        group: columns for each scale: 16, 32, 64, 128 or 256, less where it does not divide the columns.
        progress: called with the share done, 0 .. 1.

    Returns:
        The copy, of the same activations.

    Raises:
        DecoderError: a layer it does not have, or none would be left.
        ValueError: bits or group out of range.

    Source: self-speculative decoding by skipped layers (arXiv 2309.08168); low-bit drafts of the same network (QSpec,
        arXiv 2410.11305); ranges of the least squared error (`fit`).
    """
    count = decoder.config.num_layers
    missing = [number for number in skip if not 0 <= number < count]
    if missing or len(set(skip)) == count:
        what = f"layer {missing[0]}" if missing else "all layers"
        raise DecoderError(f"cannot skip {what}: the model has layers 0 to {count - 1}, and needs one of them")
    if group not in GROUPS:
        raise ValueError(f"group is {group!r}; pass one of {', '.join(map(str, reversed(GROUPS)))}")
    kept = [layer for number, layer in enumerate(decoder.weights.layers) if number not in set(skip)]
    if bits is not None:
        bits = _bits_checks.integer("bits", bits, 1, 8)
        for number, layer in enumerate(kept):
            kept[number] = _narrowed(layer, bits, group)
            if progress:
                progress((number + 1) / len(kept))
    config = replace(decoder.config, num_layers=len(kept))
    weights = replace(decoder.weights, layers=tuple(kept))
    return Decoder(config, weights, activations=decoder.activations)


def _narrowed(layer: Layer, bits: int, group: int) -> Layer:
    parts = {field.name: getattr(layer, field.name) for field in fields(layer)}
    narrow: dict[str, Any] = {
        name: _requantised(part, bits, group) for name, part in parts.items() if isinstance(part, Linear)
    }
    return replace(layer, **narrow)


def _requantised(linear: Linear, bits: int, group: int) -> Linear:
    matrix = linear.matrix
    values = matrix.dequantise() if isinstance(matrix, PackedMatrix) else matrix
    fitting = [size for size in GROUPS if size <= group and values.shape[1] % size == 0]
    if not fitting:
        return linear
    packed = PackedMatrix.quantise(np.ascontiguousarray(values), bits, group=fitting[0], clip="mse")
    return Linear(packed, linear.bias)
