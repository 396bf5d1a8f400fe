"""From the files of a model to the model on its device, with its tokenizer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sled.errors import OutOfMemory, ParameterError, UnknownModel
from sled.targets.catalog import ModelFiles
from sled.targets.gguf_llama import load_gguf_llama
from sled.targets.text import TextCodec, codec_from_directory

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LOADING = threading.Lock()


def load_model(
    files: ModelFiles,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    progress: Callable[[float], None] | None = None,
    **more: Any,
) -> tuple[Any, TextCodec]:
    """A model for a target, on its device.

    Args:
        files: from `catalog.find_model`.
        dtype: a name of `DTYPES`.
        device: "cpu", "cuda", "cuda:1", ...
        progress: called with the share done, 0 .. 1.
        **more: for `from_pretrained`, of directories.

    Raises:
        ParameterError: no such dtype or device here.
        UnknownModel: the files hold no model we can load, or no tokenizer.
        OutOfMemory: the device has no room for it.
    """
    if dtype not in DTYPES:
        raise ParameterError(f"dtype is {dtype!r}; give one of {', '.join(DTYPES)}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ParameterError(f"device is {device!r}, and torch finds no CUDA here; give cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).partition("\n")[0][:200]
        raise ParameterError(f"device is {device!r}, which torch does not have here ({why}); give cpu") from None
    model, codec = load_causal_lm(files.kind, files.path, DTYPES[dtype], progress, **more)
    if codec is None:
        raise UnknownModel(f"{files.path} has no tokenizer; a target needs tokenizer.json beside its weights")
    if more or torch.device(device) == model.device:
        return model, codec
    try:
        return model.to(device), codec
    except torch.OutOfMemoryError:
        raise OutOfMemory(f"{device} has no room for {files.name} in {dtype}; use a smaller one, or several") from None


def load_causal_lm(
    kind: str, path: Path, dtype: torch.dtype, progress: Callable[[float], None] | None = None, **more: Any
) -> tuple[Any, TextCodec | None]:
    """A causal language model and, where its files have one, its tokenizer.

    Raises:
        UnknownModel: the files hold no model we can load.
    """
    if kind == "gguf":
        if more:
            raise UnknownModel(f"{path} is a GGUF file, which cannot be divided; give a Hugging Face directory")
        return load_gguf_llama(path, dtype, progress)
    try:
        # transformers loads under process-wide switches: two threads at once leave weights out.
        with _LOADING:
            config = AutoConfig.from_pretrained(path, local_files_only=True)
            model, info = AutoModelForCausalLM.from_pretrained(
                path,
                config=config,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                **more,
            )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnknownModel(f"cannot load a causal language model from {path}: {reason}") from None
    if info["missing_keys"] or info["mismatched_keys"]:
        wrong = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
        raise UnknownModel(f"{path}: {len(wrong)} weights missing or of another shape, first {wrong[0]}; copy it again")
    if progress:
        progress(1.0)
    codec = codec_from_directory(path) if (path / "tokenizer.json").is_file() else None
    return model, codec
