"""From the steps read out of a graph to a network: fold, name, number, check."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import msgspec
import numpy as np

from qpart.aten import PerChannel, Step, Value
from qpart.errors import UnknownOperation, UnsupportedModel
from qpart.network import INPUT, MAX_NODES, Network, Node, Parameters
from qpart.ops import Add, AnyOp, Conv2d, Linear, Shape

MAX_NAME = 64


def assemble(input_shape: Shape, steps: list[Step], output: Value) -> tuple[Network, dict[int, Parameters]]:
    """Make a network of steps in topological order, all of which the output depends on.

    Returns:
        The network, its last node being the output, and the parameters by node index.

    Raises:
        UnknownOperation: a batch norm, or a bias by hand, that cannot be folded.
        UnsupportedModel: too many nodes, or parameters that are not finite.
    """
    folded, ids = _fold(steps, output)
    if len(folded) > MAX_NODES:
        raise UnsupportedModel(f"the model has {len(folded)} nodes, at most {MAX_NODES} are possible")
    nodes, parameters, names = [], {}, _Names()
    for i, step in enumerate(folded):
        assert not isinstance(step.op, PerChannel)
        inputs = tuple(ids[value] for value in step.inputs)
        nodes.append(Node(step.op, inputs, names.next(step, inputs)))
        if step.weight is not None:
            parameters[i] = _parameters(step, nodes[-1].name)
    assert ids[output.id] == len(nodes), "the output depends on every step, so it is the last"
    return Network(input_shape, tuple(nodes)), parameters


def _fold(steps: list[Step], output: Value) -> tuple[list[Step], dict[int, int]]:
    """Work every scale and shift per channel into the layer before it.

    Returns:
        The steps that stay, and for every value id of before its id now.
    """
    uses = Counter(value for step in steps for value in step.inputs)
    uses[output.id] += 1
    kept: list[Step] = []
    ids = {INPUT: INPUT}
    for i, step in enumerate(steps):
        if isinstance(step.op, PerChannel):
            before = ids[step.inputs[0]]
            foldable = (
                before != INPUT and uses[step.inputs[0]] == 1 and isinstance(kept[before - 1].op, Linear | Conv2d)
            )
            if not foldable:
                raise UnknownOperation(
                    f"batch_norm or added constant at {step.name!r} has no conv2d or linear right before it whose "
                    "result nothing else uses, so it cannot be folded: move it behind one"
                )
            kept[before - 1] = _folded(kept[before - 1], step.op)
            ids[i + 1] = before
        else:
            kept.append(step)
            ids[i + 1] = len(kept)
    return kept, ids


def _folded(layer: Step, after: PerChannel) -> Step:
    assert layer.weight is not None
    assert isinstance(layer.op, Linear | Conv2d)
    weight = layer.weight * after.scale.reshape(-1, *(1,) * (layer.weight.ndim - 1))
    bias = after.shift if layer.bias is None else layer.bias * after.scale + after.shift
    return replace(layer, op=msgspec.structs.replace(layer.op, bias=True), weight=weight, bias=bias)


def _parameters(step: Step, name: str) -> Parameters:
    assert step.weight is not None
    with np.errstate(over="ignore"):
        weight = np.ascontiguousarray(step.weight, np.float32)
        bias = None if step.bias is None else np.ascontiguousarray(step.bias, np.float32)
    if not np.isfinite(weight).all() or (bias is not None and not np.isfinite(bias).all()):
        raise UnsupportedModel(f"{name} has weights that are not finite in float32: was the training stable?")
    return Parameters(weight, bias)


class _Names:
    """Short unique names: layers by their own, what follows a layer by that layer's name and the operation's."""

    def __init__(self) -> None:
        self._roots = [""]  # by value id
        self._used: set[str] = set()

    def next(self, step: Step, inputs: tuple[int, ...]) -> str:
        """The next node's name."""
        assert not isinstance(step.op, PerChannel)
        tag = _tag(step.op)
        root = step.name or ("" if step.weight is not None else self._roots[inputs[0]])
        wanted = root if step.weight is not None and root else f"{root}.{tag}".lstrip(".")
        wanted = wanted[-(MAX_NAME - 6) :]
        name, count = wanted, 1
        while name in self._used:
            count += 1
            name = f"{wanted}_{count}"
        self._used.add(name)
        self._roots.append(root or name if step.weight is not None or isinstance(step.op, Add) else root)
        return name


def _tag(op: AnyOp) -> str:
    return str(op.__struct_config__.tag)
