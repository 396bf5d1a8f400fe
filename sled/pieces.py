"""The bytes which tokens stand for, read from a tokenizer's own tables: no tokenizer library is needed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sled.errors import UnknownModel
from sled.messages import Vocabulary

_MAX_IDS = 1 << 24
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # token types of GGUF


def _byte_of_char() -> dict[str, int]:
    """The byte-level alphabet of GPT-2: printable bytes stand for themselves, the rest for characters from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in plain}
    table.update({chr(256 + i): byte for i, byte in enumerate(b for b in range(256) if b not in set(plain))})
    return table


_BYTE_OF_CHAR = _byte_of_char()


def byte_level_piece(token: str) -> bytes:
    """Bytes of a token in GPT-2's alphabet."""
    try:
        return bytes([_BYTE_OF_CHAR[char] for char in token])
    except KeyError:
        return token.encode()


def sentencepiece_piece(token: str) -> bytes:
    """Bytes of a token of SentencePiece: a byte in hexadecimal, or text with ▁ for a space."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("▁", " ").encode()


def vocabulary_of_gguf(metadata: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary inside a GGUF file.

    Raises:
        UnknownModel: no tokenizer, or one of another kind than byte-level BPE and SentencePiece.
    """
    kind = metadata.get("tokenizer.ggml.model")
    pieces_of = {"gpt2": byte_level_piece, "llama": sentencepiece_piece}
    if not isinstance(kind, str) or kind not in pieces_of:
        raise UnknownModel(f"the GGUF file's tokenizer is {repr(kind)[:100]}; supported are {', '.join(pieces_of)}")
    tokens = metadata.get("tokenizer.ggml.tokens")
    types = metadata.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, list) or not isinstance(types, list) or len(tokens) != len(types):
        raise UnknownModel("the GGUF file's tokens and token types do not agree; convert the model again")
    if not all(isinstance(token, str) for token in tokens):
        raise UnknownModel("the GGUF file's tokens are no strings; convert the model again")
    whole = (_CONTROL, _USER_DEFINED)
    pieces = [
        token.encode() if type_id in whole else pieces_of[kind](token)
        for token, type_id in zip(tokens, types, strict=True)
    ]
    return Vocabulary(pieces, [i for i, type_id in enumerate(types) if type_id == _CONTROL])


def vocabulary_of_tokenizer(state: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary of a tokenizer.json, given as the object it holds.

    Raises:
        UnknownModel: it has no vocabulary.
    """
    byte_level = '"ByteLevel"' in json.dumps([state.get("decoder"), state.get("pre_tokenizer")])
    piece = byte_level_piece if byte_level else sentencepiece_piece
    try:
        table = state["model"]["vocab"]
        by_id = (
            {index: token for token, index in table.items()}
            if isinstance(table, dict)
            else {index: token for index, (token, _) in enumerate(table)}
        )
        added = {entry["id"]: entry for entry in state.get("added_tokens") or []}
        by_id |= {index: entry["content"] for index, entry in added.items()}
        highest, most = max(by_id), min(_MAX_IDS - 1, 4 * len(by_id) + 1024)
        if highest > most:
            raise ValueError(f"id {highest} among {len(by_id)} tokens; up to {most} are allowed")
        pieces = []
        for index in range(highest + 1):
            token = by_id.get(index, "")
            pieces.append(token.encode() if index in added else piece(token))
        return Vocabulary(pieces, sorted(i for i, entry in added.items() if entry.get("special")))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnknownModel(f"tokenizer.json holds no vocabulary ({error}); save the tokenizer again") from None
