"""Projections that read the same input, as one matrix product.

Queries, keys and values (and gate and up of an MLP) are products with the same activations. On a GPU one wide product
is faster than three narrow ones. The model's own code is left as it is: the first projection computes the joint
product, the others hand out their columns of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

Tensor = Any  # torch.Tensor
GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class _Joint:
    """The joint result between the first projection and the last."""

    def __init__(self) -> None:
        self.result: Tensor | None = None


class FirstPart(nn.Module):
    """Computes the joint product, and gives the first columns of it."""

    def __init__(self, joint: _Joint, weight: Tensor, bias: Tensor | None, width: int) -> None:
        super().__init__()
        self.joint, self.width = joint, width
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Columns 0 .. width of x (..., in) times the joint weight."""
        result = nn.functional.linear(x, self.weight, self.bias)
        self.joint.result = result
        return result[..., : self.width]


class LaterPart(nn.Module):
    """Gives columns that `FirstPart` has computed from the same input."""

    def __init__(self, joint: _Joint, start: int, stop: int, last: bool) -> None:
        super().__init__()
        self.joint, self.start, self.stop, self.last = joint, start, stop, last

    def forward(self, x: Tensor) -> Tensor:
        """Columns start .. stop of the joint product."""
        result = self.joint.result
        assert result is not None, "a model that asks for its projections in another order cannot have them joined"
        if self.last:  # nothing is kept from one layer's forward to the next
            self.joint.result = None
        return result[..., self.start : self.stop]


def join_projections(model: nn.Module) -> int:
    """Join the projections of every module that has a whole group of plain linear ones.

    Returns:
        How many groups were joined.
    """
    count = 0
    for module in list(model.modules()):
        for names in GROUPS:
            parts = [getattr(module, name, None) for name in names]
            if all(type(part) is nn.Linear for part in parts) and _alike(parts):
                _join(module, names, parts)
                count += 1
    return count


def _alike(parts: list[Any]) -> bool:
    first = parts[0]
    return all(
        part.in_features == first.in_features
        and (part.bias is None) == (first.bias is None)
        and part.weight.dtype == first.weight.dtype
        and part.weight.device == first.weight.device
        for part in parts
    )


@torch.no_grad()
def _join(module: nn.Module, names: tuple[str, ...], parts: list[Any]) -> None:
    joint, start = _Joint(), 0
    weight = torch.cat([part.weight for part in parts])
    bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts])
    for index, (name, part) in enumerate(zip(names, parts, strict=True)):
        stop = start + part.out_features
        new = LaterPart(joint, start, stop, index == len(parts) - 1) if index else FirstPart(joint, weight, bias, stop)
        setattr(module, name, new)
        part.weight = part.bias = None  # freed now, not when the last layer has been joined
        start = stop
