"""Acceptance of drafts beside its peers, in one run: python -m pytest bench/micro/test_acceptance.py.

Every peer gets the same logits (see peaked_logits), runs on one thread, and is checked before it is timed:
its verdict, and the law it samples from. Logits stay in cache between rounds as far as they fit.
"""

import importlib.util
import time
from typing import Any

import numpy as np
import pytest
from edgekernels import _reference, backend

from bench.micro._acceptance_peers import (
    PEERS,
    WINDOW,
    Case,
    LazyNumpy,
    Transformers,
    peaked_logits,
    settings_of,
)

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "T=0.8": {"temperature": 0.8},
    "T=0.8 top_k=50": {"temperature": 0.8, "top_k": 50},
    "T=0.8 top_p=0.9": {"temperature": 0.8, "top_p": 0.9},
}
PATTERNS = {"mixed": lambda b: (2 + b) % (WINDOW + 1), "all": lambda b: WINDOW + 0 * b}
CASES = [(s, p) for s in SETTINGS for p in PATTERNS if p == "all" or "top" not in s]
BUDGET_S = 0.25  # of one peer in one case


def check(peer: Any, case: Case) -> None:
    """Fail unless the peer's verdict and law are those of the case."""
    accepted, following = peer()
    assert accepted == case.agreeing.tolist()
    assert following == [int(peer.chosen[b, n]) for b, n in enumerate(case.agreeing)]
    temperature, top_k, top_p = settings_of(case)
    row = case.logits[0]
    if temperature == 0:
        assert peer.chosen.reshape(-1).tolist() == case.logits.argmax(axis=1).tolist()
        return
    keep = _reference.survivors(row, temperature, top_k, top_p)
    assert keep[peer.chosen[0, 0]]
    law = np.where(keep, np.exp((row.astype(np.float64) - row.max()) / temperature), 0)
    own = np.zeros_like(law)
    if isinstance(peer, LazyNumpy):
        ids, weight = peer.law(row)
        own[slice(None) if ids is None else ids] = weight
    elif isinstance(peer, Transformers):
        own[:] = peer.law()[0].numpy()
    else:
        assert peer.chosen[0, 0] == _reference.choose(
            row, temperature=temperature, top_k=top_k, top_p=top_p, seed=7, position=0
        )
        return
    assert np.abs(own / own.sum() - law / law.sum()).sum() < 1e-3


@pytest.mark.parametrize("peer_name", PEERS)
@pytest.mark.parametrize(("settings", "pattern"), CASES)
@pytest.mark.parametrize("size", [(v, b) for v in (32_000, 49_152, 128_000) for b in (1, 8)], ids=str)
def test_accept(benchmark: Any, size: tuple[int, int], settings: str, pattern: str, peer_name: str) -> None:
    vocab, batch = size
    if peer_name == "transformers":
        missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
        if missing:
            pytest.skip(f"the peer needs {' and '.join(missing)}: pip install edgebus[torch]")
        import torch

        torch.set_num_threads(1)
    agreeing = np.array([PATTERNS[pattern](b) for b in range(batch)])
    case = Case(batch, vocab, SETTINGS[settings], agreeing, peaked_logits(batch * (WINDOW + 1), vocab))
    peer = PEERS[peer_name](case)
    check(peer, case)
    started = time.perf_counter()
    peer()
    rounds = int(np.clip(BUDGET_S / (time.perf_counter() - started), 3, 200))
    benchmark.group = f"V={vocab} B={batch} {settings} {pattern}"
    benchmark.extra_info |= {"peer": peer_name, "backend": backend(), "logits_bytes": case.logits.nbytes}
    if backend() == "cython":
        from edgekernels import _accept

        benchmark.extra_info["level"] = _accept.level()
    benchmark.pedantic(peer, rounds=rounds, warmup_rounds=1)
