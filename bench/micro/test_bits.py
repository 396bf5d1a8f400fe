"""Low-bit codes beside their peers, in one run: python -m pytest bench/micro/test_bits.py.

Quantising is fused with packing, unpacking with dequantising: floats in, bytes out, and back. Every peer gets the
same values and bytes, writes into arrays made once where it can, runs on one thread, and is checked before it is
timed: numpy and torch must give our bytes and floats to the bit, gguf what its own format can hold.
"""

import importlib.util
import time
from typing import Any

import numpy as np
import pytest
from edgekernels import _bits_reference, backend, packed_bytes

from bench.micro._bits_peers import PEERS, Case

CASES = [(bits, peer) for bits in (2, 3, 4, 8) for peer in PEERS if peer != "gguf" or bits in (4, 8)]
BUDGET_S = 0.5  # of one peer in one case


def check(peer: Any, case: Case, packed: Any, values: Any, own_format: bool) -> None:
    """Fail unless the peer's bytes and values are those of the case."""
    if own_format:  # of 4 bits, halves at -8 d .. 7 d of the largest; of 8, rounded: a step of range / 15 or / 254
        step = np.abs(case.values).max(axis=1, keepdims=True) / {4: 8, 8: 127}[case.bits]
        assert np.all(np.abs(peer.dequantise() - case.values) <= 1.01 * step)
        return
    assert peer.quantise().tobytes() == packed.tobytes()
    assert peer.dequantise().tobytes() == values.tobytes()


@pytest.mark.parametrize("way", ["dequantise", "quantise"])
@pytest.mark.parametrize(("bits", "peer_name"), CASES)
def test_bits(benchmark: Any, bits: int, peer_name: str, way: str) -> None:
    if peer_name in ("torch", "gguf") and importlib.util.find_spec(peer_name) is None:
        pytest.skip(f"the peer needs {peer_name}: pip install edgebus[dev]")
    if peer_name == "torch":
        import torch

        torch.set_num_threads(1)
    case = Case(bits)
    packed = np.empty(packed_bytes(case.values.size, bits), np.uint8)
    values = np.empty_like(case.values)
    rows = {"scale": case.scale, "offset": case.offset, "align_rows": False}
    _bits_reference.quantise(case.values, bits, packed=packed, **rows)
    _bits_reference.dequantise(packed, bits, values=values, **rows)
    peer = PEERS[peer_name](case, packed)
    check(peer, case, packed, values, peer_name == "gguf")
    work = getattr(peer, way)
    started = time.perf_counter()
    work()
    rounds = int(np.clip(BUDGET_S / (time.perf_counter() - started), 5, 500))
    benchmark.group = f"{way} b={bits}"
    benchmark.extra_info |= {"peer": peer_name, "backend": backend(), "way": way, "bits": bits}
    benchmark.extra_info["float_bytes"] = case.values.nbytes
    if backend() == "cython":
        from edgekernels import _bits

        benchmark.extra_info["level"] = _bits.level()
    benchmark.pedantic(work, rounds=rounds, warmup_rounds=1)
