"""Models in GGUF files and in directories of safetensors, as sources of weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekernels._mapped import shown
from edgekernels._matrix import PackedMatrix
from edgekernels.decoder.config import DecoderConfig, DecoderError, Floats, from_gguf, from_json
from edgekernels.decoder.weights import Matrix, Order, quantised
from edgekernels.gguf import Codes, GgufFile
from edgekernels.safetensors import SafetensorsFile

_PAIRED = ("llama", "mistral")  # families whose query and key rows GGUF converters reorder
_NORMED = "qwen3"  # the family which norms queries and keys
_FLOATS = ("F32", "F16", "BF16")
_MAX_CONFIG_BYTES = 1 << 24
_PARTS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_HARMLESS = ("attn_rot_embd",)  # old converters wrote the plain frequencies
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def _insist(name: str, shape: tuple[int, ...], wanted: tuple[int, int]) -> None:
    if shape != wanted:
        raise DecoderError(f"{name} has shape {shape}; {wanted} is needed: convert the model again")


class GgufSource:
    """The weights of a GGUF file: quantised ones exactly as they are, floats quantised if asked.

    Args:
        file: the open file.
        bits: width for matrices which the file holds as floats, or None to keep them so.
        group: columns for each scale of those.
    """

    def __init__(self, file: GgufFile, bits: int | None, group: int) -> None:
        self._file, self._bits, self._group = file, bits, group
        family = file.metadata.get("general.architecture")
        self.paired, self.normed = family in _PAIRED, family == _NORMED

    def config(self) -> DecoderConfig:
        """The model's shape.

        Raises:
            DecoderError: another family, or something the decoder does not compute.
        """
        embedding = self._file.tensors.get("token_embd.weight")
        if embedding is None:
            raise DecoderError("the GGUF file lacks token_embd.weight; convert the model again")
        divisors = self.vector("rope_freqs.weight") if self.has("rope_freqs.weight") else None
        config = from_gguf(self._file.metadata, embedding.shape[0], divisors)
        layers = set(map(str, range(config.num_layers)))
        unknown = [name for name in self._file.tensors if not _known(name, layers)]
        if unknown:
            raise DecoderError(
                f"the GGUF file holds {len(unknown)} tensors unknown to the native decoder, the first "
                f"{shown(unknown[0])}; give a plain model of {config.num_layers} layers"
            )
        return config

    def has(self, name: str) -> bool:
        """See Source."""
        return name in self._file.tensors

    def vector(self, name: str) -> Floats:
        """See Source."""
        if not self.has(name):
            raise DecoderError(f"the GGUF file lacks {name}; convert the model again")
        return self._file.read(name)

    def matrix(self, name: str, shape: tuple[int, int], order: Order | None) -> Matrix:
        """See Source."""
        if not self.has(name):
            raise DecoderError(f"the GGUF file lacks {name}; convert the model again")
        info = self._file.tensors[name]
        _insist(name, info.shape, shape)
        if info.type_name in _FLOATS:
            values = self._file.read(name)
            return quantised(values if order is None else values[order], self._bits, self._group)
        return _packed(self._file.read_codes(name, stored=True), order)


def _known(name: str, layers: set[str]) -> bool:
    """Whether a tensor outside the layers, or one of a layer which is read or means nothing."""
    parts = name.split(".")
    if parts[0] != "blk":
        return True
    if len(parts) != 4 or parts[1] not in layers:
        return False
    endings = ("weight",) if parts[2].endswith("norm") else ("weight", "bias")
    return parts[2] in _HARMLESS or (parts[2] in _PARTS and parts[3] in endings)


def _packed(codes: Codes, order: Order | None) -> PackedMatrix:
    """Codes as the file has them, in the kernels' layout."""
    picked, scale, offset = codes.codes, codes.scale, None if codes.symmetric else codes.offset
    if order is not None:
        picked, scale = np.ascontiguousarray(picked[order]), np.ascontiguousarray(scale[order])
        offset = None if offset is None else np.ascontiguousarray(offset[order])
    return PackedMatrix.from_codes(picked, codes.bits, group=codes.group, scale=scale, offset=offset)


class SafetensorsSource:
    """The weights of a model directory in the layout of Hugging Face.

    Args:
        directory: has config.json, and model.safetensors or model.safetensors.index.json.
        bits: width for all matrices, or None to keep them as float32.
        group: columns for each scale.

    Raises:
        DecoderError: a file is missing, or config.json states no model which the decoder can run.
        SafetensorsError: the weights are damaged.
    """

    paired = False

    def __init__(self, directory: Path, bits: int | None, group: int) -> None:
        self.settings = read_config(directory)
        self._config = from_json(self.settings)
        names = [directory / "model.safetensors", directory / "model.safetensors.index.json"]
        found = [path for path in names if path.is_file()]
        if not found:
            raise DecoderError(f"{directory} has neither {names[0].name} nor {names[1].name}")
        self._bits, self._group, self.normed = bits, group, self.settings["model_type"] == _NORMED
        self.file = SafetensorsFile(found[0])

    def config(self) -> DecoderConfig:
        """The model's shape."""
        return self._config

    def has(self, name: str) -> bool:
        """See Source; a tied head counts as none even if the file repeats it, one said to be untied must be there."""
        tied = self.settings.get("tie_word_embeddings")
        if name == "output.weight" and tied is not None:
            return not tied
        return _json_name(name) in self.file.tensors

    def vector(self, name: str) -> Floats:
        """See Source."""
        found = self.file.tensors.get(_json_name(name))
        if found is None:
            raise DecoderError(f"{self.file.path} lacks {_json_name(name)}; copy the model again")
        if found.type_name not in ("F64", *_FLOATS):
            raise DecoderError(
                f"{found.name} is {found.type_name}; F64, {', '.join(_FLOATS)} are supported: give the float model"
            )
        return self.file.read(found.name)

    def matrix(self, name: str, shape: tuple[int, int], order: Order | None) -> Matrix:
        """See Source."""
        values = self.vector(name)
        _insist(_json_name(name), values.shape, shape)
        return quantised(values if order is None else values[order], self._bits, self._group)


def read_config(directory: Path) -> Mapping[str, Any]:
    """The config.json of a model directory.

    Raises:
        DecoderError: it is missing, too large, or no JSON object.
    """
    path = directory / "config.json"
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise DecoderError(f"{path} cannot be read: {error.strerror}") from None
    if len(raw) > _MAX_CONFIG_BYTES:
        raise DecoderError(f"{path} has more than {_MAX_CONFIG_BYTES} bytes; copy the model again")
    try:
        settings = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise DecoderError(f"{path} is no JSON: {error}") from None
    if not isinstance(settings, dict):
        raise DecoderError(f"{path} holds no JSON object")
    return settings


def _json_name(name: str) -> str:
    """`blk.3.attn_q.weight` to `model.layers.3.self_attn.q_proj.weight`."""
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{_PARTS[parts[2]]}.{parts[3]}"
    return f"{_TOP[parts[0]]}.{parts[1]}"
