"""Networks drawn at random: both executors agree, shapes are as inferred; and lists of nodes that lie are refused."""

from __future__ import annotations

import tracemalloc
from math import prod
from typing import Any, get_args

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qpart import ops
from qpart.errors import ShapeMismatch
from qpart.executors.with_numpy import NumpyExecutor
from qpart.network import Network, Node, infer_shapes
from qpart.ops import AnyOp
from qpart.sizes import peak_items
from tests.qpart.random_nets import random_network, random_parameters

QUICK = settings(max_examples=60, deadline=None)
LARGE = 1 << 24


def test_every_operation_is_drawn():
    drawn = {type(node.op) for seed in range(400) for node in random_network(seed).nodes}
    assert drawn == set(get_args(AnyOp))


def condition(op: AnyOp, x: np.ndarray) -> float:
    """How much a rounding of the inputs grows: a norm divides the little that is left without the mean."""
    if not isinstance(op, ops.Norm):
        return 1.0
    spread = np.sqrt(x.reshape(-1, op.features).astype(np.float64).var(axis=1) + op.eps)
    return max(1.0, float((np.abs(x).reshape(-1, op.features).max(axis=1) / spread).max()))


def agree(seed: int) -> None:
    network = random_network(seed)
    parameters, last = random_parameters(network, seed), network.num_nodes
    inputs = np.random.default_rng(seed).normal(0, 1, (3, *network.input_shape)).astype(np.float32)
    found = NumpyExecutor(network.nodes, parameters.__getitem__).run({0: inputs}, 0, last, range(last + 1))
    for value, shape in enumerate(network.shapes):
        assert found[value].shape == (3, *shape)
        assert found[value].dtype == np.float32
    from qpart.executors.with_torch import TorchExecutor

    executor = TorchExecutor(network.nodes, parameters)
    for i, node in enumerate(network.nodes):  # each on the same inputs, so that errors do not add up
        given = {value: found[value] for value in node.inputs}
        right = executor.run_arrays(given, i, i + 1, [i + 1])[i + 1]
        assert found[i + 1].shape == right.shape
        finite = right[np.isfinite(right)]
        assert np.array_equal(np.isfinite(found[i + 1]), np.isfinite(right))
        scale = max(1.0, float(np.abs(finite).max(initial=0))) * condition(node.op, found[node.inputs[0]])
        assert np.allclose(found[i + 1], right, rtol=0, atol=3e-6 * scale, equal_nan=True), node


@QUICK
@given(seed=st.integers(0, 1 << 32))
def test_both_executors_agree_and_shapes_are_as_inferred(seed):
    pytest.importorskip("torch")
    agree(seed)


@pytest.mark.slow
def test_both_executors_agree_on_many_networks():
    pytest.importorskip("torch")
    for seed in range(3000):
        agree(seed)


def test_a_batch_is_its_samples():
    for seed in range(40):
        network = random_network(seed)
        parameters, last = random_parameters(network, seed), network.num_nodes
        executor = NumpyExecutor(network.nodes, parameters.__getitem__)
        inputs = np.random.default_rng(seed).normal(0, 1, (3, *network.input_shape)).astype(np.float32)
        together = executor.run({0: inputs}, 0, last, [last])[last]
        alone = np.concatenate([executor.run({0: inputs[i : i + 1]}, 0, last, [last])[last] for i in range(3)])
        scale = max(1.0, float(np.abs(together).max()))
        assert np.allclose(together, alone, rtol=1e-4, atol=1e-4 * scale, equal_nan=True)


WRONG = [
    -1,
    0,
    1,
    2,
    3,
    5,
    64,
    4096,
    LARGE,
    LARGE + 1,
    1 << 40,
    -(1 << 63),
    float("nan"),
    float("inf"),
    1e300,
    "x",
    None,
]


def spoilt(plain: Any, chance: np.random.Generator) -> Any:
    """One number somewhere in nested lists replaced."""
    if not isinstance(plain, list | tuple) or not plain:
        return WRONG[int(chance.integers(len(WRONG)))]
    copy = list(plain)
    i = int(chance.integers(len(copy)))
    copy[i] = spoilt(copy[i], chance)
    return copy


@QUICK
@given(seed=st.integers(0, 1 << 32))
def test_spoilt_nodes_are_refused_or_right(seed):
    """As they come off the wire: typed decode, then shapes; what passes both can be computed."""
    chance, network = np.random.default_rng(seed), random_network(seed)
    for _ in range(8):
        plain = spoilt(msgspec.to_builtins(network.nodes), chance)
        try:
            nodes = msgspec.convert(plain, tuple[Node, ...])
            shapes = infer_shapes({0: network.input_shape}, nodes)
        except (msgspec.ValidationError, ShapeMismatch):
            continue
        if not nodes or peak_items(nodes, shapes, [len(nodes)]) > 1 << 20:
            continue
        changed = Network(network.input_shape, nodes)
        inputs = np.zeros((1, *network.input_shape), np.float32)
        executor = NumpyExecutor(nodes, random_parameters(changed).__getitem__)
        with np.errstate(all="ignore"):
            found = executor.run({0: inputs}, 0, len(nodes), range(len(nodes) + 1))
        assert [found[value].shape[1:] for value in range(len(nodes) + 1)] == list(shapes)


@QUICK
@given(seed=st.integers(0, 1 << 32))
def test_spoilt_operations_made_in_python_are_refused_or_small(seed):
    """Nothing has checked their fields; one error is allowed, and no memory."""
    chance, network = np.random.default_rng(seed), random_network(seed)
    node = network.nodes[int(chance.integers(len(network.nodes)))]
    fields = msgspec.structs.asdict(node.op)
    if not fields:
        return
    name = list(fields)[int(chance.integers(len(fields)))]
    op = msgspec.structs.replace(node.op, **{name: spoilt(fields[name], chance)})
    given = {value: network.shapes[value] for value in range(network.num_nodes + 1)}
    tracemalloc.start()
    try:
        shapes = infer_shapes({0: given[0]}, (*network.nodes, Node(op, node.inputs)))
    except ShapeMismatch:
        shapes = ()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    assert all(prod(shape) <= ops.MAX_TENSOR_ITEMS and min(shape) > 0 for shape in shapes)


HOSTILE = {
    "no input": ((3,), ops.Relu(), ()),
    "two inputs for one": ((3,), ops.Relu(), (0, 0)),
    "two inputs for three": ((3, 3), ops.Attention(1, 1, 1, 1.0), (0, 0)),
    "concat of fewer": ((3,), ops.Concat(0, 3), (0, 0)),
    "axis out of range": ((3,), ops.Softmax(1), (0,)),
    "negative axis": ((3,), ops.Softmax(-1), (0,)),
    "axis twice": ((3, 3), ops.Reduce("sum", (0, 0)), (0,)),
    "axes that descend": ((3, 3), ops.Reduce("sum", (1, 0)), (0,)),
    "no axes": ((3, 3), ops.Reduce("sum", ()), (0,)),
    "all axes": ((3, 3), ops.Reduce("sum", (0, 1)), (0,)),
    "unknown kind": ((3, 3), ops.Reduce("median", (0,)), (0,)),
    "unknown function": ((3,), ops.Activation("system"), (0,)),
    "not an order": ((3, 3), ops.Permute((0, 0)), (0,)),
    "order of three": ((3, 3), ops.Permute((0, 1, 2)), (0,)),
    "slice behind the end": ((3,), ops.Slice(0, 1, 4), (0,)),
    "empty slice": ((3,), ops.Slice(0, 2, 2), (0,)),
    "slice with no step": ((3,), ops.Slice(0, 0, 2, 0), (0,)),
    "negative start": ((3,), ops.Slice(0, -2, 2), (0,)),
    "huge pad": ((1 << 20,), ops.Pad((1 << 30,), (0,)), (0,)),
    "negative pad": ((3,), ops.Pad((-1,), (0,)), (0,)),
    "pad of two axes": ((3,), ops.Pad((0, 0), (0, 0)), (0,)),
    "pad with NaN": ((3,), ops.Pad((1,), (0,), float("nan")), (0,)),
    "huge expand": ((1, 1), ops.Expand((1 << 24, 1 << 24)), (0,)),
    "expand of 3 to 4": ((3,), ops.Expand((4,)), (0,)),
    "reshape to nothing": ((3,), ops.Reshape((0,)), (0,)),
    "reshape to -1": ((3,), ops.Reshape((-3, -1)), (0,)),
    "seven axes": ((1,), ops.Reshape((1,) * 7), (0,)),
    "huge linear": ((1 << 24,), ops.Linear(1 << 24, 1 << 24), (0,)),
    "huge embedding": ((3,), ops.Embedding(1 << 24, 1 << 24), (0,)),
    "huge product": ((1 << 20, 1), ops.MatMul(transposed=True), (0, 0)),
    "product of vectors": ((3,), ops.MatMul(), (0, 0)),
    "product that does not fit": ((2, 3), ops.MatMul(), (0, 0)),
    "huge attention": ((1 << 20, 1), ops.Attention(1, 1, 1, 1.0), (0, 0, 0)),
    "attention over columns that are not there": ((4, 6), ops.Attention(2, 2, 2, 1.0, (0, 2, 4)), (0, 0, 0)),
    "attention scaled by infinity": ((4, 6), ops.Attention(1, 2, 2, float("inf")), (0, 0, 0)),
    "norm of other features": ((4, 6), ops.Norm(5, 1, 1e-5), (0,)),
    "norm over no axes": ((4, 6), ops.Norm(1, 0, 1e-5), (0,)),
    "norm with negative eps": ((4, 6), ops.Norm(6, 1, -1.0), (0,)),
    "bias without weight": ((4, 6), ops.Norm(6, 1, 1e-5, True, False, True), (0,)),
    "affine of other channels": ((4, 6), ops.Affine(6, 0), (0,)),
    "constant that does not repeat": ((4, 6), ops.AddConstant((2, 6)), (0,)),
    "constant of another rank": ((4, 6), ops.MulConstant((6,)), (0,)),
    "sum of two shapes": ((4, 6), ops.Add(), (0, 5)),
    "no stride": ((1, 4, 4), ops.MaxPool2d((2, 2), (0, 0), (0, 0)), (0,)),
    "more windows than pixels": ((1, 4, 4), ops.AdaptivePool2d((5, 4)), (0,)),
    "rescale by NaN": ((4,), ops.Rescale(float("nan")), (0,)),
    "text for a number": ((4,), ops.Rescale("a"), (0,)),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_is_refused_before_anything_is_allocated(name):
    shape, op, inputs = HOSTILE[name]
    tracemalloc.start()
    with pytest.raises(ShapeMismatch):
        infer_shapes({0: shape}, (Node(op, inputs),))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 18


@pytest.mark.parametrize("shape", [(), (0,), (-3,), (1 << 30,), (1,) * 7, (3, -1)])
def test_inputs_that_cannot_be_are_refused(shape):
    with pytest.raises(ShapeMismatch):
        infer_shapes({0: shape}, (Node(ops.Relu(), (0,)),))
