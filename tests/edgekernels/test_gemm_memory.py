"""Packed matrices: no buffer is read or written past its end, the GIL is released, scratch memory is bounded."""

import resource
import threading

import numpy as np
from edgekernels import PackedMatrix, matmul

from tests.edgekernels.gil import lets_others_run
from tests.edgekernels.scripts import linux_only, run

GUARD = """
from edgekernels import PackedMatrix, _gemm, _select, matmul

_gemm.set_level(sys.argv[1])
"""
PRODUCTS = """
rng = np.random.default_rng(0)
for bits in range(1, 9):
    for rows, columns, group, dtype in ((1, 16, 16, "f2"), (17, 48, 16, "f4"), (40, 32, 32, "f2"), (70, 64, 32, "f4"),
                                        (16, 192, 64, "f2"), (33, 256, 256, "f2")):
        front = bool(rng.integers(2))
        codes = guarded(rng.integers(0, 1 << bits, (rows, columns)).astype(np.uint8), front)
        scale = rng.normal(0, 1, (rows, columns // group)).astype(dtype)
        bends = [(None, 8)] if group == columns and columns % 32 == 0 else []
        for offset, bend in ((None, None), (scale, None), *bends):
            matrix = PackedMatrix.from_codes(codes, bits, group=group, scale=scale, offset=offset, bend=bend)
            kinds = ("int8", "float") if bend is None else ("float",)
            clean = matmul(matrix, np.ones((1, columns), np.float32), activations=kinds[0])
            for name in ("data", "scale_blocks", "offset_blocks"):
                if getattr(matrix, name) is not None:
                    setattr(matrix, name, guarded(getattr(matrix, name), front))
            matrix.native = None  # look at the arrays again
            assert np.array_equal(clean, matmul(matrix, np.ones((1, columns), np.float32), activations=kinds[0]))
            for tokens in (1, 2, 3, 4, 9, 29):
                x = guarded(rng.normal(0, 1, (tokens, columns)).astype(np.float32), front)
                bias = guarded(np.ones(rows, np.float32), front)
                for activations in kinds:
                    out = guarded(np.zeros((tokens, rows), np.float32), front)
                    matmul(matrix, x, bias=bias, activations=activations, out=out, num_threads=1 + tokens % 2)
            matrix.gather(np.arange(rows), out=guarded(np.zeros((rows, columns), np.float32), front))
            _gemm.values(matrix, guarded(np.zeros((rows, columns), np.float32), front))
        keep.clear()
print("clean")
"""
SHORT = """
matrix = PackedMatrix.from_codes(np.ones((16, 64), np.uint8), 4, group=64, scale=np.ones((16, 1), np.float32))
matrix.data = guarded(matrix.data)[64:]  # what is missing lies behind the guard
matmul(matrix, np.ones((1, 64), np.float32))
print("clean")
"""


@linux_only
def test_products_stay_within_their_buffers(gemm_level):
    result = run(GUARD + PRODUCTS, gemm_level)
    assert (result.returncode, result.stdout) == (0, "clean\n"), result.stderr


@linux_only
def test_guard_pages_do_stop_a_product(gemm_level):
    assert run(GUARD + SHORT, gemm_level).returncode < 0


def test_gil_is_released_in_products(gemm_level):
    codes = np.ones((2048, 2048), np.uint8)
    matrix = PackedMatrix.from_codes(codes, 4, group=32, scale=np.ones((2048, 64), np.float32))
    x = np.ones((100, 2048), np.float32)
    assert lets_others_run(lambda: matmul(matrix, x))


@linux_only
def test_scratch_does_not_grow_with_the_number_of_tokens(gemm_level):
    codes = np.ones((16, 4096), np.uint8)
    matrix = PackedMatrix.from_codes(codes, 4, group=32, scale=np.ones((16, 128), np.float32))
    x, out = np.ones((2000, 4096), np.float32), np.empty((2000, 16), np.float32)
    matmul(matrix, x[:100], out=out[:100])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    matmul(matrix, x, out=out)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4096  # KiB; all int8 activations are 10 MB


def test_matrices_may_be_shared_by_threads(gemm_level):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (300, 256)).astype(np.uint8)
    matrix = PackedMatrix.from_codes(codes, 4, group=32, scale=rng.normal(0, 1, (300, 8)).astype(np.float32))
    x = rng.normal(0, 1, (8, 5, 256)).astype(np.float32)
    wanted, found = [matmul(matrix, part) for part in x], [None] * 8

    def work(i):
        for _ in range(20):
            found[i] = matmul(matrix, x[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(a, b) for a, b in zip(wanted, found, strict=True))
