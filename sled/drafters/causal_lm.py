"""Any causal language model of transformers as a drafter's model, whole or reduced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from edgekernels import PackedMatrix
from numpy.typing import NDArray
from transformers import DynamicCache

from sled.errors import UnknownModel
from sled.targets.loading import load_causal_lm


class TorchModel:
    """A model of transformers and its cache, as a `LanguageModel`.

    Its cache keeps all keys and values of sliding layers too, since one that has let them go cannot roll back.

    Args:
        model: a causal language model.

    Attributes:
        read_tokens: pieces that it reads in; of 32, a text takes twice as long, and of all of it little less.
    """

    read_tokens = 128

    def __init__(self, model: Any) -> None:
        self._model = model.eval()
        self.vocab_size = model.config.get_text_config().vocab_size
        self.max_positions = model.config.get_text_config().max_position_embeddings
        self._cache, self._length = DynamicCache(), 0

    @torch.inference_mode()
    def read(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """See LanguageModel."""
        tokens = torch.from_numpy(ids)[None]
        out = self._model(input_ids=tokens, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._length += len(ids)
        row: NDArray[np.float32] = out.logits[0, -1:].float().contiguous().numpy()
        return row

    def forget(self, length: int) -> None:
        """See LanguageModel."""
        if length == 0:
            self._cache = DynamicCache()
        elif length < self._length:
            self._cache.crop(length - self._length)
        self._length = length


def load_in_torch(
    path: Path,
    *,
    skip: tuple[int, ...] = (),
    bits: int | None = None,
    group: int = 64,
    progress: Callable[[float], None] | None = None,
) -> TorchModel:
    """A model from a GGUF file or a model directory.

    Args:
        path: the file or the directory.
        skip: layers to leave out.
        bits: width to which the layers' matrices are rounded, computed in float32 all the same; None leaves them.
        group: columns for each scale of those.
        progress: called with the share loaded, 0 .. 1.

    Raises:
        UnknownModel: the files hold no model we can load, or no such layers.
    """
    model, _ = load_causal_lm("gguf" if path.is_file() else "directory", path, torch.float32, progress)
    if skip:
        _leave_out(model, skip)
    if bits is not None:
        _round(model, bits, group)
    return TorchModel(model)


def _layers(model: Any) -> tuple[Any, str]:
    """The part that holds the list of layers, and the list's name."""
    count = model.config.get_text_config().num_hidden_layers
    for part in model.modules():
        for name, child in part.named_children():
            if isinstance(child, torch.nn.ModuleList) and len(child) == count:
                return part, name
    raise UnknownModel(f"{type(model).__name__} has no plain list of {count} layers to leave some out")


def _leave_out(model: Any, skip: tuple[int, ...]) -> None:
    part, name = _layers(model)
    layers, config = getattr(part, name), model.config.get_text_config()
    kept = [number for number in range(len(layers)) if number not in skip]
    if not kept or max(skip) >= len(layers):
        raise UnknownModel(f"cannot skip {skip}: the model has layers 0 to {len(layers) - 1}, and needs one of them")
    setattr(part, name, torch.nn.ModuleList(layers[number] for number in kept))
    for index, layer in enumerate(getattr(part, name)):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[number] for number in kept]
    config.num_hidden_layers = len(kept)


def _round(model: Any, bits: int, group: int) -> None:
    part, name = _layers(model)
    for module in getattr(part, name).modules():
        if isinstance(module, torch.nn.Linear):
            size = next(
                (size for size in (256, 128, 64, 32, 16) if size <= group and module.in_features % size == 0), 0
            )
            if size:
                values = np.ascontiguousarray(module.weight.detach().numpy())
                packed = PackedMatrix.quantise(values, bits, group=size, clip="mse")
                module.weight = torch.nn.Parameter(torch.from_numpy(packed.dequantise()), requires_grad=False)
