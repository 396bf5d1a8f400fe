"""A packed batch on the model's device: everything a forward needs to know of it, brought there in one copy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sled.targets.layout import Layout


class Packed(NamedTuple):
    """The tensors of a batch, int32 if nothing else is said; see `layout.Layout`.

    Args:
        tokens: int64 (1, tokens).
        positions: int64 (1, tokens).
        rows: int64 (logit rows,).
        pages: int64 (tokens,), where each token's keys and values are written.
        slots: int64 (tokens,), likewise.
        token_starts: (spans + 1,).
        past: (spans,).
        span_of_token: (tokens,).
        page_table: (spans, most pages of a span), 0 behind each span's own.
    """

    tokens: Tensor
    positions: Tensor
    rows: Tensor
    pages: Tensor
    slots: Tensor
    token_starts: Tensor
    past: Tensor
    span_of_token: Tensor
    page_table: Tensor


def pack(layout: Layout, device: torch.device) -> Packed:
    """Bring a layout to the device."""
    if device.type != "cpu":
        return in_one_copy(layout, device)
    pages, slots = layout.places()  # nothing is copied, and what only kernels of other devices read is left out
    tokens, positions, rows = map(torch.from_numpy, (layout.tokens, layout.positions, layout.rows))
    none = torch.empty(0, dtype=torch.int32)
    places = torch.from_numpy(pages), torch.from_numpy(slots)
    return Packed(tokens[None], positions[None], rows, *places, none, none, none, none)


def in_one_copy(layout: Layout, device: torch.device) -> Packed:
    """All of it, through one buffer."""
    table = layout.padded_pages()
    wide = (layout.tokens, layout.positions, layout.rows, *layout.places())
    narrow = (layout.token_starts, layout.past, layout.span_of_token, table.ravel())
    parts = [*(part.view(np.int32) for part in wide), *(part.astype(np.int32) for part in narrow)]
    flat = torch.from_numpy(np.concatenate(parts))
    flat = (flat.pin_memory() if device.type == "cuda" else flat).to(device, non_blocking=True)
    there = flat.split([len(part) for part in parts])
    tokens, positions, rows, pages, slots = (part.view(torch.int64) for part in there[:5])
    starts, past, spans, own = there[5:]
    return Packed(tokens[None], positions[None], rows, pages, slots, starts, past, spans, own.view(*table.shape))
