"""Ranges of activations: the search over a sorted sample finds what trying every candidate on every number finds."""

import numpy as np
import pytest

from qpart import ranges
from qpart.errors import UnsupportedModel
from qpart.quantiser import HALF, MOST, Range, dequantise_activation, quantise_activation
from qpart.ranges import fit_range, fit_widths
from qpart.tables import WIDTHS

RNG = np.random.default_rng(0)
SAMPLES = {
    "normal": RNG.normal(0, 1, 5000),
    "after a relu": np.maximum(RNG.normal(0, 1, 5000), 0),
    "between 0 and 6": np.clip(RNG.normal(2, 3, 5000), 0, 6),
    "heavy tails": RNG.standard_t(2, 5000),
    "never near zero": RNG.uniform(3, 4, 5000),
    "never positive": -RNG.exponential(1, 5000),
    "pixels": RNG.integers(0, 256, 5000) / 255,
    "large, with a small spread": 1e6 + RNG.uniform(0, 10, 5000),
    "tiny": RNG.normal(0, 1e-20, 5000),
    "two numbers": RNG.integers(0, 2, 100) * 3.0 - 1,
    "nearly as large as can be": RNG.uniform(-0.4, 0.4, 1000) * MOST,
}


def error_of(sample, bits, found):
    """Squared error of the quantiser that ships."""
    packed = quantise_activation(sample[None], bits, found)
    back = dequantise_activation(packed, bits, found, sample.shape)[0]
    return float(np.square(back - sample, dtype=np.float64).sum())


def tried(sample, bits):
    """The best candidate, by the definition."""
    low, high = float(sample.min()), float(sample.max())
    best, least = None, np.inf
    for share in np.geomspace(0.2, 1.0, 28):
        for bottom in (0.0, low) if low >= 0 else (low, low * share):
            top = high * share if high > 0 else high
            if top <= bottom:
                continue
            found = Range(float(np.float32((top - bottom) / (2**bits - 1))), float(np.float32(bottom)))
            error = error_of(sample, bits, found)
            if error < least:
                best, least = found, error
    return best, least


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("bits", WIDTHS[:-1])
def test_ranges_are_those_of_trying_everything(name, bits):
    sample = SAMPLES[name].astype(np.float32)
    found, (best, least) = fit_range(sample, bits), tried(sample, bits)
    assert found == best or error_of(sample, bits, found) <= least * (1 + 1e-5)


def test_all_widths_at_once_are_each_alone():
    sample = SAMPLES["heavy tails"].astype(np.float32).reshape(50, 10, 10)
    assert fit_widths(sample) == tuple(fit_range(sample, bits) for bits in WIDTHS)
    assert fit_widths(sample)[-1] == fit_range(sample, HALF) == Range(0.0, 0.0)


def test_the_sample_is_looked_at_once(monkeypatch):
    """Sorted once, whatever the number of candidates: a net of 100 layers has 40,000 of them."""
    sorts, sort = [], np.sort

    def counted(*args, **kwargs):
        sorts.append(args)
        return sort(*args, **kwargs)

    monkeypatch.setattr(ranges.np, "sort", counted)
    fit_widths(SAMPLES["normal"].astype(np.float32))
    assert len(sorts) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e31])
@pytest.mark.parametrize("fit", [fit_widths, lambda sample: fit_range(sample, 4)])
def test_what_is_no_number_is_refused(bad, fit):
    with pytest.raises(UnsupportedModel, match="check the inputs"):
        fit(np.array([0, 1, bad], np.float32))
