"""Backends and levels as fixtures, and the chi-square which all statistical tests share."""

import importlib.util
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from _pytest.mark import ParameterSet
from edgekernels import _reference, _select
from numpy.typing import NDArray
from scipy import stats

LEVELS = ("base", "avx2", "avx512")
BITS_LEVELS = (*LEVELS, "avx512_vnni")
GEMM_LEVELS = ("base", "neon_dot", "avx2", "avx512", "avx512_vnni", "amx")
DECODE_LEVELS = (*LEVELS, "avx512_vnni", "neon_dot")
ATTEND_LEVELS = (*LEVELS, "avx512_bf16")
EXTENSIONS = tuple(f"edgekernels._{family}" for family in ("accept", "bits", "gemm", "decode", "attend"))


def engines(levels: tuple[str, ...]) -> list[ParameterSet]:
    """numpy, Numba and these levels of the compiled kernels."""
    return [pytest.param("numpy"), pytest.param("numba"), *natives(levels)]


def natives(levels: tuple[str, ...]) -> list[ParameterSet]:
    """These levels of the compiled kernels."""
    return [pytest.param(level, marks=pytest.mark.native) for level in levels]


def switch_to(engine: str) -> None:
    """Run all later calls on numpy, Numba or one level of the compiled kernels; skip what cannot be had."""
    if engine == "numpy":
        _select.use(_reference)
        return
    if engine == "numba":
        pytest.importorskip("numba")
        _select.use(_select.load("numba"))
        return
    if any(importlib.util.find_spec(name) is None for name in EXTENSIONS):
        pytest.skip("the compiled kernels are not built")
    from edgekernels import _accept, _attend, _bits, _decode, _gemm

    if engine not in (*_accept.levels(), *_bits.levels(), *_gemm.levels(), *_attend.levels()):
        pytest.skip(f"this processor lacks {engine}")
    for family in (_accept, _bits, _gemm, _decode, _attend):
        family.set_level(engine)
    _select.use(_accept)


def switched(engine: str) -> Iterator[str]:
    """Run on this engine until the end of a test."""
    before = _select.active
    switch_to(engine)
    yield engine
    _select.use(before)


@pytest.fixture(params=engines(LEVELS))
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend and level in turn."""
    yield from switched(request.param)


@pytest.fixture(params=natives(LEVELS))
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each level of the compiled kernels in turn."""
    yield from switched(request.param)


@pytest.fixture(params=[pytest.param("numpy"), *natives(BITS_LEVELS)])
def bits_engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend and level of the kernels of low-bit codes in turn."""
    yield from switched(request.param)


@pytest.fixture(params=natives(BITS_LEVELS))
def bits_level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each level of the compiled kernels of low-bit codes in turn."""
    yield from switched(request.param)


@pytest.fixture(params=engines(GEMM_LEVELS))
def gemm_engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend and level of the kernels of packed matrices in turn."""
    yield from switched(request.param)


@pytest.fixture(params=natives(GEMM_LEVELS))
def gemm_level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each level of the compiled kernels of packed matrices in turn."""
    yield from switched(request.param)


@pytest.fixture(params=natives(DECODE_LEVELS))
def decode_level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each level of the compiled decoder in turn."""
    yield from switched(request.param)


@pytest.fixture(params=engines(DECODE_LEVELS))
def decode_engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend and level of the decoder in turn."""
    yield from switched(request.param)


@pytest.fixture(params=[pytest.param("numpy"), *natives(ATTEND_LEVELS)])
def attend_engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend and level of paged attention in turn."""
    yield from switched(request.param)


@pytest.fixture(params=natives(ATTEND_LEVELS))
def attend_level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each level of the compiled paged attention in turn."""
    yield from switched(request.param)


@pytest.fixture
def p_value() -> Callable[[NDArray[np.integer], NDArray[np.floating]], float]:
    """p-value of observed outcomes (n,) under a law (cells,); an outcome of probability 0 has p-value 0."""

    def of(outcomes: NDArray[np.integer], law: NDArray[np.floating]) -> float:
        counts = np.bincount(outcomes, minlength=len(law)).astype(float)
        if counts[law == 0].any():
            return 0.0
        counts, expected = counts[law > 0], law[law > 0] * len(outcomes)
        assert expected.min() >= 5, "too few outcomes for a chi-square"
        return float(stats.chi2.sf(((counts - expected) ** 2 / expected).sum(), len(counts) - 1))

    return of
