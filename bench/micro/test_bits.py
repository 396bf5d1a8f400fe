"""Low-bit codes beside their peers, in one run: python -m pytest bench/micro/test_bits.py.

Quantising is fused with packing, unpacking with dequantising: floats in, bytes out, and back. Every peer gets the
same values and bytes, writes into arrays made once where it can, runs on one thread, and is checked before it is
timed: numpy and torch must give our bytes and floats to the bit, libraries what their own formats can hold.
"""

import importlib.util
import time
from typing import Any

import numpy as np
import pytest
from edgekernels import _bits_reference, backend, packed_bytes

from bench.micro._bits_case import Case
from bench.micro._bits_libraries import LIBRARIES
from bench.micro._bits_peers import PEERS

CASES = [(bits, peer) for bits in (2, 3, 4, 8) for peer in PEERS]
OWN = [(bits, name) for name, peer in LIBRARIES.items() for bits in peer.BITS]
BUDGET_S = 0.4  # of one peer in one case


def describe(benchmark: Any, bits: int, peer: str, way: str, case: Case) -> None:
    """What a row of the results says of itself."""
    benchmark.group = f"{way} b={bits}"
    benchmark.extra_info |= {"peer": peer, "backend": backend(), "way": way, "bits": bits}
    benchmark.extra_info["float_bytes"] = case.values.nbytes
    if backend() == "cython":
        from edgekernels import _bits

        benchmark.extra_info["level"] = _bits.level()


def measure(benchmark: Any, work: Any) -> None:
    """As many rounds as the budget allows."""
    started = time.perf_counter()
    work()
    rounds = int(np.clip(BUDGET_S / (time.perf_counter() - started), 5, 500))
    benchmark.pedantic(work, rounds=rounds, warmup_rounds=1)


def one_thread() -> None:
    """torch and what stands on it use one thread."""
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(1)


@pytest.mark.parametrize("way", ["dequantise", "quantise"])
@pytest.mark.parametrize(("bits", "peer_name"), CASES)
def test_bits(benchmark: Any, bits: int, peer_name: str, way: str) -> None:
    if peer_name == "torch" and importlib.util.find_spec(peer_name) is None:
        pytest.skip(f"the peer needs {peer_name}: pip install edgebus[dev]")
    one_thread()
    case = Case(bits)
    packed = np.empty(packed_bytes(case.values.size, bits), np.uint8)
    values = np.empty_like(case.values)
    rows = {"scale": case.scale, "offset": case.offset, "align_rows": False}
    _bits_reference.quantise(case.values, bits, packed=packed, **rows)
    _bits_reference.dequantise(packed, bits, values=values, **rows)
    peer = PEERS[peer_name](case, packed)
    assert peer.quantise().tobytes() == packed.tobytes()
    assert peer.dequantise().tobytes() == values.tobytes()
    describe(benchmark, bits, peer_name, way, case)
    measure(benchmark, getattr(peer, way))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["dequantise", "quantise"])
@pytest.mark.parametrize(("bits", "peer_name"), OWN)
def test_libraries(benchmark: Any, bits: int, peer_name: str, way: str) -> None:
    needed = LIBRARIES[peer_name].NEEDS
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"the peer needs {needed}")
    one_thread()
    case = Case(bits)
    peer: Any = LIBRARIES[peer_name](case)
    error = np.abs(peer.dequantise().reshape(case.values.shape) - case.values)
    step = np.abs(case.values).max(axis=1, keepdims=True) / (1 << (bits - 1))
    assert np.all(error <= 1.3 * step)
    assert np.square(error).mean() < np.square(step).mean() / 4  # it has computed something
    describe(benchmark, bits, peer_name, way, case)
    measure(benchmark, getattr(peer, way))
