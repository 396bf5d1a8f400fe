"""Attention over paged keys and values, plugged into unmodified models through transformers' attention interface.

The batch is one sequence of all sessions' tokens. A backend writes its keys and values into the sessions' pages and
attends over those pages; what it must know of the batch is planned once for all layers.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor
from transformers import AttentionInterface

from sled.targets.layout import Layout
from sled.targets.packed import Packed

PAGED, RECORDING = "sled_paged", "sled_recording"


class LayerPool(NamedTuple):
    """Keys and values of one layer: (num_pages, kv_heads, page_tokens, head_dim) each, contiguous."""

    keys: Tensor
    values: Tensor


class Terms(NamedTuple):
    """How a layer attends.

    Args:
        scale: factor of the products of queries and keys.
        window: a token sees itself and window - 1 before it; 0 is all.
        softcap: products s become softcap * tanh(s / softcap); 0 is off.
    """

    scale: float
    window: int = 0
    softcap: float = 0.0


class Backend(Protocol):
    """A way to attend over pages."""

    def plan(self, layout: Layout, packed: Packed) -> Any:
        """What `attend` needs to know of a batch, made once for all layers."""

    def attend(self, pool: LayerPool, query: Tensor, key: Tensor, value: Tensor, plan: Any, terms: Terms) -> Tensor:
        """Write keys and values into the pages, then attend causally, each span over its own pages.

        Args:
            pool: of this layer.
            query: (1, heads, tokens, head_dim).
            key: (1, kv_heads, tokens, head_dim).
            value: (1, kv_heads, tokens, head_dim).
            plan: of this batch.
            terms: of this layer.

        Returns:
            (1, tokens, heads, head_dim).
        """


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    sled_plan: Any,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers calls for each layer; the layer's pool and backend hang on its module (`pool.hang_pools`)."""
    terms = Terms(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window or 0, softcap or 0.0)
    return module.sled_backend.attend(module.sled_pool, query, key, value, sled_plan, terms), None


class Layer(NamedTuple):
    """A layer as it called the attention interface; heads are those on this device."""

    module: Any
    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    terms: Terms
    like: Tensor
    more: frozenset[str]


def record(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    sled_layers: list[Layer],
    sliding_window: int | None = None,
    softcap: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Note what a layer asks for instead of computing it."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    terms = Terms(scale, sliding_window or 0, softcap or 0.0)
    named = frozenset(name for name, given in more.items() if given is not None and name in _NOT_PLAIN)
    shape = query.shape[1], key.shape[1], key.shape[-1], value.shape[-1]
    sled_layers.append(Layer(module, *shape, terms, key.new_empty(0), named))
    return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[-1]), None


_NOT_PLAIN = frozenset({"s_aux", "position_bias", "attention_bias", "head_mask", "relative_bias"})

# Without a mask function of this name transformers makes no mask, which is what we want.
AttentionInterface.register(PAGED, attend)
AttentionInterface.register(RECORDING, record)
