"""Low-bit codes against what memory allows, and how many codes a second.

Dequantising is held against writing as many bytes of the same array, measured in turn with it: by ordinary stores and,
beyond the caches, past them; what is faster is the limit. One thread.
"""

import ctypes
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgekernels import _bits_checks, dequantise, fit, merge_planes, pack, packed_bytes, split_planes, unpack

GROUP, COLUMNS = 64, 512
PLACES = {"caches": 8192, "memory": 65536}  # rows: 16 and 128 MiB of float32
ROUNDS = {"caches": 400, "memory": 30}
WAYS = ("pack", "unpack", "split", "merge")


@pytest.fixture(scope="module")
def write_limit(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Writes all of an array: (address, floats, past the caches)."""
    library = tmp_path_factory.mktemp("limit") / "limit.so"
    source = Path(__file__).parent / "write_limit.c"
    subprocess.run(["cc", "-O3", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    function = ctypes.CDLL(str(library)).ek_write_limit
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    function.restype = None
    return function


@pytest.fixture(scope="module", params=sorted(PLACES))
def place(request: pytest.FixtureRequest) -> tuple[str, Any]:
    """A place in the hierarchy and an output as large as that."""
    out = _bits_checks.aligned((PLACES[request.param], COLUMNS), np.float32)
    out[:] = 0
    return request.param, out


def seconds(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@pytest.mark.parametrize("bits", range(1, 9))
def test_share(benchmark: Any, write_limit: Any, place: tuple[str, Any], bits: int) -> None:
    where, out = place
    packed = np.random.default_rng(bits).integers(0, 256, packed_bytes(out.size, bits), np.uint8)
    scale = np.random.default_rng(0).uniform(0.1, 1, (len(out), COLUMNS // GROUP)).astype(np.float32)
    ways = {"past_caches": 1, "stores": 0} if where == "memory" else {"stores": 0}  # the last leaves the array cached
    limits: dict[str, list[float]] = {name: [] for name in ways}

    def write_only() -> None:
        for name, past in ways.items():
            limits[name].append(seconds(lambda past=past: write_limit(out.ctypes.data, out.size, past)))

    def work() -> None:
        dequantise(packed, bits, scale=scale, offset=scale, columns=COLUMNS, group=GROUP, out=out)

    benchmark.pedantic(work, setup=write_only, rounds=ROUNDS[where], warmup_rounds=2)
    medians = {name: float(np.median(times)) for name, times in limits.items()}
    benchmark.group = f"share {where} b={bits}"
    benchmark.extra_info |= {"share_of": where, "bits": bits, "float_bytes": out.nbytes, "limits_s": medians}
    benchmark.extra_info["share"] = min(medians.values()) / benchmark.stats.stats.median
    sample = dequantise(
        packed[: COLUMNS * bits // 8], bits, scale=scale[:1], offset=scale[:1], columns=COLUMNS, group=GROUP
    )
    assert sample.tobytes() == out[:1].tobytes()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bits", range(1, 9))
def test_rate(benchmark: Any, bits: int, way: str) -> None:
    num_codes = 1 << 21
    rng = np.random.default_rng(bits)
    codes = rng.integers(0, 1 << bits, num_codes).astype(np.uint8)
    packed = pack(codes, bits)
    planes = split_planes(packed, num_codes, bits)
    assert np.array_equal(merge_planes(planes, num_codes), packed)
    out = {name: _bits_checks.aligned(a.shape, np.uint8) for name, a in (("c", codes), ("p", packed), ("l", planes))}
    work = {
        "pack": lambda: pack(codes, bits, out=out["p"]),
        "unpack": lambda: unpack(packed, num_codes, bits, out=out["c"]),
        "split": lambda: split_planes(packed, num_codes, bits, out=out["l"]),
        "merge": lambda: merge_planes(planes, num_codes, out=out["p"]),
    }[way]
    benchmark.group = f"rate {way} b={bits}"
    benchmark.extra_info |= {"rate_of": way, "bits": bits, "codes": num_codes}
    benchmark.pedantic(work, rounds=300, warmup_rounds=2)


@pytest.mark.parametrize("grid", ["asymmetric", "symmetric"])
@pytest.mark.parametrize("clip", ["mse", "range"])
def test_fit(benchmark: Any, grid: str, clip: str) -> None:
    values = np.random.default_rng(0).standard_normal((256, COLUMNS), np.float32)
    benchmark.group = f"fit {clip} {grid}"
    benchmark.extra_info |= {"fit": f"{clip} {grid}", "values": values.size}
    benchmark.pedantic(lambda: fit(values, 4, group=GROUP, grid=grid, clip=clip), rounds=20, warmup_rounds=1)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads(benchmark: Any, threads: int) -> None:
    """Rows shared out to Python threads: the kernels hold no lock."""
    values = np.random.default_rng(0).standard_normal((512, COLUMNS), np.float32)

    def work() -> None:
        parts = [
            threading.Thread(target=fit, args=(part, 4), kwargs={"group": GROUP}) for part in np.split(values, threads)
        ]
        for part in parts:
            part.start()
        for part in parts:
            part.join()

    benchmark.group = f"threads {threads}"
    benchmark.extra_info |= {"threads": threads}
    benchmark.pedantic(work, rounds=20, warmup_rounds=1)
