"""What a GGUF file of a drafter says about ids: whose vocabulary it speaks, and which part of it is its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sled.pieces import vocabulary_of_gguf
from sled.vocabulary import vocabulary_hash

HASH_KEY, MAP_KEY = "sled.target_vocab_hash", "sled.draft_to_target"
_HASH_BYTES = 16
_MOST_ID = (1 << 31) - 1


def hash_of(metadata: Mapping[str, Any]) -> bytes:
    """The hash of the target's vocabulary: as stated, or of the tokenizer in the file.

    Raises:
        ValueError: what is stated is no such hash.
        UnknownModel: neither is there.
    """
    stated = metadata.get(HASH_KEY)
    if stated is None:
        return vocabulary_hash(vocabulary_of_gguf(metadata))
    try:
        found = bytes.fromhex(stated) if isinstance(stated, str) else b""
    except ValueError:
        found = b""
    if len(found) != _HASH_BYTES:
        raise ValueError(f"{HASH_KEY} is {repr(stated)[:60]}; {2 * _HASH_BYTES} hexadecimal digits are needed")
    return found


def map_of(metadata: Mapping[str, Any]) -> NDArray[np.int32] | None:
    """The target's id of each own one, still to be checked against both vocabularies; None if they are the same.

    Raises:
        ValueError: what is stated is no list of ids.
    """
    stated = metadata.get(MAP_KEY)
    if stated is None:
        return None
    if not isinstance(stated, list) or any(type(entry) is not int for entry in stated):
        raise ValueError(f"{MAP_KEY} is {repr(stated)[:60]}; a list of integers is needed")
    wrong = next((entry for entry in stated if not 0 <= entry <= _MOST_ID), None)
    if wrong is not None:
        raise ValueError(f"{MAP_KEY} holds {wrong}; ids of the target are needed")
    return np.array(stated, np.int32)
