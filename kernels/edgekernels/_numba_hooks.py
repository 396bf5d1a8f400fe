"""User functions as C functions, by Numba; imported only where Numba is."""

from collections.abc import Callable
from typing import Any

import numba
from numba import types


def noise_kernel(function: Callable[[int, int, int], int]) -> Any:
    """A C function of the type ek_words_of (csrc/accept.h) around a scalar function."""
    word = _compiled(function, "noise")

    def fill(seed, position, ids, num_ids, words):  # type: ignore[no-untyped-def]
        for i in range(num_ids):
            words[i] = numba.uint32(word(seed, position, numba.int64(ids[i])))

    pointer = types.CPointer
    signature = types.void(types.uint64, types.uint64, pointer(types.int32), types.int64, pointer(types.uint32))
    return _exported(signature, fill, "noise")


def test_kernel(function: Callable[[float, float, float, float], bool]) -> Any:
    """A C function of the type ek_accepts (csrc/accept.h)."""
    test = _compiled(function, "acceptance test")

    def passes(p, q, u, largest):  # type: ignore[no-untyped-def]
        return numba.int32(1 if test(p, q, u, largest) else 0)

    double = types.float64
    return _exported(types.int32(double, double, double, double), passes, "acceptance test")


def _compiled(function: Callable[..., Any], what: str) -> Any:
    if not callable(function):
        raise TypeError(f"the {what} is {function!r}; pass a function")
    return function if hasattr(function, "py_func") else numba.njit(function)


def _exported(signature: Any, function: Callable[..., Any], what: str) -> Any:
    try:
        return numba.cfunc(signature, nopython=True)(function)
    except numba.core.errors.NumbaError as error:
        raise TypeError(f"Numba cannot compile this {what}: {error}") from error
