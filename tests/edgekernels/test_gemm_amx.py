"""The kernels for AMX on processors without it: compiled with tiles emulated in C, they equal the reference.

Where AMX is there, the fixtures of test_gemm_levels.py run the real instructions; the test of the machine code's
operand order below can only be made here, from the bytes.
"""

import ctypes
import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from edgekernels import PackedMatrix, _gemm_reference

SOURCES = Path(__file__).parents[2] / "kernels" / "csrc"
FLAGS = ["-O1", "-ffp-contract=off", "-fPIC", f"-I{SOURCES}", "-DFEWEST_TOKENS=4"]
REST = """
#include "gemm.h"
/* In place of the kernels of avx512_vnni, which get the tokens that do not fill a tile: marks their results. */
static void mark(const ek_packed *matrix, const ek_tokens *tokens, int64_t count, int64_t from, int64_t to,
                 const float *bias, float *y, int64_t stride)
{
    for (int64_t t = 0; t < count; t++)
        for (int64_t r = from; r < to; r++)
            y[t * stride + r] = 1000 + tokens->codes[t * matrix->columns] + (bias ? bias[r] : 0);
}
const ek_gemm ek_gemm_avx512_vnni = {"marks", 0, 0, mark, 0};
"""
pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="tiles are a matter of x86-64"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler"),
]


class Packed(ctypes.Structure):
    _fields_ = [
        ("rows", ctypes.c_int64), ("columns", ctypes.c_int64), ("bits", ctypes.c_int32), ("group", ctypes.c_int32),
        ("bend", ctypes.c_int32), ("half_scales", ctypes.c_int32), ("data", ctypes.c_void_p),
        ("scale", ctypes.c_void_p), ("offset", ctypes.c_void_p),
    ]  # fmt: skip


class Tokens(ctypes.Structure):
    _fields_ = [("codes", ctypes.c_void_p), ("scale", ctypes.c_void_p), ("sum", ctypes.c_void_p)]


MULTIPLY = ctypes.CFUNCTYPE(
    None, ctypes.POINTER(Packed), ctypes.POINTER(Tokens), ctypes.c_int64, ctypes.c_int64, ctypes.c_int64,
    ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64,
)  # fmt: skip


class Kernels(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p), ("quantise", ctypes.c_void_p), ("sum_groups", ctypes.c_void_p),
        ("quantised", MULTIPLY), ("floats", ctypes.c_void_p),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """The kernels for AMX over emulated tiles."""
    try:
        from edgekernels import _gemm
    except ImportError:
        pytest.skip("the compiled kernels are not built")
    if "avx512_vnni" not in _gemm.levels():
        pytest.skip("the rest of these kernels needs avx512_vnni")
    folder = tmp_path_factory.mktemp("amx")
    (folder / "rest.c").write_text(REST)
    command = ["cc", *FLAGS, "-shared", "-DEK_EMULATE_TILES", str(SOURCES / "gemm_amx.c"), str(folder / "rest.c")]
    built = subprocess.run([*command, "-o", str(folder / "amx.so")], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    library = ctypes.CDLL(str(folder / "amx.so"))
    try:
        return Kernels.in_dll(library, "ek_gemm_amx")
    except ValueError:
        pytest.skip("this compiler knows no tiles")


def multiply(kernels, matrix, x, *, bias=None, first=0, last=None):
    """Products by these kernels, and by the reference, NaN where nothing is asked for."""
    groups = matrix.columns // matrix.group
    codes, scale, sums = np.empty(x.shape, np.int8), *np.empty((2, len(x), groups), np.float32)
    _gemm_reference.quantise_tokens(x, matrix.group, codes, scale, sums)
    packed = Packed(
        matrix.rows, matrix.columns, matrix.bits, matrix.group, -1, matrix.scale_blocks.itemsize == 2,
        matrix.data.ctypes.data, matrix.scale_blocks.ctypes.data,
        None if matrix.symmetric else matrix.offset_blocks.ctypes.data,
    )  # fmt: skip
    tokens = Tokens(codes.ctypes.data, scale.ctypes.data, sums.ctypes.data)
    y = np.full((len(x), matrix.rows), np.nan, np.float32)
    last = matrix.rows if last is None else last
    added = None if bias is None else bias.ctypes.data
    kernels.quantised(packed, tokens, len(x), first, last, added, y.ctypes.data, matrix.rows)
    wanted = np.empty_like(y)
    _gemm_reference.multiply(matrix, x, bias=bias, y=wanted, quantised=True, num_threads=1)
    wanted[:, :first] = wanted[:, last:] = np.nan
    return y, wanted, codes


def random_matrix(rng, rows, columns, bits, group, symmetric, dtype):
    codes = rng.integers(0, 1 << bits, (rows, columns)).astype(np.uint8)
    scale = rng.normal(0, 1, (rows, columns // group)).astype(dtype)
    offset = None if symmetric else rng.normal(0, 1, scale.shape).astype(dtype)
    return PackedMatrix.from_codes(codes, bits, group=group, scale=scale, offset=offset)


@pytest.mark.parametrize("group", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("bits", range(1, 9))
def test_emulated_tiles_equal_the_reference(emulated, bits, group):
    rng = np.random.default_rng(bits * group)
    for rows, tokens, symmetric, dtype in ((1, 4, False, "f4"), (33, 7, True, "f2"), (80, 16, False, "f2")):
        columns = 256 * int(rng.integers(1, 3)) + (16 if group == 16 else 0)
        matrix = random_matrix(rng, rows, columns, bits, group, symmetric, dtype)
        x = rng.normal(0, 1, (tokens, columns)).astype(np.float32)
        bias = rng.normal(0, 1, rows).astype(np.float32)
        y, wanted, _ = multiply(emulated, matrix, x, bias=bias)
        assert y.tobytes() == wanted.tobytes()


def test_slices_of_rows_and_tokens_that_fill_no_tile(emulated):
    rng = np.random.default_rng(0)
    matrix = random_matrix(rng, 150, 128, 4, 32, False, "f2")
    x = rng.normal(0, 1, (39, 128)).astype(np.float32)  # 16 + 16 + 7
    y, wanted, _ = multiply(emulated, matrix, x, first=16, last=150)
    assert y.tobytes() == wanted.tobytes()
    x = x[:19]  # 16 + 3, which the other kernels get
    y, wanted, codes = multiply(emulated, matrix, x, first=0, last=80)
    assert y[:16].tobytes() == wanted[:16].tobytes()
    assert np.array_equal(y[16:, :80], np.repeat(1000.0 + codes[16:, :1], 80, axis=1).astype(np.float32))
    assert np.isnan(y[16:, 80:]).all()


def test_the_product_of_tiles_takes_signed_activations_and_unsigned_codes(tmp_path):
    """tdpbsud tmm0 += tmm4 (signed) . tmm5 (unsigned) is C4 E2 52 5E C4: prefix F3, tmm5 in vvvv, tmm4 in rm."""
    source = tmp_path / "dot.c"
    source.write_text('#include "gemm_tiles.h"\nvoid dot(void) { TILE_DOT(0, 4, 5); }\n')
    built = subprocess.run(
        ["cc", *FLAGS, "-c", str(source), "-o", str(tmp_path / "dot.o")], capture_output=True, text=True, check=False
    )
    if built.returncode and "tdpbsud" in built.stderr:
        pytest.skip("this assembler knows no tiles")
    assert built.returncode == 0, built.stderr
    assert bytes.fromhex("C4E2525EC4") in (tmp_path / "dot.o").read_bytes()
