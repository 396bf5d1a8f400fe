"""Ragged paged attention on CUDA: one kernel for decode, verify rounds and prefill chunks, without padding.

Every program takes one piece of work (`work_items`) and one head of keys: all query heads that share it, for some
tokens of one span, against a stretch of positions, page by page, with the online softmax of FlashAttention (arXiv
2205.14135). Pages are read once for all query heads of the group and all tokens of a round.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import library

from sled.targets.attention import Layer, LayerPool, Terms
from sled.targets.graphs import Batch, Pages
from sled.targets.layout import Layout
from sled.targets.packed import Packed
from sled.targets.work_items import divide

Tensor = Any  # torch.Tensor


@triton.jit
def _write(  # type: ignore[no-untyped-def]
    key, value, keys, values, slots, key_stride, value_stride, page_stride,
    heads: tl.constexpr, page_tokens: tl.constexpr, dim: tl.constexpr, dim_block: tl.constexpr,
):  # fmt: skip
    """Put the new keys and values of one token into its page."""
    token = tl.program_id(0)
    slot = tl.load(slots + token).to(tl.int64)
    if slot < 0:
        return
    page, place = slot // page_tokens, slot % page_tokens
    head = tl.arange(0, triton.next_power_of_2(heads))[:, None]
    d = tl.arange(0, dim_block)[None, :]
    inside = (head < heads) & (d < dim)
    to = page * page_stride + (head * page_tokens + place) * dim + d
    tl.store(keys + to, tl.load(key + token * key_stride + head * dim + d, mask=inside), mask=inside)
    tl.store(values + to, tl.load(value + token * value_stride + head * dim + d, mask=inside), mask=inside)


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    query, keys, values, out, partial, sums, items, table,
    scale, softcap, window, query_stride, out_stride, page_stride,
    kv_heads: tl.constexpr, group: tl.constexpr, page_tokens: tl.constexpr, dim: tl.constexpr, dim_block: tl.constexpr,
    rows: tl.constexpr, columns: tl.constexpr, precision: tl.constexpr, capped: tl.constexpr, windowed: tl.constexpr,
):  # fmt: skip
    """One piece of work for one head of keys; see `work_items.FIELDS`."""
    head, item = tl.program_id(0), items + tl.program_id(1) * 8
    num_tokens = tl.load(item + 1)
    if num_tokens == 0:
        return
    token, position, pages = tl.load(item), tl.load(item + 2), table + tl.load(item + 3)
    begin, end, slot = tl.load(item + 4), tl.load(item + 5), tl.load(item + 6)
    row = tl.arange(0, rows)
    d = tl.arange(0, dim_block)
    of_row = row // group
    query_head = head * group + row % group
    row_inside = of_row < num_tokens
    d_inside = d < dim
    at = (token + of_row)[:, None].to(tl.int64) * query_stride + query_head[:, None] * dim + d[None, :]
    q = tl.load(query + at, mask=row_inside[:, None] & d_inside[None, :], other=0.0)
    top = tl.full((rows,), float("-inf"), tl.float32)
    total = tl.zeros((rows,), tl.float32)
    mean = tl.zeros((rows, dim_block), tl.float32)
    column = tl.arange(0, columns)
    for start in range(begin, end, columns):
        page = tl.load(pages + start // page_tokens).to(tl.int64)
        base = page * page_stride + (head * page_tokens + start % page_tokens) * dim
        k = tl.load(keys + base + column[:, None] * dim + d[None, :], mask=d_inside[None, :], other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=precision) * scale
        if capped:
            scores = softcap * (2.0 * tl.sigmoid(2.0 * scores / softcap) - 1.0)
        seen = (start + column)[None, :] <= (position + of_row)[:, None]
        seen = seen & ((start + column) < end)[None, :]
        if windowed:
            seen = seen & ((start + column)[None, :] > (position + of_row)[:, None] - window)
        scores = tl.where(seen, scores * 1.4426950408889634, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        safe_top = tl.where(new_top == float("-inf"), 0.0, new_top)
        share = tl.exp2(scores - safe_top[:, None])
        keep = tl.exp2(top - safe_top)
        total = total * keep + tl.sum(share, axis=1)
        written = (start + column) < end  # what lies beyond may be anything, and 0 times that no number
        mask = written[:, None] & d_inside[None, :]
        v = tl.load(values + base + column[:, None] * dim + d[None, :], mask=mask, other=0.0)
        mean = mean * keep[:, None] + tl.dot(share.to(v.dtype), v, input_precision=precision)
        top = new_top
    mean = mean / tl.where(total == 0.0, 1.0, total)[:, None]
    mask = row_inside[:, None] & d_inside[None, :]
    if slot < 0:
        to = (token + of_row)[:, None].to(tl.int64) * out_stride + query_head[:, None] * dim + d[None, :]
        tl.store(out + to, mean.to(out.dtype.element_ty), mask=mask)
    else:
        place = (slot.to(tl.int64) * kv_heads + head) * rows + row
        tl.store(partial + place[:, None] * dim + d[None, :], mean, mask=mask)
        tl.store(sums + place, top + tl.log2(total), mask=row_inside)


@triton.jit
def _merge(  # type: ignore[no-untyped-def]
    partial, sums, out, merges, out_stride,
    kv_heads: tl.constexpr, group: tl.constexpr, dim: tl.constexpr, dim_block: tl.constexpr, rows: tl.constexpr,
):  # fmt: skip
    """The result of one token and query head from its partial ones."""
    token, query_head = tl.program_id(0), tl.program_id(1)
    count = tl.load(merges + token * 4 + 1)
    if count == 0:
        return
    first, place = tl.load(merges + token * 4).to(tl.int64), tl.load(merges + token * 4 + 2)
    head, row = query_head // group, place * group + query_head % group
    d = tl.arange(0, dim_block)
    top, total = float("-inf"), 0.0
    mean = tl.zeros((dim_block,), tl.float32)
    for i in range(count):
        at = ((first + i) * kv_heads + head) * rows + row
        size = tl.load(sums + at)
        new_top = tl.maximum(top, size)
        safe_top = tl.where(new_top == float("-inf"), 0.0, new_top)
        keep, share = tl.exp2(top - safe_top), tl.exp2(size - safe_top)
        mean = mean * keep + share * tl.load(partial + at * dim + d, mask=d < dim, other=0.0)
        total = total * keep + share
        top = new_top
    to = token.to(tl.int64) * out_stride + query_head * dim + d
    tl.store(out + to, (mean / total).to(out.dtype.element_ty), mask=d < dim)


def rows_for(most_tokens: int, group: int) -> int:
    """Rows of a piece: enough for a round of `most_tokens` in one piece if that is up to 64 rows, at least 16."""
    return int(min(64, max(16, triton.next_power_of_2(most_tokens * group))))


@library.custom_op("sled::paged_attention", mutates_args=("keys", "values"))
def paged_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    items: torch.Tensor,
    merges: torch.Tensor,
    table: torch.Tensor,
    partial: torch.Tensor,
    sums: torch.Tensor,
    rows: int,
    scale: float,
    softcap: float,
    window: int,
) -> torch.Tensor:
    """Write new keys and values into their pages, then attend.

    Args:
        query: (tokens, heads, dim); key, value: (tokens, kv_heads, dim), contiguous in their last two dimensions.
        keys, values: (pages, kv_heads, page_tokens, dim), page_tokens a multiple of 16.
        slots: int32 (tokens,), page * page_tokens + place of each token; -1 for padding.
        items, merges, table: int32, see `work_items.WorkItems`; items beyond the last have no tokens.
        partial: float32 (slots * kv_heads * rows, dim); sums: float32 (slots * kv_heads * rows,). Empty if no piece is
            divided.
        rows: query rows of a piece.
        scale, softcap, window: of the scores; 0 is no cap, no window.

    Returns:
        (tokens, heads, dim).
    """
    tokens, heads, dim = query.shape
    _, kv_heads, page_tokens, _ = keys.shape
    group, dim_block = heads // kv_heads, max(16, triton.next_power_of_2(dim))
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    _write[(tokens,)](
        key, value, keys, values, slots, key.stride(0), value.stride(0), keys.stride(0),
        heads=kv_heads, page_tokens=page_tokens, dim=dim, dim_block=dim_block, num_warps=4,
    )  # fmt: skip
    columns = min(page_tokens, 64)
    exact = query.dtype == torch.float32
    _attend[(kv_heads, items.shape[0])](
        query, keys, values, out, partial, sums, items, table,
        scale, softcap, window, query.stride(0), out.stride(0), keys.stride(0),
        kv_heads=kv_heads, group=group, page_tokens=page_tokens, dim=dim, dim_block=dim_block,
        rows=rows, columns=columns, precision="ieee" if exact else "tf32", capped=softcap > 0, windowed=window > 0,
        num_warps=2 if rows <= 32 and not partial.shape[0] else 4, num_stages=3,
    )  # fmt: skip
    if partial.shape[0]:
        _merge[(tokens, heads)](
            partial, sums, out, merges, out.stride(0),
            kv_heads=kv_heads, group=group, dim=dim, dim_block=dim_block, rows=rows, num_warps=2,
        )  # fmt: skip
    return out


@paged_attention.register_fake
def _(query: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


class TritonBackend:
    """Attention of `paged_attention`.

    Args:
        layers: of the model, see `pool.find_layers`.
        device: a CUDA device.
    """

    def __init__(self, layers: Sequence[Layer], device: Any) -> None:
        self._device = device
        self.windows = tuple(sorted({layer.terms.window for layer in layers}))
        self.kv_heads = max(layer.kv_heads for layer in layers)
        self.head_dim = max(layer.key_dim for layer in layers)
        self._group = max(layer.heads // layer.kv_heads for layer in layers)
        processors = torch.cuda.get_device_properties(device).multi_processor_count
        self._wanted_items = -(-2 * processors // self.kv_heads)

    def pack(self, layout: Layout) -> Batch:
        """A batch with its attention divided, on the host.

        Raises:
            ValueError: pages that the kernel cannot read in whole tiles.
        """
        if layout.page_tokens < 16 or layout.page_tokens & (layout.page_tokens - 1):
            raise ValueError(f"page_tokens is {layout.page_tokens}; give a power of two from 16 on")
        counts = layout.num_new
        rows = max(rows_for(int(counts.max()), self._group), triton.next_power_of_2(self._group))
        work = tuple(
            divide(
                counts,
                layout.past,
                layout.page_starts[:-1],
                tokens_per_item=rows // self._group,
                wanted_items=self._wanted_items,
                shortest=64,
                window=window,
            )
            for window in self.windows
        )
        pages, places = layout.places()
        slots = (pages * layout.page_tokens + places).astype(np.int32)
        return Batch(layout.tokens, layout.positions, layout.rows, slots, layout.page_table, work, rows)

    def plan(self, layout: Layout, packed: Packed) -> Pages:
        """The same on the device, without padding; see `attention.Backend.plan`."""
        batch = self.pack(layout)

        def moved(array: Any) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

        room = max(work.num_slots for work in batch.work) * self.kv_heads * batch.query_rows
        return Pages(
            moved(batch.slots),
            tuple(moved(work.items) for work in batch.work),
            tuple(moved(work.merges) for work in batch.work),
            moved(batch.table),
            torch.empty(room, self.head_dim, device=self._device),
            torch.empty(room, device=self._device),
            batch.query_rows,
        )

    def attend(self, pool: LayerPool, query: Tensor, key: Tensor, value: Tensor, plan: Pages, terms: Terms) -> Tensor:
        """See `attention.Backend.attend`."""
        which = self.windows.index(terms.window)
        out: Tensor = torch.ops.sled.paged_attention(
            _by_token(query),
            _by_token(key),
            _by_token(value),
            pool.keys,
            pool.values,
            plan.slots,
            plan.items[which],
            plan.merges[which],
            plan.table,
            plan.partial,
            plan.sums,
            plan.query_rows,
            terms.scale,
            terms.softcap,
            terms.window,
        )
        return out[None]


def _by_token(x: Tensor) -> Tensor:
    """(1, heads, tokens, dim) as (tokens, heads, dim) whose heads lie one after the other."""
    x = x[0].transpose(0, 1)
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
