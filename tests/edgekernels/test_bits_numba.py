"""The numba kernels of low-bit codes equal the numpy reference to the bit; skipped where numba is not installed."""

import numpy as np
import pytest
from edgekernels import _bits_reference, packed_bytes

pytest.importorskip("numba")

from edgekernels import _bits_numba

SHAPES = [(1, 1, 1), (5, 9, 3), (3, 16, 16), (2, 63, 63), (3, 128, 64), (2, 320, 32), (3, 785, 785)]
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 1e-39, 3.4e38, -3.4e38], np.float32)


def both(function, *arguments, out, **keywords):
    """What numba and the reference write and return."""
    answers = []
    for backend in (_bits_numba, _bits_reference):
        mine = {name: np.zeros_like(array) for name, array in out.items()}
        answers.append((getattr(backend, function)(*arguments, **keywords, **mine), mine))
    return answers


def check(function, *arguments, out, **keywords):
    mine, wanted = both(function, *arguments, out=out, **keywords)
    assert mine[0] == wanted[0]
    for name in out:
        assert mine[1][name].tobytes() == wanted[1][name].tobytes(), (function, name)
    return wanted[1]


@pytest.mark.parametrize("bits", range(1, 9))
def test_streams_and_planes_equal_the_reference(bits):
    rng = np.random.default_rng(bits)
    for num_codes in [0, 1, 7, 8, 9, 63, 64, 65, 1000, 4099]:
        codes = rng.integers(0, 1 << bits, num_codes).astype(np.uint8)
        packed = check("pack", codes, bits, out={"packed": np.empty(packed_bytes(num_codes, bits), np.uint8)})["packed"]
        check("unpack", packed, bits, out={"codes": codes})
        planes = np.empty(bits * packed_bytes(num_codes, 1), np.uint8)
        check("split", packed, num_codes, bits, out={"planes": planes})
        planes = rng.integers(0, 256, planes.shape, np.uint8)
        check("merge", planes, num_codes, bits, out={"packed": packed})


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bits", range(1, 9))
def test_values_equal_the_reference(bits, shape, aligned):
    rows, columns, group = shape
    rng = np.random.default_rng(bits)
    count = rows * columns // group
    scale = rng.choice(np.array([0, 0.25, 1, 3, 1e-3], np.float32), count)
    offset = rng.choice(np.array([0, -0.5, 100, -1e-4], np.float32), count)
    values = rng.normal(0, 20, (rows, columns)).astype(np.float32)
    spoilt = rng.random(values.shape) < 0.1
    values[spoilt] = rng.choice(SPECIAL, spoilt.sum())
    size = rows * packed_bytes(columns, bits) if aligned else packed_bytes(rows * columns, bits)
    both_ways = {"scale": scale, "offset": offset, "align_rows": aligned}
    packed = check("quantise", values, bits, out={"packed": np.empty(size, np.uint8)}, **both_ways)["packed"]
    for dtype in (np.float32, np.float16, np.uint16):
        check("dequantise", packed, bits, out={"values": np.empty((rows, columns), dtype)}, **both_ways)


@pytest.mark.parametrize("search", [False, True])
@pytest.mark.parametrize("grid", range(3))
@pytest.mark.parametrize("bits", range(1, 9))
def test_fits_equal_the_reference(bits, grid, search):
    rng = np.random.default_rng(bits)
    for columns in (1, 5, 16, 17, 64, 5000):
        values = (rng.standard_normal((5, columns)) * rng.choice([1e-38, 1e-3, 1e30])).astype(np.float32)
        values[0], values[1], values[2] = 0, np.abs(values[1]), np.round(values[2])
        parts = {"scale": np.empty(5, np.float32), "offset": np.empty(5, np.float32)}
        check("fit", values, bits, out=parts, grid=grid, search=search)
    for bad in (np.nan, -np.inf, 1e38):
        values = np.ones((3, 4), np.float32)
        values[1, 2] = bad
        assert _bits_numba.fit(values, bits, grid=grid, search=search, **parts) == 1
