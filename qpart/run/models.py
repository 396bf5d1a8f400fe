"""From artefacts to models that answer: torch is imported here, once the cheap checks have passed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import edgebus
from qpart import artefact as files
from qpart.artefact import Artefact
from qpart.errors import ArtefactError, RequestError
from qpart.executors import Executor
from qpart.network import INPUT
from qpart.patterns import Pattern
from qpart.profile import ServerProfile
from qpart.run.published import Sign
from qpart.run.served import ServedModel
from qpart.run.speed import server_profile
from qpart.verify import Measured

if TYPE_CHECKING:
    from qpart.executors.with_torch import TorchExecutor


def load_artefacts(paths: list[Path]) -> list[Artefact]:
    """Read artefacts that are to be served together.

    Raises:
        ArtefactError: one cannot be read.
        RequestError: two have the same name.
    """
    found: dict[str, Path] = {}
    loaded = []
    for path in paths:
        one = files.load(path)
        if one.name in found:
            raise RequestError(
                f"{found[one.name]} and {path} are both named {one.name!r}; calibrate one with another --name"
            )
        found[one.name] = path
        loaded.append(one)
    return loaded


def make_served(
    artefact: Artefact,
    *,
    macs_per_s: float | None = None,
    price_per_s: float = 0.0,
    threads: int = 0,
    profile: ServerProfile | None = None,
    sign: Sign | None = None,
) -> tuple[ServedModel, ServerProfile]:
    """A model on torch; the seconds of its nodes are measured unless a speed, or a profile, is given.

    Args:
        threads: of a forward on the CPU; 0 takes one, or all if they are faster by a quarter (`worthwhile_threads`).
            Patterns of plans, which are long, run with as many, or with all.

    Raises:
        ConfigError: there is no torch.
        RequestError: a number is out of range.
        ArtefactError: the model does not give the answers stored with it.
    """
    require_torch("running the model")
    import torch

    from qpart.calibrate import measure
    from qpart.executors.simulator import Simulator
    from qpart.run.threads import threads_of

    most = threads or torch.get_num_threads()
    executor = make_executor(artefact, threads=threads)
    with threads_of(most):
        _check_answers(artefact, executor)
        if profile is None and macs_per_s is not None:
            profile = ServerProfile(macs_per_s=macs_per_s, price_per_s=price_per_s)
        elif profile is None:
            sample = artefact.float_inputs()[:1]
            profile = server_profile(artefact.network, executor, sample, price_per_s=price_per_s)
    simulator = Simulator(artefact.network, artefact.parameters, artefact.ranges)
    run = measure(simulator, artefact.float_inputs(), artefact.logits, artefact.margin)

    def run_pattern(pattern: Pattern) -> Measured:
        with threads_of(most):
            return run(pattern)

    return ServedModel(artefact, executor, run_pattern, profile, sign), profile


def make_executor(artefact: Artefact, *, threads: int = 0) -> TorchExecutor:
    """What a server computes with; `threads` as `make_served` takes them."""
    require_torch("running the model")
    import torch

    from qpart.executors.with_torch import TorchExecutor
    from qpart.run.threads import threads_of, worthwhile_threads

    most = threads or torch.get_num_threads()
    executor = TorchExecutor(artefact.network.nodes, artefact.parameters)
    sample, last = artefact.float_inputs()[:1], artefact.network.num_nodes
    with threads_of(most):
        executor.threads = threads or worthwhile_threads(
            lambda: executor.run_arrays({INPUT: sample}, 0, last, [last]), most
        )
    return executor


def _check_answers(artefact: Artefact, executor: Executor) -> None:
    """A few calibration inputs must get the answers in the artefact: weights have no other checksum."""
    some, last = slice(0, 8), artefact.network.num_nodes
    found = executor.run_arrays({INPUT: artefact.float_inputs()[some]}, 0, last, [last])[last]
    expected = artefact.logits[some]
    if not np.allclose(found, expected, rtol=0, atol=1e-3 * float(np.abs(expected).max())):
        raise ArtefactError(f"{artefact.name} does not give the answers it was calibrated with: calibrate it again")


def require_torch(what: str) -> None:
    """One line where torch, or what it needs, is not installed.

    Raises:
        ConfigError: so it is.
    """
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        raise edgebus.ConfigError(f"{what} needs {error.name}: pip install 'edgebus[torch]'") from None
