"""Pages of keys and values for every layer of a model, in the shapes the model itself shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sled.errors import OutOfMemory, UnknownModel
from sled.targets.attention import PAGED, RECORDING, Backend, Layer, LayerPool
from sled.targets.room import PAGE_TOKENS_ON_CPU, SHARE_ON_CPU, host_bytes, pages_in

PAGE_TOKENS = {"cpu": PAGE_TOKENS_ON_CPU}  # elsewhere _PAGE_TOKENS
_PAGE_TOKENS = 64
_SHARE_OF_FREE = {"cpu": SHARE_ON_CPU}  # of what is free once the model is loaded; elsewhere _SHARE
_SHARE = 0.85


def page_tokens_of(device: torch.device) -> int:
    """Positions in a page, by device."""
    return PAGE_TOKENS.get(device.type, _PAGE_TOKENS)


def find_layers(model: Any) -> list[Layer]:
    """The layers that attend, in order, found by a forward of two tokens.

    Raises:
        UnknownModel: a layer asks for more than plain attention, or is used twice, or none asks at all.
    """
    layers: list[Layer] = []
    kind, before = model.config.model_type, model.config._attn_implementation
    model.set_attn_implementation(RECORDING)
    try:
        with torch.inference_mode():
            ids = torch.zeros(1, 2, dtype=torch.int64, device=model.device)
            positions = torch.arange(2, device=model.device)[None]
            model(input_ids=ids, position_ids=positions, use_cache=False, sled_layers=layers)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UnknownModel(f"{kind} does not take attention of our own ({error}); use another target") from None
    finally:
        model.set_attn_implementation(before)
    more = sorted({name for layer in layers for name in layer.more})
    if more:
        raise UnknownModel(f"{kind} attends with {', '.join(more)}, which is not supported yet; use another target")
    if not layers or len({id(layer.module) for layer in layers}) < len(layers):
        raise UnknownModel(f"{kind} does not attend once in each layer; use another target")
    return layers


def page_bytes(layers: Sequence[Layer], page_tokens: int) -> int:
    """Memory of one page over all layers."""
    return sum(
        layer.kv_heads * (layer.key_dim + layer.value_dim) * layer.like.element_size() * page_tokens for layer in layers
    )


def num_pages_of(layers: Sequence[Layer], page_tokens: int, kv_bytes: int | None, device: torch.device) -> int:
    """How many pages `kv_bytes` holds; None takes a share of the memory that is free.

    Raises:
        ParameterError: not even one page.
    """
    share = _SHARE_OF_FREE.get(device.type, _SHARE)
    return pages_in(kv_bytes, page_bytes(layers, page_tokens), page_tokens, by_default=free_bytes(device) * share)


def free_bytes(device: torch.device) -> int:
    """Memory that could be had on a device."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    return host_bytes()


def hang_pools(model: Any, layers: Sequence[Layer], num_pages: int, page_tokens: int, backend: Backend) -> None:
    """Give every layer its pages and the backend, and switch the model to paged attention.

    On CPUs memory is taken when a page is first written, not now.

    Raises:
        OutOfMemory: the device has not so much.
    """
    for layer in layers:
        shape = (num_pages, layer.kv_heads, page_tokens)
        try:
            pool = LayerPool(layer.like.new_empty(*shape, layer.key_dim), layer.like.new_empty(*shape, layer.value_dim))
        except (RuntimeError, MemoryError):
            total = page_bytes(layers, page_tokens) * num_pages
            raise OutOfMemory(f"no room for {total >> 20} MiB of keys and values; give a smaller kv_bytes") from None
        layer.module.sled_pool, layer.module.sled_backend = pool, backend
    model.set_attn_implementation(PAGED)
