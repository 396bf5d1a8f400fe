"""Which of several processes this is, when torchrun starts some that share a target: only the first is on the bus."""

from __future__ import annotations

from collections.abc import Mapping

from edgebus.errors import ConfigError


def rank_of(environment: Mapping[str, str], num_processes: int) -> int:
    """The rank of this process; 0 where there is only one.

    Args:
        environment: where torchrun says RANK and WORLD_SIZE.
        num_processes: that share the target.

    Raises:
        ConfigError: torchrun did not start us, or started another number.

    >>> rank_of({}, 1), rank_of({"RANK": "1", "WORLD_SIZE": "2"}, 2)
    (0, 1)
    """
    if num_processes == 1:
        return 0
    rank, size = environment.get("RANK", ""), environment.get("WORLD_SIZE", "")
    if not (rank.isdecimal() and size.isdecimal()):
        raise ConfigError(
            f"tensor_parallel {num_processes} needs as many processes: start us with "
            f"`torchrun --nproc-per-node {num_processes} -m sled.cli serve ...`"
        )
    if int(size) != num_processes or int(rank) >= num_processes:
        raise ConfigError(
            f"torchrun started {size} processes, tensor_parallel is {num_processes}: give the same number"
        )
    return int(rank)
