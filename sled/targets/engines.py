"""What computes a target: our own decoder where it can, torch elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal

from sled.errors import UnknownModel
from sled.targets.catalog import ModelFiles
from sled.targets.native import Activations, load_native

log = logging.getLogger("sled.server")

Engine = Literal["auto", "native", "torch"]


def may_be_native(*, dtype: str, device: str, attention: str, tensor_parallel: int = 1) -> bool:
    """Whether nothing is asked for that only torch computes."""
    return (dtype, device, attention, tensor_parallel) == ("float32", "cpu", "auto", 1)


def load_engine(
    files: ModelFiles,
    *,
    engine: Engine = "auto",
    dtype: str = "float32",
    device: str = "cpu",
    max_window: int = 16,
    kv_bytes: int | None = None,
    page_tokens: int | None = None,
    attention: str = "auto",
    activations: Activations = "float",
    num_threads: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Any:
    """Load a target; "auto" takes the native decoder for what it runs in float32 on the CPU, and torch for the rest.

    Args:
        files: from `catalog.find_model`.
        engine: "auto", "native" or "torch".
        activations: "float", or "int8" with the native decoder.
        num_threads: on CPUs; 0 takes what suits the engine.
        dtype, device, max_window, kv_bytes, page_tokens, attention, progress: see `causal_lm.load_target`.

    Raises:
        UnknownModel: the files hold no model which this engine can load.
        ParameterError: no such dtype, device or attention here.
        OutOfMemory: the device has no room for it.
        ModuleNotFoundError: torch or transformers is needed, and not there.
    """
    sizes: dict[str, Any] = {"max_window": max_window, "kv_bytes": kv_bytes, "page_tokens": page_tokens}
    if engine == "native" or (engine == "auto" and may_be_native(dtype=dtype, device=device, attention=attention)):
        try:
            return load_native(files, activations=activations, num_threads=num_threads, progress=progress, **sizes)
        except UnknownModel as error:
            if engine == "native" or activations != "float":
                raise
            log.info("torch computes this target", extra={"target": files.name, "why": str(error)[:300]})
    import torch

    from sled.targets.causal_lm import load_target

    if num_threads:
        torch.set_num_threads(num_threads)
    return load_target(files, dtype=dtype, device=device, attention=attention, progress=progress, **sizes)
