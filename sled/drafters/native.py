"""A Llama-family model on the native decoder as a drafter: numpy alone, neither torch nor a tokenizer."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from edgekernels.decoder import Decoder, DecoderError, load_decoder
from edgekernels.decoder.sources import read_config
from edgekernels.gguf import GgufFile
from edgekernels.safetensors import SafetensorsFile
from numpy.typing import NDArray

from sled.drafters.model import ModelDrafter, check_map, check_vocabulary
from sled.errors import UnknownModel
from sled.messages import Described, Vocabulary
from sled.pieces import vocabulary_of_gguf, vocabulary_of_tokenizer
from sled.vocabulary import vocabulary_hash

BITS, GROUP = 8, 32  # of weights which the files hold as floats: as good as the floats, a quarter of the memory
_MAX_TOKENIZER_BYTES = 1 << 28


class NativeModel:
    """A native decoder and one cache, as a `LanguageModel`.

    Args:
        decoder: the model.
        positions: tokens the cache has room for.
        threads: threads for each forward pass.
    """

    def __init__(self, decoder: Decoder, positions: int, threads: int) -> None:
        self.vocab_size = decoder.config.vocab_size
        self.max_positions = min(positions, decoder.config.max_positions)
        self._decoder, self._threads = decoder, threads
        self._cache = decoder.new_cache(self.max_positions)

    def read(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """See LanguageModel."""
        return self._decoder.forward(ids, self._cache, num_threads=self._threads)

    def forget(self, length: int) -> None:
        """See LanguageModel."""
        self._cache.truncate(length)


def load_native_drafter(
    path: Path,
    target: Described,
    *,
    name: str,
    threads: int = 1,
    progress: Callable[[float], None] | None = None,
) -> ModelDrafter:
    """A drafter from a GGUF file or a directory of safetensors, checked against the target's vocabulary.

    As with `causal_lm.load_drafter`, a directory may hold `draft_to_target` and name the target's vocabulary.

    Args:
        path: the file or the directory.
        target: what the server said about its model.
        name: what users call the drafter.
        threads: threads for each forward pass.
        progress: called with the share loaded, 0 .. 1.

    Raises:
        DecoderError: a model of another kind; transformers may know it.
        UnknownModel: the files are damaged, or do not say which vocabulary the model speaks.
        VocabularyMismatch: its ids are not the target's.
    """
    try:
        own_hash = _gguf_hash(path) if path.is_file() else _directory_hash(path)
        check_vocabulary(name, own_hash, target)
        decoder = load_decoder(path, bits=BITS, group=GROUP, progress=progress)
        model = NativeModel(decoder, target.max_positions, threads)
        target_ids = None if path.is_file() else _read_map(path, model.vocab_size, target)
    except DecoderError:
        raise
    except (ValueError, OSError) as error:
        raise UnknownModel(f"cannot read the model: {error}; give a sound file") from None
    return ModelDrafter(model, name=name, target_ids=target_ids, target_vocab_size=target.vocab_size)


def _gguf_hash(path: Path) -> bytes:
    with GgufFile(path) as file:
        return vocabulary_hash(vocabulary_of_gguf(file.metadata))


def _tokenizer(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > _MAX_TOKENIZER_BYTES:
            raise ValueError(f"{path} has {size} bytes, at most {_MAX_TOKENIZER_BYTES} are allowed")
        raw = file.read(size)
    try:
        found = json.loads(raw)
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object")
    return found


def _directory_hash(path: Path) -> bytes:
    try:
        stated = read_config(path).get("target_vocab_hash", "")
    except DecoderError as error:  # damaged: transformers cannot read it either
        raise ValueError(str(error)) from None
    if stated:
        if not isinstance(stated, str):
            raise ValueError(f"target_vocab_hash is {stated!r}, hexadecimal digits are needed")
        return bytes.fromhex(stated)
    if not (path / "tokenizer.json").is_file():
        raise UnknownModel(f"{path} has neither tokenizer.json nor target_vocab_hash in config.json; add one of them")
    vocabulary: Vocabulary = vocabulary_of_tokenizer(_tokenizer(path / "tokenizer.json"))
    return vocabulary_hash(vocabulary)


def _read_map(path: Path, vocab_size: int, target: Described) -> NDArray[np.int32] | None:
    file = path / "model.safetensors"
    if not file.is_file():
        file = path / "model.safetensors.index.json"
    with SafetensorsFile(file) as tensors:
        info = tensors.tensors.get("draft_to_target")
        if info is None:
            return None
        if info.type_name[0] not in "IU":
            raise ValueError(f"{file}: draft_to_target is {info.type_name}, integers are needed")
        ids = tensors.read(info.name)  # exact: ids stay below 2**24
    return check_map(file, ids.clip(-1, 1 << 24).astype(np.int32), vocab_size, target)
