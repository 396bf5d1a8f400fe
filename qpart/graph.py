"""From a torch module, or what torch.export saved of one, to a network that can be planned and shipped."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from qpart.aten import unknown
from qpart.errors import QpartError, UnsupportedModel
from qpart.executors.with_torch import TorchExecutor
from qpart.exported import Reading, unknown_calls
from qpart.fold import assemble
from qpart.network import INPUT, Network, Parameters
from qpart.ops import Embedding

Traced = tuple[Network, dict[int, Parameters]]
_NUM_COMPARED = 5  # a batch size that nobody exports with
_MAX_DECOMPOSITIONS = 6
TOLERANCE = 1e-4  # of the largest logit; folding and other kernels cost a few roundings


def trace(module: torch.nn.Module, example: torch.Tensor | tuple[torch.Tensor]) -> Traced:
    """Take in a module; it is put into eval mode.

    Args:
        module: takes one float32 tensor (batch, *shape) and returns logits (batch, classes).
        example: (batch, *shape), any values; a tuple of just that serves too.

    Returns:
        The network and its parameters by node index.

    Raises:
        UnsupportedModel, UnknownOperation: it cannot be planned and shipped; the message says what to change.
    """
    if isinstance(example, tuple | list) and len(example) == 1:
        example = example[0]  # arguments as torch.export takes them
    if not isinstance(module, torch.nn.Module) or not isinstance(example, torch.Tensor) or example.dim() < 2:
        raise UnsupportedModel(
            "a torch.nn.Module and an example input, one tensor (batch, *shape), are needed; "
            f"got {_described(module)} and {_described(example)}"
        )
    return from_exported(export(module, example))


def _described(found: object) -> str:
    if isinstance(found, torch.Tensor):
        return f"a tensor of shape {tuple(found.shape)}"
    size = f" of {len(found)}" if isinstance(found, tuple | list) else ""
    return f"{type(found).__name__}{size}"


def export(module: torch.nn.Module, example: torch.Tensor) -> torch.export.ExportedProgram:
    """torch.export with a batch of any size; arguments and errors as in `trace`."""
    if len(example) < 2:  # one sample would be taken for a fixed size
        example = torch.cat([example, example])
    try:
        with _quiet():
            dynamic = {0: torch.export.Dim.AUTO}
            return torch.export.export(module.eval(), (example,), dynamic_shapes=(dynamic,))
    except Exception as error:
        raise UnsupportedModel(
            f"torch.export cannot trace {type(module).__name__}{_place(error)}: {_advice(error)}{_first_line(error)}"
        ) from error


def from_exported(program: torch.export.ExportedProgram) -> Traced:
    """Take in a program that was exported in eval mode with a batch dimension of any size.

    Returns and raises as `trace` does. The result has been compared with the program on a few inputs.
    """
    functional = _decomposed(program)
    reading = Reading(functional)
    output = reading.read()
    network, parameters = assemble(reading.input_shape, reading.steps, output)
    _compare(program, network, parameters, reading.takes_integers)
    return network, parameters


def _decomposed(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program without operations in place, and with those that are not known in terms of others, if torch can."""
    tried: set[Any] = set()
    table: dict[Any, Any] = {}
    for _ in range(_MAX_DECOMPOSITIONS):
        try:
            with _quiet():
                found = program.run_decompositions(table)
        except Exception as error:
            raise UnsupportedModel(f"torch.export cannot rewrite the program: {_first_line(error)}") from error
        _check_signature(found)
        left = unknown_calls(found)
        known = torch.export.default_decompositions() if left else {}
        table = {overload: known[overload] for overload in left if overload in known and overload not in tried}
        if not table:
            break
        tried |= set(table)
        program = found
    if left:
        raise unknown({_name(overload): places for overload, places in left.items()})
    return found


def _name(overload: Any) -> str:
    return str(overload._schema.name.removeprefix("aten::"))


def load_model(source: str) -> Traced:
    """Take in a model by name.

    Args:
        source: "path/to/model.pt2", or "package.module:factory" or "path/to/file.py:factory" where factory() returns
            (module, example input). Both run code of whoever wrote them: use your own models only.

    Raises:
        UnsupportedModel: nothing is there, or it fails; else as `trace`.
    """
    if source.endswith(".pt2"):
        return from_exported(_load_exported(Path(source)))
    place, colon, name = source.rpartition(":")
    if not colon or not place or not name:
        raise UnsupportedModel(f"{source!r} is neither a .pt2 file nor 'package.module:factory' nor 'file.py:factory'")
    try:
        made = getattr(_import(place), name)()
    except QpartError:
        raise
    except Exception as error:
        raise UnsupportedModel(f"{source} failed: {type(error).__name__}: {_first_line(error)}") from error
    if not isinstance(made, tuple) or len(made) != 2:
        raise UnsupportedModel(f"{source} returned {type(made).__name__}, it must return (module, example input)")
    return trace(*made)


def _load_exported(path: Path) -> torch.export.ExportedProgram:
    if not path.is_file():
        raise UnsupportedModel(f"there is no file {path}")
    try:
        with _quiet():
            return torch.export.load(str(path))
    except Exception as error:
        raise UnsupportedModel(
            f"{path} is damaged or was not written by torch.export.save of this torch ({torch.__version__}): "
            f"{_first_line(error)}"
        ) from error


def _import(place: str) -> Any:
    if not place.endswith(".py"):
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))
        return importlib.import_module(place)
    path = Path(place)
    if not path.is_file():
        raise UnsupportedModel(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"qpart_model_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickles look themselves up there
    spec.loader.exec_module(module)
    return module


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.export warns, logs and prints about itself; what matters comes as an exception."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def _place(error: BaseException) -> str:
    """The last line of the model's own code that ran."""
    frames = traceback.extract_tb(error.__traceback__)
    home = str(Path(torch.__file__).parent)
    own = [frame for frame in frames if not frame.filename.startswith((home, "<")) and frame.filename != __file__]
    if not own:
        return ""
    return f" at {Path(own[-1].filename).name} line {own[-1].lineno}, {(own[-1].line or '?')[:100]!r}"


def _advice(error: BaseException) -> str:
    if "DataDependent" in type(error).__name__:
        return (
            "what it does next depends on the numbers of the input, and a plan must hold for all inputs (compute both "
            "sides and choose with torch.where by a fixed mask, or fix the choice). "
        )
    return ""


def _check_signature(program: torch.export.ExportedProgram) -> None:
    signature = program.graph_signature
    kinds = [spec.kind.name for spec in signature.input_specs]
    if kinds.count("USER_INPUT") != 1:
        raise UnsupportedModel(f"the model takes {kinds.count('USER_INPUT')} inputs, one tensor is needed: wrap it")
    outputs = [spec.kind.name for spec in signature.output_specs]
    if "BUFFER_MUTATION" in outputs:
        raise UnsupportedModel("the model changes its own buffers: call .eval() before it is exported")
    num_outputs = outputs.count("USER_OUTPUT")
    if num_outputs != 1:
        raise UnsupportedModel(f"the model has {num_outputs} outputs, one tensor of logits is needed: wrap it")


def _compare(
    program: torch.export.ExportedProgram, network: Network, parameters: dict[int, Parameters], integers: bool
) -> None:
    """A network that does not compute what the program computes must not leave here."""
    device = next((tensor.device for tensor in program.state_dict.values()), torch.device("cpu"))
    inputs = torch.randn(_NUM_COMPARED, *network.input_shape, generator=torch.Generator().manual_seed(0))
    given = inputs
    if integers:
        rows = min((node.op.num_rows for node in network.nodes if isinstance(node.op, Embedding)), default=2)
        given = (inputs.abs() * 1e6).long() % rows
        inputs = given.float()
    try:
        with _quiet(), torch.no_grad():
            right = program.module()(given.to(device, copy=True)).cpu()  # which some models write to
    except Exception as error:
        raise UnsupportedModel(
            f"the model does not run for a batch of {_NUM_COMPARED}, so its code depends on the batch size it was "
            f"exported with: {_first_line(error)}"
        ) from error
    last = network.num_nodes
    ours = TorchExecutor(network.nodes, parameters).run({INPUT: inputs}, 0, last, [last])[last]
    off = float((ours - right).abs().max() / right.abs().max().clamp(min=1e-30))
    if not off <= TOLERANCE:
        raise UnsupportedModel(
            f"the network taken in from the model differs from it by {off:.1e} of its largest logit: are all its "
            "numbers finite, and does it compute the same each time?"
        )
