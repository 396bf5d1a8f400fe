"""Paged attention beside torch's, in one run: python -m bench.attention.

Decoding (1 token) and verifying (5 tokens) for 1, 16 and 64 sessions of 512 positions, and a prompt of 512 tokens, at
the shapes of SmolLM2-135M and of a model of 8B, on one thread and on two (`-k one` where the second processor has other
work: threads which wait for one that does not run say nothing). Answers are checked before they are timed.
"""

import importlib.util
import time
from typing import Any

import numpy as np
import pytest
from edgekernels import backend

if importlib.util.find_spec("torch") is None:
    pytest.skip("the peer needs torch: pip install edgebus[torch]", allow_module_level=True)

from bench.micro._attention_peers import MODELS, PEERS, Case, Shape

CONTEXT = 512
SIZES = [(1, 1), (1, 5), (16, 1), (16, 5), (64, 1), (64, 5), (1, CONTEXT)]  # sessions, new tokens
SHAPES = [
    Shape(model, dtype, sessions, new, CONTEXT)
    for model in MODELS
    for dtype in ("float32", "bfloat16")
    for sessions, new in SIZES
    if sessions < 64 or model != "8B"  # 2 GB and no other answer
]
BUDGET_S = 0.2  # of one peer in one case
kept: dict[Shape, Case] = {}


def case_of(shape: Shape) -> Case:
    """The case, made once for all peers; only the last one is kept."""
    if shape not in kept:
        kept.clear()
        kept[shape] = Case(shape)
    return kept[shape]


@pytest.mark.parametrize("peer_name", PEERS)
@pytest.mark.parametrize("num_threads", [1, 2], ids=["one", "two"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.model} {s.dtype} {s.sessions}x{s.new}")
def test_attention(benchmark: Any, shape: Shape, num_threads: int, peer_name: str) -> None:
    case = case_of(shape)
    peer, exact = PEERS[peer_name](case, num_threads), PEERS["torch, gathered"](case, num_threads)
    peer()
    exact()
    error = float((peer.answer().double() - exact.answer().double()).abs().max())
    assert error < (1e-5 if shape.dtype == "float32" else 3e-2)
    started = time.perf_counter()
    peer()
    rounds = int(np.clip(BUDGET_S / (time.perf_counter() - started), 4, 500))
    benchmark.group = f"attention {shape.model} {shape.dtype} B={shape.sessions} q={shape.new}, {num_threads} threads"
    benchmark.extra_info |= {"peer": peer_name, "backend": backend(), "num_threads": num_threads}
    benchmark.extra_info |= {"kv_bytes": case.kv_bytes, "operations": case.operations, "error": error}
    if backend() == "cython":
        from edgekernels import _attend

        benchmark.extra_info["level"] = _attend.level()
    benchmark.pedantic(peer, rounds=rounds, warmup_rounds=1)
