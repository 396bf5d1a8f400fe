"""Linear layers and small convolutions that are multiplied as they are held."""

from __future__ import annotations

import numpy as np
import pytest
from edgekernels import backend

from qpart.executors.with_numpy import NumpyExecutor
from qpart.matrices import FEW_TOKENS, LinearWeight
from qpart.network import Node, Parameters
from qpart.ops import Conv2d, Linear
from qpart.pieces import Layer, encode_pieces, steps_to
from qpart.quantiser import dequantise_weight, quantise_weight
from qpart.tables import WIDTHS
from tests.qpart import small

compiled = pytest.mark.skipif(backend() != "cython", reason="the compiled kernels are not in use")
SHAPE = 160, 784


def weight(shape=SHAPE):
    return np.random.default_rng(1).normal(0, 0.1, shape).astype(np.float32)


def layer(bits, shape=SHAPE):
    bias = np.linspace(-1, 1, shape[0], dtype=np.float32)
    pieces = dict(zip(WIDTHS, encode_pieces(Parameters(weight(shape), bias)), strict=True))
    op = Linear(shape[1], shape[0])
    return op, Layer([pieces[step.first] for step in steps_to(shape[0] * shape[1], bits)], op, bits)


@compiled
@pytest.mark.parametrize("bits", range(2, 9))
def test_the_matrix_is_the_weight_to_the_bit_and_its_product_that_of_the_weight(bits):
    packed = quantise_weight(weight(), bits)
    matrix, right = LinearWeight.of(packed, SHAPE), dequantise_weight(packed, SHAPE)
    assert matrix.dequantised().tobytes() == right.tobytes()
    x = np.random.default_rng(2).normal(0, 1, (FEW_TOKENS, SHAPE[1])).astype(np.float32)
    wanted = x.astype(float) @ right.T.astype(float)
    found = matrix.product(x, None)
    assert np.abs(found - wanted).max() <= 1e-6 * (np.abs(x) @ np.abs(right).T).max()
    assert all(np.array_equal(matrix.product(x[i : i + 1], None)[0], found[i]) for i in range(FEW_TOKENS))


@compiled
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_stay_packed(bits):
    """An eighth more than the codes at most, which is what columns and rows that are filled up may take."""
    _, held = layer(bits)
    assert held.product(np.ones((1, SHAPE[1]), np.float32)) is not None
    least = SHAPE[0] * SHAPE[1] * bits / 8 + 2 * SHAPE[0] + 4 * SHAPE[0]
    assert least <= held.held_bytes <= 1.125 * least


@pytest.mark.parametrize(("shape", "bits"), [((10, 32), 4), ((64, 36), 4), (SHAPE, 16)])
def test_what_would_waste_memory_is_dequantised_as_before(shape, bits):
    _, held = layer(bits, shape)
    assert held.product(np.ones((1, shape[1]), np.float32)) is None
    assert held.parameters().weight.shape == shape


@pytest.mark.parametrize("tokens", [1, FEW_TOKENS, FEW_TOKENS + 1, 100])
def test_an_executor_answers_alike_with_packed_and_dequantised_layers(tokens, monkeypatch):
    op, held = layer(5)
    nodes = (Node(op, (0,), "fc"),)
    x = np.random.default_rng(3).normal(0, 1, (tokens, SHAPE[1])).astype(np.float32)
    wanted = NumpyExecutor(nodes, lambda i: held.parameters()).run({0: x}, 0, 1, [1])[1]
    asked = []

    def parameters(index):
        asked.append(index)
        return held.parameters()

    found = NumpyExecutor(nodes, parameters, lambda i, rows: held.product(rows)).run({0: x}, 0, 1, [1])[1]
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert bool(asked) == (tokens > FEW_TOKENS or backend() != "cython")


def conv(bits, *, size, stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1, kernel=(3, 3), channels=(32, 48)):
    """A layer, and random images (2, channels, *size) for it."""
    op = Conv2d(kernel, stride, padding, *channels, groups=groups, dilation=dilation)
    random = np.random.default_rng(5)
    values = random.normal(0, 0.1, op.weight_shape).astype(np.float32)
    pieces = dict(
        zip(WIDTHS, encode_pieces(Parameters(values, np.linspace(-1, 1, channels[1], dtype=np.float32))), strict=True)
    )
    held = Layer([pieces[step.first] for step in steps_to(values.size, bits)], op, bits)
    return op, held, random.normal(0, 1, (2, channels[0], *size)).astype(np.float32)


@compiled
@pytest.mark.parametrize(
    ("options", "multiplied"),
    [
        ({"size": (2, 4)}, True),
        ({"size": (4, 4), "stride": (2, 2)}, True),
        ({"size": (3, 4), "stride": (2, 1), "padding": (1, 0), "kernel": (3, 1)}, True),
        ({"size": (6, 6), "dilation": (2, 2), "padding": (0, 0), "kernel": (3, 3)}, True),
        ({"size": (2, 2), "padding": (0, 0), "kernel": (1, 1), "channels": (64, 32)}, True),
        ({"size": (4, 4)}, False),  # 32 windows
        ({"size": (2, 2), "groups": 2}, False),
        ({"size": (2, 2), "channels": (3, 48)}, False),  # rows of 27 filled up to 32
    ],
)
@pytest.mark.parametrize("bits", [2, 4, 7])
def test_a_convolution_of_few_windows_is_multiplied_as_it_is_held(options, multiplied, bits):
    op, held, x = conv(bits, **options)
    nodes, asked = (Node(op, (0,), "conv"),), []
    wanted = NumpyExecutor(nodes, lambda i: held.parameters()).run({0: x}, 0, 1, [1])[1]

    def parameters(index):
        asked.append(index)
        return held.parameters()

    found = NumpyExecutor(nodes, parameters, lambda i, rows: held.product(rows)).run({0: x}, 0, 1, [1])[1]
    assert (found.shape, found.flags.c_contiguous) == (wanted.shape, True)
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert bool(asked) != multiplied


@compiled
@pytest.mark.parametrize("bits", range(2, 9))
def test_a_convolution_held_as_a_matrix_has_the_same_weights_to_the_bit(bits):
    op, held, _ = conv(bits, size=(2, 2))
    values = np.random.default_rng(5).normal(0, 0.1, op.weight_shape).astype(np.float32)
    right = dequantise_weight(quantise_weight(values, bits), op.weight_shape)
    assert held.parameters().weight.tobytes() == right.tobytes()
    least = values.size * bits / 8 + 2 * 48 + 4 * 48
    assert least <= held.held_bytes <= 1.125 * least


@pytest.mark.parametrize("other", ["numpy", "numba"])
def test_without_compiled_kernels_layers_are_dequantised(monkeypatch, other):
    monkeypatch.setattr("qpart.matrices.backend", lambda: other)
    assert layer(4)[1].product(np.ones((1, SHAPE[1]), np.float32)) is None


def test_a_profile_is_measured_on_layers_as_devices_hold_them(monkeypatch):
    from qpart.cli.profile import _device

    asked = []
    monkeypatch.setattr(Layer, "product", lambda self, x: asked.append(x.shape))
    artefact = small.artefact()
    network, x = artefact.network, artefact.float_inputs()[:1]
    executor, _ = _device(artefact, 4)
    executor.run_arrays({0: x}, 0, network.num_nodes, [network.num_nodes])
    linear = [node.op for node in network.nodes if isinstance(node.op, Linear)]
    assert asked == [(1, op.in_features) for op in linear] != []
