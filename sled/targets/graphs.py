"""Captured forwards: a packed batch is padded to a bucket of sizes, and its CUDA graph replayed.

A forward of some hundred kernels costs more to launch than to run when a batch is small. Buckets are captured when they
are first needed; one pool of memory serves all graphs, since only one runs at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sled.targets.sizes import Size, multiplying_by, round_up
from sled.targets.work_items import FIELDS, WorkItems

Tensor = Any  # torch.Tensor


class Batch(NamedTuple):
    """A packed batch on the host.

    Args:
        tokens: int64 (tokens,); positions: int64 (tokens,).
        wanted: int64 (rows,), tokens whose logits are wanted.
        slots: int32 (tokens,), where their keys and values go.
        table: int32 (n,), the sessions' pages one after the other.
        work: how attention is divided, for each window that layers have; query_rows: rows of one piece.
    """

    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]
    wanted: NDArray[np.int64]
    slots: NDArray[np.int32]
    table: NDArray[np.int32]
    work: tuple[WorkItems, ...]
    query_rows: int


class Pages(NamedTuple):
    """What attention needs to know of a batch, on the device; see `attention_triton.paged_attention`.

    `items` and `merges` have an entry for each window.
    """

    slots: Tensor
    items: tuple[Tensor, ...]
    merges: tuple[Tensor, ...]
    table: Tensor
    partial: Tensor
    sums: Tensor
    query_rows: int


class Result(NamedTuple):
    """Rows of a forward, valid until the next one: logits (rows, vocab) or None, and int32 (rows,) likeliest tokens.

    A row of logits that are not numbers has token -1.
    """

    logits: Tensor | None
    token: Tensor


class Bucket(NamedTuple):
    """Sizes a graph is captured for."""

    tokens: int
    rows: int
    items: int
    query_rows: int
    divided: bool
    keep_logits: bool
    table: int = 0  # entries of the page table, where the room that every graph has is not enough
    blas: str = ""  # which multiplies matrices, see `sizes.Size`


@dataclass(slots=True)
class _Captured:
    graph: Any
    inputs: _Inputs
    result: Result


class _Inputs:
    """A graph's integers in one block, so that a batch comes to the device in one copy.

    Args:
        bucket: sizes.
        num_windows: see `Batch.work`.
        room: of the page table.
        device: of the graph.
    """

    def __init__(self, bucket: Bucket, num_windows: int, room: int, device: Any) -> None:
        tokens, items = bucket.tokens, (bucket.items, len(FIELDS))
        shapes: list[tuple[int, ...]] = [(tokens,), (tokens,), (tokens,), (bucket.rows,)]
        shapes += [items, (tokens, 4)] * num_windows
        shapes.append((room,))
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
        pinned = torch.zeros(int(ends[-1]), dtype=torch.int32).pin_memory()
        self._block = torch.zeros(int(ends[-1]), dtype=torch.int32, device=device)
        self._block[tokens * 2 : tokens * 3] = -1
        self._pinned, self._fixed = pinned, int(ends[-2])
        cut = list(zip(np.concatenate([[0], ends[:-1]]).tolist(), ends.tolist(), shapes, strict=True))
        self._host = [pinned.numpy()[start:stop].reshape(shape) for start, stop, shape in cut]
        self.tensors = [self._block[start:stop].view(shape) for start, stop, shape in cut]
        self._copied = torch.cuda.Event()

    def fill(self, batch: Batch) -> None:
        """Bring a batch to the device, and rest into what is beyond it."""
        if len(batch.table) > len(self._host[-1]):
            raise ValueError(f"{len(batch.table)} pages in one batch, {len(self._host[-1])} were provided for")
        self._copied.synchronize()  # the batch before has left the pinned memory
        works = [part for work in batch.work for part in (work.items, work.merges)]
        values: list[NDArray[Any]] = [batch.tokens, batch.positions, batch.slots, batch.wanted, *works]
        for place, (host, own) in enumerate(zip(self._host, values, strict=False)):
            host[: len(own)] = own
            host[len(own) :] = -1 if place == _SLOTS else 0
        self._host[-1][: len(batch.table)] = batch.table
        used = self._fixed + len(batch.table)
        self._block[:used].copy_(self._pinned[:used], non_blocking=True)
        self._copied.record()


_SLOTS = 2


class GraphedForward:
    """Runs packed batches through captured graphs.

    Args:
        forward: (tokens (1, n), positions (1, n), wanted (rows,), Pages) -> logits (rows, vocab), on the device.
        device: of the model.
        kv_heads: heads of keys of a layer; head_dim: their width (the largest over layers).
        num_windows: see `Batch.work`.
        table_room: entries of the flat page table that every graph takes; batches of more, which share pages, have
            graphs of their own.
        max_graphs: graphs kept; the one longest unused makes room for the next.
        sizes: number of tokens -> what they are padded to.
    """

    def __init__(
        self,
        forward: Callable[[Tensor, Tensor, Tensor, Pages], Tensor],
        device: Any,
        *,
        kv_heads: int,
        head_dim: int,
        num_windows: int,
        table_room: int,
        max_graphs: int = 256,
        sizes: Callable[[int], Size] = lambda tokens: Size(round_up(tokens)),
    ) -> None:
        self._forward, self._device, self._sizes = forward, device, sizes
        self._kv_heads, self._head_dim = kv_heads, head_dim
        self._table_room, self._max_graphs, self._num_windows = table_room, max_graphs, num_windows
        self._captured: dict[Bucket, _Captured] = {}
        self._pool: Any = None
        self._logits: Tensor | None = None

    def bucket(self, batch: Batch, keep_logits: bool) -> Bucket:
        """The sizes that this batch is padded to."""
        most = max(len(work.items) for work in batch.work)
        items = max(8, 1 << (most - 1).bit_length())
        pages = len(batch.table)
        size = self._sizes(len(batch.tokens))
        return Bucket(
            size.tokens,
            round_up(max(1, len(batch.wanted))),
            items,
            batch.query_rows,
            any(work.num_slots for work in batch.work),
            keep_logits,
            0 if pages <= self._table_room else 1 << (pages - 1).bit_length(),
            size.blas,
        )

    @torch.inference_mode()
    def run(self, batch: Batch, *, keep_logits: bool) -> Result:
        """One forward.

        Args:
            batch: what to compute.
            keep_logits: whether logits are wanted, or only the likeliest token of each row.

        Raises:
            torch.cuda.OutOfMemoryError: a graph of this size cannot be captured.
        """
        bucket = self.bucket(batch, keep_logits)
        captured = self._captured.pop(bucket, None)
        if captured is None:
            captured = self._capture(bucket)
        self._captured[bucket] = captured  # the last used is the last to go
        captured.inputs.fill(batch)
        captured.graph.replay()
        rows, result = len(batch.wanted), captured.result
        logits = None if result.logits is None else result.logits[:rows]
        return Result(logits, result.token[:rows])

    def _capture(self, bucket: Bucket) -> _Captured:
        if len(self._captured) >= self._max_graphs:
            self._captured.pop(next(iter(self._captured)))
        inputs = self._inputs(bucket)
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with multiplying_by(bucket.blas):
            with torch.cuda.stream(stream):  # compiles, and lets libraries set themselves up
                self._compute(inputs, bucket)
            torch.cuda.current_stream(self._device).wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool if self._captured else None):  # it goes with its last graph
                result = self._compute(inputs, bucket)
        self._pool = graph.pool()
        return _Captured(graph, inputs, result)

    def _inputs(self, bucket: Bucket) -> _Inputs:
        return _Inputs(bucket, self._num_windows, max(self._table_room, bucket.table), self._device)

    def _compute(self, inputs: _Inputs, bucket: Bucket) -> Result:
        tokens, positions, slots, wanted, *works, table = inputs.tensors
        rows = bucket.items * self._kv_heads * bucket.query_rows if bucket.divided else 0
        pages = Pages(
            slots,
            tuple(works[::2]),
            tuple(works[1::2]),
            table,
            torch.empty(rows, self._head_dim, device=self._device),
            torch.empty(rows, device=self._device),
            bucket.query_rows,
        )
        logits = self._forward(tokens[None].long(), positions[None].long(), wanted.long(), pages)
        best, token = logits.max(dim=-1)
        token = torch.where(torch.isfinite(best), token, -1).to(torch.int32)
        return Result(self._keep(logits) if bucket.keep_logits else None, token)

    def _keep(self, logits: Tensor) -> Tensor:
        """Copy logits where all graphs of a size put them: what a graph's own memory holds is the next graph's."""
        rows, vocab = logits.shape
        if self._logits is None or self._logits.shape[0] < rows:
            self._captured = {key: kept for key, kept in self._captured.items() if not key.keep_logits}
            self._logits = torch.empty(rows, vocab, dtype=logits.dtype, device=self._device)
        return self._logits[:rows].copy_(logits)
