"""A bound on what reading a hostile file may allocate."""

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def at_most(num_bytes: int) -> Iterator[None]:
    """Fails if more than `num_bytes` (numpy's arrays among them) were allocated at once inside."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= num_bytes, f"{peak} bytes were allocated, {num_bytes} are allowed"
