"""A Llama-family GGUF file as a transformers model: their model class, weights through our reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from edgekernels.gguf import GgufError, GgufFile
from transformers import LlamaConfig, LlamaForCausalLM

from sled.errors import UnknownModel
from sled.targets.text import TextCodec, codec_from_gguf

Progress = Callable[[float], None]

_BLOCK_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_TOKENIZER = "tokenizer.ggml.model"
_TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def _config(metadata: dict[str, Any], vocab_size: int, tied: bool, stop_ids: list[int]) -> LlamaConfig:
    def value(key: str) -> Any:
        try:
            return metadata[f"llama.{key}"]
        except KeyError:
            raise UnknownModel(f"the GGUF file lacks llama.{key}; convert the model again") from None

    heads = value("attention.head_count")
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=value("embedding_length"),
        intermediate_size=value("feed_forward_length"),
        num_hidden_layers=value("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=metadata.get("llama.attention.head_count_kv", heads),
        head_dim=metadata.get("llama.rope.dimension_count", value("embedding_length") // heads),
        max_position_embeddings=value("context_length"),
        rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": metadata.get("llama.rope.freq_base", 10000.0)},
        tie_word_embeddings=tied,
        bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=stop_ids,
        attention_bias=False,
        mlp_bias=False,
    )


def _transformers_name(name: str) -> str:
    """`blk.3.attn_q.weight` to `model.layers.3.self_attn.q_proj.weight`."""
    parts = name.split(".")
    if parts[0] == "blk" and len(parts) == 4 and parts[2] in _BLOCK_NAMES:
        return f"model.layers.{parts[1]}.{_BLOCK_NAMES[parts[2]]}.{parts[3]}"
    if len(parts) == 2 and parts[0] in _TOP_NAMES:
        return f"{_TOP_NAMES[parts[0]]}.{parts[1]}"
    raise UnknownModel(f"tensor {name!r} belongs to no plain Llama model; use the model's Hugging Face directory")


def _unpermute(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Undo the row order ggml uses for rotary embedding (pairs beside each other) to halves, as transformers has it."""
    rows = weight.shape[0]
    return weight.reshape(heads, rows // heads // 2, 2, -1).swapaxes(1, 2).reshape(rows, -1)


def load_gguf_llama(
    path: Path, dtype: torch.dtype, progress: Progress | None = None
) -> tuple[LlamaForCausalLM, TextCodec | None]:
    """Load a Llama-family GGUF file, and its tokenizer if it has one, which drafters may lack.

    Args:
        path: the file.
        dtype: torch dtype of the weights.
        progress: called with the share of bytes done, 0 .. 1.

    Raises:
        UnknownModel: another architecture, a missing key or tensor, or a damaged file.
    """
    try:
        with GgufFile(path) as file:
            architecture = file.metadata.get("general.architecture")
            if architecture != "llama":
                raise UnknownModel(f"{path} holds a {architecture!r} model; GGUF files of llama models are supported")
            if file.metadata.get("llama.rope.scaling.type", "none") != "none":
                raise UnknownModel(f"{path} scales its rotary frequencies; use the model's Hugging Face directory")
            codec = codec_from_gguf(file.metadata) if _TOKENIZER in file.metadata else None
            tied = "output.weight" not in file.tensors
            vocab_size = file.tensors["token_embd.weight"].shape[0]
            config = _config(file.metadata, vocab_size, tied, codec.stop_ids if codec else [])
            state = _read_state(file, config, dtype, progress)
    except GgufError as error:
        raise UnknownModel(f"cannot read the model: {error}; give a sound GGUF file") from None
    except KeyError as error:
        raise UnknownModel(f"{path} lacks {error}; convert the model again") from None
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UnknownModel(f"{path} contradicts itself ({error}); convert the model again") from None
    if tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    try:
        missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:
        raise UnknownModel(f"{path}: {str(error).splitlines()[-1].strip()}; convert the model again") from None
    if missing or unexpected:
        raise UnknownModel(
            f"{path}: tensors missing {missing[:3]}, not known {unexpected[:3]}; convert the model again"
        )
    # The rotary table is a buffer no file carries; on the meta device it was never computed.
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config)
    return model.eval(), codec


def _read_state(
    file: GgufFile, config: LlamaConfig, dtype: torch.dtype, progress: Progress | None
) -> dict[str, torch.Tensor]:
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    total = sum(info.num_bytes for info in file.tensors.values())
    state, done = {}, 0
    for name, weight in file.read_all():
        if name == "rope_freqs.weight":
            raise UnknownModel("the file scales its rotary frequencies; use the model's Hugging Face directory")
        part = name.split(".")[2] if name.startswith("blk.") else ""
        if part in heads and name.endswith(".weight"):
            weight = _unpermute(weight, heads[part])  # noqa: PLW2901
        state[_transformers_name(name)] = torch.from_numpy(np.ascontiguousarray(weight)).to(dtype)
        done += file.tensors[name].num_bytes
        if progress:
            progress(done / total)
    return state
