"""Which way to attend."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import torch

from sled.errors import ParameterError
from sled.targets.attention import Backend, Layer
from sled.targets.attention_cpu import CpuBackend
from sled.targets.attention_torch import TorchBackend


def choose_backend(name: str, device: torch.device, layers: Sequence[Layer], page_tokens: int) -> Backend:
    """A backend by name, or the fastest that takes these layers.

    Args:
        name: "torch" runs everywhere, "cpu" is our native kernel, "triton" the one for CUDA; "auto" chooses.
        device: of the model.
        layers: from `pool.find_layers`.
        page_tokens: positions in a page.

    Raises:
        ParameterError: no such backend, or not for this device or these layers.
    """
    if name not in ("auto", "torch", "cpu", "triton"):
        raise ParameterError(f"attention is {name!r}; give auto, torch, cpu or triton")
    square = all(layer.key_dim == layer.value_dim for layer in layers)
    plain = {layer.like.dtype for layer in layers} <= {torch.float32, torch.bfloat16}
    fits = {
        "cpu": device.type == "cpu" and square and plain,
        "triton": device.type == "cuda" and square and has_triton(),
    }
    whole = page_tokens >= 16 and page_tokens & (page_tokens - 1) == 0
    if name in ("auto", "triton") and fits["triton"] and not whole:
        raise ParameterError(f"page_tokens is {page_tokens}; CUDA takes powers of two from 16 on, attention torch any")
    if name in fits and not fits[name]:
        raise ParameterError(f"attention {name} does not run this model on {device}; give auto or torch")
    if name != "torch" and fits["triton"]:
        from sled.targets.attention_triton import TritonBackend

        return TritonBackend(layers, device)
    return CpuBackend() if name != "torch" and fits["cpu"] else TorchBackend()


def has_triton() -> bool:
    """Whether Triton is installed, as it is with torch for CUDA."""
    return importlib.util.find_spec("triton") is not None
