"""Both executors against torch.nn.functional, operation by operation, and what they keep in memory."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from qpart.executors import walk, with_numpy
from qpart.executors.with_numpy import NumpyExecutor
from qpart.network import Network, Node, Parameters
from qpart.ops import Add, AvgPool2d, Clamp, Conv2d, GlobalMean, Linear, MaxPool2d, Relu, Reshape

RNG = np.random.default_rng(0)


def floats(*shape: int):
    return RNG.standard_normal(shape).astype(np.float32)


CASES = {
    "linear": (Linear(7, 3), (7,)),
    "linear without bias over two dimensions": (Linear(7, 3, bias=False), (2, 7)),
    "conv2d": (Conv2d((3, 3), (1, 1), (1, 1), 4, 6), (4, 7, 5)),
    "conv2d, stride and no bias": (Conv2d((3, 2), (2, 3), (1, 0), 3, 5, bias=False), (3, 9, 8)),
    "conv2d, dilation": (Conv2d((3, 2), (1, 2), (2, 3), 2, 4, (2, 3)), (2, 9, 11)),
    "conv2d, groups": (Conv2d((3, 3), (2, 1), (1, 1), 6, 9, groups=3), (6, 8, 7)),
    "conv2d, 1 x 1": (Conv2d((1, 1), (2, 2), (0, 0), 5, 3), (5, 7, 7)),
    "conv2d, depthwise": (Conv2d((3, 3), (2, 2), (1, 1), 5, 5, groups=5), (5, 8, 7)),
    "conv2d, depthwise and dilated": (Conv2d((2, 3), (1, 2), (2, 4), 4, 4, (3, 2), 4, False), (4, 8, 9)),
    "conv2d, two outputs per channel": (Conv2d((3, 3), (1, 1), (0, 0), 4, 8, groups=4), (4, 6, 6)),
    "conv2d, window of the whole image": (Conv2d((4, 5), (1, 1), (0, 0), 2, 3), (2, 4, 5)),
    "max_pool2d": (MaxPool2d((3, 2), (2, 1), (1, 1)), (3, 7, 6)),
    "avg_pool2d": (AvgPool2d((3, 2), (2, 1), (1, 1)), (3, 7, 6)),
    "global_mean": (GlobalMean(), (4, 5, 3)),
    "global_mean, kept": (GlobalMean(keep=True), (4, 5, 3)),
    "relu": (Relu(), (4, 3)),
    "clamp": (Clamp(-0.5, 0.25), (4, 3)),
    "reshape": (Reshape((3, 4)), (2, 6)),
}


def parameters_of(op) -> dict[int, Parameters]:
    if op.weight_shape is None:
        return {}
    return {0: Parameters(floats(*op.weight_shape), floats(op.weight_shape[0]) if op.has_bias else None)}


def reference(op, x, parameters):
    """Said once more with torch, in float64."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    x = torch.from_numpy(x).double()
    weight, bias = (None if p is None else torch.from_numpy(p).double() for p in parameters.get(0, (None, None)))
    windowed = {"stride": getattr(op, "stride", 1), "padding": getattr(op, "padding", 0)}
    return {
        Linear: lambda: functional.linear(x, weight, bias),
        Conv2d: lambda: functional.conv2d(x, weight, bias, **windowed, dilation=op.dilation, groups=op.groups),
        MaxPool2d: lambda: functional.max_pool2d(x, op.kernel, **windowed),
        AvgPool2d: lambda: functional.avg_pool2d(x, op.kernel, **windowed),
        GlobalMean: lambda: x.mean((2, 3), keepdim=op.keep),
        Relu: x.relu,
        Clamp: lambda: x.clamp(op.low, op.high),
        Reshape: lambda: x.reshape(len(x), *op.shape),
    }[type(op)]()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_operation_is_what_torch_computes(name, batch, kind):
    op, shape = CASES[name]
    network, parameters, x = Network(shape, (Node(op, (0,)),)), parameters_of(op), floats(batch, *shape)
    found = make(kind, network, parameters).run_arrays({0: x}, 0, 1, [1])[1]
    right = reference(op, x, parameters).numpy()
    assert found.dtype == np.float32
    assert found.shape == (batch, *network.shapes[1]) == right.shape
    assert np.abs(found - right).max() <= 1e-6 * max(1.0, np.abs(right).max())


def make(kind: str, network: Network, parameters):
    if kind == "numpy":
        return NumpyExecutor(network.nodes, parameters.__getitem__)
    pytest.importorskip("torch")
    from qpart.executors.with_torch import TorchExecutor

    return TorchExecutor(network.nodes, parameters)


def test_convolution_by_hand():
    op = Conv2d((2, 2), (1, 1), (0, 0), 1, 1)
    parameters = {0: Parameters(np.array([[[[1, 2], [3, 4]]]], np.float32), np.array([0.5], np.float32))}
    x = np.array([[[[1, 0, 2], [0, 1, 0]]]], np.float32)
    found = make("numpy", Network((1, 2, 3), (Node(op, (0,)),)), parameters).run({0: x}, 0, 1, [1])[1]
    assert found.tolist() == [[[[1 + 4 + 0.5, 4 + 3 + 0.5]]]]


RESIDUAL = Network(
    (4,),
    (Node(Linear(4, 4), (0,), "a"), Node(Relu(), (1,)), Node(Add(), (2, 0)), Node(Linear(4, 2), (3,), "b")),
)


def residual_parameters():
    return {0: Parameters(floats(4, 4), floats(4)), 3: Parameters(floats(2, 4), floats(2))}


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_stretches_return_what_is_wanted_and_nothing_else(kind):
    executor, x = make(kind, RESIDUAL, residual_parameters()), floats(2, 4)
    x.flags.writeable = False  # as it comes off the wire
    everything = executor.run_arrays({0: x}, 0, 4, range(5))
    assert np.array_equal(everything[0], x)
    at_cut = executor.run_arrays({0: x}, 0, 2, (0, 2))
    assert sorted(at_cut) == [0, 2]
    assert np.array_equal(executor.run_arrays(at_cut, 2, 4, [4])[4], everything[4])
    assert sorted(executor.run_arrays({0: x}, 0, 0, [0])) == [0]
    with pytest.raises(ValueError, match="value 0 was neither"):
        executor.run_arrays({2: at_cut[2]}, 2, 4, [4])
    with pytest.raises(ValueError, match="value 4 was neither"):
        executor.run_arrays({0: x}, 0, 2, [4])
    with pytest.raises(ValueError, match="nodes 2 to 5"):
        executor.run_arrays(at_cut, 2, 5, [4])


def test_values_are_dropped_after_their_last_use():
    alive: set[int] = set()
    seen = []

    class Result:
        def __init__(self, value: int) -> None:
            self.value = value
            alive.add(value)

        def __del__(self) -> None:
            alive.discard(self.value)

    def compute(i, inputs):
        seen.append(set(alive))
        return Result(i + 1)

    given = Result(0)
    assert list(walk(RESIDUAL.nodes, compute, {0: given}, 0, 4, [4])) == [4]
    assert seen == [{0}, {0, 1}, {0, 2}, {0, 3}]  # the caller holds the input


def test_weights_are_asked_for_each_time_a_node_runs():
    parameters, asked = residual_parameters(), []
    executor = NumpyExecutor(RESIDUAL.nodes, lambda i: (asked.append(i), parameters[i])[1])
    for _ in range(2):
        executor.run({0: floats(1, 4)}, 0, 4, [4])
    assert asked == [0, 3, 0, 3]


def test_torch_takes_other_weights_for_some_nodes():
    torch = pytest.importorskip("torch")
    parameters, x = residual_parameters(), floats(2, 4)
    executor = make("torch", RESIDUAL, parameters)
    other = floats(2, 4)
    found = executor.run({0: torch.from_numpy(x)}, 0, 4, [4], {3: torch.from_numpy(other)})[4].numpy()
    changed = {**parameters, 3: Parameters(other, parameters[3].bias)}
    assert np.array_equal(found, make("torch", RESIDUAL, changed).run_arrays({0: x}, 0, 4, [4])[4])


def test_convolutions_take_the_batch_in_parts(monkeypatch):
    op = Conv2d((5, 5), (1, 1), (2, 2), 8, 2)
    network, parameters, x = Network((8, 32, 32), (Node(op, (0,)),)), parameters_of(op), floats(24, 8, 32, 32)
    executor = make("numpy", network, parameters)
    whole = 24 * 8 * 25 * 32 * 32 * 4
    tracemalloc.start()
    found = executor.run({0: x}, 0, 1, [1])[1]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < whole / 4
    monkeypatch.setattr(with_numpy, "SCRATCH_BYTES", whole)
    assert np.array_equal(executor.run({0: x}, 0, 1, [1])[1], found)


def test_devices_need_no_torch():
    code = "import sys, qpart.inputs, qpart.executors.with_numpy; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
