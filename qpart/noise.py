"""Quantisation noise: how it is measured, and what share of changed predictions it leads to.

psi = mean ||logits' - logits||^2 / (mean (z1 - z2)^2 / 2), with z1, z2 the two largest logits: noise of about the
size of the margin changes predictions. Over tensors it adds up, approximately.

Source: Zhou et al., Adaptive Quantization for Deep Neural Network, AAAI'18.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from qpart.errors import UnsupportedModel
from qpart.tables import WIDTHS, BudgetMap

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

LAW_BITS = WIDTHS[:-1]
"""Widths that the law speaks of: float16 is no step of the same scale."""
LEAST_R2 = 0.95


def squared_margin(logits: Floats) -> float:
    """Half the mean squared difference of the two largest logits; logits (n, classes).

    Raises:
        UnsupportedModel: fewer than two classes, or no margin at all.
    """
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise UnsupportedModel(
            f"the model answers with shape {logits.shape[1:]}; give one with logits of 2 classes or more"
        )
    top = np.partition(logits.astype(np.float64), -2, axis=1)[:, -2:]
    margin = float(np.square(top[:, 1] - top[:, 0]).mean() / 2)
    if not (np.isfinite(margin) and margin > 0):
        raise UnsupportedModel("the two largest logits never differ, or are not finite; calibrate a trained model")
    return margin


def squared_error(logits: Floats, reference: Floats) -> float:
    """Sum over the inputs of ||logits - reference||^2; both (n, classes)."""
    difference = logits.astype(np.float64) - reference
    return float(np.square(difference).sum())


def num_changed(logits: Floats, reference: Floats) -> int:
    """Inputs whose predicted class is another one; both (n, classes)."""
    return int((logits.argmax(axis=1) != reference.argmax(axis=1)).sum())


def num_right(logits: Floats, labels: npt.NDArray[np.int64]) -> int:
    """Inputs whose predicted class is their label; logits (n, classes), labels (n,)."""
    return int((logits.argmax(axis=1) == labels).sum())


class Law(msgspec.Struct, frozen=True):
    """The law psi = scale e^(-alpha b) of one tensor, fitted to its measured noise at 2 to 8 bits, and where it holds.

    Attributes:
        scale, alpha: of the law; both 0 where nothing could be fitted.
        r2: share of the variance of log psi that it explains.
        low, high: the longest stretch of widths at which it is within a factor of 2 of what was measured; 0 if none.
    """

    scale: float
    alpha: float
    r2: float
    low: int
    high: int

    @property
    def holds(self) -> bool:
        """Whether it may stand for the table: within a factor of 2 at every width, and R^2 of 0.95 or more."""
        return self.r2 >= LEAST_R2 and (self.low, self.high) == (LAW_BITS[0], LAW_BITS[-1])


def law_of(psi: Sequence[float]) -> Law:
    """Least squares of log psi against bits; zeros have no logarithm and are left out.

    Args:
        psi: noise at each of `WIDTHS`.

    Source: Zhou et al., AAAI'18, whose alpha is ln 4.

    >>> law = law_of([4.0 ** -b for b in (2, 3, 4, 5, 6, 7, 8, 16)])
    >>> round(law.alpha, 3), round(law.scale, 3), law.low, law.high
    (1.386, 1.0, 2, 8)
    """
    row = np.array(psi[: len(LAW_BITS)], np.float64)
    known = row > 0
    if known.sum() < 2:
        return Law(0.0, 0.0, 0.0, 0, 0)
    bits, logs = np.array(LAW_BITS, np.float64)[known], np.log(row[known])
    slope, intercept = np.polyfit(bits, logs, 1)
    fitted = slope * bits + intercept
    spread = float(np.square(logs - logs.mean()).sum())
    r2 = 1 - float(np.square(logs - fitted).sum()) / spread if spread > 0 else 0.0
    near = np.zeros(len(LAW_BITS), bool)
    near[known] = np.abs(logs - fitted) <= np.log(2) + 1e-12
    low, high = _longest(near)
    return Law(float(np.exp(intercept)), float(-slope), r2, low, high)


def _longest(near: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """First and last of the longest run of widths that are true, the lower one of two; (0, 0) if there is none."""
    best, start = (0, 0), None
    for i, good in enumerate([*near.tolist(), False]):
        if good and start is None:
            start = i
        if not good and start is not None:
            if i - start > (best[1] - best[0] + 1 if best[0] else 0):
                best = LAW_BITS[start], LAW_BITS[i - 1]
            start = None
    return best


def upper_bound(changed: npt.ArrayLike, total: int, level: float = 0.95) -> Doubles:
    """One-sided upper bound of a share of which `changed` of `total` were seen, whatever the share is.

    It is the share at which so few would be seen 5 times in 100, so in no case does it cover less than 95 %. A mean of
    several counts (what an isotonic fit pools) may lie between whole numbers, and so does its bound.

    Args:
        changed: counts, 0 .. total.
        total: of how many.
        level: how sure it is.

    Source: Clopper and Pearson, 1934.

    >>> [round(float(upper_bound(k, 1000)), 4) for k in (0, 10, 100)]
    [0.003, 0.0169, 0.117]
    """
    from scipy.special import betaincinv

    seen = np.asarray(changed, np.float64)
    some = np.minimum(seen, np.nextafter(total, 0))  # where all are seen the bound is 1
    bound: Doubles = np.where(seen < total, betaincinv(some + 1, total - some, level), 1.0)
    return bound


def fit_budget(psi: npt.ArrayLike, changed: npt.ArrayLike, total: int) -> BudgetMap:
    """Map of noise to accuracy drop from random patterns.

    An isotonic fit of the shares, its upper bound for `total` predictions, raised where needed so that 95 % of the
    patterns lie under it. Each bound has its level by itself, not all of them together (docs/adr/0017). The first knot
    stands where the first step of the fit ends, the others where theirs begin, so that the line between knots runs
    above the steps.

    Args:
        psi: predicted noise of every pattern (patterns,).
        changed: how many of its `total` predictions were other ones (patterns,).

    Raises:
        UnsupportedModel: no pattern made any noise.
    """
    from scipy.optimize import isotonic_regression

    noise, share = np.asarray(psi, np.float64), np.asarray(changed, np.float64) / total
    order = np.argsort(noise, kind="stable")[np.count_nonzero(noise <= 0) :]
    if not len(order):
        raise UnsupportedModel("quantising the model changes nothing; there is nothing to plan")
    noise, share = noise[order], share[order]
    bound = upper_bound(isotonic_regression(share).x * total, total)
    raised = bound * max(1.0, float(np.quantile(share / bound, 0.95)))
    knots = np.flatnonzero(np.diff(raised, prepend=0.0) > 0)
    knots[0] = (knots[1] if len(knots) > 1 else len(raised)) - 1
    knots = knots[np.diff(noise[knots], prepend=0.0) > 0]
    return BudgetMap(tuple(noise[knots].tolist()), tuple(raised[knots].tolist()))
