"""Chains of views come to less, and to the same; constants go into the layer before them."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qpart.aten.attention import attend
from qpart.aten.call import Call, PerChannel, Step, Steps, Value
from qpart.errors import UnknownOperation
from qpart.executors.with_numpy import NumpyExecutor
from qpart.network import Node, Parameters
from qpart.ops import (
    Add,
    AddConstant,
    Affine,
    Attention,
    Conv2d,
    Expand,
    Linear,
    MatMul,
    Mul,
    Pad,
    Permute,
    Relu,
    Rescale,
    Reshape,
    Slice,
    Softmax,
)
from qpart.rewrite import simplified
from qpart.views import contiguous, reshaped


def run(made: Steps, x: np.ndarray) -> np.ndarray:
    """What steps compute for a batch."""
    parameters = {
        i: Parameters(s.weight.astype(np.float32), None if s.bias is None else s.bias.astype(np.float32))
        for i, s in enumerate(made.steps)
        if s.weight is not None
    }
    nodes, last = tuple(Node(step.op, step.inputs) for step in made.steps), len(made.steps)
    return NumpyExecutor(nodes, parameters.__getitem__).run({0: x}, 0, last, [last])[last]


def chain(shape: tuple[int, ...], *ops) -> Steps:
    made = Steps([], [shape])
    for op in ops:
        made.add(Step(op, (len(made.steps),)))
    return made


def kinds(made: Steps) -> list[type]:
    return [type(step.op) for step in made.steps]


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_chains_of_views_come_to_the_same(seed):
    chance = np.random.default_rng(seed)
    made = Steps([], [tuple(int(e) for e in chance.choice([1, 2, 3, 4, 6], chance.integers(1, 5)))])
    for _ in range(chance.integers(1, 8)):
        shape = made.shapes[-1]
        axis = int(chance.integers(len(shape)))
        kind = chance.integers(5)
        if kind == 4:
            made.add(Step(Add(), (len(made.steps),) * 2) if chance.integers(2) else Step(Relu(), (len(made.steps),)))
            continue
        if kind == 0:
            op = Permute(tuple(int(i) for i in chance.permutation(len(shape))))
        elif kind == 1 and shape[axis] > 1:
            start = int(chance.integers(shape[axis]))
            op = Slice(axis, start, int(chance.integers(start, shape[axis])) + 1, int(chance.integers(1, 3)))
        elif kind == 2 and len(shape) > 1:
            cut = int(chance.integers(len(shape) - 1))
            op = Reshape((*shape[:cut], shape[cut] * shape[cut + 1], *shape[cut + 2 :]))
        else:
            divisor = next((d for d in (2, 3) if shape[axis] % d == 0), 1)
            op = Reshape((*shape[:axis], divisor, shape[axis] // divisor, *shape[axis + 1 :])[:6])
            if prod(op.shape) != prod(shape):
                continue
        made.add(Step(op, (len(made.steps),)))
    if not made.steps:
        return
    x = np.arange(2 * prod(made.shapes[0]), dtype=np.float32).reshape(2, *made.shapes[0])
    fewer = simplified(made.shapes[0], made.steps, len(made.steps))
    right = run(made, x)
    found = run(fewer, x) if fewer.steps else x
    assert np.array_equal(found, right)
    assert len(fewer.steps) <= len(made.steps)


@pytest.mark.parametrize(
    ("shape", "strides", "wanted", "found"),
    [
        ((2, 3, 4), (12, 4, 1), (6, 4), (4, 1)),
        ((2, 3, 4), (12, 4, 1), (2, 1, 12), (12, 12, 1)),
        ((2, 3, 4), (12, 1, 3), (6, 4), None),
        ((3, 2, 4), (4, 12, 1), (3, 8), None),
        ((5, 4), (24, 1), (5, 2, 2), (24, 2, 1)),
        ((6,), (2,), (2, 3), (6, 2)),
        ((1, 1), (7, 9), (1,), (1,)),
        ((4, 6), (6, 1), (3, 8), (8, 1)),
    ],
)
def test_strides_of_a_reshape_by_hand(shape, strides, wanted, found):
    got = reshaped(shape, strides, wanted)
    if found is None:
        assert got is None
    else:
        assert got is not None
        assert [s for s, e in zip(got, wanted, strict=True) if e > 1] == [
            s for s, e in zip(found, wanted, strict=True) if e > 1
        ]
    assert contiguous((2, 3)) == (3, 1)


def test_views_that_undo_each_other_disappear():
    made = chain((2, 6), Reshape((2, 2, 3)), Permute((1, 0, 2)), Permute((1, 0, 2)), Reshape((2, 6)), Relu())
    assert kinds(simplified((2, 6), made.steps, 5)) == [Relu]
    made = chain((2, 6), Reshape((2, 2, 3)), Permute((1, 0, 2)), Slice(0, 1, 2), Reshape((2, 3)))
    assert [step.op for step in simplified((2, 6), made.steps, 4).steps] == [Slice(1, 3, 6)]


def test_attention_by_hand_becomes_one_operation_on_packed_columns():
    x = np.random.default_rng(0).normal(0, 1, (3, 5, 24)).astype(np.float32)
    made = Steps([], [(5, 24)])
    heads = made.add(Step(Reshape((5, 3, 2, 4)), (0,)))
    heads = made.add(Step(Permute((1, 2, 0, 3)), (heads,)))
    parts = []
    for i in range(3):
        part = made.add(Step(Slice(0, i, i + 1), (heads,)))
        parts.append(made.add(Step(Reshape((2, 5, 4)), (part,))))
    scaled = made.add(Step(Rescale(0.5), (parts[0],)))
    scores = made.add(Step(MatMul(transposed=True), (scaled, parts[1])))
    scores = made.add(Step(Softmax(2), (made.add(Step(Rescale(0.25), (scores,))),)))
    mixed = made.add(Step(MatMul(), (scores, parts[2])))
    out = made.add(Step(Permute((1, 0, 2)), (mixed,)))
    out = made.add(Step(Reshape((5, 8)), (out,)))
    fewer = simplified((5, 24), made.steps, out)
    assert [step.op for step in fewer.steps] == [Attention(2, 4, 4, 0.125, (0, 8, 16))]
    assert fewer.steps[0].inputs == (0, 0, 0)
    assert np.allclose(run(fewer, x), run(made, x), atol=1e-6)


def test_attention_whose_scores_are_used_again_stays_as_it_is():
    made = Steps([], [(4, 3)])
    scores = made.add(Step(Softmax(1), (made.add(Step(MatMul(transposed=True), (0, 0))),)))
    mixed = made.add(Step(MatMul(), (scores, 0)))
    out = made.add(Step(Add(), (made.add(Step(MatMul(), (scores, mixed))), mixed)))
    fewer = simplified((4, 3), made.steps, out)
    assert Attention not in kinds(fewer)
    x = np.random.default_rng(0).normal(0, 1, (2, 4, 3)).astype(np.float32)
    assert np.allclose(run(fewer, x), run(made, x))


def layer(op, seed=0) -> Step:
    chance = np.random.default_rng(seed)
    bias = chance.normal(size=op.weight_shape[0]) if op.has_bias else None
    return Step(op, (0,), chance.normal(size=op.weight_shape), bias)


CONV = Conv2d((3, 3), (1, 1), (0, 0), 2, 4, bias=False)


@pytest.mark.parametrize(
    ("first", "shape", "axis"),
    [(Linear(3, 4), (5, 3), 1), (CONV, (2, 6, 6), 0), (Affine(4, 1), (3, 4), 1)],
)
def test_scales_and_shifts_go_into_the_layer_before_them(first, shape, axis):
    made = Steps([], [shape])
    value = made.add(layer(first))
    scale, shift = np.arange(1.0, 5.0), np.arange(4.0) - 2
    value = made.add(Step(Rescale(2.0, 1.0), (value,)))
    plain = Steps(list(made.steps), list(made.shapes))
    value = made.add(Step(PerChannel(axis, scale, shift), (value,)))
    fewer = simplified(shape, made.steps, value)
    assert kinds(fewer) == [type(first)]
    x = np.random.default_rng(1).normal(0, 1, (2, *shape)).astype(np.float32)
    before = np.moveaxis(run(plain, x), axis + 1, -1) * scale + shift
    assert np.allclose(run(fewer, x), np.moveaxis(before, -1, axis + 1), atol=1e-5)


def test_a_layer_that_something_else_reads_is_left_alone():
    made = Steps([], [(3,)])
    value = made.add(layer(Linear(3, 4)))
    normed = made.add(Step(PerChannel(0, np.full(4, 2.0), np.ones(4)), (value,)))
    out = made.add(Step(Add(), (normed, value)))
    assert kinds(simplified((3,), made.steps, out)) == [Linear, Affine, Add]


def test_what_does_nothing_disappears_and_its_reader_does_not_count_double():
    made = Steps([], [(3,)])
    value = made.add(layer(Linear(3, 4)))
    same = made.add(Step(PerChannel(0, np.ones(4), np.zeros(4)), (value,)))
    shifted = made.add(Step(Rescale(3.0), (same,)))
    out = made.add(Step(Add(), (shifted, value)))
    fewer = simplified((3,), made.steps, out)
    assert kinds(fewer) == [Linear, Rescale, Add]


def test_padding_goes_into_the_convolution_behind_it_where_both_sides_are_equal():
    for pad, expected in (
        (Pad((0, 1, 1), (0, 1, 1)), [Conv2d]),
        (Pad((0, 0, 0), (0, 1, 1)), [Pad, Conv2d]),
        (Pad((0, 1, 1), (0, 1, 1), 0.5), [Pad, Conv2d]),
        (Pad((0, 3, 3), (0, 3, 3)), [Pad, Conv2d]),
    ):
        made = Steps([], [(2, 6, 6)])
        padded = made.add(Step(pad, (0,)))
        step = layer(CONV)
        step.inputs = (padded,)
        out = made.add(step)
        fewer = simplified((2, 6, 6), made.steps, out)
        assert kinds(fewer) == expected
        x = np.random.default_rng(1).normal(0, 1, (2, 2, 6, 6)).astype(np.float32)
        assert np.allclose(run(fewer, x), run(made, x), atol=1e-5)


def test_constants_are_added_once_and_repeats_left_to_sums():
    made = Steps([], [(3, 4)])
    value = made.add(Step(AddConstant((3, 1)), (0,), np.arange(3.0).reshape(3, 1)))
    value = made.add(Step(AddConstant((1, 4)), (value,), np.arange(4.0).reshape(1, 4)))
    narrow = made.add(Step(Slice(1, 0, 1), (value,)))
    out = made.add(Step(Mul(), (value, made.add(Step(Expand((3, 4)), (narrow,))))))
    fewer = simplified((3, 4), made.steps, out)
    assert [step.op for step in fewer.steps] == [AddConstant((3, 4)), Slice(1, 0, 1), Mul()]
    x = np.ones((2, 3, 4), np.float32)
    assert np.allclose(run(fewer, x), run(made, x))


def test_the_batch_may_stand_anywhere_and_be_merged():
    """(batch, 5, 6) -> (5, batch, 6) -> (5, batch * 2, 3) -> (batch * 2, 5, 3), as nn.MultiheadAttention does."""
    from qpart.aten.call import Batch

    call = Call("here", "view", {}, (), Steps([], [(5, 6)]))
    value = call.permuted(Value(0, (5, 6)), (1, 0, 2))
    assert (value.id, value.traced) == (0, (5, Batch(1), 6))
    value = call.viewed(value, (5, Batch(2), 3))
    assert (value.shape, value.at, value.before, value.after) == ((5, 2, 3), 1, 1, 2)
    value = call.permuted(value, (1, 0, 2))
    assert (value.shape, value.traced) == ((2, 5, 3), (Batch(2), 5, 3))
    assert kinds(call.steps) == [Reshape, Permute]
    back = call.viewed(call.permuted(value, (1, 0, 2)), (Batch(5), 6))  # 5 * batch: the batch is the inner one
    assert (back.before, back.after, back.shape) == (5, 1, (5, 6))
    with pytest.raises(UnknownOperation, match="mixes the batch"):
        call.viewed(back, (3, Batch(5), 2))
    with pytest.raises(UnknownOperation, match="along the batch"):
        call.axis(back, 0)


def test_attention_of_one_head_needs_no_views():
    made = Steps([], [(5, 4)])
    assert attend(made, (0, 0, 0), 0.5, False) == 1
    assert kinds(made) == [Attention]


def test_convolutions_over_sequences_stay_images_between_each_other():
    made = Steps([], [(2, 8)])

    def convolved(value: int) -> int:
        image = made.add(Step(Reshape((2, 1, 8)), (value,)))
        step = layer(Conv2d((1, 3), (1, 1), (0, 1), 2, 2))
        step.inputs = (image,)
        return made.add(Step(Reshape((2, 8)), (made.add(step),)))

    first = made.add(Step(Relu(), (convolved(0),)))
    out = made.add(Step(Add(), (convolved(first), convolved(0))))
    fewer = simplified((2, 8), made.steps, made.add(Step(Relu(), (out,))))
    assert kinds(fewer) == [Reshape, Conv2d, Relu, Conv2d, Conv2d, Add, Relu, Reshape]
    x = np.random.default_rng(1).normal(0, 1, (2, 2, 8)).astype(np.float32)
    assert np.allclose(run(fewer, x), run(made, x), atol=1e-5)
