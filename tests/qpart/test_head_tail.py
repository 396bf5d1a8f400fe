"""Head and tail on one machine: equal to the simulation at every cut; hostile segments and arrays refused."""

import msgspec
import numpy as np
import pytest

from edgebus.payloads import decode, encode
from qpart.errors import SegmentRejected, ShapeMismatch
from qpart.executors.simulator import Simulator
from qpart.executors.with_numpy import NumpyExecutor
from qpart.executors.with_torch import TorchExecutor
from qpart.head import Head
from qpart.inputs import as_float
from qpart.messages import Infer, Live, Segment, segment_of
from qpart.network import Node
from qpart.ops import Linear, Relu
from qpart.pieces import encode_piece
from qpart.tables import WIDTHS
from qpart.tail import MAX_ITEMS, Tail
from tests.qpart import small


@pytest.fixture(scope="module")
def inputs():
    return as_float(small.examples(20, seed=9)[0], small.SHAPE)


def chosen(cut, bits=3):
    """Segment and pieces at a cut with one width everywhere."""
    artefact = small.artefact()
    network, index = artefact.network, WIDTHS.index(bits)
    nodes = [i for i in network.parametric if i < cut]
    live = tuple(Live(v, bits, *artefact.ranges[v][index]) for v in network.live[cut])
    pieces = {artefact.piece_ids[i][index]: encode_piece(artefact.parameters[i], bits) for i in nodes}
    addresses = tuple(artefact.piece_ids[i][index] for i in nodes)
    return segment_of(network, bytes(16), cut, addresses, live), pieces


def tail(executor=TorchExecutor):
    artefact = small.artefact()
    if executor is NumpyExecutor:
        return Tail(artefact, NumpyExecutor(artefact.network.nodes, artefact.parameters.__getitem__))
    return Tail(artefact, executor(artefact.network.nodes, artefact.parameters))


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("cut", range(7))
def test_head_and_tail_equal_the_simulation(cut, bits, inputs):
    artefact = small.artefact()
    segment, pieces = chosen(cut, bits)
    head = Head(decode(Segment, encode(segment)), pieces)
    simulator = Simulator(artefact.network, artefact.parameters, artefact.ranges)
    of_weights = [bits] * len(segment.pieces)
    expected = simulator.logits(cut, of_weights, [bits] * len(segment.live), inputs)
    if head.is_whole:
        found = head.answer(inputs)
    else:
        found = tail().answer(Infer(bytes(16), cut, (bits,) * len(segment.live)), head.run(inputs))
    scale = np.abs(expected).max()
    # One code may fall to the other side of a rounding edge between numpy and torch; none does in most cases.
    assert (np.abs(found - expected).max(axis=1) > 1e-4 * scale).mean() <= 0.05
    assert head.weight_bits == tuple(of_weights)


def test_numpy_and_torch_tails_agree(inputs):
    segment, pieces = chosen(3, 5)
    arrays = Head(segment, pieces).run(inputs)
    infer = Infer(bytes(16), 3, (5, 5))
    assert np.allclose(tail().answer(infer, arrays), tail(NumpyExecutor).answer(infer, arrays), atol=1e-5)


def test_a_residual_cut_sends_two_values(inputs):
    segment, pieces = chosen(3)
    assert [live.value for live in segment.live] == [2, 3]
    assert [array.shape for array in Head(segment, pieces).run(inputs)] == [(20, 54), (20, 54)]


def test_inputs_of_another_shape_are_refused(inputs):
    head = Head(*chosen(3))
    for wrong in (inputs[:, :, :5], inputs[:0], inputs[0]):
        with pytest.raises(ShapeMismatch, match="the model takes"):
            head.run(wrong)


def spoiled(**changes):
    segment, pieces = chosen(3)
    return msgspec.structs.replace(segment, **changes), pieces


@pytest.mark.parametrize(
    "changes",
    [
        {"nodes": chosen(3)[0].nodes[::-1]},
        {"nodes": (*chosen(3)[0].nodes[:2], Node(Linear(5, 5), (2,)))},
        {"nodes": (Node(Relu(), (7,)),)},
        {"pieces": ()},
        {"pieces": chosen(3)[0].pieces[::-1]},
        {"live": (Live(9, 3, 1.0, 0.0),)},
        {"live": (Live(2, 9, 1.0, 0.0),)},
        {"live": (Live(2, 3, float("nan"), 0.0),)},
        {"live": (Live(2, 3, -1.0, 0.0),)},
        {"live": (Live(2, 3, 1.0, float("inf")),)},
        {"input_shape": (1, 7)},
    ],
)
def test_a_segment_that_does_not_add_up_never_runs(changes):
    with pytest.raises(SegmentRejected):
        Head(*spoiled(**changes))


def test_a_piece_that_is_not_what_its_address_says_never_runs():
    segment, pieces = chosen(3)
    address = segment.pieces[0]
    pieces[address] = pieces[address][:-1] + bytes([pieces[address][-1] ^ 1])
    with pytest.raises(SegmentRejected, match="does not match its hash"):
        Head(segment, pieces)


@pytest.mark.parametrize("name", ["eval", "linear2", "", "Linear"])
def test_unknown_operations_are_not_even_decoded(name):
    raw = msgspec.msgpack.decode(encode(chosen(3)[0]))
    raw[2][0][0][0] = name
    with pytest.raises(ValueError, match="Invalid value"):
        decode(Segment, msgspec.msgpack.encode(raw))


@pytest.mark.parametrize(
    ("infer", "arrays", "what"),
    [
        (Infer(bytes(16), 6, ()), [], "leaves nothing to run"),
        (Infer(bytes(16), 4096, (3,)), [np.zeros((1, 54), np.uint8)], "leaves nothing to run"),
        (Infer(bytes(16), 3, (3,)), [np.zeros((1, 54), np.uint8)], "values cross cut 3"),
        (Infer(bytes(16), 3, (3, 3)), [np.zeros((1, 54), np.uint8)], "values cross cut 3"),
        (Infer(bytes(16), 1, (9,)), [np.zeros((1, 54), np.uint8)], "known are"),
        (Infer(bytes(16), 1, (3,)), [np.zeros((1, 55), np.uint8)], "arrived as"),
        (Infer(bytes(16), 1, (3,)), [np.zeros(54, np.uint8)], "arrived as"),
        (Infer(bytes(16), 1, (3,)), [np.zeros((0, 54), np.uint8)], "arrived as"),
        (Infer(bytes(16), 1, (3,)), [np.zeros((1, 54), np.int8)], "arrived as"),
        (Infer(bytes(16), 1, (3,)), [np.array(3, np.uint8)], "arrived as"),
        (Infer(bytes(16), 3, (3, 3)), [np.zeros((1, 54), np.uint8), np.zeros((2, 54), np.uint8)], "arrived as"),
        (Infer(bytes(16), 1, (16,)), [np.full((1, 144), np.nan, np.float16)], "not finite"),
        (Infer(bytes(16), 5, (2,)), [np.zeros((MAX_ITEMS // 144 + 1, 1), np.uint8)], "too large"),
    ],
)
def test_requests_that_do_not_fit_are_refused(infer, arrays, what):
    with pytest.raises(ShapeMismatch, match=what):
        tail().answer(infer, arrays)
