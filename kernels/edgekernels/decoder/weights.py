"""The weights of a decoder: packed low-bit matrices or float32 ones, checked against the model's shape."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgekernels._matrix import PackedMatrix, matmul
from edgekernels.decoder.config import DecoderConfig, DecoderError, Floats

Matrix = PackedMatrix | Floats
Order = npt.NDArray[np.int64]
GROUPS = (256, 128, 64, 32, 16)


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear map: (rows, columns) and a bias (rows,) or none."""

    matrix: Matrix
    bias: Floats | None = None


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer; rows of query and key are in the order of halves (rotary pairs are d / 2 apart)."""

    attention_norm: Floats
    query: Linear
    key: Linear
    value: Linear
    query_norm: Floats | None
    key_norm: Floats | None
    output: Linear
    ffn_norm: Floats
    gate: Linear
    up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class Weights:
    """All of a model; `head` is the embedding where the model ties them."""

    embedding: Matrix
    layers: tuple[Layer, ...]
    norm: Floats
    head: Linear

    def embed(self, tokens: npt.NDArray[np.int64]) -> Floats:
        """The vectors of tokens (m,), float32 (m, hidden)."""
        if isinstance(self.embedding, PackedMatrix):
            return self.embedding.gather(tokens)
        return self.embedding[tokens]

    @property
    def nbytes(self) -> int:
        """Bytes of all matrices; norms and biases are not worth counting."""
        layers = (
            by.matrix.nbytes
            for layer in self.layers
            for by in (layer.query, layer.key, layer.value, layer.output, layer.gate, layer.up, layer.down)
        )
        head = 0 if self.head.matrix is self.embedding else self.head.matrix.nbytes
        return self.embedding.nbytes + head + sum(layers)


def multiply(by: Linear, x: Floats, activations: str) -> Floats:
    """x (m, columns) through a linear map, float32 (m, rows); float matrices ignore `activations`."""
    if isinstance(by.matrix, PackedMatrix):
        return matmul(by.matrix, x, bias=by.bias, activations=activations)
    y = x @ by.matrix.T
    return y if by.bias is None else y + by.bias


class Source(Protocol):
    """A model file; names are those of GGUF, e.g. blk.0.attn_q.weight.

    `paired` says that its rotary pairs are neighbours, as ggml has them for llama, not d / 2 apart; `normed` that its
    queries and keys must be normed head by head, as Qwen3 has it.
    """

    paired: bool
    normed: bool

    def has(self, name: str) -> bool:
        """Whether the file holds this tensor."""

    def vector(self, name: str) -> Floats:
        """A tensor of one dimension."""

    def matrix(self, name: str, shape: tuple[int, int], order: Order | None) -> Matrix:
        """A weight of this shape, its rows taken in this order."""


class _Builder:
    """Takes tensors from a source, each checked for its shape."""

    def __init__(self, source: Source, turning: int, progress: Callable[[float], None] | None, total: int) -> None:
        self._source, self._turning, self._progress = source, turning, progress
        self._total, self._done = total, 0

    def matrix(self, name: str, shape: tuple[int, int], order: Order | None = None) -> Matrix:
        try:
            matrix = self._source.matrix(name, shape, order)
        except DecoderError:
            raise
        except ValueError as error:
            raise DecoderError(f"{name}: {error}") from None
        self._done += 1
        if self._progress:
            self._progress(self._done / self._total)
        return matrix

    def vector(self, name: str, size: int) -> Floats:
        vector = self._source.vector(name)
        if vector.shape != (size,):
            raise DecoderError(f"{name} has shape {vector.shape}; ({size},) is needed: convert the model again")
        return vector

    def maybe(self, name: str, size: int) -> Floats | None:
        return self.vector(name, size) if self._source.has(name) else None

    def head_norms(self, names: tuple[str, str], size: int) -> tuple[Floats | None, Floats | None]:
        """Norms of queries and keys: both, or neither where the family does without."""
        if not self._source.normed and not any(self._source.has(name) for name in names):
            return None, None
        return self.vector(names[0], size), self.vector(names[1], size)

    def linear(self, name: str, rows: int, columns: int, heads: int = 0) -> Linear:
        """A linear map; with `heads` > 0 its rows belong to turned heads and come in the order of halves."""
        bias = self.maybe(f"{name}.bias", rows)
        order = halves_order(rows, heads, self._turning) if heads and self._source.paired else None
        if bias is not None and order is not None:
            bias = np.ascontiguousarray(bias[order])
        return Linear(self.matrix(f"{name}.weight", (rows, columns), order), bias)


def build(source: Source, config: DecoderConfig, progress: Callable[[float], None] | None = None) -> Weights:
    """All weights of a model.

    Args:
        source: where they come from.
        config: the shape they must have.
        progress: called with the share done, 0 .. 1.

    Raises:
        DecoderError: a tensor is missing, has another shape, or holds numbers which cannot be packed.
    """
    tied = not source.has("output.weight")
    take = _Builder(source, 2 * len(config.frequencies), progress, 7 * config.num_layers + (1 if tied else 2))
    embedding = take.matrix("token_embd.weight", (config.vocab_size, config.hidden_size))
    layers = tuple(_layer(take, config, f"blk.{number}.") for number in range(config.num_layers))
    norm = take.vector("output_norm.weight", config.hidden_size)
    head = Linear(embedding) if tied else take.linear("output", config.vocab_size, config.hidden_size)
    return Weights(embedding, layers, norm, head)


def _layer(take: _Builder, config: DecoderConfig, at: str) -> Layer:
    hidden, heads, kv_heads, d = config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim
    query_norm, key_norm = take.head_norms((f"{at}attn_q_norm.weight", f"{at}attn_k_norm.weight"), d)
    return Layer(
        attention_norm=take.vector(f"{at}attn_norm.weight", hidden),
        query=take.linear(f"{at}attn_q", heads * d, hidden, heads),
        key=take.linear(f"{at}attn_k", kv_heads * d, hidden, kv_heads),
        value=take.linear(f"{at}attn_v", kv_heads * d, hidden),
        query_norm=query_norm,
        key_norm=key_norm,
        output=take.linear(f"{at}attn_output", hidden, heads * d),
        ffn_norm=take.vector(f"{at}ffn_norm.weight", hidden),
        gate=take.linear(f"{at}ffn_gate", config.ffn_size, hidden),
        up=take.linear(f"{at}ffn_up", config.ffn_size, hidden),
        down=take.linear(f"{at}ffn_down", hidden, config.ffn_size),
    )


def quantised(values: Floats, bits: int | None, group: int) -> Matrix:
    """Floats as they are for bits None, else packed with the largest group up to `group` that divides the columns."""
    fitting = [size for size in GROUPS if size <= group and values.shape[1] % size == 0]
    if bits is None or not fitting:
        return np.ascontiguousarray(values)
    return PackedMatrix.quantise(np.ascontiguousarray(values), bits, group=fitting[0])


def halves_order(rows: int, heads: int, turning: int) -> Order:
    """Row numbers which bring heads with neighbouring rotary pairs into the order of halves.

    Args:
        rows: of the matrix.
        heads: number of heads they make up.
        turning: dimensions of a head that turn; the others stay.

    >>> halves_order(8, 1, 6).tolist()
    [0, 2, 4, 1, 3, 5, 6, 7]
    """
    numbers = np.arange(rows).reshape(heads, -1)
    pairs = numbers[:, :turning].reshape(heads, -1, 2)
    return np.concatenate([pairs[..., 0], pairs[..., 1], numbers[:, turning:]], axis=1).reshape(-1)
