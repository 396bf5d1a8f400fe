"""User functions as C functions, by Numba; imported only where Numba is.

Their exceptions cannot leave a C function: it calls back, decides for nothing, and the decision raises afterwards.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import numba
from numba import types

FAILED_C = ctypes.CFUNCTYPE(None)
Remember = Callable[[BaseException], None]


def noise_kernel(function: Callable[[int, int, int], int], remember: Remember) -> tuple[Any, int]:
    """A C function of the type ek_words_of (csrc/accept.h) around a scalar function: what keeps it, its address."""
    word, failed = _compiled(function), _failed("noise", remember)

    def fill(seed, position, ids, num_ids, words):  # type: ignore[no-untyped-def]
        try:
            for i in range(num_ids):
                words[i] = numba.uint32(word(seed, position, numba.int64(ids[i])))
        except Exception:
            failed()
            for i in range(num_ids):
                words[i] = numba.uint32(0)

    pointer = types.CPointer
    signature = types.void(types.uint64, types.uint64, pointer(types.int32), types.int64, pointer(types.uint32))
    kernel = _exported(signature, fill, "noise")
    return (kernel, failed), int(kernel.address)


def test_kernel(function: Callable[[float, float, float, float], bool], remember: Remember) -> tuple[Any, int]:
    """A C function of the type ek_accepts (csrc/accept.h): what keeps it, its address."""
    test, failed = _compiled(function), _failed("acceptance test", remember)

    def passes(p, q, u, largest):  # type: ignore[no-untyped-def]
        passed = numba.int32(0)
        try:
            answer = test(p, q, u, largest)
            if answer is None:
                failed()
            elif answer:
                passed = numba.int32(1)
        except Exception:
            failed()
        return passed

    double = types.float64
    kernel = _exported(types.int32(double, double, double, double), passes, "acceptance test")
    return (kernel, failed), int(kernel.address)


def _failed(what: str, remember: Remember) -> Any:
    text = f"the compiled {what} raised or returned None; call the function from Python to see why"
    return FAILED_C(lambda: remember(RuntimeError(text)))


def _compiled(function: Callable[..., Any]) -> Any:
    return function if hasattr(function, "py_func") else numba.njit(function)


def _exported(signature: Any, function: Callable[..., Any], what: str) -> Any:
    try:
        return numba.cfunc(signature, nopython=True)(function)
    except numba.core.errors.NumbaError as error:
        raise TypeError(f"Numba cannot compile this {what}: {error}") from error
