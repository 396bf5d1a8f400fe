"""Attention over paged keys and values: ours, and torch's scaled_dot_product_attention as its users would call it.

Every contender answers the same rows of the same sessions; `answer` is checked before anything is timed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

PAGE = 16
MODELS = {"SmolLM2-135M": (9, 3, 64), "8B": (32, 8, 128)}  # heads, key-value heads, dimensions
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Shape:
    """So many sessions with `new` tokens each, the last of `context` positions."""

    model: str
    dtype: str
    sessions: int
    new: int
    context: int


class Case:
    """Rows, and keys and values in pages in no order."""

    def __init__(self, shape: Shape) -> None:
        heads, kv_heads, dim = MODELS[shape.model]
        self.shape, self.scale = shape, dim**-0.5
        dtype, generator = DTYPES[shape.dtype], torch.Generator().manual_seed(0)
        self.owned = -(-shape.context // PAGE)
        num_pages = shape.sessions * self.owned
        self.keys, self.values = (
            torch.randn(num_pages, kv_heads, PAGE, dim, generator=generator).to(dtype) for _ in range(2)
        )
        self.query = torch.randn(shape.sessions * shape.new, heads, dim, generator=generator).to(dtype)
        self.table = torch.randperm(num_pages, generator=generator).to(torch.int32)

    @property
    def kv_bytes(self) -> int:
        """Of all keys and values, each read once."""
        return self.keys.nbytes + self.values.nbytes

    @property
    def operations(self) -> int:
        """Products and sums for the positions which rows see."""
        tokens, heads, dim = self.query.shape
        seen = self.shape.new * self.shape.context - self.shape.new * (self.shape.new - 1) // 2
        return 4 * heads * dim * seen * (tokens // self.shape.new)

    def session(self, pool: torch.Tensor, number: int) -> torch.Tensor:
        """Keys or values of a session (1, kv_heads, context, dim), gathered from their pages."""
        own = pool[self.table[number * self.owned : (number + 1) * self.owned]]
        _, kv_heads, _, dim = own.shape
        return own.transpose(0, 1).reshape(1, kv_heads, -1, dim)[:, :, : self.shape.context]


class Contender(Protocol):
    """One way to attend."""

    def __call__(self) -> None:
        """All rows of all sessions."""

    def answer(self) -> torch.Tensor:
        """(tokens, heads, dim)"""


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


class Edgekernels:
    """The function under test: one call for all sessions."""

    def __init__(self, case: Case, num_threads: int) -> None:
        from edgekernels import paged_attention

        shape = case.shape
        sessions = np.arange(shape.sessions + 1)
        self.case, self.attend, self.num_threads = case, paged_attention, num_threads
        self.out = torch.full_like(case.query, torch.nan)
        self.arrays = [_array(tensor) for tensor in (case.query, case.keys, case.values, case.table)]
        self.spans = (sessions * case.owned, sessions * shape.new, np.full(shape.sessions, shape.context - shape.new))
        self.written = _array(self.out)

    def __call__(self) -> None:
        self.attend(*self.arrays, *self.spans, scale=self.case.scale, out=self.written, num_threads=self.num_threads)

    def answer(self) -> torch.Tensor:
        return self.out


class TorchContiguous:
    """torch on keys and values which lie contiguous for each session, one call for each (no pages: not ours to use)."""

    def __init__(self, case: Case, num_threads: int) -> None:
        shape = case.shape
        torch.set_num_threads(num_threads)
        self.case = case
        self.out = torch.full_like(case.query, torch.nan)
        self.causal = shape.new == shape.context
        self.mask = None
        if shape.new > 1 and not self.causal:
            self.mask = torch.ones(shape.new, shape.context, dtype=torch.bool).tril(shape.context - shape.new)
        self.prepare()

    def prepare(self) -> None:
        case = self.case
        self.kept = [
            (case.session(case.keys, n).contiguous(), case.session(case.values, n).contiguous())
            for n in range(case.shape.sessions)
        ]

    def session(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.kept[number]

    def __call__(self) -> None:
        rows = self.case.query.transpose(0, 1)[None]
        with torch.inference_mode():
            for n in range(self.case.shape.sessions):
                part = slice(n * self.case.shape.new, (n + 1) * self.case.shape.new)
                keys, values = self.session(n)
                self.out[part] = torch.nn.functional.scaled_dot_product_attention(
                    rows[:, :, part],
                    keys,
                    values,
                    attn_mask=self.mask,
                    is_causal=self.causal,
                    scale=self.case.scale,
                    enable_gqa=True,
                )[0].transpose(0, 1)

    def answer(self) -> torch.Tensor:
        return self.out


class TorchGather(TorchContiguous):
    """torch on the same pages: gathered for each session, then as above."""

    def prepare(self) -> None:
        pass

    def session(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.case.session(self.case.keys, number), self.case.session(self.case.values, number)


PEERS = {"edgekernels": Edgekernels, "torch": TorchContiguous, "torch, gathered": TorchGather}
