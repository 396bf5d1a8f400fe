"""From the steps read out of a graph to a network: rewrite, name, number, check."""

from __future__ import annotations

import numpy as np

from qpart import rewrite
from qpart.aten import PerChannel, Step, Steps, Value
from qpart.errors import ShapeMismatch, UnsupportedModel
from qpart.network import MAX_NODES, Network, Node, Parameters
from qpart.ops import Add, AddConstant, AnyOp, Mul, MulConstant, Shape

MAX_NAME = 64


def assemble(input_shape: Shape, steps: list[Step], output: Value) -> tuple[Network, dict[int, Parameters]]:
    """Make a network of steps in topological order.

    Returns:
        The network, its last node being the output, and the parameters by node index.

    Raises:
        UnsupportedModel: too many nodes, or parameters that are not finite.
    """
    made = rewrite.simplified(input_shape, steps, output.id)
    if not made.steps:
        raise UnsupportedModel("the model's output is not computed from its input")
    if len(made.steps) > MAX_NODES:
        raise UnsupportedModel(f"the model has {len(made.steps)} nodes, at most {MAX_NODES} are possible")
    nodes, parameters, names = [], {}, _Names()
    for i, step in enumerate(made.steps):
        assert not isinstance(step.op, PerChannel)
        nodes.append(Node(step.op, step.inputs, names.next(step, step.inputs)))
        if step.weight is not None:
            parameters[i] = _parameters(step, nodes[-1].name)
    return _checked(input_shape, tuple(nodes), made), parameters


def _checked(input_shape: Shape, nodes: tuple[Node, ...], made: Steps) -> Network:
    try:
        return Network(input_shape, nodes)
    except ShapeMismatch as error:
        raise UnsupportedModel(f"the model has something larger than a segment may: {error}") from None


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
        own = step.weight is not None and not isinstance(step.op, AddConstant | MulConstant)
        self._roots.append(root or name if own or isinstance(step.op, Add | Mul) else self._roots[inputs[0]])
        return name


def _tag(op: AnyOp) -> str:
    found = str(op.__struct_config__.tag)
    return str(op.function) if found == "activation" else found  # type: ignore[union-attr]
