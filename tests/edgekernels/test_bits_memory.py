"""Kernels of low-bit codes stay within their buffers, each of which ends where the readable memory does."""

import pytest

from tests.edgekernels.scripts import linux_only, run

GUARD = """
from edgekernels import _accept, _bits, _select
from edgekernels import dequantise, fit, merge_planes, pack, packed_bytes, quantise, split_planes, unpack

_bits.set_level(sys.argv[1])
_select.use(_accept)
rng = np.random.default_rng(0)
"""
GROUPS = """
for bits in range(1, 9):
    for rows, count, group in ((1, 1, 1), (3, 2, 3), (1, 3, 16), (2, 5, 16), (3, 1, 17), (1, 1, 64), (2, 3, 64),
                               (1, 20, 64), (2, 9, 128), (1, 65, 64), (3, 2, 100)):
        columns = count * group
        scale = guarded(rng.uniform(0.1, 1, (rows, count)).astype(np.float32))
        offset = guarded(rng.normal(0, 1, (rows, count)).astype(np.float32))
        values = guarded(rng.normal(0, 1, (rows, columns)).astype(np.float32))
        for aligned in (False, True):
            settings = {"scale": scale, "offset": offset, "group": group, "align_rows": aligned}
            shape = (rows, packed_bytes(columns, bits)) if aligned else packed_bytes(rows * columns, bits)
            packed = quantise(values, bits, out=guarded(np.zeros(shape, np.uint8)), **settings)
            for name, dtype in (("float32", np.float32), ("float16", np.float16), ("bfloat16", np.uint16)):
                out = guarded(np.zeros((rows, columns), dtype))
                dequantise(packed, bits, columns=columns, dtype=name, out=out, **settings)
        for grid in ("asymmetric", "symmetric", "even"):
            fit(values, bits, group=group, grid=grid)
        fit(values, bits)
        keep.clear()
print("clean")
"""
PLANES = """
for bits in range(1, 9):
    for n in [*range(1, 34), 63, 64, 65, 127, 128, 129, 200, 511, 512, 513, 4095, 4096, 4097, 4160, 8200]:
        packed = guarded(rng.integers(0, 256, packed_bytes(n, bits), np.uint8))
        planes = split_planes(packed, n, bits, out=guarded(np.zeros((bits, packed_bytes(n, 1)), np.uint8)))
        merge_planes(planes, n, out=guarded(np.zeros_like(packed)))
        keep.clear()
print("clean")
"""
LARGE = """
columns, group = 4160, 64
rows = min(_bits.cache_bytes(), 64 << 20) // (4 * columns) + 2
packed = guarded(np.zeros(packed_bytes(rows * columns, 3), np.uint8))
scale = guarded(np.ones((rows, columns // group), np.float32))
out = guarded(np.ones((rows, columns), np.float32))
dequantise(packed, 3, scale=scale, offset=0.0, columns=columns, group=group, out=out)
assert not out.any()
print("clean")
"""
SHORT = """
packed = guarded(np.zeros(24, np.uint8))
_bits.dequantise(packed, 4, scale=np.ones(1, np.float32), offset=np.ones(1, np.float32), align_rows=False,
                 values=np.zeros((1, 64), np.float32))  # 64 codes of 4 bits are 32 bytes
print("clean")
"""


@linux_only
@pytest.mark.parametrize("script", [GROUPS, PLANES, LARGE], ids=["groups", "planes", "large"])
def test_nothing_is_touched_beyond_the_buffers(bits_level, script):
    result = run(GUARD + script, bits_level, timeout=100)
    assert (result.returncode, result.stdout) == (0, "clean\n"), result.stderr


@linux_only
def test_guard_pages_do_stop_a_read(bits_level):
    assert run(GUARD + SHORT, bits_level).returncode < 0
