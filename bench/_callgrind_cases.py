"""A fixed list of kernel calls whose instructions are counted by bench/callgrind.py, which runs this under valgrind.

What is counted is spent within the functions of the extension modules COUNTED. A new family adds its module and a few
cases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from edgekernels import (
    accept,
    dequantise,
    fit,
    merge_planes,
    noise_bits,
    pack,
    packed_bytes,
    quantise,
    sample,
    split_planes,
    unpack,
)

COUNTED = ("_accept", "_bits")  # extension modules
ROWS, COLUMNS, GROUP = 64, 1024, 64
Case = tuple[str, Callable[[], object]]


def bits_cases() -> Iterator[Case]:
    """65,536 codes in groups of 64."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((ROWS, COLUMNS), np.float32)
    scale = rng.uniform(0.1, 1, (ROWS, COLUMNS // GROUP)).astype(np.float32)
    grouped = {"scale": scale, "offset": -scale, "group": GROUP}
    for bits in (3, 4, 8):
        codes = rng.integers(0, 1 << bits, values.size).astype(np.uint8)
        packed = rng.integers(0, 256, packed_bytes(values.size, bits), np.uint8)
        planes = rng.integers(0, 256, (bits, packed_bytes(values.size, 1)), np.uint8)
        floats, halves = np.empty_like(values), np.empty(values.shape, np.float16)
        yield f"pack b={bits}", lambda b=bits, c=codes: pack(c, b)
        yield f"unpack b={bits}", lambda b=bits, p=packed: unpack(p, ROWS * COLUMNS, b)
        yield f"quantise b={bits}", lambda b=bits: quantise(values, b, **grouped)
        yield (
            f"dequantise b={bits}",
            lambda b=bits, p=packed, out=floats: dequantise(p, b, columns=COLUMNS, out=out, **grouped),
        )
        yield (
            f"dequantise b={bits} float16",
            lambda b=bits, p=packed, out=halves: dequantise(p, b, columns=COLUMNS, dtype="float16", out=out, **grouped),
        )
        yield f"split b={bits}", lambda b=bits, p=packed: split_planes(p, ROWS * COLUMNS, b)
        yield f"merge b={bits}", lambda p=planes: merge_planes(p, ROWS * COLUMNS)
    yield "fit b=4", lambda: fit(values[:8], 4, group=GROUP)
    yield "fit b=4 symmetric", lambda: fit(values[:8], 4, group=GROUP, grid="symmetric")


def accept_cases() -> Iterator[Case]:
    """A vocabulary of 32,000, four drafts, all of them accepted."""
    logits = np.random.default_rng(0).normal(0, 3, (5, 32_000)).astype(np.float32)
    for name, settings in (
        ("greedy", {"temperature": 0.0}),
        ("sampled", {"temperature": 0.8}),
        ("top_k=50", {"temperature": 0.8, "top_k": 50}),
        ("top_p=0.9", {"temperature": 0.8, "top_p": 0.9}),
    ):
        rows = sample_on_numpy(logits, settings)
        yield f"accept {name}", lambda d=rows[:4], s=settings: accept(logits, d, np.array([0, 5]), **s)
        yield f"sample {name}", lambda s=settings: sample(logits[:1], **s)
    ids = np.arange(32_000, dtype=np.int32)
    yield "noise_bits", lambda: noise_bits(1, 2, ids)


def sample_on_numpy(logits: np.ndarray, settings: dict[str, float]) -> np.ndarray:
    """What the rows choose, without a call that would be counted."""
    from edgekernels import _reference, _select

    before = _select.active
    _select.use(_reference)
    try:
        return sample(logits, position=np.arange(len(logits)), **settings)
    finally:
        _select.use(before)


def cases() -> Iterator[Case]:
    """All of them, in the order in which they are run."""
    yield from bits_cases()
    yield from accept_cases()


if __name__ == "__main__":
    import ctypes
    import sys

    dump = ctypes.CDLL(sys.argv[1]).dump  # of the counts since the last one, under a name
    for _name, call in cases():
        call()
        dump(_name.encode())
