"""A drafter's files: a directory of safetensors as transformers has it, and GGUF; each says whose ids it speaks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from edgebus.files import write_whole
from sled.distill.gguf_file import Floats, gguf_bytes, kind_for
from sled.distill.shapes import Shape
from sled.distill.whole import written_beside
from sled.drafters.own_ids import HASH_KEY, MAP_KEY

_PARTS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_FILE_TYPES = {"f16": 1, "q4_0": 2, "q8_0": 7}
_WHOLE = ("token_embd.weight", "output.weight")  # kept at 8 bits where the layers have 4: ids hang on them


def write_directory(
    directory: Path, weights: Mapping[str, Floats], target_ids: NDArray[np.int64] | None, config: Mapping[str, Any]
) -> None:
    """config.json and model.safetensors in float16, with `draft_to_target` where the drafter has ids of its own.

    Args:
        directory: made if need be.
        weights: by transformers' names.
        target_ids: (vocab,), the target's id of each own one, or None.
        config: with target_vocab_hash.

    Raises:
        OSError: they cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, NDArray[Any]] = {name: weight.astype(np.float16) for name, weight in weights.items()}
    if target_ids is not None:
        tensors["draft_to_target"] = target_ids.astype(np.int32)
    part = directory / ".model.part"
    with written_beside(directory / "model.safetensors", part):
        save_file(tensors, part, metadata={"format": "pt"})
    write_whole(directory / "config.json", json.dumps(config, indent=1).encode() + b"\n")


def gguf_of(
    name: str,
    shape: Shape,
    weights: Mapping[str, Floats],
    target_ids: Sequence[int] | None,
    vocab_hash: bytes,
    kind: str,
    licence: str = "",
) -> bytes:
    """A drafter as a GGUF file.

    Args:
        name: of the model.
        shape: of it.
        weights: by transformers' names.
        target_ids: the target's id of each own one, or None where they are the same.
        vocab_hash: of the target's vocabulary.
        kind: of the matrices: q8_0, q4_0 or f16. With q4_0 embedding and head have 8 bits.
        licence: as passed through; empty says nothing.
    """
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "general.name": name,
        "general.file_type": _FILE_TYPES[kind],
        "general.quantization_version": 2,
        "llama.context_length": shape.positions,
        "llama.embedding_length": shape.width,
        "llama.block_count": shape.layers,
        "llama.feed_forward_length": shape.ffn,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.kv_heads,
        "llama.attention.key_length": shape.head_dim,
        "llama.attention.value_length": shape.head_dim,
        "llama.attention.layer_norm_rms_epsilon": float(shape.epsilon),
        "llama.rope.dimension_count": shape.head_dim,
        "llama.rope.freq_base": float(shape.theta),
        "llama.vocab_size": shape.vocab,
        HASH_KEY: vocab_hash.hex(),
    }
    if licence:
        metadata["general.license"] = licence
    if target_ids is not None:
        metadata[MAP_KEY] = list(map(int, target_ids))
    heads = {"attn_q": shape.heads, "attn_k": shape.kv_heads}
    tensors = {}
    for known, weight in weights.items():
        own, part = _gguf_name(known)
        values = _paired(weight, heads[part]) if part in heads else weight
        wanted = "q8_0" if kind == "q4_0" and own in _WHOLE else kind
        tensors[own] = (np.ascontiguousarray(values, np.float32), kind_for(values, wanted))
    return gguf_bytes(metadata, tensors)


def _gguf_name(name: str) -> tuple[str, str]:
    """`model.layers.3.self_attn.q_proj.weight` to `blk.3.attn_q.weight` and `attn_q`."""
    stem = name.removesuffix(".weight")
    if stem in _TOP:
        return f"{_TOP[stem]}.weight", _TOP[stem]
    _, _, number, part = stem.split(".", 3)
    return f"blk.{number}.{_PARTS[part]}.weight", _PARTS[part]


def _paired(weight: Floats, heads: int) -> Floats:
    """Rows of queries or keys in ggml's order, rotary pairs beside each other, from that of halves."""
    rows = len(weight)
    paired: Floats = weight.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(rows, -1)
    return paired
