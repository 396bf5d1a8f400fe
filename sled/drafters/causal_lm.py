"""Any causal language model of transformers as a drafter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from transformers import DynamicCache

from sled.drafters.model import ModelDrafter, check_map, check_vocabulary
from sled.errors import UnknownModel
from sled.messages import Described
from sled.targets.loading import load_causal_lm
from sled.vocabulary import vocabulary_hash


class TorchModel:
    """A model of transformers and its cache, as a `LanguageModel`.

    Args:
        model: a causal language model.
    """

    def __init__(self, model: Any) -> None:
        self._model = model.eval()
        self.vocab_size = model.config.get_text_config().vocab_size
        self.max_positions = model.config.get_text_config().max_position_embeddings
        self._cache = DynamicCache(config=model.config)
        self._length = 0

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
            self._cache = DynamicCache(config=self._model.config)
        elif length < self._length:
            self._cache.crop(length - self._length)
        self._length = length


def load_drafter(
    path: Path, target: Described, *, name: str, progress: Callable[[float], None] | None = None
) -> ModelDrafter:
    """A drafter from a GGUF file or a model directory, checked against the target's vocabulary.

    A directory may hold `draft_to_target` (int32, one target id per draft id) in its safetensors file when the
    drafter has a smaller vocabulary of its own, and then names the target's vocabulary by `target_vocab_hash`.

    Raises:
        UnknownModel: the files hold no model we can load.
        VocabularyMismatch: its ids are not the target's.
    """
    loaded, codec = load_causal_lm("gguf" if path.is_file() else "directory", path, torch.float32, progress)
    model = TorchModel(loaded)
    own_hash = vocabulary_hash(codec.vocabulary()) if codec else None
    target_ids = None
    if path.is_dir():
        config = json.loads((path / "config.json").read_text())
        own_hash = bytes.fromhex(config.get("target_vocab_hash", "")) or own_hash
        target_ids = _read_map(path, model.vocab_size, target)
    if own_hash is None:
        raise UnknownModel(f"{path} has neither tokenizer.json nor target_vocab_hash in config.json; add one of them")
    check_vocabulary(name, own_hash, target)
    return ModelDrafter(model, name=name, target_ids=target_ids, target_vocab_size=target.vocab_size)


def _read_map(path: Path, vocab_size: int, target: Described) -> NDArray[np.int32] | None:
    file = path / "model.safetensors"
    if not file.is_file():
        return None
    with safe_open(file, framework="numpy") as tensors:
        if "draft_to_target" not in tensors.keys():  # noqa: SIM118 - not a dict
            return None
        ids = np.ascontiguousarray(tensors.get_tensor("draft_to_target"), dtype=np.int32)
    return check_map(file, ids, vocab_size, target)
