"""Paged attention on CPUs with the native kernel: nothing is gathered, a session's pages are read where they lie."""

from __future__ import annotations

from typing import Any, NamedTuple

import edgekernels
import numpy as np
import torch
from torch import Tensor

from sled.targets.attention import LayerPool, Terms
from sled.targets.attention_torch import write
from sled.targets.layout import Layout
from sled.targets.packed import Packed


class _Plan(NamedTuple):
    layout: Layout
    packed: Packed


class CpuBackend:
    """`edgekernels.paged_attention` over float32 or bfloat16."""

    def plan(self, layout: Layout, packed: Packed) -> _Plan:
        """See `attention.Backend`."""
        return _Plan(layout, packed)

    def attend(self, pool: LayerPool, query: Tensor, key: Tensor, value: Tensor, plan: _Plan, terms: Terms) -> Tensor:
        """See `attention.Backend`."""
        write(pool, key, value, plan.packed)
        layout = plan.layout
        out = edgekernels.paged_attention(
            _array(query[0].transpose(0, 1).contiguous()),
            _array(pool.keys),
            _array(pool.values),
            layout.page_table,
            layout.page_starts,
            layout.token_starts,
            layout.past,
            scale=terms.scale,
            window=terms.window,
            softcap=terms.softcap,
            num_threads=torch.get_num_threads(),
        )
        return _tensor(out, query.dtype)[None]


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


def _tensor(array: np.ndarray[Any, Any], dtype: torch.dtype) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.view(dtype) if dtype == torch.bfloat16 else tensor
