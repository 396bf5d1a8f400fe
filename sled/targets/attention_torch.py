"""Paged attention with torch's own operations, on any device: gather, then scaled dot product attention."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sled.targets.attention import LayerPool, Terms
from sled.targets.layout import Layout
from sled.targets.packed import Packed

_ALONE = 64  # spans of so many new tokens are computed one by one: their masks would cost more than a call
_WASTE = 1.25


class _Group(NamedTuple):
    """Spans with equally many new tokens and about as long a past, computed as one batch."""

    tokens: Tensor  # (spans, new) indices into the batch
    pages: Tensor  # (spans, 1, length): where keys and values are read; behind a span's end, its last once more
    slots: Tensor
    mask: Tensor | None  # bool (spans, 1, new, length); None where all may be seen
    causal: bool  # new tokens only, no past: the kernel's own causal mask


@dataclass(slots=True)
class _Plan:
    layout: Layout
    packed: Packed
    groups: dict[int, list[_Group]] = field(default_factory=dict)  # by window


def _members(layout: Layout) -> list[NDArray[np.int64]]:
    """Spans by new tokens and length, no group wasting much on padding."""
    new = layout.num_new
    total = layout.past + new
    groups: list[list[int]] = []
    for span in np.lexsort((total, new)).tolist():
        last = groups[-1] if groups else None
        if (
            last is not None
            and new[span] < _ALONE
            and new[last[0]] == new[span]
            and total[span] <= _WASTE * total[last[0]] + 16
        ):
            last.append(span)
        else:
            groups.append([span])
    return [np.array(group) for group in groups]


def _group(layout: Layout, spans: NDArray[np.int64], window: int, device: torch.device) -> _Group:
    new = int(layout.num_new[spans[0]])
    past = layout.past[spans]
    first = np.maximum(past - window + 1, 0) if window else np.zeros_like(past)
    length = int((past - first).max()) + new
    seen = first[:, None] + np.arange(length)  # positions (spans, length)
    last = (past + new - 1)[:, None]
    at = np.minimum(seen, last)
    pages = layout.page_table[layout.page_starts[spans][:, None] + at // layout.page_tokens].astype(np.int64)
    query = (past[:, None] + np.arange(new))[:, :, None]  # (spans, new, 1)
    mask = seen[:, None, :] <= query
    if window:
        mask &= seen[:, None, :] > query - window
    causal = length == new and len(spans) == 1 and new > 1 and (not window or new <= window)
    tokens = layout.token_starts[spans][:, None] + np.arange(new)
    return _Group(
        torch.from_numpy(tokens).to(device),
        torch.from_numpy(pages)[:, None].to(device),
        torch.from_numpy(at % layout.page_tokens)[:, None].to(device),
        None if causal or mask.all() else torch.from_numpy(mask[:, None]).to(device),
        causal,
    )


class TorchBackend:
    """The reference: works wherever torch does."""

    def plan(self, layout: Layout, packed: Packed) -> _Plan:
        """See `attention.Backend`."""
        return _Plan(layout, packed)

    def attend(self, pool: LayerPool, query: Tensor, key: Tensor, value: Tensor, plan: _Plan, terms: Terms) -> Tensor:
        """See `attention.Backend`."""
        write(pool, key, value, plan.packed)
        groups = plan.groups.get(terms.window)
        if groups is None:
            groups = [_group(plan.layout, spans, terms.window, query.device) for spans in _members(plan.layout)]
            plan.groups[terms.window] = groups
        out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[-1])
        for group in groups:
            out[0, group.tokens] = attend_group(pool, query, group, terms)
        return out


def write(pool: LayerPool, key: Tensor, value: Tensor, packed: Packed) -> None:
    """Put keys and values (1, kv_heads, tokens, head_dim) where they belong."""
    pool.keys.transpose(1, 2)[packed.pages, packed.slots] = key[0].transpose(0, 1)
    pool.values.transpose(1, 2)[packed.pages, packed.slots] = value[0].transpose(0, 1)


def attend_group(pool: LayerPool, query: Tensor, group: _Group, terms: Terms) -> Tensor:
    """(spans, new, heads, head_dim) of one group.

    Query heads that share a key head are laid out as further queries, so that no key is copied for them.
    """
    heads = torch.arange(pool.keys.shape[1], device=query.device)[None, :, None]
    keys = pool.keys[group.pages, heads, group.slots]  # (spans, kv_heads, length, head_dim)
    values = pool.values[group.pages, heads, group.slots]
    spans, new = group.tokens.shape
    per_key = query.shape[1] // keys.shape[1]
    asked = query[0][:, group.tokens].transpose(0, 1)  # (spans, heads, new, head_dim)
    if group.causal and not terms.softcap:
        out = scaled_dot_product_attention(
            asked, keys, values, is_causal=True, scale=terms.scale, enable_gqa=per_key > 1
        )
        return out.transpose(1, 2)
    asked = asked.reshape(spans, keys.shape[1], per_key * new, -1)
    mask = group.mask
    if group.causal:
        mask = torch.ones(new, new, dtype=torch.bool, device=query.device).tril()[None, None]
    if mask is not None and per_key > 1:
        mask = mask.repeat(1, 1, per_key, 1)
    if terms.softcap:
        out = _capped(asked, keys, values, mask, terms)
    else:
        out = scaled_dot_product_attention(asked, keys, values, attn_mask=mask, scale=terms.scale)
    return out.reshape(spans, query.shape[1], new, -1).transpose(1, 2)


def _capped(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, terms: Terms) -> Tensor:
    scores = (query @ keys.transpose(-1, -2)).float() * terms.scale
    scores = terms.softcap * torch.tanh(scores / terms.softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(dim=-1).to(values.dtype) @ values
