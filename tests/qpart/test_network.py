"""Networks: what crosses a cut, what counts as the input, and shapes that cannot be."""

import pytest

from qpart.errors import ShapeMismatch
from qpart.network import Network, Node
from qpart.ops import (
    Add,
    AddConstant,
    Affine,
    Attention,
    AvgPool2d,
    Clamp,
    Conv2d,
    Embedding,
    GlobalMean,
    Linear,
    MatMul,
    MaxPool2d,
    Mul,
    MulConstant,
    Norm,
    Permute,
    Relu,
    Reshape,
    Slice,
    Softmax,
)


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
    conv = Conv2d((3, 3), (1, 1), (1, 1), 1, 1)
    network = Network((1, 4, 4), (Node(conv, (0,)), Node(Add(), (1, 0)), Node(conv, (2,)), Node(Relu(), (3,))))
    assert [network.shows_input(cut) for cut in range(5)] == [True, True, True, False, False]


SHOWS = {
    "a softmax": (Softmax(0),),
    "a permutation and a slice": (Permute((1, 0)), Slice(0, 0, 2)),
    "a norm with gains": (Norm(4, 1, 1e-5),),
    "a batch norm": (Affine(4, 1),),
    "a constant added": (AddConstant((4, 4)),),
    "a constant multiplied": (MulConstant((4, 4)),),
    "a table": (Embedding(256, 3),),
    "a layer of one number": (Reshape((4, 4, 1)), Linear(1, 3)),
    "a product with itself": (Mul(),),
    "attention to itself": (Attention(1, 4, 4, 1.0),),
    "a convolution of one tap": (Reshape((1, 4, 4)), Conv2d((1, 1), (1, 1), (0, 0), 1, 3)),
    "a depthwise convolution of one tap": (Reshape((4, 2, 2)), Conv2d((1, 1), (1, 1), (0, 0), 4, 4, (1, 1), 4)),
}
HIDES = {
    "a layer": (Linear(4, 4),),
    "a depthwise convolution": (Reshape((4, 2, 2)), Conv2d((2, 2), (1, 1), (0, 0), 4, 4, (1, 1), 4)),
    "a layer over an embedding": (Embedding(256, 3), Linear(3, 4)),
}


@pytest.mark.parametrize("name", [*SHOWS, *HIDES])
def test_only_weighted_sums_hide_the_input(name):
    nodes = []
    for op in (SHOWS | HIDES)[name]:
        nodes.append(Node(op, (len(nodes),) * op.arity))
    network = Network((4, 4), (*nodes, Node(Relu(), (len(nodes),))))
    assert network.shows_input(len(nodes)) == (name in SHOWS)


def test_attention_with_one_side_of_the_input_shows_it():
    nodes = (Node(Linear(4, 4), (0,)), Node(Attention(1, 4, 4, 1.0), (1, 1, 0)), Node(Relu(), (2,)))
    assert Network((4, 4), nodes).shows_input(2)
    hidden = (nodes[0], Node(Attention(1, 4, 4, 1.0), (1, 1, 1)), nodes[2])
    assert not Network((4, 4), hidden).shows_input(2)


def test_both_products_of_attention_count():
    nodes = (
        Node(Linear(6, 18), (0,)),
        Node(Attention(2, 3, 3, 1.0, (0, 6, 12)), (1, 1, 1)),
        Node(MatMul(transposed=True), (2, 2)),
        Node(Embedding(9, 5), (3,)),
    )
    network = Network((7, 6), nodes)
    assert network.macs == (7 * 6 * 18, 2 * (7 * 7 * 3 + 7 * 7 * 3), 7 * 7 * 6, 0)
    assert network.parametric == (0, 3)
