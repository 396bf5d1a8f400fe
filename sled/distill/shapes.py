"""Shapes of students: presets, pruned targets, and their config.json."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from sled.errors import ParameterError

_PRUNED = re.compile(r"prune:(\d+(?:,\d+)*)")


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama architecture.

    Args:
        vocab: ids of its own; 0 is the target's vocabulary.
        width: of the residual stream.
        layers: number of them.
        heads: of queries; kv_heads: of keys and values.
        head_dim: width of a head.
        ffn: inner width of the MLP.
        epsilon: of the norms; theta: base of the rotary frequencies.
        positions: longest text.
        tied: the head is the embedding.
        kept: the target's layers that it begins with; empty begins anew.
    """

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    epsilon: float = 1e-5
    theta: float = 10000.0
    positions: int = 2048
    tied: bool = True
    kept: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and not (0 if field.name == "vocab" else 1) <= value < 1 << 24:
                raise ParameterError(f"{field.name} is {value}; a student needs 1 .. {(1 << 24) - 1}")
        if self.heads % self.kv_heads or self.head_dim % 2:
            raise ParameterError(
                f"heads {self.heads}, kv_heads {self.kv_heads} and head_dim {self.head_dim} do not go together: "
                "give a multiple of kv_heads, and an even head_dim"
            )

    @property
    def num_parameters(self) -> int:
        """Weights in all."""
        attention = self.width * self.head_dim * 2 * (self.heads + self.kv_heads)
        layer = attention + 3 * self.width * self.ffn + 2 * self.width
        return self.layers * layer + self.width + self.vocab * self.width * (1 if self.tied else 2)

    def config(self, target_vocab: int, vocab_hash: bytes) -> dict[str, Any]:
        """The config.json of a drafter of this shape."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.ffn,
            "rms_norm_eps": self.epsilon,
            "rope_theta": self.theta,
            "rope_parameters": {"rope_theta": self.theta, "rope_type": "default"},
            "tie_word_embeddings": self.tied,
            "hidden_act": "silu",
            "max_position_embeddings": self.positions,
            "dtype": "float16",
            "vocab_size_target": target_vocab,
            "target_vocab_hash": vocab_hash.hex(),
        }


PRESETS = {
    "1m": Shape(4096, 128, 2, 4, 2, 32, 384),
    "3m": Shape(8192, 192, 4, 6, 2, 32, 512),
    "12m": Shape(16384, 288, 8, 9, 3, 32, 768),
    "25m": Shape(24576, 384, 10, 12, 4, 32, 1024),
    "50m": Shape(32768, 512, 12, 8, 4, 64, 1408),
}
SIZES = ("vocab", "width", "layers", "heads", "kv_heads", "head_dim", "ffn")


def shape_of(student: str, sizes: Mapping[str, int], target: Shape | None, like: Mapping[str, Any]) -> Shape:
    """The shape a user means.

    Args:
        student: a name of `PRESETS`, or `prune:0,1` for these layers of the target.
        sizes: fields that replace the preset's.
        target: the target's own shape; None if it is not of the plain Llama family.
        like: fields taken from any target: vocab (the most there can be), theta, positions.

    Raises:
        ParameterError: no such preset, sizes that do not go together, or a target whose layers cannot be taken.
    """
    pruned = _PRUNED.fullmatch(student)
    if pruned:
        kept = tuple(map(int, pruned[1].split(",")))
        if target is None:
            raise ParameterError(f"{student!r} needs a target of the plain Llama family; take one of {_names()}")
        if max(kept) >= target.layers:
            raise ParameterError(f"{student!r} names layer {max(kept)}, the target has {target.layers}, from 0 on")
        fixed = sorted(set(sizes) - {"vocab"})
        if fixed:
            raise ParameterError(f"{', '.join(fixed)} of {student!r} are the target's; leave them out")
        shape = replace(target, layers=len(kept), kept=kept, positions=like["positions"], vocab=16384)
    elif student in PRESETS:
        shape = replace(PRESETS[student], theta=like["theta"], positions=like["positions"])
    else:
        raise ParameterError(f"no student {student!r}: give one of {_names()}, or prune:0,1 for layers of the target")
    shape = Shape(**{field.name: sizes.get(field.name, getattr(shape, field.name)) for field in fields(shape)})
    return replace(shape, vocab=min(shape.vocab or like["vocab"], like["vocab"]))


def _names() -> str:
    return ", ".join(PRESETS)


def as_dict(shape: Shape) -> dict[str, Any]:
    """A shape as JSON has it."""
    return asdict(shape) | {"kept": list(shape.kept)}
