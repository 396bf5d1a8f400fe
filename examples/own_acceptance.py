"""An acceptance test and a noise of your own, compiled with Numba where it is installed (pip install edgebus[numba]).

Run: python examples/own_acceptance.py
"""

import edgekernels
import numpy as np

EPSILON, DELTA = 0.09, 0.3


def typical(p: float, q: float, u: float, largest: float) -> bool:
    """After arXiv 2401.10774: likely enough in itself, or beside the likeliest token. Faster, but not lossless."""
    return p > min(EPSILON, DELTA * largest)


def xorshift(seed: int, position: int, token: int) -> int:
    """A noise word of 32 bits; all products and shifts stay within 64."""
    x = (seed & 0xFFFF) * 0x9E3779B1 ^ (position & 0xFFFF) * 0x85EBCA77 ^ (token & 0xFFFFFF) * 0xC2B2AE3D
    for _ in range(3):
        x = (x & 0xFFFFFFFF) * 0x2C1B3C6D & 0xFFFFFFFF
        x = x ^ x >> 13
    return x & 0xFFFFFFFF


def main() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (8 * 5, 32_000)).astype(np.float32)
    second = np.argsort(logits, axis=1)[:, -2].reshape(8, 5)
    drafts = second[:, :4].reshape(-1).astype(np.int32)  # a drafter that is always a little wrong
    starts = np.arange(9) * 5
    for name, rule in (("rejection", "rejection"), ("typical", edgekernels.compile_test(typical))):
        verdict = edgekernels.accept(logits, drafts, starts, temperature=1.0, rule=rule, top_p=0.95)
        print(f"{name:9} accepts {verdict.accepted.sum()} of {len(drafts)} drafts")
    noise = edgekernels.compile_noise(xorshift)
    chosen = edgekernels.sample(logits, temperature=1.0, seed=7, position=np.arange(40), noise=noise, top_k=50)
    print(f"own noise chooses {chosen[:5].tolist()} ...")


if __name__ == "__main__":
    main()
