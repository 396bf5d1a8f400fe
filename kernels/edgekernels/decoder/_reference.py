"""The forward pass in numpy: the specification of every other way to compute it (docs/spec/kernels-decoder.md)."""

import numpy as np
import numpy.typing as npt

from edgekernels.decoder.config import DecoderConfig, Floats
from edgekernels.decoder.weights import Layer, Linear, Weights, multiply

Ints = npt.NDArray[np.int64]
MAX_HALF = np.float32(65504)


def rms_norm(x: Floats, weight: Floats, epsilon: float) -> Floats:
    """Scale rows (m, n) to a root mean square of 1, then by the weight.

    Source: arXiv 1910.07467.
    """
    square = np.mean(x.astype(np.float64) ** 2, axis=-1, keepdims=True)
    scale: Floats = (1 / np.sqrt(square + epsilon)).astype(np.float32)
    return np.asarray(x * scale * weight, np.float32)


def rotate(heads: Floats, positions: npt.NDArray[np.int64], frequencies: Floats) -> Floats:
    """Turn the pairs (i, i + r / 2) of the first r dimensions of heads (m, h, d) by position times frequency.

    Source: arXiv 2104.09864, in the layout of halves.
    """
    half = len(frequencies)
    angle = positions.astype(np.float32)[:, None, None] * frequencies
    cosine, sine = (f(angle.astype(np.float64)).astype(np.float32) for f in (np.cos, np.sin))
    first, second = heads[..., :half], heads[..., half : 2 * half]
    turned = heads.copy()
    turned[..., :half] = first * cosine - second * sine
    turned[..., half : 2 * half] = second * cosine + first * sine
    return turned


def silu(x: Floats) -> Floats:
    """x / (1 + exp(-x))."""
    return np.asarray(x / (1 + np.exp(-np.clip(x, -80, 80))), np.float32)


def attend(query: Floats, keys: Floats, values: Floats, past: int) -> Floats:
    """Causal attention of grouped heads.

    Args:
        query: (m, heads, d), turned.
        keys: (kv_heads, past + m, d), turned.
        values: (kv_heads, past + m, d).
        past: positions before the first query.

    Returns:
        (m, heads, d).
    """
    m, heads, d = query.shape
    grouped = query.reshape(m, keys.shape[0], -1, d)
    scores = np.einsum("mhgd,htd->hgmt", grouped, keys) / np.float32(np.sqrt(d))
    hidden = np.arange(past + m) > past + np.arange(m)[:, None]
    scores[:, :, hidden] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.asarray(np.einsum("hgmt,htd->mhgd", weights, values).reshape(m, heads, d), np.float32)


def stored(values: Floats, half: bool) -> Floats:
    """What a cache gives back of values it was given: float16 saturates and rounds to nearest."""
    return np.clip(values, -MAX_HALF, MAX_HALF).astype(np.float16).astype(np.float32) if half else values


def forward(
    config: DecoderConfig,
    weights: Weights,
    tokens: npt.NDArray[np.int64],
    keys: Floats,
    values: Floats,
    *,
    past: int,
    half: bool,
    num_logits: int,
    activations: str,
) -> Floats:
    """Logits of the last tokens of a batch; keys and values of all of them are written.

    Args:
        tokens: (m,) ids.
        keys: (layers, kv_heads, capacity, head_dim), those before `past` filled.
        values: likewise.
        past: tokens already in the cache.
        half: round keys and values to float16.
        num_logits: rows of logits wanted, from the end.
        activations: "int8" or "float", for packed matrices.

    Returns:
        float32 (num_logits, vocab).
    """

    def linear(x: Floats, by: Linear) -> Floats:
        return multiply(by, x, activations)

    x = weights.embed(tokens)
    end = past + len(tokens)
    positions = np.arange(past, end)
    for number, layer in enumerate(weights.layers):
        normed = rms_norm(x, layer.attention_norm, config.norm_epsilon)
        query, key, value = (
            linear(normed, by).reshape(len(tokens), -1, config.head_dim) for by in (layer.query, layer.key, layer.value)
        )
        query, key = normed_heads(config, layer, query, key)
        query, key = (rotate(heads, positions, config.frequencies) for heads in (query, key))
        keys[number, :, past:end] = stored(key, half).swapaxes(0, 1)
        values[number, :, past:end] = stored(value, half).swapaxes(0, 1)
        mixed = attend(query, keys[number, :, :end], values[number, :, :end], past)
        x = x + linear(np.ascontiguousarray(mixed.reshape(len(tokens), -1)), layer.output)
        normed = rms_norm(x, layer.ffn_norm, config.norm_epsilon)
        x = x + linear(silu(linear(normed, layer.gate)) * linear(normed, layer.up), layer.down)
    last = rms_norm(x[len(tokens) - num_logits :], weights.norm, config.norm_epsilon)
    return linear(last, weights.head)


def forward_paged(
    config: DecoderConfig,
    weights: Weights,
    tokens: Ints,
    keys: Floats,
    values: Floats,
    page_table: npt.NDArray[np.int32],
    page_starts: Ints,
    token_starts: Ints,
    past: Ints,
    rows: Ints,
    *,
    activations: str,
) -> Floats:
    """Logits of `rows` of a batch of spans, each by itself; keys and values of all tokens are written to their pages.

    Args:
        tokens: (m,) ids, span after span.
        keys: (layers, pages, kv_heads, page_tokens, head_dim).
        values: likewise.
        page_table, page_starts, token_starts, past, rows: see `Decoder.forward_paged`.
        activations: "int8" or "float", for packed matrices.

    Returns:
        float32 (rows, vocab).
    """
    parts = []
    for s, before in enumerate(past.tolist()):
        own = page_table[page_starts[s] : page_starts[s + 1]]
        span = tokens[token_starts[s] : token_starts[s + 1]]
        if not len(span):
            continue
        texts = [
            pool[:, own].swapaxes(1, 2).reshape(len(pool), pool.shape[2], -1, pool.shape[4]) for pool in (keys, values)
        ]
        settings = {"past": before, "half": False, "num_logits": len(span), "activations": activations}
        parts.append(forward(config, weights, span, *texts, **settings))
        for pool, text in zip((keys, values), texts, strict=True):
            pool[:, own] = text.reshape(len(pool), pool.shape[2], len(own), *pool.shape[3:]).swapaxes(1, 2)
    return np.concatenate(parts)[rows]


def normed_heads(config: DecoderConfig, layer: Layer, query: Floats, key: Floats) -> tuple[Floats, Floats]:
    """Queries and keys, normed head by head where the model does so (Qwen3)."""
    if layer.query_norm is not None and layer.key_norm is not None:
        query = rms_norm(query, layer.query_norm, config.norm_epsilon)
        key = rms_norm(key, layer.key_norm, config.norm_epsilon)
    return query, key
