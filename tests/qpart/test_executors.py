"""Both executors against torch.nn.functional, operation by operation, and what they keep in memory."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from typing import get_args

import numpy as np
import pytest

from qpart.executors import numpy_windows, walk
from qpart.executors.with_numpy import NumpyExecutor
from qpart.network import Network, Node, Parameters
from qpart.ops import (
    Activation,
    AdaptivePool2d,
    Add,
    AddConstant,
    Affine,
    Attention,
    AvgPool2d,
    Clamp,
    Concat,
    Conv2d,
    Elu,
    Embedding,
    Expand,
    Function,
    GlobalMean,
    LeakyRelu,
    Linear,
    MatMul,
    MaxPool2d,
    Mul,
    MulConstant,
    Norm,
    Pad,
    Permute,
    Reduce,
    Relu,
    Rescale,
    Reshape,
    Slice,
    Softmax,
    products,
)

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
    "conv2d, depthwise, many channels": (Conv2d((3, 2), (2, 1), (1, 0), 100, 100, (1, 2), 100), (100, 8, 7)),
    "conv2d, two outputs per channel": (Conv2d((3, 3), (1, 1), (0, 0), 4, 8, groups=4), (4, 6, 6)),
    "conv2d, window of the whole image": (Conv2d((4, 5), (1, 1), (0, 0), 2, 3), (2, 4, 5)),
    "max_pool2d": (MaxPool2d((3, 2), (2, 1), (1, 1)), (3, 7, 6)),
    "avg_pool2d": (AvgPool2d((3, 2), (2, 1), (1, 1)), (3, 7, 6)),
    "global_mean": (GlobalMean(), (4, 5, 3)),
    "global_mean, kept": (GlobalMean(keep=True), (4, 5, 3)),
    "relu": (Relu(), (4, 3)),
    "clamp": (Clamp(-0.5, 0.25), (4, 3)),
    "reshape": (Reshape((3, 4)), (2, 6)),
    "avg_pool2d, padding not counted": (AvgPool2d((3, 2), (2, 1), (1, 1), False), (3, 7, 6)),
    "adaptive_pool2d": (AdaptivePool2d((3, 4)), (3, 7, 6)),
    "adaptive_pool2d, largest": (AdaptivePool2d((5, 2), True), (3, 7, 6)),
    "norm over one axis": (Norm(6, 1, 1e-5), (4, 6)),
    "norm over two axes, no bias": (Norm(24, 2, 1e-3, bias=False), (2, 4, 6)),
    "norm, plain": (Norm(6, 1, 1e-5, affine=False, bias=False), (4, 6)),
    "rms norm": (Norm(6, 1, 1e-6, centred=False, bias=False), (4, 6)),
    "affine": (Affine(4, 0), (4, 3, 5)),
    "affine along the middle": (Affine(3, 1, bias=False), (4, 3, 5)),
    "add_constant": (AddConstant((4, 1, 5)), (4, 3, 5)),
    "mul_constant": (MulConstant((4, 3, 5)), (4, 3, 5)),
    "leaky_relu": (LeakyRelu(0.2), (4, 3)),
    "elu": (Elu(1.7, 1.1, 0.5), (4, 3)),
    "rescale": (Rescale(0.3, -1.5), (4, 3)),
    "softmax": (Softmax(0), (4, 3)),
    "log_softmax": (Softmax(1, True), (4, 3)),
    "mean": (Reduce("mean", (0, 2)), (4, 3, 5)),
    "sum, kept": (Reduce("sum", (1,), True), (4, 3, 5)),
    "largest": (Reduce("max", (2,)), (4, 3, 5)),
    "permute": (Permute((2, 0, 1)), (4, 3, 5)),
    "slice": (Slice(1, 1, 6, 2), (4, 6)),
    "pad": (Pad((1, 0, 2), (0, 3, 1), 0.5), (4, 3, 5)),
    "expand": (Expand((4, 6, 5)), (4, 1, 5)),
    **{name: (Activation(name), (40, 50)) for name in get_args(Function)},
}
SEVERAL = {
    "add": (Add(), (4, 3), (4, 3)),
    "add, repeated": (Add(), (4, 1, 5), (4, 3, 1)),
    "mul": (Mul(), (4, 3), (1, 3)),
    "concat": (Concat(1, 3), (4, 3), (4, 1), (4, 2)),
    "matmul": (MatMul(), (2, 4, 3), (2, 3, 5)),
    "matmul, transposed": (MatMul(True), (2, 4, 3), (2, 5, 3)),
    "attention": (Attention(2, 3, 3, 0.5), (4, 6), (5, 6), (5, 6)),
    "attention of packed columns, causal": (Attention(2, 3, 2, 0.5, (1, 7, 13), True), (5, 18), (5, 18), (5, 18)),
    "attention in windows": (Attention(3, 2, 4, 0.7), (2, 4, 6), (2, 4, 6), (2, 4, 12)),
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
    along = getattr(op, "axis", 0) + 1
    axes = tuple(axis + 1 for axis in getattr(op, "axes", ())) if isinstance(op, Reduce) else ()
    return {
        Linear: lambda: functional.linear(x, weight, bias),
        Conv2d: lambda: functional.conv2d(x, weight, bias, **windowed, dilation=op.dilation, groups=op.groups),
        MaxPool2d: lambda: functional.max_pool2d(x, op.kernel, **windowed),
        AvgPool2d: lambda: functional.avg_pool2d(x, op.kernel, **windowed, count_include_pad=op.count_padding),
        AdaptivePool2d: lambda: getattr(functional, f"adaptive_{'max' if op.largest else 'avg'}_pool2d")(x, op.size),
        GlobalMean: lambda: x.mean((2, 3), keepdim=op.keep),
        Reduce: lambda: {"mean": x.mean, "sum": x.sum, "max": x.amax}[op.kind](axes, keepdim=op.keep),
        Norm: lambda: _norm(torch, op, x, weight, bias),
        Affine: lambda: (x.movedim(along, -1) * weight + (0 if bias is None else bias)).movedim(-1, along),
        AddConstant: lambda: x + weight,
        MulConstant: lambda: x * weight,
        Relu: x.relu,
        LeakyRelu: lambda: torch.where(x > 0, x, op.slope * x),
        Elu: lambda: op.scale * torch.where(x > 0, x, op.alpha * (torch.exp(op.rate * x) - 1)),
        Clamp: lambda: x.clamp(op.low, op.high),
        Activation: lambda: _activation(torch, op.function, x),
        Rescale: lambda: x * op.scale + op.shift,
        Softmax: lambda: x.log_softmax(along) if op.log else x.softmax(along),
        Reshape: lambda: x.reshape(len(x), *op.shape),
        Permute: lambda: x.permute(0, *(axis + 1 for axis in op.order)),
        Slice: lambda: x.movedim(along, 0)[op.start : op.stop : op.step].movedim(0, along),
        Pad: lambda: _pad(torch, op, x),
        Expand: lambda: x.expand(len(x), *op.shape),
    }[type(op)]()


def _norm(torch, op, x, weight, bias):
    rows = x.reshape(len(x), -1, op.features)
    rows = rows - rows.mean(-1, keepdim=True) if op.centred else rows
    rows = rows / torch.sqrt((rows**2).mean(-1, keepdim=True) + op.eps)
    return (rows * (1 if weight is None else weight) + (0 if bias is None else bias)).reshape(x.shape)


def _activation(torch, name, x):
    known = {"gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh")}
    return (known.get(name) or getattr(torch.nn.functional, name, None) or getattr(torch, name))(x)


def _pad(torch, op, x):
    for axis, (before, after) in enumerate(zip(op.before, op.after, strict=True)):
        sides = [
            torch.full((*x.shape[: axis + 1], n, *x.shape[axis + 2 :]), op.value, dtype=x.dtype)
            for n in (before, after)
        ]
        x = torch.cat([sides[0], x, sides[1]], axis + 1)
    return x


def reference_of_several(op, *tensors):
    """The same of operations with several inputs."""
    torch = pytest.importorskip("torch")
    x, y, *more = (torch.from_numpy(tensor).double() for tensor in tensors)
    if isinstance(op, Attention):
        heads = []
        for h in range(op.heads):
            sizes = (op.head_size, op.head_size, op.value_size)
            q, k, v = (
                t[..., o + h * s : o + (h + 1) * s] for t, o, s in zip((x, y, *more), op.offsets, sizes, strict=True)
            )
            scores = q @ k.transpose(-1, -2) * op.scale
            if op.causal:
                hidden = torch.ones(scores.shape[-2:]).triu(1).bool()
                scores = scores.masked_fill(hidden, float("-inf"))
            heads.append(scores.softmax(-1) @ v)
        return torch.cat(heads, -1)
    return {
        Add: lambda: x + y,
        Mul: lambda: x * y,
        Concat: lambda: torch.cat([x, y, *more], 2),
        MatMul: lambda: x @ (y.transpose(-1, -2) if getattr(op, "transposed", False) else y),
    }[type(op)]()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_operation_is_what_torch_computes(name, batch, kind):
    op, shape = CASES[name]
    network, parameters, x = Network(shape, (Node(op, (0,)),)), parameters_of(op), floats(batch, *shape)
    found = make(kind, network, parameters).run_arrays({0: x}, 0, 1, [1])[1]
    if isinstance(op, Activation) and op.function in ("log", "rsqrt", "sqrt", "reciprocal"):
        x = np.abs(x) + np.float32(0.1)
        found = make(kind, network, parameters).run_arrays({0: x}, 0, 1, [1])[1]
    right = reference(op, x, parameters).numpy()
    assert found.dtype == np.float32
    assert found.shape == (batch, *network.shapes[1]) == right.shape
    assert np.abs(found - right).max() <= 1e-6 * max(1.0, np.abs(right).max())


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_operation_on_several_tensors_is_what_torch_computes(name, kind):
    op, *shapes = SEVERAL[name]
    tensors = [floats(3, *shape) for shape in shapes]
    nodes = (*(Node(Relu(), (0,)) for _ in shapes), Node(op, tuple(range(1, len(shapes) + 1))))
    last = len(nodes)
    executor = NumpyExecutor(nodes, {}.__getitem__) if kind == "numpy" else make(kind, Network((1,), nodes[:1]), {})
    executor.nodes = nodes
    found = executor.run_arrays(dict(enumerate(tensors, 1)), last - 1, last, [last])[last]
    right = reference_of_several(op, *tensors).numpy()
    assert found.dtype == np.float32
    assert found.shape == (3, *op.output_shape(*shapes)) == right.shape
    assert np.abs(found - right).max() <= 2e-6 * max(1.0, np.abs(right).max())


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_embedding_takes_the_next_row_there_is(kind):
    network, table = Network((5,), (Node(Embedding(4, 2), (0,)),)), floats(4, 2)
    rows = np.array([[0, 3, 0.6, -7, 99]], np.float32)
    found = make(kind, network, {0: Parameters(table, None)}).run_arrays({0: rows}, 0, 1, [1])[1]
    assert np.array_equal(found, table[[[0, 3, 1, 0, 3]]])


def test_attention_takes_heads_in_parts(monkeypatch):
    op, x = Attention(6, 2, 2, 0.5, (0, 12, 24)), floats(2, 7, 36)
    nodes = (Node(op, (0, 0, 0)),)
    whole = NumpyExecutor(nodes, {}.__getitem__).run({0: x}, 0, 1, [1])[1]
    monkeypatch.setattr(products, "SCORE_ITEMS", 2 * 7 * 7)
    assert op.heads_at_once(7, 7) == 2
    assert np.array_equal(NumpyExecutor(nodes, {}.__getitem__).run({0: x}, 0, 1, [1])[1], whole)


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
    monkeypatch.setattr(numpy_windows, "SCRATCH_BYTES", whole)
    assert np.array_equal(executor.run({0: x}, 0, 1, [1])[1], found)


def test_devices_need_no_torch():
    code = "import sys, qpart.inputs, qpart.executors.with_numpy; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_depthwise_layers_keep_the_layout_that_is_quick_for_them():
    """Channels last from the first depthwise layer to the next dense one: sooner, and the same but for roundings."""
    torch = pytest.importorskip("torch")
    from qpart.executors.torch_functions import PLAIN, WEIGHTED

    def conv(op, x):
        return WEIGHTED[Conv2d](op, x, torch.from_numpy(floats(*op.weight_shape)), None)

    def last(x):
        return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()

    depthwise = Conv2d((3, 3), (1, 1), (1, 1), 6, 6, groups=6, bias=False)
    pointwise = Conv2d((1, 1), (1, 1), (0, 0), 6, 4, bias=False)
    dense = Conv2d((3, 3), (1, 1), (1, 1), 4, 5, bias=False)
    with torch.inference_mode():
        y = conv(depthwise, torch.from_numpy(floats(2, 6, 8, 7)))
        assert last(y)
        y = conv(pointwise, PLAIN[Pad](Pad((0, 1, 1), (0, 0, 1), 0.0), PLAIN[Relu](Relu(), y)))
        assert last(y)
        assert conv(dense, y).is_contiguous()


@pytest.mark.parametrize("last", [False, True])
def test_windows_are_compared_channels_last_and_come_back_as_they_were(last):
    torch = pytest.importorskip("torch")
    from qpart.executors.torch_functions import PLAIN

    layout = torch.channels_last if last else torch.contiguous_format
    x = torch.from_numpy(floats(2, 5, 9, 8)).contiguous(memory_format=layout)
    x[0, 0, 0, 0] = float("nan")
    y = PLAIN[MaxPool2d](MaxPool2d((3, 2), (2, 1), (1, 1)), x)
    assert torch.equal(y.nan_to_num(), torch.nn.functional.max_pool2d(x, (3, 2), (2, 1), (1, 1)).nan_to_num())
    assert y.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("swapped", [False, True])
def test_images_of_two_layouts_are_added_channels_last(swapped):
    """Else a sum goes back to channels first, slowly, and the next depthwise layer turns it again."""
    torch = pytest.importorskip("torch")
    from qpart.executors.torch_functions import PLAIN

    first = torch.from_numpy(floats(2, 6, 8, 7))
    last = torch.from_numpy(floats(2, 6, 8, 7)).contiguous(memory_format=torch.channels_last)
    found = PLAIN[Add](Add(), *((last, first) if swapped else (first, last)))
    assert torch.equal(found, first + last)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert not found.is_contiguous()


@pytest.mark.parametrize("shape", [(2, 6, 8, 7), (2, 6, 1, 1)])
def test_other_sums_keep_their_layout(shape):
    torch = pytest.importorskip("torch")
    from qpart.executors.torch_functions import PLAIN

    x, y = torch.from_numpy(floats(2, 6, 8, 7)), torch.from_numpy(floats(*shape))
    assert PLAIN[Add](Add(), x, y).is_contiguous()
    part = torch.from_numpy(floats(2, 9, 8, 7))[:, 2:8]  # a view, of neither layout
    assert torch.equal(PLAIN[Add](Add(), x, part), x + part)
    assert PLAIN[Add](Add(), x, part).is_contiguous()
    assert PLAIN[Add](Add(), part, part).stride() == (part + part).stride()


def test_layouts_are_chosen_on_a_cpu_only():
    """On a GPU windows are compared two to four times slower there and back, and 1 x 1 layers are slower, too."""
    torch = pytest.importorskip("torch")
    from qpart.executors.torch_functions import PLAIN, WEIGHTED

    op = Conv2d((3, 3), (1, 1), (1, 1), 6, 6, groups=6, bias=False)
    x, weight = (torch.empty(shape, device="meta") for shape in ((2, 6, 8, 7), op.weight_shape))
    assert WEIGHTED[Conv2d](op, x, weight, None).is_contiguous()
    last = x.contiguous(memory_format=torch.channels_last)
    assert PLAIN[Add](Add(), x, last).is_contiguous()
    moved = []

    class Watched(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            moved.append(function is torch.Tensor.contiguous)
            return super().__torch_function__(function, types, args, kwargs or {})

    PLAIN[MaxPool2d](MaxPool2d((2, 2), (2, 2), (0, 0)), x.as_subclass(Watched))
    assert moved
    assert not any(moved)


def test_what_leaves_torch_lies_in_order():
    """Whatever the layout inside: bytes go to the wire as they lie."""
    pytest.importorskip("torch")
    from qpart.executors.with_torch import PackedTorchExecutor, TorchExecutor

    op = Conv2d((3, 3), (1, 1), (1, 1), 6, 6, groups=6)
    nodes, parameters = (Node(op, (0,)),), {0: Parameters(floats(*op.weight_shape), floats(6))}
    packed = PackedTorchExecutor(nodes, parameters.__getitem__, lambda index, x: None)
    for executor in (TorchExecutor(nodes, parameters), packed):
        assert executor.run_arrays({0: floats(2, 6, 8, 7)}, 0, 1, [1])[1].flags.c_contiguous
