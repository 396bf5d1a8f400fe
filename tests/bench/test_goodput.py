"""What the benchmark of window limits says of its own yardstick."""

from __future__ import annotations

import pytest

from bench.macro.goodput import _gained


def test_what_the_best_window_of_a_run_gains_over_the_best_of_all_others():
    runs = [{0: 10.0, 1: 11.0}, {0: 10.0, 1: 11.0}, {0: 12.0, 1: 10.0}]
    # the other two runs say 0, 0 and 1: 11 for 10, 11 for 10, and 12 for 10
    assert _gained(runs) == pytest.approx((0.1 + 0.1 + 0.2) / 3, abs=1e-6)
    assert _gained([{0: 10.0, 1: 11.0}] * 3) == 0.0
    assert _gained(runs[:1]) == 0.0  # there are no others
