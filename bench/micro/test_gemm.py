"""Products of packed weights beside their peers, each by itself: python -m pytest bench/micro/test_gemm.py.

4096 x 4096, groups of 64, one thread, the weights in L3; every answer is checked before it is timed. What is compared
closely takes turns instead: python -m bench.micro.gemm.
"""

import time
from typing import Any

import numpy as np
import pytest
from edgekernels import backend

from bench.micro import _gemm_peers as peers

CASES = [(bits, name) for bits in peers.WIDTHS for name in peers.contenders(bits)]
BUDGET_S = 0.5  # of one contender in one case


@pytest.fixture(scope="module")
def cases() -> dict[tuple[int, int], peers.Case]:
    """Weights are the same for all."""
    return {(bits, m): peers.case_of(bits, m, "L3") for bits in peers.WIDTHS for m in (1, 8)}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("m", [1, 8])
@pytest.mark.parametrize(("bits", "name"), CASES)
def test_gemm(benchmark: Any, cases: dict[tuple[int, int], peers.Case], bits: int, name: str, m: int) -> None:
    case = cases[bits, m]
    try:
        contender = peers.contenders(bits)[name](case)
        contender.prepare(1)
        contender.turn()
    except (ImportError, NotImplementedError, ValueError) as error:
        pytest.skip(f"{name} cannot be measured here: {error}")
    peers.check(contender, case)
    started = time.perf_counter()
    contender.turn()
    rounds = int(np.clip(BUDGET_S / (time.perf_counter() - started), 5, 200))
    benchmark.group = f"gemm b={bits} m={m}"
    benchmark.extra_info |= {"peer": name, "backend": backend(), "m": m, "products": contender.products}
    benchmark.pedantic(contender.turn, rounds=rounds, warmup_rounds=1)
