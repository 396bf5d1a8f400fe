"""Margins, bounds and the budget map, by hand and on made-up patterns whose law is known."""

import numpy as np
import pytest
from scipy import stats

from qpart.errors import UnsupportedModel
from qpart.noise import fit_budget, law_of, num_changed, squared_error, squared_margin, upper_bound


def test_margin_error_and_changes_by_hand():
    logits = np.array([[1, 3, 0], [5, 1, 2]], np.float32)
    other = np.array([[1, 2, 4], [5, 1, 3]], np.float32)
    assert squared_margin(logits) == ((3 - 1) ** 2 + (5 - 2) ** 2) / 2 / 2
    assert squared_error(other, logits) == 1 + 16 + 1
    assert num_changed(other, logits) == 1


@pytest.mark.parametrize("logits", [np.ones((3, 1)), np.ones((3, 4)), np.full((3, 4), np.nan)])
def test_models_without_a_margin_are_refused(logits):
    with pytest.raises(UnsupportedModel):
        squared_margin(logits.astype(np.float32))


@pytest.mark.parametrize("total", [1, 2, 7, 50, 400, 1000])
def test_upper_bound_is_clopper_and_pearsons_for_every_count(total):
    seen = np.arange(total + 1)
    found = upper_bound(seen, total)
    assert found[-1] == 1.0
    np.testing.assert_allclose(found[:-1], stats.beta.ppf(0.95, seen[:-1] + 1, total - seen[:-1]), rtol=1e-12)
    for k in {0, total // 2, total}:
        interval = stats.binomtest(k, total, alternative="less").proportion_ci(0.95, method="exact")
        assert found[k] == pytest.approx(interval.high, rel=1e-9)


@pytest.mark.parametrize("total", [1, 2, 7, 50, 400, 1000])
def test_upper_bound_covers_every_share_95_times_in_100_or_more(total):
    """Summed exactly, not drawn: least is covered where the share is just beyond a bound, so these are tried, too."""
    seen = np.arange(total + 1)
    bound = upper_bound(seen, total)
    for share in [*np.linspace(0.001, 0.999, 101), *np.minimum(bound[:-1] * (1 + 1e-9), 1.0)[:: max(1, total // 100)]]:
        assert stats.binom.pmf(seen, total, share)[bound >= share].sum() >= 0.95 - 1e-6


@pytest.mark.parametrize("total", [1, 3, 1000, 10**7])
def test_upper_bound_of_fractions_lies_between_those_of_their_neighbours(total):
    seen = np.unique(np.concatenate([np.linspace(0, total, 999), total - np.geomspace(1e-9, total, 99)]))
    found = upper_bound(seen, total)
    assert np.isfinite(found).all()
    assert (np.diff(found) >= 0).all()
    assert (found >= seen / total).all()
    assert (found <= 1).all()
    assert (found >= upper_bound(np.floor(seen), total)).all()


def test_upper_bound_covers_a_share_that_was_pooled_over_dependent_patterns():
    """What an isotonic fit pools: patterns of one share run on the same inputs, so their counts go together."""
    random, total, share = np.random.default_rng(3), 400, 0.01
    for together in (0.0, 0.5, 1.0):  # share of what changes that changes under every pattern
        common = random.binomial(total, together * share, 20_000)
        own = random.binomial(total, (1 - together) * share, (4, 20_000)).mean(axis=0)
        assert (upper_bound(common + own, total) >= share).mean() >= 0.95


def made_up(random, count=300, total=2000):
    """Patterns whose share of changes is 0.2 sqrt(psi), give or take."""
    psi = 10 ** random.uniform(-5, 0, count)
    share = np.clip(0.2 * np.sqrt(psi) * random.lognormal(0, 0.1, count), 0, 1)
    return psi, random.binomial(total, share)


def test_budget_holds_for_new_patterns_of_the_same_law():
    random = np.random.default_rng(1)
    found = fit_budget(*made_up(random), 2000)
    psi, _ = made_up(random, 4000)
    for accuracy in (0.005, 0.01, 0.03, 0.1):
        budget = found.budget(accuracy)
        true = 0.2 * np.sqrt(psi[psi <= budget])
        assert (true <= accuracy).all()
        assert 0.2 * np.sqrt(budget) > accuracy / 3, "not so careful that nothing is left"


def test_budget_rises_with_the_accuracy_drop():
    found = fit_budget(*made_up(np.random.default_rng(2)), 2000)
    budgets = [found.budget(a) for a in np.linspace(0.0005, 0.3, 200)]
    assert budgets == sorted(budgets)


def test_patterns_of_equal_noise_and_of_none_are_taken_together():
    found = fit_budget([0.0, 0.0, 0.1, 0.1, 0.2], [0, 0, 1, 5, 5], 100)
    # Shares .01 .05 .05 pool to steps of .01 and .05: of equal noise the first step ends where the second begins.
    assert found.psi[0] == 0.1
    assert found.psi[-1] <= 0.2
    assert list(found.accuracy) == sorted(found.accuracy)


def test_the_first_step_counts_to_its_end():
    found = fit_budget([1e-9, 1e-6, 1e-4, 1e-2], [0, 0, 0, 50], 1000)
    assert found.psi == (1e-4, 1e-2)
    assert found.accuracy[0] == pytest.approx(upper_bound(0, 1000))


def test_quantisation_that_changes_nothing_cannot_be_planned():
    with pytest.raises(UnsupportedModel, match="nothing to plan"):
        fit_budget([0.0, 0.0], [0, 0], 100)


def test_the_law_of_a_tensor_is_fitted_and_judged():
    steps = np.arange(2, 9)
    law = law_of([*(3.0 * np.exp(-1.3 * steps)), 0.0])
    assert (law.alpha, law.scale, law.r2) == pytest.approx((1.3, 3.0, 1.0))
    assert law.holds
    wrong = 3.0 * np.exp(-1.3 * steps)
    wrong[:2] *= 40  # at 2 and 3 bits it is wrong by an order of magnitude
    law = law_of([*wrong, 0.0])
    assert not law.holds
    assert law.low > 2
    assert law.r2 < 1


def test_no_law_is_made_of_nothing():
    assert law_of([0.0] * 8) == law_of([1.0, *[0.0] * 7])
    assert not law_of([0.0] * 8).holds
