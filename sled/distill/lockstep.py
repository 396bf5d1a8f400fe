"""Attention for texts that grow in step: all of them stand at the same position, so one index writes their keys.

Plugged into unmodified models through transformers' attention interface, as the pages of `sled.targets` are. Without
a step it attends over whole texts, which is what training reads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn import functional
from transformers import AttentionInterface

from sled.targets.attention import Layer

Tensor = Any  # torch.Tensor
LOCKSTEP = "sled_lockstep"


class Cache(NamedTuple):
    """Keys and values of one layer: (rows, kv_heads, positions, head_dim) each."""

    keys: Tensor
    values: Tensor


class Step(NamedTuple):
    """Where all texts stand.

    Args:
        position: int64 (1,), on the device: where the next token's keys go.
        seen: positions 0 .. seen - 1 are read, `position` among them.
        biases: by window, float32 (seen,): 0 where a token may look, -inf where not; 0 is no window.
    """

    position: Tensor
    seen: int
    biases: dict[int, Tensor]


def bias_of(position: Tensor, seen: int, window: int) -> Tensor:
    """What the token at `position` may see: itself and what is before, at most `window` of them unless 0."""
    at = torch.arange(seen, device=position.device)
    hidden = at > position
    if window:
        hidden = hidden | (at <= position - window)
    return torch.zeros(seen, device=position.device).masked_fill(hidden, float("-inf"))


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    sled_step: Step | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers calls for each layer; query (rows, heads, tokens, head_dim), result heads after tokens."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window, cap = sliding_window or 0, softcap or 0.0
    if sled_step is not None:
        return _decode(module.sled_cache, query, key, value, sled_step, (scale, window, cap)), None
    return _whole(query, key, value, scale, window, cap), None


@torch.compiler.disable
def _decode(
    cache: Cache, query: Tensor, key: Tensor, value: Tensor, step: Step, terms: tuple[float, int, float]
) -> Tensor:
    """One token of every text; not compiled, so that what is around it is one program for every `seen`."""
    scale, window, cap = terms
    cache.keys.index_copy_(2, step.position, key)
    cache.values.index_copy_(2, step.position, value)
    rows, kv_heads = key.shape[:2]
    keys = cache.keys[:, :, : step.seen].reshape(rows * kv_heads, step.seen, -1)
    values = cache.values[:, :, : step.seen].reshape(rows * kv_heads, step.seen, -1)
    asked = query.reshape(rows * kv_heads, query.shape[1] // kv_heads, -1)
    scores = torch.bmm(asked, keys.transpose(1, 2)).float() * scale
    if cap:
        scores = cap * torch.tanh(scores / cap)
    weights = (scores + step.biases[window]).softmax(dim=-1).to(values.dtype)
    return torch.bmm(weights, values).reshape(rows, 1, query.shape[1], -1)


def _whole(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int, cap: float) -> Tensor:
    """All tokens of every text at once, each seeing what is before it."""
    shared, tokens = query.shape[1] // key.shape[1], query.shape[2]
    if shared > 1:  # copied for the kernel that needs no mask in memory
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    if not cap and (not window or window >= tokens):
        out = functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
        return out.transpose(1, 2)
    at = torch.arange(tokens, device=query.device)
    seen = at[:, None] >= at
    if window:
        seen &= at[:, None] - window < at
    if not cap:
        out = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scale)
        return out.transpose(1, 2)
    scores = cap * torch.tanh((query @ key.transpose(-1, -2)).float() * scale / cap)
    weights = scores.masked_fill(~seen, float("-inf")).softmax(dim=-1).to(value.dtype)
    return (weights @ value).transpose(1, 2)


def row_bytes(layers: list[Layer], positions: int) -> int:
    """Memory that one text's keys and values take over all layers."""
    values = sum(layer.kv_heads * (layer.key_dim + layer.value_dim) * layer.like.element_size() for layer in layers)
    return int(positions * values)


def hang_caches(layers: list[Layer], rows: int, positions: int, device: Any) -> None:
    """Give every layer room for so many texts, all at zero."""
    for layer in layers:
        like = {"dtype": layer.like.dtype, "device": device}
        layer.module.sled_cache = Cache(
            torch.zeros(rows, layer.kv_heads, positions, layer.key_dim, **like),
            torch.zeros(rows, layer.kv_heads, positions, layer.value_dim, **like),
        )


def drop_caches(layers: list[Layer]) -> None:
    """Give the memory back."""
    for layer in layers:
        layer.module.sled_cache = None


AttentionInterface.register(LOCKSTEP, attend)
