"""Reads the graph of an exported program: where its values, parameters and names come from."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch

from qpart.aten import Batch, Call, Step, Steps, Traced, Value, convert, is_known, said, unknown
from qpart.errors import UnknownOperation, UnsupportedModel
from qpart.network import INPUT
from qpart.ops import MAX_DIMS, Shape

_OF_SHAPE = ("full_like", "zeros_like", "ones_like", "new_full", "new_zeros", "new_ones")
_DTYPES = (torch.float32, torch.int64, torch.int32)


class Reading:
    """One pass over the graph of a functional program.

    Attributes:
        steps: in order; value i + 1 is the result of steps[i]. The output may need fewer.
        input_shape: per sample.
        takes_integers: whether the input is a tensor of integers, such as tokens.
    """

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self._nodes = list(program.graph.nodes)
        stored = {**program.state_dict, **program.constants}
        specs = program.graph_signature.input_specs
        self._stored = {spec.arg.name: (str(spec.target), stored.get(spec.target)) for spec in specs}
        self._found: dict[Any, Any] = {}  # by graph node: Values, a tensor made of parameters only, or a number
        self._layers: dict[Any, str] = {}  # by graph node that is such a tensor: the parameter it is made of
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
                "the model is exported for one batch size only: let its code not depend on that number (x.shape[0] in "
                "place of len(x)), and export with dynamic_shapes=({0: torch.export.Dim('batch')},)"
            )
        self._batch = str(example.shape[0])
        self.takes_integers = not example.is_floating_point()
        traced = self._traced(example, "the input")
        if traced[0] != Batch(1) or not 2 <= len(traced) <= MAX_DIMS + 1:
            raise UnsupportedModel(f"the input has {len(traced)} dimensions; (batch, 1 to {MAX_DIMS} more) are needed")
        self.input_shape: Shape = traced[1:]  # type: ignore[assignment]
        self._made = Steps([], [self.input_shape])

    @property
    def steps(self) -> list[Step]:
        return self._made.steps

    def read(self) -> Value:
        """Read all that the output depends on, and return the output."""
        output = next(node for node in self._nodes if node.name == self._output and node.op != "output")
        for node in _needed(self._nodes, output):
            self._found[node] = self._placeholder(node) if node.op == "placeholder" else self._call(node)
        value = self._found.get(output)
        if not isinstance(value, Value) or value.id == INPUT:
            raise UnsupportedModel("the model's output is not computed from its input")
        if len(value.shape) != 1 or value.merged or value.at:
            raise UnsupportedModel(f"the model returns {said(value.traced)}, logits (batch, classes) are needed")
        return value

    def _placeholder(self, node: Any) -> Value | torch.Tensor:
        if node.name == self._input:
            return Value(INPUT, self.input_shape)
        target, tensor = self._stored[node.name]
        if tensor is None:
            raise UnsupportedModel(f"the program does not contain its own parameter {target!r}")
        self._layers[node] = target
        return tensor.detach()

    def _call(self, node: Any) -> Any:
        if node.target is operator.getitem:
            return self._part(node)
        if not isinstance(_result(node), torch.Tensor):
            return self._number(node)
        if self._is_constant(node) or _is_of_shape(node):
            return self._constant(node)
        label = label_of(node)
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            raise UnknownOperation(f"{node.target} at {label} is not an operation of ATen: leave it out of the model")
        function = schema.name.removeprefix("aten::")
        if not is_known(function):
            raise unknown({function: [label]})
        parameter = next(filter(None, (self._layers.get(source) for source in node.all_input_nodes)), "")
        call = Call(
            label,
            function,
            self._arguments(node, schema),
            self._traced(_result(node), label),
            self._made,
            _module_path(node),
            parameter.rpartition(".")[0],
            parameter,
        )
        made = convert(call)
        if isinstance(made, list) and isinstance(node.meta.get("val"), torch.Tensor):
            made = made[0]
        return self._checked(node, made, label)

    def _checked(self, node: Any, made: Any, label: str) -> Any:
        """What conversion said the result's dimensions are must be what the trace saw."""
        first = made[0] if isinstance(made, list) else made
        expected = self._traced(_result(node), label)
        if first.traced != expected:
            raise UnknownOperation(
                f"{node.target} at {label} makes {said(expected)}, it was understood to make {said(first.traced)}"
            )
        return made

    def _part(self, node: Any) -> Any:
        source, index = node.args
        found = self._found[source]
        if isinstance(found, Value):
            found = [found]
        if not isinstance(found, list | tuple) or not 0 <= index < len(found):
            raise UnknownOperation(f"result {index} of {source.target} at {label_of(node)} is not known: do without it")
        if isinstance(found[index], torch.Tensor):
            self._layers[node] = self._layers.get(source, "")
        return found[index]

    def _number(self, node: Any) -> Any:
        """A size, or another number: for a batch of 1, as `_constant` repeats its tensors."""
        value = node.meta.get("val")
        symbol = getattr(getattr(value, "node", None), "expr", None)
        if symbol is None:
            return value
        factor = self._factor(value)
        return Batch(factor) if factor else value

    def _is_constant(self, node: Any) -> bool:
        """Whether a result is the same each time, whatever the input; it may be repeated for each sample."""
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            return False
        kinds = torch.Tensor | int | float | bool | Batch | list | tuple
        found = [self._found[source] for source in node.all_input_nodes]
        return all(isinstance(one, kinds) and not isinstance(one, Value) and not _has_value(one) for one in found)

    def _constant(self, node: Any) -> Any:
        """A tensor made of parameters only, such as a transposed weight; for a batch of 1 where it is repeated."""

        def known(source: Any) -> Any:
            found = self._found[source]
            if isinstance(found, Value):  # whose numbers do not matter
                return torch.zeros([e.factor if isinstance(e, Batch) else e for e in found.traced])
            return found.factor if isinstance(found, Batch) else found

        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), known)
        self._layers[node] = next(filter(None, (self._layers.get(s) for s in node.all_input_nodes)), "")
        try:
            with torch.no_grad():
                result = node.target(*args, **kwargs)
        except Exception as error:
            raise UnsupportedModel(
                f"{node.target} at {label_of(node)} cannot be computed beforehand: {error}"
            ) from None
        return result

    def _arguments(self, node: Any, schema: Any) -> dict[str, Any]:
        """All arguments of a call by name; parameters become float64 arrays, or such of bool."""
        given = {argument.name: argument.default_value for argument in schema.arguments if argument.has_default_value()}
        given |= dict(zip((argument.name for argument in schema.arguments), node.args, strict=False))
        return {name: self._resolved(argument) for name, argument in {**given, **node.kwargs}.items()}

    def _resolved(self, argument: Any) -> Any:
        if isinstance(argument, list | tuple):
            return [self._resolved(item) for item in argument]
        if not isinstance(argument, torch.fx.Node):
            return argument
        found = self._found[argument]
        if not isinstance(found, torch.Tensor):
            return found
        return (found if found.dtype == torch.bool else found.double()).cpu().numpy()

    def _traced(self, tensor: torch.Tensor, label: str) -> Traced:
        if tensor.dtype not in _DTYPES:
            raise UnsupportedModel(f"{label} is {tensor.dtype}, float32 is needed: use .float() for model and input")
        traced = tuple(int(s) if _is_fixed(s) else Batch(self._factor(s)) for s in tensor.shape)
        batches = [extent for extent in traced if isinstance(extent, Batch)]
        if len(batches) != 1 or not batches[0].factor or len(traced) < 2:
            raise UnsupportedModel(
                f"{label} has shape ({', '.join(map(str, tensor.shape))}) where {self._batch} is the batch: one "
                "dimension must be the batch, or a multiple of it, and the others, at least one, have fixed sizes"
            )
        return traced

    def _factor(self, size: Any) -> int:
        """How many times the batch a size is; 0 if it is something else."""
        expression = size.node.expr
        symbols = {str(symbol): symbol for symbol in expression.free_symbols}
        if set(symbols) != {self._batch}:
            return 0
        once, thrice = (expression.subs(symbols[self._batch], number) for number in (1, 3))
        return int(once) if thrice == 3 * once and once >= 1 else 0


def unknown_calls(program: torch.export.ExportedProgram) -> dict[Any, list[str]]:
    """Operations that the output depends on and nothing is known for: by overload, the places where they are."""
    outputs = [spec.arg.name for spec in program.graph_signature.output_specs if spec.kind.name == "USER_OUTPUT"]
    nodes = list(program.graph.nodes)
    output = next(node for node in nodes if node.name == outputs[0] and node.op != "output")
    constant: set[Any] = set()
    inputs = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"}
    found: dict[Any, list[str]] = {}
    for node in _needed(nodes, output):
        if node.op == "placeholder":
            if node.name not in inputs:
                constant.add(node)
        elif (
            not isinstance(_result(node), torch.Tensor)
            or all(source in constant for source in node.all_input_nodes)
            or _is_of_shape(node)
        ):
            constant.add(node)
        else:
            schema = getattr(node.target, "_schema", None)
            if schema is not None and not is_known(schema.name.removeprefix("aten::")):
                found.setdefault(node.target, []).append(label_of(node))
    return found


def _is_of_shape(node: Any) -> bool:
    """Whether a result depends on a tensor's shape only: tensors like it, and where it is minus infinity (nowhere)."""
    schema = getattr(node.target, "_schema", None)
    name = "" if schema is None else schema.name.removeprefix("aten::")
    return name in _OF_SHAPE or (name == "eq" and node.args[1] == -math.inf)


def _has_value(found: Any) -> bool:
    return isinstance(found, list | tuple) and any(isinstance(one, Value) for one in found)


def _is_fixed(size: Any) -> bool:
    """Whether a size is a number; symbolic ones may turn out to be one."""
    return str(size).isdigit()


def _needed(nodes: list[Any], output: Any) -> list[Any]:
    """A graph node and all it is computed from, in order."""
    found, left = set(), [output]
    while left:
        node = left.pop()
        if isinstance(node, torch.fx.Node) and node not in found:
            found.add(node)
            left.extend(node.all_input_nodes)
    return [node for node in nodes if node in found]


def _result(node: Any) -> Any:
    """The (first) result of a graph node as the trace has seen it."""
    value = node.meta.get("val")
    return value[0] if isinstance(value, tuple | list) and value else value


def _module_path(node: Any) -> str:
    """Qualified name of the innermost module that a graph node was traced in."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]).partition("@")[0] if stack else ""


def label_of(node: Any) -> str:
    """Where a graph node is in the model: module, name in the graph, and line of the source if that is known."""
    path = _module_path(node)
    lines = [line.strip() for line in str(node.meta.get("stack_trace") or "").splitlines()]
    places = [i for i, line in enumerate(lines) if line.startswith('File "') and "/torch/" not in line]
    name = f"{path!r} ({node.name}" if path else f"({node.name}"
    if not places:
        return f"{name})"
    file, number = lines[places[-1]].split(", ")[:2]
    return f"{name}, {file.removeprefix('File ').strip(chr(34)).rpartition('/')[2]} {number})"
