"""Backends and levels as fixtures, and the chi-square which all statistical tests share."""

import importlib.util
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from edgekernels import _reference, _select
from numpy.typing import NDArray
from scipy import stats

LEVELS = ("base", "avx2", "avx512")
ENGINES = [
    pytest.param("numpy", id="numpy"),
    *(pytest.param(level, id=level, marks=pytest.mark.native) for level in LEVELS),
]


def switch_to(engine: str) -> None:
    """Run all later calls on numpy or on one level of the compiled kernels; skip what cannot be had."""
    if engine == "numpy":
        _select.use(_reference)
        return
    if importlib.util.find_spec("edgekernels._accept") is None:
        pytest.skip("the compiled kernels are not built")
    from edgekernels import _accept

    if engine not in _accept.levels():
        pytest.skip(f"this processor lacks {engine}")
    _accept.set_level(engine)
    _select.use(_accept)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend and level in turn."""
    before = _select.active
    switch_to(request.param)
    yield request.param
    _select.use(before)


@pytest.fixture(params=[pytest.param(level, marks=pytest.mark.native) for level in LEVELS])
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each level of the compiled kernels in turn."""
    before = _select.active
    switch_to(request.param)
    yield request.param
    _select.use(before)


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
