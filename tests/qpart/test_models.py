"""Whole nets of every style are taken in, compute the same on both executors, and go through calibration to a head."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from qpart.calibrate import calibrate
from qpart.executors.simulator import Simulator
from qpart.executors.with_numpy import NumpyExecutor
from qpart.executors.with_torch import TorchExecutor
from qpart.graph import export, from_exported, trace
from qpart.head import Head
from qpart.messages import Infer, Live, segment_of
from qpart.network import Network
from qpart.ops import Attention, Linear, Norm
from qpart.pieces import encode_pieces, steps_to
from qpart.sizes import weight_sizes
from qpart.tables import WIDTHS
from qpart.tail import Tail
from tests.qpart import zoo


def taken(module: torch.nn.Module, *shape: int):
    """A module with weights that mean something, its network, and both answers to a few inputs."""
    module.train()
    with torch.no_grad():
        for _ in range(3):
            module(torch.randn(8, *shape) + 0.5)
    network, parameters = trace(module.eval(), torch.zeros(2, *shape))
    inputs = torch.randn(3, *shape)
    with torch.inference_mode():
        right = module(inputs).numpy()
    return network, parameters, inputs.numpy(), right


def check(network: Network, parameters, inputs, right, cuts=None) -> None:
    """Both executors, at some cuts from the live values alone."""
    last = network.num_nodes
    for executor in (TorchExecutor(network.nodes, parameters), NumpyExecutor(network.nodes, parameters.__getitem__)):
        for cut in range(last) if cuts is None else cuts:
            travelled = executor.run_arrays({0: inputs}, 0, cut, network.live[cut])
            found = executor.run_arrays(travelled, cut, last, [last])[last]
            assert np.abs(found - right).max() <= 1e-5 * np.abs(right).max()


def kinds(network: Network) -> list[str]:
    return [str(node.op.__struct_config__.tag) for node in network.nodes]


def test_mobile_net_with_squeeze_and_excitation():
    torch.manual_seed(0)
    network, *rest = taken(zoo.mobile_v3(), 3, 24, 20)
    check(network, *rest)
    squeeze = ["global_mean", "conv2d", "relu", "conv2d", "activation", "mul"]
    block = ["conv2d", "activation", "conv2d", "activation", *squeeze, "conv2d"]
    assert kinds(network) == [
        "conv2d", "activation", *block, *block, "add", "global_mean", "reshape", "linear", "activation", "linear",
    ]  # fmt: skip
    inside = kinds(network).index("mul")
    assert len(network.live[inside]) == 2  # what is scaled, and its scales


def test_vision_transformer_by_hand():
    torch.manual_seed(0)
    network, *rest = taken(zoo.VisionTransformer(), 1, 8, 8)
    check(network, *rest)
    block = ["norm", "linear", "attention", "linear", "add", "norm", "linear", "activation", "linear", "add"]
    assert kinds(network) == [
        "conv2d", "reshape", "permute", "pad", "add_constant", *block, *block, "norm", "slice", "reshape", "linear",
    ]  # fmt: skip
    attention = next(node for node in network.nodes if isinstance(node.op, Attention))
    assert attention.op == Attention(3, 4, 4, 0.5, (0, 12, 24))
    assert len(set(attention.inputs)) == 1
    # patches; per block qkv, two products of 5 x 5 for 12 columns, projection, and twice a factor of 2; head
    block_macs = 5 * 12 * 36 + 2 * 5 * 5 * 12 + 5 * 12 * 12 + 2 * 5 * 12 * 24
    assert sum(network.macs) == 4 * 16 * 12 + 2 * block_macs + 12 * 5
    names = [node.name for node in network.nodes]
    assert names[4] == "positions"
    assert "blocks.1.mlp.0" in names


def test_torch_encoder_from_calibration_to_head_and_tail():
    torch.manual_seed(0)
    network, parameters, inputs, right = taken(zoo.Encoder(), 4, 3)
    check(network, parameters, inputs, right, (0, 3, 7))
    assert kinds(network) == [
        "linear", "norm", "linear", "attention", "linear", "add", "norm", "linear", "activation", "linear", "add",
        "norm", "reduce", "linear",
    ]  # fmt: skip
    sizes = weight_sizes(network)
    for i in network.parametric:
        if isinstance(network.nodes[i].op, Norm):
            assert min(sizes[i]) == sizes[i][WIDTHS.index(16)]
    samples = torch.randn(100, 4, 3).numpy()
    artefact = calibrate(network, parameters, samples, name="encoder", num_patterns=20, levels=(0.2,))
    simulator = Simulator(network, parameters, artefact.ranges)
    tail = Tail(artefact, TorchExecutor(network.nodes, parameters))
    for cut in (1, 3, 6, 10):
        nodes = [i for i in network.parametric if i < cut]
        bits = [4 if isinstance(network.nodes[i].op, Linear) else 16 for i in nodes]
        live = tuple(Live(v, 6, *artefact.ranges[v][WIDTHS.index(6)]) for v in network.live[cut])
        addresses, pieces = [], {}
        for i, b in zip(nodes, bits, strict=True):
            steps = [WIDTHS.index(step.first) for step in steps_to(parameters[i].weight.size, b)]
            contents = encode_pieces(parameters[i])
            pieces |= {artefact.piece_ids[i][k]: contents[k] for k in steps}
            addresses.append(b"".join(artefact.piece_ids[i][k] for k in steps))
        head = Head(segment_of(network, bytes(16), cut, tuple(bits), tuple(addresses), live), pieces)
        found = tail.answer(Infer(bytes(16), cut, (6,) * len(live)), head.run(inputs))
        expected = simulator.logits(cut, bits, [6] * len(live), inputs)
        assert np.abs(found - expected).max() <= 0.02 * np.abs(expected).max()  # a code next to a boundary may differ


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.STYLES)
def test_style_is_taken_in(name):
    torch.manual_seed(0)
    function, parts, shape = zoo.STYLES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: padding of even kernels makes a copy
        check(*taken(zoo.Of(function, **parts()), *shape))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"norm_first": False, "activation": "relu"}, {"layers": 3}])
def test_encoder_layers_are_taken_in(options):
    torch.manual_seed(0)
    network, *rest = taken(zoo.Encoder(**options), 6, 3)
    check(network, *rest)
    assert kinds(network).count("attention") == options.get("layers", 1)
    assert "permute" not in kinds(network)


@pytest.mark.slow
def test_recurrent_net_is_unrolled():
    torch.manual_seed(0)
    module = zoo.Of(lambda m, x: m.l(x)[0], l=torch.nn.LSTM(8, 4, 2, batch_first=True, bidirectional=True))
    network, *rest = taken(module, 5, 8)
    check(network, *rest, cuts=(0, 9, 30))
    assert network.num_nodes < 400


@pytest.mark.slow
def test_program_in_core_operations_comes_to_the_same_nodes():
    torch.manual_seed(0)
    module = zoo.Encoder().eval()
    direct, _ = trace(module, torch.zeros(2, 4, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = export(module, torch.zeros(2, 4, 3)).run_decompositions()
    assert kinds(from_exported(program)[0]) == kinds(direct)


@pytest.mark.slow
def test_tokens_from_calibration_to_plan():
    """A vocabulary that float16 could not tell apart travels exactly: leaving all to the server costs no accuracy."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Embedding(5000, 6), torch.nn.Flatten(), torch.nn.Linear(24, 3)).eval()
    network, parameters = trace(module, torch.zeros(2, 4, dtype=torch.int64))
    tokens = np.random.default_rng(0).integers(0, 5000, (150, 4))
    artefact = calibrate(network, parameters, tokens, name="tokens", num_patterns=20, levels=(0.1,))
    assert artefact.tables.live_psi[0][0][WIDTHS.index(16)] == 0
    assert artefact.tables.live_psi[0][0][WIDTHS.index(8)] > 0.1
    assert network.shows_input(1)
    right = module(torch.from_numpy(tokens)).detach().numpy()
    assert np.allclose(artefact.logits, right, atol=1e-6)
    found = Head(segment_of(network, bytes(16), 0, (), (), (Live(0, 16, *artefact.ranges[0][-1]),)), {})
    tail = Tail(artefact, TorchExecutor(network.nodes, parameters))
    answer = tail.answer(Infer(bytes(16), 0, (16,)), found.run(artefact.float_inputs()))
    assert np.allclose(answer, right, atol=1e-6)
