"""The limits of this machine, measured in the same run as what is held against them: how fast memory is read.

`python -m bench.limits` prints a table. bench/limits.c is built for this machine with the C compiler at hand.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.others import undisturbed

ROOT = Path(__file__).parents[1]
SOURCE = Path(__file__).with_suffix(".c")
LIBRARY = ROOT / "build" / "bench" / "limits.so"
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
_READ_BYTES = 64 << 20  # of one timed reading: some milliseconds, beside which starting threads is nothing
_WINDOWS, _WINDOW_S = 2, 0.1


@functools.cache
def _library() -> ctypes.CDLL:
    """Built anew if the source is younger."""
    if not LIBRARY.is_file() or LIBRARY.stat().st_mtime < SOURCE.stat().st_mtime:
        LIBRARY.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([os.environ.get("CC", "cc"), *_FLAGS, "-o", str(LIBRARY), str(SOURCE)], check=True)
    library = ctypes.CDLL(str(LIBRARY))
    library.limits_read.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int]
    library.limits_read.restype = ctypes.c_uint64
    return library


def buffer(num_bytes: int) -> NDArray[np.uint8]:
    """Memory to read, 64-byte aligned and written to, so that it has pages of its own."""
    whole = np.ones(num_bytes + 64, np.uint8)
    start = -whole.ctypes.data % 64
    return whole[start : start + num_bytes]


def read(memory: NDArray[np.uint8], num_threads: int, passes: int = 1) -> None:
    """Read memory from `buffer`, each thread its part, `passes` times."""
    _library().limits_read(memory.ctypes.data, memory.nbytes, passes, num_threads)


def read_gb_per_s(num_bytes: int, num_threads: int) -> float:
    """The best of many readings of `num_bytes` in all, again and again, some of them while no other process ran."""
    memory = buffer(num_bytes)
    passes = max(1, _READ_BYTES // num_bytes)
    best_s = float("inf")
    for _, counts in undisturbed(_WINDOWS):
        until = time.perf_counter() + _WINDOW_S
        while (started := time.perf_counter()) < until:
            read(memory, num_threads, passes)
            best_s = min(best_s, time.perf_counter() - started)
        counts()
    return passes * num_bytes / best_s / 1e9


def cache_bytes(level: int) -> int:
    """Size of the first processor's data cache of a level; 0 if the system does not say."""
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        if (index / "level").read_text().strip() == str(level) and (
            index / "type"
        ).read_text().strip() != "Instruction":
            return int((index / "size").read_text().strip().removesuffix("K")) << 10
    return 0


def sizes() -> dict[str, int]:
    """Bytes that lie in L2 (of one core), in L3, and in neither, with room beside them."""
    l2, l3 = cache_bytes(2) or 1 << 20, cache_bytes(3) or 32 << 20
    return {"L2": l2 // 2, "L3": l3 // 4, "DRAM": 4 * l3}


def table(threads: tuple[int, ...] = (1, 2)) -> dict[str, dict[str, float]]:
    """GB/s of reading by place and number of threads; in L2 every thread has as much as fits its own."""
    return {
        place: {
            str(count): round(read_gb_per_s(num_bytes * (count if place == "L2" else 1), count), 1) for count in threads
        }
        for place, num_bytes in sizes().items()
    }


if __name__ == "__main__":
    print(sizes())
    for place, rates in table().items():
        print(place, " ".join(f"{count} threads: {rate} GB/s" for count, rate in rates.items()))
