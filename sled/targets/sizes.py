"""Which number of tokens, and which library, a captured forward multiplies quickest with.

How long a library takes for a product does not grow evenly with its rows: on an H100 a step of an 8B model with 448
tokens takes 16.5 ms and one with 480 takes 13.2, one with 288 takes 10.1 ms by cuBLAS and 9.6 by cuBLASLt. So a size is
measured before a graph is captured for it: the model's own weights, at that size and at those up to a quarter more.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Any, NamedTuple

import torch
from torch import nn

Tensor = Any  # torch.Tensor

_WORTH = 0.97  # of the time of the least size by the library torch takes: what is not clearly quicker is noise
_MOST_WEIGHTS = 8  # of one shape: they leave the cache as they do in a forward
_REPEATS = 5


class Size(NamedTuple):
    """Tokens that a batch is padded to, and torch's name of the library that multiplies them ("": torch's choice)."""

    tokens: int
    blas: str = ""


def round_up(size: int) -> int:
    """The bucket of a size: multiples of 8, from 64 on at most 1/8 more than asked.

    >>> [round_up(n) for n in (1, 3, 9, 60, 65, 320, 2304)]
    [1, 4, 16, 64, 72, 320, 2304]
    """
    if size <= 8:
        return 1 << (size - 1).bit_length()
    step = max(8, 1 << (size.bit_length() - 4))
    return -(-size // step) * step


def worth_measuring(size: int) -> list[int]:
    """Buckets that may serve a bucket: itself, and from 64 on those with at most a quarter more.

    >>> worth_measuring(16), worth_measuring(288), worth_measuring(1152)
    ([16], [288, 320, 352], [1152, 1280, 1408])
    """
    sizes = [size]
    while size >= 64 and (larger := round_up(sizes[-1] + 1)) <= size * 1.25:
        sizes.append(larger)
    return sizes


class Sizes:
    """The quickest size for each number of tokens, measured once.

    Args:
        time_ms: how long the products of a forward take at a size.
        choices: libraries to choose from; the first is torch's own choice.
    """

    def __init__(self, time_ms: Callable[[Size], float], choices: Iterable[str] = ("",)) -> None:
        self._time_ms, self._choices = time_ms, tuple(choices)
        self._times: dict[Size, float] = {}
        self._best: dict[int, Size] = {}

    def __call__(self, tokens: int) -> Size:
        """The size that a batch of so many tokens is padded to.

        >>> times = {Size(288): 10.1, Size(320): 9.6, Size(352): 10.7}
        >>> Sizes(times.__getitem__)(281)
        Size(tokens=320, blas='')
        """
        least = round_up(tokens)
        best = self._best.get(least)
        if best is None:
            best = self._best[least] = self._measured(least)
        return best

    def _measured(self, least: int) -> Size:
        sizes = [Size(tokens, blas) for tokens in worth_measuring(least) for blas in self._choices]
        for size in sizes:
            if size not in self._times:
                self._times[size] = self._time_of(size, needed=size == sizes[0])
        best = min(sizes, key=self._times.__getitem__)
        return best if self._times[best] < _WORTH * self._times[sizes[0]] else sizes[0]

    def _time_of(self, size: Size, *, needed: bool) -> float:
        """Milliseconds; of a size that there is no memory for, and that need not be taken, infinitely many."""
        try:
            return self._time_ms(size)
        except torch.OutOfMemoryError:
            if needed:
                raise
            return inf


@contextmanager
def multiplying_by(blas: str) -> Iterator[None]:
    """Have torch multiply matrices on CUDA by one library ("cublas", "cublaslt"; "" changes nothing)."""
    if not blas:
        yield
        return
    before = torch.backends.cuda.preferred_blas_library()
    torch.backends.cuda.preferred_blas_library(blas)
    try:
        yield
    finally:
        torch.backends.cuda.preferred_blas_library(before)


def measured_on(layers: nn.Module) -> Sizes:
    """Sizes measured with the weights of a model's layers, which are on a CUDA device.

    Args:
        layers: modules whose matrices multiply all tokens of a batch.
    """
    by_shape: dict[tuple[int, ...], list[Tensor]] = {}
    for module in layers.modules():
        weight = getattr(module, "weight", None)
        if weight is not None and weight.dim() == 2 and weight.is_floating_point() and hasattr(module, "forward"):
            by_shape.setdefault(tuple(weight.shape), []).append(weight)

    def time_ms(size: Size) -> float:
        with torch.inference_mode(), multiplying_by(size.blas):
            return sum(_median_ms(weights, size.tokens) for weights in by_shape.values())

    return Sizes(time_ms, ("", "cublaslt") if torch.version.cuda else ("",))


def _median_ms(weights: list[Tensor], tokens: int) -> float:
    """Milliseconds of the products of so many tokens with all these weights, which are of one shape."""
    some = weights[:_MOST_WEIGHTS]
    x = torch.randn(tokens, some[0].shape[1], device=some[0].device, dtype=some[0].dtype)
    for weight in some[:2]:
        nn.functional.linear(x, weight)
    ends = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(_REPEATS)]
    for before, after in ends:
        before.record()
        for weight in some:
            nn.functional.linear(x, weight)
        after.record()
    torch.cuda.synchronize(x.device)
    median: float = statistics.median(a.elapsed_time(b) for a, b in ends)
    return median * len(weights) / len(some)
