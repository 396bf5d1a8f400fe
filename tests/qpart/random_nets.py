"""Networks of operations drawn at random, with shapes that fit, and weights for them."""

from __future__ import annotations

from math import prod
from typing import get_args

import numpy as np

from qpart import ops
from qpart.network import Network, Node, Parameters

MOST_ITEMS, MOST_ITEMS_OF_LARGE = 1 << 12, 1 << 18
_LARGE_EXTENTS = {1: 20000, 2: 180, 3: 40, 4: 14}  # by rank: tens of kilobytes
TAME = ("abs", "gelu", "gelu_tanh", "hardsigmoid", "hardswish", "mish", "sigmoid", "silu", "softplus", "tanh")
"""Functions whose results stay as small as what they are given."""


class Draw:
    """A network under construction; `chance` decides everything."""

    def __init__(self, chance: np.random.Generator, *, large: bool = False) -> None:
        self.chance, self.large = chance, large
        rank = int(chance.integers(1, 5))
        self.shapes = [self.extents(rank)]
        self.nodes: list[Node] = []

    def extents(self, rank: int) -> tuple[int, ...]:
        """A shape."""
        most = _LARGE_EXTENTS[rank] if self.large else 8 if rank < 4 else 5
        return tuple(int(e) for e in self.chance.integers(1, most, rank))

    def below(self, end: int) -> int:
        return int(self.chance.integers(end))

    def coin(self) -> bool:
        return bool(self.chance.integers(2))

    def add(self, op: ops.AnyOp, *inputs: int) -> int:
        """Append a node, unless it makes too much."""
        shape = op.output_shape(*(self.shapes[value] for value in inputs))
        if not shape or prod(shape) > (MOST_ITEMS_OF_LARGE if self.large else MOST_ITEMS):
            return inputs[0]
        self.nodes.append(Node(op, inputs))
        self.shapes.append(shape)
        return len(self.nodes)

    def grow(self) -> None:
        """One more operation of some kind, on a recent value."""
        value = max(0, len(self.shapes) - 1 - self.below(2))
        kinds = [self.layer, self.pointwise, self.of_two, self.reduce, self.shaping, self.product]
        kinds += [self.window] * 3 if len(self.shapes[value]) == 3 else []
        kinds[self.below(len(kinds))](value, self.shapes[value])

    def layer(self, value: int, shape: tuple[int, ...]) -> None:
        axis, axes = self.below(len(shape)), 1 + self.below(len(shape))
        affine = self.coin()
        constant = tuple(extent if self.coin() else 1 for extent in shape)
        options = (
            ops.Linear(shape[-1], 1 + self.below(6), self.coin()),
            ops.Norm(prod(shape[-axes:]), axes, 1e-3, self.coin(), affine, affine and self.coin()),
            ops.Affine(shape[axis], axis, self.coin()),
            ops.AddConstant(constant),
            ops.MulConstant(constant),
            ops.Embedding(1 + self.below(9), 1 + self.below(4)),
        )
        op = options[self.below(len(options) if len(shape) < ops.MAX_DIMS else 5)]
        self.add(op, value)

    def pointwise(self, value: int, shape: tuple[int, ...]) -> None:
        options = (
            ops.Relu(),
            ops.Clamp(-1.0, 0.5 + self.below(3)),
            ops.LeakyRelu(0.1),
            ops.Elu(0.7, 1.2, 0.9),
            ops.Rescale(-0.5, 0.25 * self.below(2)),
            ops.Softmax(self.below(len(shape)), self.coin()),
            ops.Activation(TAME[self.below(len(TAME))]),
        )
        pick = self.below(len(options) + 1)
        if pick < len(options):
            self.add(options[pick], value)
            return
        others = [name for name in get_args(ops.Function) if name not in TAME]
        self.add(ops.Activation(others[self.below(len(others))]), self.add(ops.Clamp(0.5, 2.0), value))

    def window(self, value: int, shape: tuple[int, ...]) -> None:
        channels, *image = shape
        kernel = tuple(1 + self.below(min(extent, 3)) for extent in image)
        stride = (1 + self.below(2), 1 + self.below(2))
        padding = tuple(self.below(k // 2 + 1) for k in kernel)
        grouped = self.coin()
        size = tuple(1 + self.below(extent) for extent in image)
        options = (
            ops.Conv2d(kernel, stride, padding, channels, channels * (1 + self.below(2)) if grouped else 5, (1, 1),
                       channels if grouped else 1, self.coin()),
            ops.MaxPool2d(kernel, stride, padding),
            ops.AvgPool2d(kernel, stride, padding, self.coin()),
            ops.AdaptivePool2d(size, self.coin()),
            ops.GlobalMean(self.coin()),
        )  # fmt: skip
        self.add(options[self.below(len(options))], value)

    def of_two(self, value: int, shape: tuple[int, ...]) -> None:
        fitting = [i for i, other in enumerate(self.shapes) if _broadcast(shape, other)]
        other = fitting[self.below(len(fitting))]
        if self.coin():
            small = self.add(ops.Reduce("mean", (self.below(len(shape)),), True), value)
            other = small if self.shapes[small] != shape else other
        self.add(ops.Add() if self.coin() else ops.Mul(), *((value, other) if self.coin() else (other, value)))

    def reduce(self, value: int, shape: tuple[int, ...]) -> None:
        axes = tuple(axis for axis in range(len(shape)) if self.coin()) or (0,)
        keep = self.coin() or len(axes) == len(shape)
        self.add(ops.Reduce(("mean", "sum", "max")[self.below(3)], axes, keep), value)

    def shaping(self, value: int, shape: tuple[int, ...]) -> None:
        axis = self.below(len(shape))
        start = self.below(shape[axis])
        stop = start + 1 + self.below(shape[axis] - start)
        sides = [tuple(self.below(3) for _ in shape) for _ in range(2)]
        cut = 1 + self.below(len(shape))
        wide = (*shape, 1) if len(shape) < ops.MAX_DIMS else shape
        options = (
            ops.Permute(tuple(int(i) for i in self.chance.permutation(len(shape)))),
            ops.Slice(axis, start, stop, 1 + self.below(2)),
            ops.Pad(*sides, -0.5 * self.below(2)),
            ops.Reshape((prod(shape[:cut]), *shape[cut:])),
            ops.Reshape(wide),
            ops.Expand(tuple(2 if extent == 1 and self.coin() else extent for extent in shape)),
        )
        pick = self.below(len(options) + 1)
        if pick < len(options):
            self.add(options[pick], value)
        else:
            count = 2 + self.below(2)
            self.add(ops.Concat(axis, count), *[value] * count)

    def product(self, value: int, shape: tuple[int, ...]) -> None:
        if len(shape) < 2:
            return
        if self.coin():
            self.add(ops.MatMul(transposed=True), value, value)
            return
        heads, size = 1 + self.below(shape[-1]), 1
        spare = shape[-1] - heads * size
        offsets = (self.below(spare + 1), self.below(spare + 1), self.below(spare + 1))
        self.add(ops.Attention(heads, size, size, 0.7, offsets, self.coin()), value, value, value)

    def network(self) -> Network:
        return Network(self.shapes[0], tuple(self.nodes) or (Node(ops.Relu(), (0,)),))


def _broadcast(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    return len(first) == len(second) and all(1 in (a, b) or a == b for a, b in zip(first, second, strict=True))


def random_network(seed: int, num_nodes: int = 8, *, large: bool = False) -> Network:
    """A network of about so many nodes; the same for the same seed."""
    draw = Draw(np.random.default_rng(seed), large=large)
    for _ in range(num_nodes):
        draw.grow()
    return draw.network()


def random_parameters(network: Network, seed: int = 0) -> dict[int, Parameters]:
    """Weights and biases of a network."""
    chance = np.random.default_rng(seed)

    def floats(shape: tuple[int, ...]) -> np.ndarray:
        return chance.normal(0, 0.7, shape).astype(np.float32)

    found = {}
    for i in network.parametric:
        op = network.nodes[i].op
        assert op.weight_shape is not None
        found[i] = Parameters(floats(op.weight_shape), floats(op.weight_shape[:1]) if op.has_bias else None)
    return found
