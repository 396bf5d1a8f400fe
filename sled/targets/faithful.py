"""Whether our decoder reads a model directory as transformers does, whose answers are the ones that count."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from edgekernels.decoder import Decoder, Weights
from edgekernels.decoder.sources import read_config
from edgekernels.safetensors import SafetensorsFile

from sled.errors import UnknownModel


def insist_faithful(path: Path, decoder: Decoder) -> None:
    """Refuse directories of which the decoder would serve less or something else, or whose code is their own.

    What config.json leaves unsaid is what transformers takes it to be.

    Raises:
        UnknownModel: so it is.
    """
    settings = read_config(path)
    if settings.get("auto_map"):
        raise UnknownModel(f"{path} brings code of its own")
    positions = settings.get("max_position_embeddings")
    if positions != decoder.config.max_positions:
        raise UnknownModel(f"the decoder knows {decoder.config.max_positions} of its {positions} positions")
    if settings["model_type"] == "mistral" and "sliding_window" not in settings:
        raise UnknownModel(f"{path} leaves sliding_window to its default, which the decoder does not have")
    if 2 * len(decoder.config.frequencies) != decoder.config.head_dim:
        raise UnknownModel(f"of its heads of {decoder.config.head_dim}, not all dimensions turn")
    _insist_parts(path, settings, decoder.weights)


def _insist_parts(path: Path, settings: Mapping[str, Any], weights: Weights) -> None:
    """Insist on the biases, norms and head which the family and its settings ask for, no more and no fewer.

    Raises:
        UnknownModel: the file has others.
    """
    family = settings["model_type"]
    attention = settings.get("attention_bias", False) if family in ("llama", "qwen3") else family == "qwen2"
    wanted = dict.fromkeys(("query", "key", "value"), bool(attention))
    wanted["output"] = bool(attention) and family != "qwen2"
    wanted |= dict.fromkeys(("gate", "up", "down"), bool(settings.get("mlp_bias")) and family == "llama")
    for number, layer in enumerate(weights.layers):
        for name, has in wanted.items():
            if (getattr(layer, name).bias is not None) != has:
                raise UnknownModel(f"{path}: {name} of layer {number} {'lacks its' if has else 'has a'} bias")
        if (layer.query_norm is not None) != (family == "qwen3"):
            raise UnknownModel(f"{path}: layer {number} norms its queries, which {family} does not")
    if weights.head.bias is not None:
        raise UnknownModel(f"{path}: its head has a bias")
    if weights.head.matrix is weights.embedding and not settings.get("tie_word_embeddings"):
        raise UnknownModel(f"{path} has no head, and its config.json does not tie one")
    _insist_one_head(path, settings, weights)


def _insist_one_head(path: Path, settings: Mapping[str, Any], weights: Weights) -> None:
    """Insist that a head which is tied and in the file all the same is the embedding: transformers takes the file's.

    Raises:
        UnknownModel: it is another one.
    """
    embedding = weights.embedding
    if not settings.get("tie_word_embeddings") or not isinstance(embedding, np.ndarray):
        return
    whole = path / "model.safetensors"
    with SafetensorsFile(whole if whole.is_file() else path / "model.safetensors.index.json") as file:
        if "lm_head.weight" in file.tensors and not np.array_equal(file.read("lm_head.weight"), embedding):
            raise UnknownModel(f"{path} has a head of its own, and its config.json ties one")
