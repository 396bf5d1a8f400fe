"""Where a training stands, in one file that is there whole or as it was: weights, optimiser, step and clock."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from sled.distill.whole import written_beside
from sled.errors import ParameterError

Tensor = Any  # torch.Tensor
_STATES = ("exp_avg", "exp_avg_sq", "step")


class Clock(NamedTuple):
    """How far a training is: steps done, seconds used."""

    step: int
    used_s: float


class Trained(NamedTuple):
    """A network and what moves it."""

    network: nn.Module
    optimiser: Any


def save(path: Path, trained: Mapping[str, Trained], clock: Clock, ids: Mapping[str, Tensor]) -> None:
    """Write a checkpoint beside the last one, then put it in its place.

    Raises:
        OSError: it cannot be written; the last one stays.
    """
    tensors: dict[str, Tensor] = {}
    for name, (network, optimiser) in trained.items():
        tensors[f"{name}/ids"] = ids[name].cpu()
        for key, weight in network.named_parameters():
            tensors[f"{name}/weight/{key}"] = weight.detach().cpu().contiguous()
            for state, value in optimiser.state.get(weight, {}).items():
                tensors[f"{name}/{state}/{key}"] = torch.as_tensor(value).detach().cpu().contiguous()
    beside = path.with_suffix(".part")
    with written_beside(path, beside):
        save_file(tensors, beside, metadata={"clock": json.dumps(clock._asdict())})


def load(path: Path, trained: Mapping[str, Trained], ids: Mapping[str, Tensor]) -> Clock:
    """Go on from a checkpoint: fill networks and optimisers; a clock at zero where there is none.

    Raises:
        ParameterError: it is damaged, or of other students.
    """
    if not path.is_file():
        return Clock(0, 0.0)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            clock = Clock(**json.loads(metadata["clock"]))
            if not clock.step >= 0 or not clock.used_s >= 0:
                raise ValueError(f"a clock at {clock}")
            for name, one in trained.items():
                if not torch.equal(file.get_tensor(f"{name}/ids"), ids[name].cpu()):
                    raise ValueError("other ids; the corpus has changed since")
                _fill(file, name, one)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ParameterError(f"{path} cannot be gone on from ({error}); remove it to train anew") from None
    return clock


@torch.no_grad()
def _fill(file: Any, name: str, trained: Trained) -> None:
    """One student's weights and the state of its optimiser."""
    keys = [key for key, _ in trained.network.named_parameters()]
    for key, weight in trained.network.named_parameters():
        found = file.get_tensor(f"{name}/weight/{key}")
        if found.shape != weight.shape:
            raise ValueError(f"{key} has shape {tuple(found.shape)}, {tuple(weight.shape)} is needed")
        weight.copy_(found)
    named = {id(weight): key for key, weight in trained.network.named_parameters()}
    held = set(file.keys())
    if f"{name}/step/{keys[0]}" not in held:
        return
    state, number = {}, 0
    for group in trained.optimiser.param_groups:
        for weight in group["params"]:
            state[number] = {kind: file.get_tensor(f"{name}/{kind}/{named[id(weight)]}") for kind in _STATES}
            number += 1
    groups = trained.optimiser.state_dict()["param_groups"]
    trained.optimiser.load_state_dict({"state": state, "param_groups": groups})
