"""What a decoder is given, checked before C reads it: shapes, dtypes and layout of all weights."""

from typing import Any

import numpy as np

from edgekernels._matrix import PackedMatrix
from edgekernels.decoder.config import DecoderConfig, DecoderError
from edgekernels.decoder.weights import Linear, Weights


def check(config: DecoderConfig, weights: Weights) -> None:
    """Insist on weights of the shape which the config states.

    Raises:
        DecoderError: one has another type or shape; the message names it.
    """
    hidden, ffn, d = config.hidden_size, config.ffn_size, config.head_dim
    wide, narrow = config.num_heads * d, config.num_kv_heads * d
    if len(weights.layers) != config.num_layers:
        raise DecoderError(f"weights of {len(weights.layers)} layers; the config states {config.num_layers}")
    shapes = {
        "query": (wide, hidden),
        "key": (narrow, hidden),
        "value": (narrow, hidden),
        "output": (hidden, wide),
        "gate": (ffn, hidden),
        "up": (ffn, hidden),
        "down": (hidden, ffn),
    }
    _floats("frequencies", config.frequencies, (len(config.frequencies),))
    _matrix("embedding", weights.embedding, (config.vocab_size, hidden))
    _floats("norm", weights.norm, (hidden,))
    _linear("head", weights.head, (config.vocab_size, hidden))
    for number, layer in enumerate(weights.layers):
        at = f"layers[{number}]."
        for name, shape in shapes.items():
            _linear(at + name, getattr(layer, name), shape)
        _floats(f"{at}attention_norm", layer.attention_norm, (hidden,))
        _floats(f"{at}ffn_norm", layer.ffn_norm, (hidden,))
        if layer.query_norm is not None or layer.key_norm is not None:
            _floats(f"{at}query_norm", layer.query_norm, (d,))
            _floats(f"{at}key_norm", layer.key_norm, (d,))


def _linear(name: str, value: Any, shape: tuple[int, int]) -> None:
    if not isinstance(value, Linear):
        raise DecoderError(f"{name} is {type(value).__name__}; pass a Linear of shape {shape}")
    _matrix(f"{name}.matrix", value.matrix, shape)
    if value.bias is not None:
        _floats(f"{name}.bias", value.bias, shape[:1])


def _matrix(name: str, value: Any, shape: tuple[int, int]) -> None:
    if not isinstance(value, PackedMatrix):
        _floats(name, value, shape)
    elif (value.rows, value.columns) != shape:
        raise DecoderError(f"{name} has shape {(value.rows, value.columns)}; {shape} is needed")
    elif value.bend is not None:
        raise DecoderError(f"{name} is bent; the decoder's products need evenly spaced codes")


def _floats(name: str, value: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(value, np.ndarray) or value.dtype != np.float32:
        found = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise DecoderError(f"{name} is {found}; float32 of shape {shape} is needed")
    if value.shape != shape:
        raise DecoderError(f"{name} has shape {value.shape}; {shape} is needed")
    if not value.flags.c_contiguous or not value.flags.aligned:
        raise DecoderError(f"{name} of shape {shape} is not C-contiguous; pass numpy.ascontiguousarray of it")
