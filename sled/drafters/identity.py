"""Which vocabulary the files of a model speak, read without loading the model and without a tokenizer library."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from edgekernels.decoder import DecoderError
from edgekernels.decoder.sources import read_config
from edgekernels.gguf import GgufFile
from edgekernels.safetensors import SafetensorsFile
from numpy.typing import NDArray

from sled.drafters.own_ids import HASH_KEY, hash_of, map_of
from sled.errors import UnknownModel, VocabularyMismatch
from sled.messages import Described, Vocabulary
from sled.pieces import vocabulary_of_gguf, vocabulary_of_tokenizer
from sled.vocabulary import vocabulary_hash

_MAX_TOKENIZER_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class Identity:
    """What a drafter's token ids mean.

    `vocab_hash` is what the target's is held against; `vocabulary` is missing where the files only state the hash.
    `bos_id` is what its texts begin with, -1 for nothing; `stop_ids` end them.
    """

    vocab_hash: bytes
    vocabulary: Vocabulary | None = None
    bos_id: int = -1
    stop_ids: tuple[int, ...] = ()


def identity_of(path: Path) -> Identity:
    """The identity of a GGUF file or a model directory.

    Raises:
        UnknownModel: the files do not say which vocabulary the model speaks.
        ValueError, OSError: they are damaged, or cannot be read.
    """
    if path.is_file():
        with GgufFile(path) as file:
            return _of_gguf(file.metadata)
    return _of_directory(path)


def _of_gguf(metadata: Mapping[str, Any]) -> Identity:
    def token(key: str) -> int:
        found = metadata.get(f"tokenizer.ggml.{key}_token_id", -1)
        return found if isinstance(found, int) else -1

    if HASH_KEY in metadata:
        return Identity(hash_of(metadata))
    vocabulary = vocabulary_of_gguf(metadata)
    bos_id = token("bos") if metadata.get("tokenizer.ggml.add_bos_token") is True else -1
    stops = {token("eos"), token("eot")} - {-1}
    return Identity(vocabulary_hash(vocabulary), vocabulary, bos_id, tuple(sorted(stops)))


def _of_directory(path: Path) -> Identity:
    try:
        config = read_config(path)
    except DecoderError as error:  # damaged: transformers cannot read it either
        raise ValueError(str(error)) from None
    stated = config.get("target_vocab_hash", "")
    if stated:
        if not isinstance(stated, str):
            raise ValueError(f"target_vocab_hash is {stated!r}, hexadecimal digits are needed")
        return Identity(bytes.fromhex(stated))
    if not (path / "tokenizer.json").is_file():
        raise UnknownModel(f"{path} has neither tokenizer.json nor target_vocab_hash in config.json; add one of them")
    state = _tokenizer(path / "tokenizer.json")
    vocabulary = vocabulary_of_tokenizer(state)
    bos_id = config.get("bos_token_id")
    if not isinstance(bos_id, int) or not _adds(state, bos_id, vocabulary):
        bos_id = -1
    eos = config.get("eos_token_id")
    stops = tuple(one for one in (eos if isinstance(eos, list) else [eos]) if isinstance(one, int))
    return Identity(vocabulary_hash(vocabulary), vocabulary, bos_id, stops)


def _adds(state: Mapping[str, Any], bos_id: int, vocabulary: Vocabulary) -> bool:
    """Whether the tokenizer puts its first token before a text."""
    if not 0 <= bos_id < len(vocabulary.pieces):
        return False
    return vocabulary.pieces[bos_id].decode(errors="replace") in json.dumps(
        state.get("post_processor"), ensure_ascii=False
    )


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


def check_vocabulary(name: str, own_hash: bytes, target: Described) -> None:
    """Insist on the target's vocabulary.

    Raises:
        VocabularyMismatch: the hash of the drafter's is another.
    """
    if own_hash != target.vocab_hash:
        raise VocabularyMismatch(
            f"drafter {name!r} has vocabulary {own_hash.hex()[:8]}, the target {target.name!r} has "
            f"{target.vocab_hash.hex()[:8]}; use a drafter made for this target, or ngram"
        )


def read_map(path: Path, vocab_size: int, target: Described) -> NDArray[np.int32] | None:
    """The target's id of each of the drafter's, from a directory's tensors or a file's metadata; None if not there.

    Raises:
        VocabularyMismatch: another number of ids, one twice, or one which the target does not have.
        ValueError, OSError: the file is damaged, or cannot be read.
    """
    if path.is_file():
        with GgufFile(path) as file:
            ids = map_of(file.metadata)
    else:
        ids = _map_of_directory(path)
    if ids is not None and (ids.shape != (vocab_size,) or ids.min() < 0 or ids.max() >= target.vocab_size):
        raise VocabularyMismatch(
            f"{path}: draft_to_target has shape {ids.shape} and ids up to {ids.max(initial=0)}; "
            f"{vocab_size} ids under {target.vocab_size} are needed"
        )
    if ids is not None and len(np.unique(ids)) < len(ids):
        twice = np.bincount(ids).argmax()
        raise VocabularyMismatch(f"{path}: draft_to_target names {twice} twice; another id for each is needed")
    return ids


def _map_of_directory(path: Path) -> NDArray[np.int32] | None:
    file = path / "model.safetensors"
    if not file.is_file():
        file = path / "model.safetensors.index.json"
    if not file.is_file():
        return None
    with SafetensorsFile(file) as tensors:
        info = tensors.tensors.get("draft_to_target")
        if info is None:
            return None
        if info.type_name[0] not in "IU":
            raise ValueError(f"{file}: draft_to_target is {info.type_name}, integers are needed")
        ids: NDArray[np.int32] = tensors.read(info.name).clip(-1, 1 << 24).astype(np.int32)  # exact under 2**24
        return ids
