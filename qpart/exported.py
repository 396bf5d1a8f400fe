"""Reads the graph of an exported program: where its values, parameters and names come from."""

from __future__ import annotations

import operator
from typing import Any

import torch

from qpart.aten import Call, PerChannel, Step, Value, check_known, convert
from qpart.errors import UnknownOperation, UnsupportedModel
from qpart.network import INPUT
from qpart.ops import Add, Shape

_BATCH_SIZE = object()  # what a node is that is a number and no tensor


class Reading:
    """One pass over the graph of a functional program.

    Attributes:
        steps: what the output needs, in order; value i + 1 is the result of steps[i].
        input_shape: per sample.
    """

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self.steps: list[Step] = []
        self._nodes = list(program.graph.nodes)
        stored = {**program.state_dict, **program.constants}
        specs = program.graph_signature.input_specs
        self._stored = {spec.arg.name: (str(spec.target), stored.get(spec.target)) for spec in specs}
        self._found: dict[Any, Any] = {}  # by graph node: a Value, a tensor made of parameters only, or _BATCH_SIZE
        self._layers: dict[Any, str] = {}  # by graph node that is such a tensor: whose parameter
        outputs = program.graph_signature.output_specs
        self._output = next(spec.arg.name for spec in outputs if spec.kind.name == "USER_OUTPUT")
        self._input = next(spec.arg.name for spec in specs if spec.kind.name == "USER_INPUT")
        example = next(
            (n.meta.get("val") for n in self._nodes if n.op == "placeholder" and n.name == self._input), None
        )
        if not isinstance(example, torch.Tensor):
            raise UnsupportedModel(f"the model's input is of type {type(example).__name__}, one tensor is needed")
        if not example.dim() or _is_fixed(example.shape[0]):
            raise UnsupportedModel(
                "the model is exported for one batch size only: let its code not depend on that number, and export "
                "with dynamic_shapes=({0: torch.export.Dim('batch')},)"
            )
        self._batch = str(example.shape[0])
        self.input_shape = self._per_sample(example, "the input")

    def read(self) -> Value:
        """Read all that the output depends on, and return the output."""
        output = next(node for node in self._nodes if node.name == self._output and node.op != "output")
        needed = _ancestors(output)
        for node in self._nodes:
            if node in needed:
                self._found[node] = self._placeholder(node) if node.op == "placeholder" else self._call(node)
        value = self._found.get(output)
        if not isinstance(value, Value) or value.id == INPUT:
            raise UnsupportedModel("the model's output is not computed from its input")
        if len(value.shape) != 1:
            raise UnsupportedModel(f"the model returns {('batch', *value.shape)}, logits (batch, classes) are needed")
        return value

    def _placeholder(self, node: Any) -> Value | torch.Tensor:
        if node.name == self._input:
            return Value(INPUT, self.input_shape)
        target, tensor = self._stored[node.name]
        if tensor is None:
            raise UnsupportedModel(f"the program does not contain its own parameter {target!r}")
        self._layers[node] = target.rpartition(".")[0]
        return tensor.detach()

    def _call(self, node: Any) -> Any:
        if node.target is operator.getitem and node.args[1] == 0:
            return self._found[node.args[0]]
        if not isinstance(_result(node), torch.Tensor):
            return _BATCH_SIZE
        if self._is_constant(node):
            return self._constant(node)
        label = _label(node)
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            raise UnknownOperation(f"{node.target} at {label} is not an operation of ATen: leave it out of the model")
        function = schema.name.removeprefix("aten::")
        check_known(label, function)
        made = convert(Call(label, function, self._arguments(node, schema), self._per_sample(_result(node), label)))
        if isinstance(made, Value):
            return made
        made.name = self._name(node, made)
        self.steps.append(made)
        return Value(len(self.steps), self._per_sample(_result(node), label))

    def _is_constant(self, node: Any) -> bool:
        """Whether a result is the same each time, whatever the input and the batch size."""
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            return False
        return all(isinstance(self._found[source], torch.Tensor) for source in node.all_input_nodes)

    def _constant(self, node: Any) -> torch.Tensor:
        """A tensor made of parameters only, such as a transposed weight."""
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda source: self._found[source])
        self._layers[node] = next(filter(None, (self._layers.get(s) for s in node.all_input_nodes)), "")
        with torch.no_grad():
            result = node.target(*args, **kwargs)
        return result[0] if isinstance(result, tuple | list) else result

    def _arguments(self, node: Any, schema: Any) -> dict[str, Any]:
        """All arguments of a call by name; parameters become float64 arrays."""
        given = {argument.name: argument.default_value for argument in schema.arguments if argument.has_default_value()}
        given |= dict(zip((argument.name for argument in schema.arguments), node.args, strict=False))
        return {name: self._resolved(argument) for name, argument in {**given, **node.kwargs}.items()}

    def _resolved(self, argument: Any) -> Any:
        if isinstance(argument, list | tuple):
            return [self._resolved(item) for item in argument]
        if not isinstance(argument, torch.fx.Node):
            return argument
        found = self._found[argument]
        return found.cpu().double().numpy() if isinstance(found, torch.Tensor) else found

    def _name(self, node: Any, step: Step) -> str:
        """The layer that a weight belongs to, or the module that adds two tensors; nothing for most other steps."""
        if isinstance(step.op, PerChannel):
            return _label(node)
        if step.weight is not None:
            owners = [self._layers[source] for source in node.all_input_nodes if self._layers.get(source)]
            return owners[0] if owners else _module_path(node)
        return _module_path(node) if isinstance(step.op, Add) else ""

    def _per_sample(self, tensor: torch.Tensor, label: str) -> Shape:
        if tensor.dtype != torch.float32:
            raise UnsupportedModel(f"{label} is {tensor.dtype}, float32 is needed: use .float() for model and input")
        sizes = list(tensor.shape)
        if len(sizes) < 2 or str(sizes[0]) != self._batch or not all(map(_is_fixed, sizes[1:])):
            raise UnsupportedModel(
                f"{label} has shape ({', '.join(map(str, sizes))}) where {self._batch} is the batch: the batch must "
                "stay the first dimension, and the others, at least one, have fixed sizes"
            )
        return tuple(map(int, sizes[1:]))


def _is_fixed(size: Any) -> bool:
    """Whether a size is a number; symbolic ones may turn out to be one."""
    return str(size).isdigit()


def _ancestors(output: Any) -> set[Any]:
    """A graph node and all it is computed from."""
    found, left = set(), [output]
    while left:
        node = left.pop()
        if isinstance(node, torch.fx.Node) and node not in found:
            found.add(node)
            left.extend(node.all_input_nodes)
    return found


def _result(node: Any) -> Any:
    """The (first) result of a graph node as the trace has seen it."""
    value = node.meta.get("val")
    return value[0] if isinstance(value, tuple | list) and value else value


def _module_path(node: Any) -> str:
    """Qualified name of the innermost module that a graph node was traced in."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]).partition("@")[0] if stack else ""


def _label(node: Any) -> str:
    path = _module_path(node)
    return f"{path} ({node.name})" if path else str(node.name)
