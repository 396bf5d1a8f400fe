"""Networks: what crosses a cut, what counts as the input, and shapes that cannot be."""

import tracemalloc

import numpy as np
import pytest

from qpart import sizes
from qpart.errors import ShapeMismatch
from qpart.executors.with_numpy import NumpyExecutor
from qpart.network import Network, Node, Parameters
from qpart.ops import Add, AvgPool2d, Clamp, Conv2d, GlobalMean, Linear, MaxPool2d, Relu, Reshape


def test_every_value_that_is_still_needed_is_live():
    # 0 -> linear -> 1 -> relu -> 2 -> linear -> 3; 3 + 1 -> 4; 4 + 0 -> 5
    nodes = (
        Node(Linear(3, 3), (0,)),
        Node(Relu(), (1,)),
        Node(Linear(3, 3), (2,)),
        Node(Add(), (3, 1)),
        Node(Add(), (4, 0)),
    )
    network = Network((3,), nodes)
    assert network.live == ((0,), (0, 1), (0, 1, 2), (0, 1, 3), (0, 4), ())
    assert [network.shows_input(cut) for cut in range(6)] == [True] * 5 + [False]


def test_a_reshaped_input_is_the_input():
    network = Network((1, 2, 2), (Node(Reshape((4,)), (0,)), Node(Reshape((2, 2)), (1,)), Node(Relu(), (2,))))
    assert [network.shows_input(cut) for cut in range(4)] == [True, True, True, False]


def test_work_is_counted_by_hand():
    nodes = (
        Node(Conv2d((3, 3), (2, 2), (1, 1), 4, 8, (1, 1), 2), (0,)),
        Node(GlobalMean(), (1,)),
        Node(Linear(8, 5), (2,)),
    )
    network = Network((4, 6, 6), nodes)
    assert network.shapes == ((4, 6, 6), (8, 3, 3), (8,), (5,))
    assert network.macs == (8 * 3 * 3 * 2 * 9, 0, 40)


WINDOW = ((2, 2), (2, 2), (0, 0))


@pytest.mark.parametrize(
    ("shape", "node"),
    [
        ((3,), Node(Linear(4, 2), (0,))),
        ((3,), Node(Add(), (0,))),
        ((3,), Node(Relu(), (0, 0))),
        ((3,), Node(Relu(), (5,))),
        ((3,), Node(Reshape((2, 2)), (0,))),
        ((3,), Node(MaxPool2d(*WINDOW), (0,))),
        ((1, 1, 4), Node(AvgPool2d(*WINDOW), (0,))),
        ((1, 4, 4), Node(MaxPool2d((2, 2), (2, 2), (2, 0)), (0,))),
        ((1, 4, 4), Node(AvgPool2d((2, 2), (2, 2), (2, 0)), (0,))),
        ((3, 4, 4), Node(Conv2d((1, 1), (1, 1), (0, 0), 4, 4), (0,))),
        ((3, 4, 4), Node(Conv2d((1, 1), (1, 1), (0, 0), 3, 4, (1, 1), 2), (0,))),
        ((3, 4), Node(GlobalMean(), (0,))),
        ((3,), Node(Clamp(1.0, 0.0), (0,))),
        ((3,), Node(Clamp(float("nan"), 1.0), (0,))),
        ((1 << 20, 1, 1), Node(MaxPool2d((4096, 4096), (1, 1), (2048, 2048)), (0,))),
        ((1, 1, 1), Node(Conv2d((1, 1), (1, 1), (4096, 4096), 1, 1 << 20), (0,))),
        ((1 << 20,), Node(Linear(1 << 20, 1 << 20), (0,))),
    ],
)
def test_shapes_that_cannot_be_are_refused(shape, node):
    with pytest.raises(ShapeMismatch):
        Network(shape, (node,))


@pytest.mark.parametrize("op", [Relu(), Clamp(0.0, 1.0), MaxPool2d(*WINDOW), AvgPool2d(*WINDOW), GlobalMean()])
def test_what_is_made_of_the_input_without_weights_shows_it(op):
    network = Network((1, 4, 4), (Node(op, (0,)), Node(Relu(), (1,))))
    assert network.shows_input(1)


def test_a_sum_with_the_input_shows_it_and_a_layer_does_not():
    conv = Conv2d((1, 1), (1, 1), (0, 0), 1, 1)
    network = Network((1, 4, 4), (Node(conv, (0,)), Node(Add(), (1, 0)), Node(conv, (2,)), Node(Relu(), (3,))))
    assert [network.shows_input(cut) for cut in range(5)] == [True, True, True, False, False]


MEMORY = {
    "conv": (Conv2d((3, 3), (1, 1), (1, 1), 16, 16), (16, 48, 48)),
    "depthwise": (Conv2d((3, 3), (1, 1), (1, 1), 16, 16, (1, 1), 16), (16, 64, 64)),
    "strided": (Conv2d((5, 5), (2, 2), (2, 2), 8, 32), (8, 64, 64)),
    "linear": (Linear(600, 700), (600,)),
    "pool": (MaxPool2d((3, 3), (2, 2), (1, 1)), (32, 64, 64)),
    "relu": (Relu(), (32, 64, 64)),
}


@pytest.mark.parametrize("name", MEMORY)
def test_the_memory_that_is_planned_is_what_a_device_uses(name):
    op, shape = MEMORY[name]
    network = Network(shape, (Node(op, (0,)), Node(Relu(), (1,))))
    random = np.random.default_rng(0)

    def parameters(node):
        bias = np.zeros(op.weight_shape[0], np.float32) if op.has_bias else None
        return Parameters(random.normal(size=op.weight_shape).astype(np.float32), bias)

    weights = parameters(0) if op.weight_shape else None
    inputs = np.zeros((1, *shape), np.float32)
    executor = NumpyExecutor(network.nodes, lambda node: weights)
    executor.run({0: inputs}, 0, 2, [2])
    tracemalloc.start()
    executor.run({0: inputs}, 0, 2, [2])
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    planned = 4 * (sizes.device_items(network)[2] - inputs.size - (weights.weight.size if weights else 0))
    assert used <= planned * 1.02 + 100_000  # numpy's own buffers
