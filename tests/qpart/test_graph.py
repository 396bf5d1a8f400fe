"""What is read out of exported programs: the same numbers as the module's, short names, and refusals that help."""

from __future__ import annotations

import io
import textwrap
from functools import cache

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn
from torch.nn import functional

from qpart.demo.nets import FullyConnected, SmallResNet
from qpart.errors import UnknownOperation, UnsupportedModel
from qpart.executors.with_numpy import NumpyExecutor
from qpart.executors.with_torch import TorchExecutor
from qpart.graph import export, from_exported, load_model, trace
from qpart.ops import Add, AvgPool2d, Clamp, Conv2d, Embedding, GlobalMean, Linear, MaxPool2d, Relu, Reshape


class Mobile(nn.Module):
    """An inverted residual block, as in MobileNet-v2."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(4, 12, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, 3, padding="same", groups=12, bias=False)
        self.bn2 = nn.BatchNorm2d(12)
        self.shrink = nn.Conv2d(12, 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4)
        self.act = nn.ReLU6(inplace=True)
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(4, 3))

    def forward(self, x):
        y = self.act(self.bn1(self.expand(x)))
        y = self.act(self.bn2(self.depthwise(y)))
        y = self.bn3(self.shrink(y))
        y += x
        return self.head(functional.adaptive_avg_pool2d(y, 1).flatten(1))


class Functional(nn.Module):
    """No submodules: pooling, weights and a bias by hand, one weight used twice, in-place operations, a dead branch."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(6, 2, 3, 3))
        self.square = nn.Parameter(torch.randn(18, 18))
        self.shift = nn.Parameter(torch.randn(18))
        self.last = nn.Parameter(torch.randn(18, 5))

    def forward(self, x):
        x = functional.conv2d(x, self.kernel, stride=(2, 1), padding=(1, 2), dilation=(1, 2))
        x.relu_()
        _dead = torch.sigmoid(x) * 2
        x = functional.max_pool2d(x, 3, 2, 1)
        x = functional.avg_pool2d(x, (1, 2), padding=(0, 1))
        x = functional.adaptive_avg_pool2d(x, (3, 1)).contiguous().view(x.size(0), -1)
        y = x @ self.square.t() + self.shift
        z = functional.linear(functional.hardtanh(y, -0.5, 2.0), self.square)
        z = torch.clamp(z.unsqueeze(1).squeeze(1).clone() + y, min=-30)
        return torch.addmm(torch.zeros(5), z, self.last)


def warmed(net: nn.Module, *shape: int) -> nn.Module:
    """A net with running statistics that are not 0 and 1."""
    net.train()
    for _ in range(3):
        net(torch.randn(16, *shape) * 2 + 1)
    return net.eval()


NETS = {
    "fc": (lambda: FullyConnected((1, 8, 8), 10), (1, 8, 8)),
    "resnet": (lambda: SmallResNet((1, 8, 8), 10), (1, 8, 8)),
    "wide resnet": (lambda: SmallResNet((3, 10, 9), 4, width=4, stem_stride=1), (3, 10, 9)),
    "mobile": (Mobile, (4, 6, 5)),
    "functional": (Functional, (2, 9, 10)),
}


class Case:
    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        make, self.shape = NETS[name]
        self.module = warmed(make(), *self.shape)
        self.network, self.parameters = trace(self.module, torch.zeros(2, *self.shape))
        self.inputs = torch.randn(5, *self.shape).numpy()
        with torch.inference_mode():
            self.right = self.module(torch.from_numpy(self.inputs)).numpy()

    def executors(self):
        nodes = self.network.nodes
        return TorchExecutor(nodes, self.parameters), NumpyExecutor(nodes, self.parameters.__getitem__)

    def error(self, logits) -> float:
        return float(np.abs(logits - self.right).max() / np.abs(self.right).max())


case_of = cache(Case)  # exporting takes a second


@pytest.fixture(params=list(NETS))
def case(request) -> Case:
    return case_of(request.param)


def test_network_computes_what_the_module_computes(case):
    last = case.network.num_nodes
    for executor in case.executors():
        found = executor.run_arrays({0: case.inputs}, 0, last, [last])[last]
        assert found.dtype == np.float32
        assert case.error(found) < 1e-5


def test_every_cut_gives_the_same_answer_from_the_live_values_alone(case):
    last = case.network.num_nodes
    for executor in case.executors():
        for cut in range(last):
            live = case.network.live[cut]
            travelled = executor.run_arrays({0: case.inputs}, 0, cut, live)
            assert sorted(travelled) == list(live)
            found = executor.run_arrays(travelled, cut, last, [last])[last]
            assert case.error(found) < 1e-5


def test_names_are_short_and_unique(case):
    names = [node.name for node in case.network.nodes]
    assert len(set(names)) == len(names)
    assert all(0 < len(name) < 40 for name in names)


def test_resnet_has_names_of_its_layers_and_two_tensors_alive_inside_a_block():
    case = case_of("resnet")
    names = [node.name for node in case.network.nodes]
    assert names[:7] == [
        "stem",
        "stem.relu",
        "stage1.conv1",
        "stage1.conv1.relu",
        "stage1.conv2",
        "stage1.add",
        "stage1.relu",
    ]
    assert names[-2:] == ["stage3.global_mean", "fc"]
    assert case.network.live[3] == (2, 3)  # the block's input, and its first convolution
    assert case.network.live[7] == (7,)  # between two blocks
    assert {type(node.op) for node in case.network.nodes} == {Conv2d, Relu, Add, GlobalMean, Linear}


def test_input_written_in_place_is_read_right():
    network, parameters = trace(Of(lambda m, x: m.fc(functional.relu(x, inplace=True)) + x), torch.zeros(2, 4))
    assert [type(node.op) for node in network.nodes] == [Relu, Linear, Add]
    assert network.nodes[2].inputs == (2, 1)
    assert sorted(parameters) == [1]


def test_paper_net_is_six_linear_layers():
    network = case_of("fc").network
    assert [node.name for node in network.nodes[:3]] == ["reshape", "fc1", "fc1.relu"]
    assert [network.nodes[i].op.out_features for i in network.parametric] == [512, 256, 128, 64, 32, 10]


def test_functional_style_gives_every_kind_of_operation():
    case = case_of("functional")
    ops = [node.op for node in case.network.nodes]
    assert [type(op) for op in ops] == [
        Conv2d, Relu, MaxPool2d, AvgPool2d, AvgPool2d, Reshape, Linear, Clamp, Linear, Add, Clamp, Linear,
    ]  # fmt: skip
    first, second = case.network.parametric[1:3]
    assert np.array_equal(case.parameters[first].weight, case.parameters[second].weight)
    assert ops[first].bias  # the one added by hand
    assert not ops[second].bias


def test_batch_norm_is_folded_by_hand_worked_numbers():
    net = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1, eps=0.0)).eval()
    with torch.no_grad():
        net[0].weight.fill_(3.0), net[0].bias.fill_(1.0)
        net[1].running_mean.fill_(5.0), net[1].running_var.fill_(4.0)
        net[1].weight.fill_(10.0), net[1].bias.fill_(0.5)
    network, parameters = trace(net, torch.zeros(2, 1))
    assert network.num_nodes == 1
    # 10 * (3x + 1 - 5) / 2 + 0.5
    assert parameters[0].weight.tolist() == [[15.0]]
    assert parameters[0].bias.tolist() == [-19.5]


@pytest.fixture(scope="module")
def mobile():
    """A net, what is read out of it, and its parameters."""
    torch.manual_seed(1)
    net = warmed(Mobile(), 4, 6, 5)
    return net, *trace(net, torch.zeros(2, 4, 6, 5))


@pytest.mark.parametrize("decompose", [False, True], ids=["as saved", "core ATen"])
def test_saved_program_is_read_like_the_module(tmp_path, decompose, mobile):
    net, right, right_parameters = mobile
    program = export(net, torch.zeros(2, 4, 6, 5))
    if decompose:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = program.run_decompositions()
    content = io.BytesIO()
    torch.export.save(program, content)
    (tmp_path / "net.pt2").write_bytes(content.getvalue())
    network, parameters = load_model(str(tmp_path / "net.pt2"))
    assert [node.name for node in network.nodes if node.op.weight_shape] == ["expand", "depthwise", "shrink", "head.1"]
    assert [network.nodes[i].op for i in network.parametric] == [right.nodes[i].op for i in right.parametric]
    for i, j in zip(network.parametric, right.parametric, strict=True):
        assert np.allclose(parameters[i].weight, right_parameters[j].weight, rtol=1e-6)


def test_reading_prints_nothing(capfd):
    trace(SmallResNet((1, 8, 8), 3, width=2), torch.zeros(1, 1, 8, 8))  # one sample is enough
    assert capfd.readouterr() == ("", "")


class Of(nn.Module):
    """A module around a function, with a layer to use."""

    def __init__(self, function) -> None:
        super().__init__()
        self.fc, self.conv, self.bn = nn.Linear(4, 4), nn.Conv2d(4, 4, 2), nn.BatchNorm1d(4)
        self.function = function

    def forward(self, x):
        return self.function(self, x)


class OfTwo(Of):
    def forward(self, x, y):
        return self.function(self, x, y)


UNKNOWN = {
    "sort": (lambda m, x: m.fc(x).sort()[0], "sort"),
    "several": (
        lambda m, x: torch.cumsum(m.fc(x), 1) + torch.linalg.qr(m.fc(x).view(-1, 2, 2))[0].flatten(1),
        "cumsum",
    ),
    "random numbers": (lambda m, x: functional.linear(x, m.fc.weight + torch.rand_like(m.fc.weight)), "rand_like"),
    "data-dependent bound": (lambda m, x: torch.clamp(m.fc(x), max=m.fc.bias), "bounds"),
    "data-dependent pick": (lambda m, x: m.fc(x)[x[:, 0] > 0], "gt|index"),
    "mask of the input": (lambda m, x: m.fc(x).masked_fill(x > 0, 0.0), "gt"),
    "largest of two": (lambda m, x: torch.maximum(m.fc(x), x), "maximum"),
    "3-d convolution": (lambda m, x: functional.conv3d(x.view(-1, 1, 1, 2, 2), torch.ones(1, 1, 1, 1, 1)), "channels"),
    "transposed convolution": (lambda m, x: functional.conv_transpose2d(x.view(-1, 4, 1, 1), m.conv.weight), "conv"),
    "padding by reflection": (lambda m, x: functional.pad(m.fc(x), (1, 1), mode="reflect"), "reflection|mode|padding"),
    "along the batch": (lambda m, x: m.fc(x).softmax(0), "batch"),
    "rolled without dimensions": (lambda m, x: m.fc(x).roll(1), "batch"),
    "batch flattened": (lambda m, x: m.fc(x.view(-1, 2, 2).flatten(0, 1).t().softmax(-1).t().reshape(-1, 4)), "batch"),
    "odd power": (lambda m, x: m.fc(x).pow(2.5), "exponents"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_operation_is_named(name):
    function, word = UNKNOWN[name]
    with pytest.raises(UnknownOperation, match=word) as caught:
        trace(Of(function).eval(), torch.randn(2, 4))
    assert "\n" not in str(caught.value)
    assert "test_graph.py line" in str(caught.value)


UNSUPPORTED = {
    "two outputs": (lambda m, x: (m.fc(x), x), "2 outputs"),
    "images as output": (lambda m, x: m.fc(x.view(-1, 1, 4)), "logits"),
    "input as output": (lambda m, x: x.view(-1, 4), "not computed"),
    "constant": (lambda m, x: m.fc.bias.expand(2, 4), "not computed"),
    "mean over the batch": (lambda m, x: m.fc(x) - x.mean(0), "batch"),
    "batch mixed in": (lambda m, x: m.fc(x.view(-1, 2)[: len(x), :].repeat(1, 2)), "one batch size"),
    "batch size used": (lambda m, x: m.fc(x.reshape(2, 4)), "batch size"),
    "control flow": (
        lambda m, x: m.fc(x) if x.sum() > 0 else x,
        r"torch.export .* at test_graph.py line .* torch.where",
    ),
    "numbers read": (lambda m, x: m.fc(x) * float(x.detach().numpy().max()), "test_graph.py line"),
    "float64": (lambda m, x: functional.linear(x.double(), m.fc.weight.double()).float(), "float32"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_model_is_refused_with_a_remedy(name, capfd):
    function, word = UNSUPPORTED[name]
    with pytest.raises(UnsupportedModel, match=word) as caught:
        trace(Of(function).eval(), torch.randn(2, 4))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_example_may_be_the_arguments_and_what_is_none_is_named():
    module, example = nn.Linear(4, 2), torch.randn(2, 4)
    network, _ = trace(module, (example,))
    assert network.input_shape == (4,)
    for wrong, words in (
        ((module, (example, example)), "got Linear and tuple of 2"),
        ((module, torch.randn(4)), r"got Linear and a tensor of shape \(4,\)"),
        ((example, module), r"got a tensor of shape \(2, 4\) and Linear"),
    ):
        with pytest.raises(UnsupportedModel, match=words):
            trace(*wrong)


def test_tokens_are_read_and_other_kinds_of_numbers_refused():
    net = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 2))
    network, parameters = trace(net, torch.zeros(2, 3, dtype=torch.int64))
    assert [type(node.op) for node in network.nodes] == [Embedding, Reshape, Linear]
    assert network.input_shape == (3,)
    tokens = torch.tensor([[0, 4, 2], [3, 1, 1]])
    found = NumpyExecutor(network.nodes, parameters.__getitem__).run({0: tokens.float().numpy()}, 0, 3, [3])[3]
    assert np.allclose(found, net(tokens).detach().numpy(), atol=1e-6)
    with pytest.raises(UnsupportedModel, match="float64"):
        trace(nn.Linear(3, 2).double(), torch.zeros(2, 3, dtype=torch.float64))


def test_weights_that_are_not_finite_are_refused():
    net = nn.Sequential(nn.Linear(3, 2))
    with torch.no_grad():
        net[0].weight[1, 1] = float("nan")
    with pytest.raises(UnsupportedModel, match="0 has weights that are not finite"):
        trace(net, torch.zeros(2, 3))


def test_programs_of_one_batch_size_two_inputs_or_in_training_are_refused():
    fixed = torch.export.export(nn.Linear(3, 2), (torch.zeros(2, 3),))
    with pytest.raises(UnsupportedModel, match="one batch size"):
        from_exported(fixed)
    two = torch.export.export(OfTwo(lambda m, x, y: m.fc(x) + m.fc(y)).eval(), (torch.zeros(2, 4), torch.zeros(2, 4)))
    with pytest.raises(UnsupportedModel, match="2 inputs"):
        from_exported(two)
    training = torch.export.export(Of(lambda m, x: m.bn(m.fc(x))).train(), (torch.zeros(2, 4),))
    with pytest.raises(UnsupportedModel, match=r"\.eval\(\)"):
        from_exported(training)


def test_factories_are_loaded_from_files_and_modules(tmp_path, monkeypatch):
    text = """
        import torch

        def make():
            return torch.nn.Linear(3, 2), torch.zeros(2, 3)

        def broken():
            raise KeyError("no such\\nthing")

        def half():
            return torch.nn.Linear(3, 2)
    """
    (tmp_path / "my_qpart_net.py").write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(str(tmp_path))
    for source in (f"{tmp_path}/my_qpart_net.py:make", "my_qpart_net:make"):
        network, _ = load_model(source)
        assert network.input_shape == (3,)
    for wrong, word in {
        "my_qpart_net:nothing": "nothing",
        "my_qpart_net:broken": "KeyError",
        "my_qpart_net:half": "must return",
        "my_other_qpart_net:make": "No module",
        f"{tmp_path}/none.py:make": "no file",
        f"{tmp_path}/none.pt2": "no file",
        "nonsense": "neither",
    }.items():
        with pytest.raises(UnsupportedModel, match=word) as caught:
            load_model(wrong)
        assert "\n" not in str(caught.value)


def test_damaged_file_is_one_line(tmp_path):
    (tmp_path / "net.pt2").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(UnsupportedModel, match="damaged") as caught:
        load_model(str(tmp_path / "net.pt2"))
    assert "\n" not in str(caught.value)
