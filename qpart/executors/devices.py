"""What a device computes its head with: numpy, or torch where it is installed. Weights stay packed with either."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Literal, get_args

from qpart.errors import RequestError
from qpart.executors import Executor
from qpart.executors.with_numpy import NumpyExecutor, Product
from qpart.network import Node, Parameters

ExecutorKind = Literal["numpy", "torch"]


def check_kind(kind: str) -> None:
    """Refuse what this device cannot compute with.

    Raises:
        RequestError: there is no such executor, or it needs what is not installed.
    """
    if kind not in get_args(ExecutorKind):
        raise RequestError(f"executor is {kind!r}, give one of {', '.join(get_args(ExecutorKind))}")
    if kind == "torch" and find_spec("torch") is None:
        raise RequestError("executor torch needs torch: pip install 'edgebus[torch]', or take numpy")


def make_executor(
    kind: ExecutorKind, nodes: tuple[Node, ...], parameters: Callable[[int], Parameters], product: Product
) -> Executor:
    """An executor over packed layers; arguments as `NumpyExecutor` takes them."""
    if kind == "numpy":
        return NumpyExecutor(nodes, parameters, product)
    from qpart.executors.with_torch import PackedTorchExecutor

    return PackedTorchExecutor(nodes, parameters, product)
