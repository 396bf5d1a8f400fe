"""Linear layers, norms, constants, embeddings, matrix products and attention on numpy."""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray

from qpart.network import Parameters
from qpart.ops import AddConstant, Affine, Attention, Embedding, Linear, MatMul, MulConstant, Norm

Array = NDArray[np.float32]


def linear(op: Linear, x: Array, parameters: Parameters) -> Array:
    y: Array = x.reshape(-1, op.in_features) @ parameters.weight.T
    if parameters.bias is not None:
        y += parameters.bias
    return y.reshape(*x.shape[:-1], op.out_features)


def norm(op: Norm, x: Array, parameters: Parameters | None = None) -> Array:
    rows = x.reshape(-1, op.features)
    y: Array = rows - rows.mean(axis=1, keepdims=True) if op.centred else rows.copy()
    scale = np.einsum("ij,ij->i", y, y)  # no copy of the squares
    scale /= np.float32(op.features)
    scale += np.float32(op.eps)
    np.sqrt(scale, out=scale)
    y /= scale[:, None]
    if parameters is not None:
        y *= parameters.weight
        if parameters.bias is not None:
            y += parameters.bias
    return y.reshape(x.shape)


def affine(op: Affine, x: Array, parameters: Parameters) -> Array:
    along = (op.channels, *(1 for _ in x.shape[op.axis + 2 :]))
    y: Array = x * parameters.weight.reshape(along)
    if parameters.bias is not None:
        y += parameters.bias.reshape(along)
    return y


def add_constant(op: AddConstant, x: Array, parameters: Parameters) -> Array:
    return x + parameters.weight


def mul_constant(op: MulConstant, x: Array, parameters: Parameters) -> Array:
    return x * parameters.weight


def embedding(op: Embedding, x: Array, parameters: Parameters) -> Array:
    rows = np.clip(np.rint(np.nan_to_num(x)), 0, op.num_rows - 1).astype(np.int64)
    return parameters.weight[rows]


def matmul(op: MatMul, x: Array, y: Array) -> Array:
    product: Array = np.matmul(x, y.swapaxes(-1, -2) if op.transposed else y)
    return product


def attention(op: Attention, queries: Array, keys: Array, values: Array) -> Array:
    """One matrix of tokens after the other, and of its heads as many as `Attention.heads_at_once` says."""
    y = np.empty((*queries.shape[:-1], op.heads * op.value_size), np.float32)
    num_queries, num_keys, count = queries.shape[-2], keys.shape[-2], prod(queries.shape[:-2])
    step = op.heads_at_once(num_queries, num_keys)
    hidden = np.triu(np.ones((num_queries, num_keys), bool), 1) if op.causal else None
    scores = np.empty((step, num_queries, num_keys), np.float32)
    sizes = (op.head_size, op.head_size, op.value_size)
    wholes = [tensor.reshape(count, *tensor.shape[-2:]) for tensor in (queries, keys, values)]
    out = y.reshape(count, num_queries, op.heads, op.value_size).transpose(0, 2, 1, 3)
    for i in range(count):
        q, k, v = (_heads(x[i], op.heads, size, at) for x, size, at in zip(wholes, sizes, op.offsets, strict=True))
        for start in range(0, op.heads, step):
            part = slice(start, start + step)
            found = scores[: len(q[part])]
            np.matmul(q[part], k[part].swapaxes(1, 2), out=found)
            found *= np.float32(op.scale)
            if hidden is not None:
                np.copyto(found, -np.inf, where=hidden)
            found -= found.max(axis=2, keepdims=True)
            np.exp(found, out=found)
            found /= found.sum(axis=2, keepdims=True)
            np.matmul(found, v[part], out=out[i, part])
    return y


def _heads(x: Array, heads: int, size: int, offset: int) -> Array:
    """Some columns of x (tokens, columns) as a view (heads, tokens, size)."""
    return x[:, offset : offset + heads * size].reshape(len(x), heads, size).transpose(1, 0, 2)
