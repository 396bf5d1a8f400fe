"""Noise and acceptance tests of the user's own, compiled with Numba where it is installed."""

import ctypes
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

NOISE_C = ctypes.CFUNCTYPE(
    None,
    ctypes.c_uint64,
    ctypes.c_uint64,
    ctypes.POINTER(ctypes.c_int32),
    ctypes.c_int64,
    ctypes.POINTER(ctypes.c_uint32),
)
TEST_C = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_double, ctypes.c_double, ctypes.c_double, ctypes.c_double)


class Failures:
    """What a hook raised while C called it, which cannot raise."""

    def __init__(self) -> None:
        self.newest: tuple[BaseException] | None = None  # a tuple of its own for each, even if they raise the same

    def remember(self, error: BaseException) -> None:
        """Keep it until the decision is over."""
        self.newest = (error,)


class Noise:
    """A noise of the user's own; make one with `compile_noise`."""

    def __init__(self, function: Callable[[int, int, int], int], kernel: Any, address: int, failures: Failures) -> None:
        self.function, self.address, self.failures = function, address, failures
        self._kernel = kernel  # keeps the code behind the address alive

    def words(self, seed: int, position: int, ids: Any) -> Any:
        """Words uint32 (n,) of ids (n,), from Python."""
        return np.array([self.function(seed, position, i) for i in np.asarray(ids).tolist()], np.uint32)


class AcceptanceTest:
    """An acceptance test of the user's own; make one with `compile_test`."""

    def __init__(
        self, function: Callable[[float, float, float, float], bool], kernel: Any, address: int, failures: Failures
    ) -> None:
        self.function, self.address, self.failures = function, address, failures
        self._kernel = kernel


def _has_numba() -> bool:
    return importlib.util.find_spec("numba") is not None


def _insist_on_function(what: str, function: object) -> None:
    if not callable(function):
        raise TypeError(f"the {what} is {function!r}; pass a function")


def compile_noise(function: Callable[[int, int, int], int]) -> Noise:
    """Make a noise for `accept` and `sample` from a Python function, compiled if Numba is installed.

    Without Numba the function is called back from the kernels: the same answers, thousands of times slower.

    Args:
        function: (seed, position, token id) -> 0 .. 2**32 - 1, uniform and a pure function of the three. For Numba,
            of integers of 64 bits; keep the products you need within them.

    Returns:
        What to pass as `noise=`. It may be used by several threads at once.

    Raises:
        TypeError: it is no function, or Numba cannot compile it.

    Source: numba.cfunc.
    """
    _insist_on_function("noise", function)
    failures = Failures()
    if _has_numba():
        from edgekernels._numba_hooks import noise_kernel

        kernel, address = noise_kernel(function, failures.remember)
        return Noise(function, kernel, address, failures)

    def fill(seed: int, position: int, ids: Any, num_ids: int, words: Any) -> None:
        try:
            for i in range(num_ids):
                words[i] = function(seed, position, ids[i])
        except BaseException as error:  # raised again after the decision
            failures.remember(error)
            for i in range(num_ids):
                words[i] = 0

    callback = NOISE_C(fill)
    return Noise(function, callback, ctypes.cast(callback, ctypes.c_void_p).value or 0, failures)


def compile_test(function: Callable[[float, float, float, float], bool]) -> AcceptanceTest:
    """Make an acceptance test for `accept` from a Python function, compiled if Numba is installed.

    Args:
        function: (p, q, u, largest) -> whether the draft is accepted: its probability under the target and under
            the draft law, a uniform number in [0, 1), and the probability of the target's likeliest token.
            `u * q < p` is rejection sampling; other tests give up its law.

    Returns:
        What to pass as `rule=`. After a draft which does not pass, a token is sampled from what p has left over q.

    Raises:
        TypeError: it is no function, or Numba cannot compile it.

    Source: numba.cfunc; for a test to write: typical acceptance, arXiv 2401.10774, section 2.3.1.
    """
    _insist_on_function("acceptance test", function)
    failures = Failures()

    def answered(p: float, q: float, u: float, largest: float) -> bool:
        answer: Any = function(p, q, u, largest)
        if answer is None:
            raise TypeError("the acceptance test returned None; return whether the draft is accepted")
        return bool(answer)

    if _has_numba():
        from edgekernels._numba_hooks import test_kernel

        kernel, address = test_kernel(function, failures.remember)
        return AcceptanceTest(answered, kernel, address, failures)

    def passes(p: float, q: float, u: float, largest: float) -> int:
        try:
            return int(answered(p, q, u, largest))
        except BaseException as error:  # raised again after the decision
            failures.remember(error)
            return 0

    callback = TEST_C(passes)
    return AcceptanceTest(answered, callback, ctypes.cast(callback, ctypes.c_void_p).value or 0, failures)
