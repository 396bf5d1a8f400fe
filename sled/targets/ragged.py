"""Attention for a packed batch: many sessions, any number of tokens each, no padding.

An unmodified transformers model calls `attend` through its attention interface. The batch is one sequence of all
chunks' tokens; each chunk attends over its own session's keys and values alone, which are kept here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

IMPLEMENTATION = "sled_ragged"
_GROWTH = 256


class SessionKV:
    """Keys and values of one session: one tensor (layers, 2, kv_heads, capacity, head_dim), grown by steps."""

    def __init__(self, num_layers: int) -> None:
        self.num_layers = num_layers
        self._store: Tensor | None = None
        self._filled = [0] * num_layers

    def put(self, layer: int, past: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keep keys and values (kv_heads, new, head_dim) from position `past` on; returns all up to their end."""
        end = past + key.shape[1]
        if past > self._filled[layer]:
            raise RuntimeError(f"a chunk starts at position {past}, only {self._filled[layer]} are kept")
        self._filled[layer] = end
        if self._store is None or self._store.shape[3] < end:
            self._grow(key, end)
        assert self._store is not None
        self._store[layer, 0, :, past:end] = key
        self._store[layer, 1, :, past:end] = value
        return self._store[layer, 0, :, :end], self._store[layer, 1, :, :end]

    def _grow(self, like: Tensor, end: int) -> None:
        capacity = -(-end // _GROWTH) * _GROWTH
        heads, _, dim = like.shape
        grown = like.new_zeros(self.num_layers, 2, heads, capacity, dim)
        if self._store is not None:
            grown[:, :, :, : self._store.shape[3]] = self._store
        self._store = grown


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens `start` .. `stop` of the packed batch belong to `kv` and stand at its positions from `past` on."""

    kv: SessionKV
    start: int
    stop: int
    past: int


def _causal_mask(span: Span, sliding_window: int | None, device: torch.device) -> Tensor | None:
    """(new, past + new) True where a token may look; None where it may look everywhere."""
    new = span.stop - span.start
    total = span.past + new
    windowed = sliding_window is not None and total > sliding_window
    if new == 1 and not windowed:
        return None
    mask = torch.ones(new, total, dtype=torch.bool, device=device).tril(span.past)
    return mask.triu(span.past - sliding_window + 1) if windowed and sliding_window is not None else mask


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    spans: list[Span],
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each span over its own session.

    Args:
        query: (1, heads, tokens, head_dim); key, value: (1, kv_heads, tokens, head_dim).
        spans: the sessions' parts of the packed batch.
        sliding_window: a token sees itself and this many less one before it; None is all.

    Returns:
        (1, tokens, heads, head_dim), and None for the weights.
    """
    out = torch.empty_like(query.transpose(1, 2))
    for span in spans:
        part = slice(span.start, span.stop)
        keys, values = span.kv.put(module.layer_idx, span.past, key[0, :, part], value[0, :, part])
        mask = _causal_mask(span, sliding_window, query.device)
        out[0, part] = torch.nn.functional.scaled_dot_product_attention(
            query[:, :, part], keys[None], values[None], attn_mask=mask, scale=scaling, enable_gqa=True
        )[0].transpose(0, 1)
    return out, None


AttentionInterface.register(IMPLEMENTATION, attend)
AttentionMaskInterface.register(IMPLEMENTATION, lambda *args, **kwargs: None)
