"""What one rank of a divided model computes, without the other ranks.

Out of memory in the middle of a forward leaves the others waiting for what this rank was to send. So a batch larger
than any before is tried by each rank alone first: nothing waits, and what comes out is of the right shape and no use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

_COMMUNICATION = {"c10d", "_c10d_functional"}


class Alone(TorchDispatchMode):  # type: ignore[misc]
    """Within this context ranks exchange nothing: sums over ranks are this one's part, and each part is this one's.

    Raises:
        NotImplementedError: the model exchanges something otherwise.
    """

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """See `TorchDispatchMode`; tensors that are divided say first what is to be exchanged for them."""
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented
        name = func.name().removesuffix(".default") if hasattr(func, "name") else ""
        if name.partition("::")[0] not in _COMMUNICATION or name in _LOCAL:
            return func(*args, **(kwargs or {}))
        if name not in _ALONE:
            raise NotImplementedError(f"{name} without other ranks")
        return _ALONE[name](*args)


def _done(tensors: list[Tensor], *_: Any) -> Any:
    from torch._C._distributed_c10d import FakeWork

    return tensors, dist.Work.boxed(FakeWork())


_LOCAL = {"_c10d_functional::wait_tensor", "_c10d_functional::_wrap_tensor_autograd"}
_ALONE: dict[str, Callable[..., Any]] = {
    "c10d::allreduce_": _done,
    "_c10d_functional::all_reduce": lambda part, *_: part.clone(),
    "_c10d_functional::all_gather_into_tensor": lambda part, num_ranks, *_: torch.cat([part] * num_ranks),
    "_c10d_functional::reduce_scatter_tensor": lambda part, _, num_ranks, *__: part.chunk(num_ranks)[0].clone(),
}
