"""One target divided over several processes, one a GPU or CPU, under torchrun.

Every rank holds its part of the weights and of the keys and values. Rank 0 is the target that a server asks: it tells
the others what is in each batch, all compute it together, and rank 0 alone decides. A batch larger than any before is
tried by each rank alone first, so that all agree whether there is memory for it. The others do nothing but follow:

    target = load_tensor_parallel(find_model(path))
    if target.rank:
        target.follow()      # returns when rank 0 closes the target
    else:
        with target: ...     # serve it
"""

from __future__ import annotations

import datetime
import logging
import math
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from sled.errors import OutOfMemory, ParameterError, TargetLost
from sled.targets.catalog import ModelFiles
from sled.targets.causal_lm import CausalLMTarget, memory_given_back
from sled.targets.layout import Layout
from sled.targets.loading import load_model
from sled.targets.rehearsal import Alone
from sled.targets.text import TextCodec

log = logging.getLogger("sled.server")

_NOTHING, _BATCH, _END, _TRY = range(4)
_HEADER = 6  # kind, page_tokens, and the sizes of what follows
_ALIKE = 4  # numbers of spans, or pages, to a factor of two that are told apart


class RanksLost(TargetLost):
    """A rank failed or did not answer in time: the target is of no use any more, start all ranks again."""


def join_ranks(device: str = "cpu", timeout_s: float = 600.0) -> Any:
    """Join the processes that torchrun started; returns the group in which batches are told.

    Args:
        device: "cpu" (gloo) or "cuda" (NCCL, and gloo for what is told).
        timeout_s: a rank that is silent for so long has failed.

    Raises:
        ParameterError: not started by torchrun.
    """
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise ParameterError("tensor parallelism needs torchrun: torchrun --nproc-per-node N -m sled.cli serve ...")
    timeout = datetime.timedelta(seconds=timeout_s)
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=timeout)
    return dist.new_group(backend="gloo", timeout=timeout)


class TensorParallelTarget(CausalLMTarget):
    """A target of which this process computes a part; make it on every rank alike.

    Args:
        model: loaded with a tensor parallel plan.
        codec: its tokenizer.
        name: what devices are told.
        group: from `join_ranks`.
        timeout_s: as there.
        max_window: drafts per round that devices may send, at most 64.
        kv_bytes: memory for keys and values of this rank; the rank with the least decides.
        page_tokens, attention: see `CausalLMTarget`.
    """

    def __init__(
        self,
        model: Any,
        codec: TextCodec,
        *,
        name: str,
        group: Any,
        timeout_s: float = 600.0,
        max_window: int = 16,
        kv_bytes: int | None = None,
        page_tokens: int | None = None,
        attention: str = "auto",
    ) -> None:
        self.rank, self.num_ranks = dist.get_rank(), dist.get_world_size()
        self._group, self._leads, self._lost = group, False, False
        self._telling = threading.Lock()
        self._closing = threading.Event()
        self._fitting: list[tuple[int, ...]] = []  # sizes of batches for which every rank had memory
        super().__init__(
            model,
            codec,
            name=name,
            max_window=max_window,
            kv_bytes=kv_bytes,
            page_tokens=page_tokens,
            attention=attention,
        )
        self._leads = self.rank == 0
        self._pulse = threading.Thread(target=self._keep_alive, args=(timeout_s / 4,), name="sled-ranks", daemon=True)
        if self._leads:
            self._pulse.start()

    def follow(self) -> None:
        """Compute what rank 0 tells, until it closes the target.

        Raises:
            RanksLost: rank 0 or another rank is gone, or this one failed.
        """
        assert self.rank > 0, "rank 0 leads"
        try:
            while (told := self._listen())[0] != _END:
                kind, layout = told
                if layout is not None and kind == _TRY:
                    self._try(layout)
                elif layout is not None:
                    with torch.inference_mode():
                        super()._forward(layout)
        except Exception as error:
            raise RanksLost(f"rank {self.rank} of {self.num_ranks} stops: {_first_line(error)}") from error

    def close(self) -> None:
        """Let the other ranks go; for rank 0."""
        if self._closing.is_set():
            return
        self._closing.set()
        if self._leads and not self._lost:
            with self._telling, suppress(RuntimeError):  # a rank that is gone needs no telling
                self._tell(_END)
        if self._leads:
            self._pulse.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def _forward(self, layout: Layout) -> Tensor:
        if not self._leads:  # every rank is trying the model out
            return super()._forward(layout)
        if self._lost or self._closing.is_set():
            raise RanksLost("the ranks are gone; start all of them again")
        try:
            if self._has_memory(layout):
                with self._telling:
                    self._tell(_BATCH, layout)
                return super()._forward(layout)
        except Exception as error:  # whatever it was, the ranks are out of step
            self._lost = True
            raise RanksLost(f"a rank failed ({_first_line(error)}); start all of them again") from error
        raise OutOfMemory("a rank has no memory for this batch; lower batch_tokens, or kv_bytes of the target")

    def _has_memory(self, layout: Layout) -> bool:
        """Whether every rank has memory for a batch: one no larger than another that fitted fits, too."""
        size = _size_of(layout)
        if any(_within(size, other) for other in self._fitting):
            return True
        with self._telling:
            self._tell(_TRY, layout)
            fits = self._try(layout)
        if fits:
            self._fitting = [other for other in self._fitting if not _within(other, size)] + [size]
        return fits

    def _try(self, layout: Layout) -> bool:
        """Compute a batch as far as a rank can by itself; on every rank alike. Whether all of them had memory for it.

        Only the forward itself shows other faults.
        """
        fits = True
        try:
            with memory_given_back(self.model.device), torch.inference_mode(), Alone():
                super()._forward(layout)
        except OutOfMemory:
            fits = False
        except Exception as error:
            log.debug("a batch cannot be tried", extra={"rank": self.rank, "why": _first_line(error)})
        least = torch.tensor([int(fits)])
        dist.all_reduce(least, op=dist.ReduceOp.MIN, group=self._group)
        return bool(least)

    def _agree(self, num_pages: int) -> int:
        least = torch.tensor([num_pages])
        dist.all_reduce(least, op=dist.ReduceOp.MIN, group=self._group)
        return int(least)

    def _keep_alive(self, every_s: float) -> None:
        """Say now and then that rank 0 is there, so that silence means it is not."""
        while not self._closing.wait(every_s):
            with self._telling:
                if not self._lost:
                    try:
                        self._tell(_NOTHING)
                    except RuntimeError:
                        self._lost = True

    def _tell(self, kind: int, layout: Layout | None = None) -> None:
        parts = [] if layout is None else _parts(layout)
        header = [kind, layout.page_tokens if layout else 0, *(len(part) for part in parts)]
        dist.broadcast(torch.tensor(header + [0] * (_HEADER - len(header))), 0, group=self._group)
        if parts:
            dist.broadcast(torch.from_numpy(np.concatenate(parts)), 0, group=self._group)

    def _listen(self) -> tuple[int, Layout | None]:
        header = torch.zeros(_HEADER, dtype=torch.int64)
        dist.broadcast(header, 0, group=self._group)
        kind, page_tokens, *sizes = header.tolist()
        if kind not in (_BATCH, _TRY):
            return int(kind), None
        flat = torch.zeros(sum(sizes), dtype=torch.int64)
        dist.broadcast(flat, 0, group=self._group)
        return int(kind), _rebuilt(flat.numpy(), sizes, page_tokens)


def _parts(layout: Layout) -> list[NDArray[np.int64]]:
    """What the layout cannot be computed from without: tokens, past with token and page starts, pages, rows."""
    spans = np.concatenate([layout.past, layout.token_starts[1:], layout.page_starts[1:]])
    return [layout.tokens, spans, layout.page_table.astype(np.int64), layout.rows]


def _rebuilt(flat: NDArray[np.int64], sizes: list[int], page_tokens: int) -> Layout:
    tokens, spans, pages, rows = np.split(flat, np.cumsum(sizes)[:-1])
    past, token_ends, page_ends = np.split(spans, 3)
    starts, page_starts = np.concatenate([[0], token_ends]), np.concatenate([[0], page_ends])
    positions = np.arange(len(tokens)) + np.repeat(past - starts[:-1], np.diff(starts))
    return Layout(tokens, positions, rows, starts, past, pages.astype(np.int32), page_starts, page_tokens)


def _size_of(layout: Layout) -> tuple[int, ...]:
    """What a batch takes memory for: tokens, rows of logits, and spans and pages that are read, in steps of a fifth.

    Tokens and rows are what most of it goes to, and where memory is short batches grow to the last token that fits.
    Texts grow with every batch; they are not to be tried each time.
    """
    counts = (len(layout.past), len(layout.page_table))
    steps = (math.ceil(_ALIKE * math.log2(max(1, count))) for count in counts)
    return (len(layout.tokens), len(layout.rows), *steps)


def _within(size: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return all(mine <= theirs for mine, theirs in zip(size, other, strict=True))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _plan() -> dict[str, Any]:
    """How transformers is told to divide a model by its own plan."""
    try:
        from transformers.distributed import DistributedConfig

        return {"distributed_config": DistributedConfig(tp_size=dist.get_world_size(), tp_plan="auto")}
    except (ImportError, TypeError):  # older ones
        return {"tp_plan": "auto"}


def load_tensor_parallel(
    files: ModelFiles,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    max_window: int = 16,
    kv_bytes: int | None = None,
    page_tokens: int | None = None,
    attention: str = "auto",
    timeout_s: float = 600.0,
    progress: Callable[[float], None] | None = None,
) -> TensorParallelTarget:
    """Load this rank's part of a model; to be called on every rank that torchrun started.

    Args:
        files: a directory in Hugging Face layout, from `catalog.find_model`.
        dtype: float32, bfloat16 or float16.
        device: "cpu" or "cuda"; a rank takes the GPU of its local rank.
        max_window: drafts per round that devices may send.
        kv_bytes: memory of each rank for keys and values; None takes a share of what is free.
        page_tokens, attention: see `CausalLMTarget`.
        timeout_s: a rank that is silent for so long has failed.
        progress: called with the share done, 0 .. 1.

    Raises:
        ParameterError: not started by torchrun.
        UnknownModel: the files hold no model that can be divided.
    """
    group = join_ranks(device, timeout_s)
    model, codec = load_model(files, dtype=dtype, device=device, progress=progress, **_plan())
    return TensorParallelTarget(
        model,
        codec,
        name=files.name,
        group=group,
        timeout_s=timeout_s,
        max_window=max_window,
        kv_bytes=kv_bytes,
        page_tokens=page_tokens,
        attention=attention,
    )
