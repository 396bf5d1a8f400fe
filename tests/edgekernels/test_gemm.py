"""Packed matrices: hand-worked examples, what holds on every backend and level, and what is refused."""

import copy
import pickle

import numpy as np
import pytest
from edgekernels import PackedMatrix, matmul
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

GROUPS = (16, 32, 64, 128, 256)
relaxed = settings(
    deadline=None,
    max_examples=40,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def matrix_of(rng, rows, columns, bits, group, *, symmetric=False, dtype=np.float32):
    """A matrix of random codes, scales and offsets."""
    codes = rng.integers(0, 1 << bits, (rows, columns)).astype(np.uint8)
    scale = rng.normal(0, 1, (rows, columns // group)).astype(dtype)
    offset = None if symmetric else rng.normal(0, 1, scale.shape).astype(dtype)
    return codes, PackedMatrix.from_codes(codes, bits, group=group, scale=scale, offset=offset)


def test_a_product_by_hand(gemm_engine):
    """Codes 0 .. 15 and 15 .. 0 times 0.5 - 1, with activations 127, -127 and 1 that int8 holds exactly."""
    codes = np.array([range(16), range(15, -1, -1)], np.uint8)
    scale, offset = np.full((2, 1), 0.5, np.float32), np.full((2, 1), -1, np.float32)
    matrix = PackedMatrix.from_codes(codes, 4, group=16, scale=scale, offset=offset)
    x = np.zeros((1, 16), np.float32)
    x[0, [0, 5, 15]] = [127, -127, 1]
    bias = np.array([0.25, 0], np.float32)
    wanted = [[127 * -1 - 127 * 1.5 + 6.5 + 0.25, 127 * 6.5 - 127 * 4 - 1]]
    for activations in ("int8", "float"):
        assert matmul(matrix, x, bias=bias, activations=activations).tolist() == wanted


def test_a_symmetric_product_by_hand(gemm_engine):
    codes = np.array([[128] * 32, [0] * 32, [255] * 32], np.uint8)
    matrix = PackedMatrix.from_codes(codes, 8, group=32, scale=np.array([[3], [2], [0.5]], np.float32))
    x = np.ones((2, 32), np.float32)
    x[1] = -0.5
    for activations in ("int8", "float"):
        assert matmul(matrix, x, activations=activations).tolist() == [[0, -8192, 2032], [0, 4096, -1016]]


def test_activations_are_rounded_by_hand(gemm_engine):
    """Largest 1.27: steps of 0.01, so 0.504 becomes 0.50 and 0.506 becomes 0.51."""
    matrix = PackedMatrix.from_codes(np.full((1, 16), 1, np.uint8), 1, group=16, scale=np.ones((1, 1), np.float32),
                                     offset=np.zeros((1, 1), np.float32))  # fmt: skip
    x = np.zeros((1, 16), np.float32)
    x[0, :3] = [1.27, 0.504, 0.506]
    assert matmul(matrix, x)[0, 0] == pytest.approx(1.27 + 0.50 + 0.51, rel=1e-6)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_and_values_come_back(gemm_engine, bits, symmetric):
    rng = np.random.default_rng(bits)
    for group, rows, columns in ((16, 1, 16), (16, 33, 48), (32, 16, 96), (64, 5, 128), (256, 40, 512)):
        codes, matrix = matrix_of(rng, rows, columns, bits, group, symmetric=symmetric, dtype=np.float16)
        assert np.array_equal(matrix.codes(), codes)
        scale = np.repeat(matrix.scale.astype(np.float32), group, axis=1)
        if symmetric:
            values = (codes - np.float32(1 << (bits - 1))) * scale
        else:
            values = codes * scale + np.repeat(matrix.offset.astype(np.float32), group, axis=1)
        assert matrix.dequantise().tobytes() == values.astype(np.float32).tobytes()
        some = rng.integers(0, rows, 7)
        assert np.array_equal(matrix.gather(some), values[some])


@relaxed
@given(
    data=st.data(), bits=st.integers(1, 8), group=st.sampled_from(GROUPS), symmetric=st.booleans(),
    rows=st.integers(1, 70), groups=st.integers(1, 5), tokens=st.integers(1, 17), dtype=st.sampled_from(["f2", "f4"]),
)  # fmt: skip
def test_float_products_are_within_their_bound(gemm_engine, data, bits, group, symmetric, rows, groups, tokens, dtype):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    codes, matrix = matrix_of(rng, rows, groups * group, bits, group, symmetric=symmetric, dtype=dtype)
    x = rng.normal(0, 1, (tokens, codes.shape[1])).astype(np.float32)
    exact = x.astype(float) @ matrix.dequantise().astype(float).T
    scale = np.repeat(np.abs(matrix.scale.astype(float)), group, axis=1)
    offset = 2.0 ** (bits - 1) * scale if symmetric else np.repeat(np.abs(matrix.offset.astype(float)), group, axis=1)
    size = np.abs(x.astype(float)) @ (codes * scale + offset).T  # what is added up, without cancellation
    assert (np.abs(matmul(matrix, x, activations="float") - exact) <= (group + groups + 8) * 2.0**-24 * size).all()


@relaxed
@given(
    data=st.data(), bits=st.integers(1, 8), group=st.sampled_from(GROUPS), symmetric=st.booleans(),
    rows=st.integers(1, 70), groups=st.integers(1, 5), tokens=st.integers(1, 17),
    spread=st.sampled_from([1e-6, 1, 1e6]),
)  # fmt: skip
def test_int8_products_are_within_their_bound(gemm_engine, data, bits, group, symmetric, rows, groups, tokens, spread):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    codes, matrix = matrix_of(rng, rows, groups * group, bits, group, symmetric=symmetric)
    x = (rng.normal(0, 1, (tokens, codes.shape[1])) * rng.choice([spread, 1], codes.shape[1])).astype(np.float32)
    values = matrix.dequantise().astype(float)
    exact = x.astype(float) @ values.T
    half_step = np.abs(x).reshape(tokens, groups, group).max(axis=2).astype(float) / 254
    scale = np.repeat(np.abs(matrix.scale.astype(float)), group, axis=1)
    offset = 2.0 ** (bits - 1) * scale if symmetric else np.repeat(np.abs(matrix.offset.astype(float)), group, axis=1)
    rounding = half_step @ np.abs(values).reshape(rows, groups, group).sum(axis=2).T
    size = 254 * half_step @ (codes * scale + offset).reshape(rows, groups, group).sum(axis=2).T
    bound = (1 + 2.0**-14) * rounding + (groups + 8) * 2.0**-24 * size
    assert (np.abs(matmul(matrix, x) - exact) <= bound).all()


@pytest.mark.parametrize("activations", ["int8", "float"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_activation_spoils_its_own_token_only(gemm_engine, bad, activations):
    rng = np.random.default_rng(0)
    for symmetric in (False, True):
        _, matrix = matrix_of(rng, 20, 64, 4, 32, symmetric=symmetric)
        x = rng.normal(0, 1, (3, 64)).astype(np.float32)
        clean = matmul(matrix, x, activations=activations)
        x[1, 40] = bad
        y = matmul(matrix, x, activations=activations)
        assert not np.isfinite(y[1]).any()
        assert np.isnan(y[1]).all() or activations == "float"
        assert np.array_equal(y[[0, 2]], clean[[0, 2]])


def test_tiny_activations_count_as_zero_and_huge_ones_hold(gemm_engine):
    rng = np.random.default_rng(0)
    _, matrix = matrix_of(rng, 4, 32, 4, 32)
    bias = rng.normal(0, 1, 4).astype(np.float32)
    for tiny in (0.0, 1e-45, 1e-38, 2.0**-121):
        assert np.array_equal(matmul(matrix, np.full((1, 32), tiny, np.float32), bias=bias)[0], bias)
    huge = matmul(matrix, np.full((1, 32), 1e35, np.float32))[0]
    assert huge == pytest.approx(matrix.dequantise().astype(float).sum(axis=1) * 1e35, rel=1e-3, abs=1e33)


def test_no_token_gives_no_row(gemm_engine):
    _, matrix = matrix_of(np.random.default_rng(0), 4, 32, 4, 32)
    assert matmul(matrix, np.empty((0, 32), np.float32)).shape == (0, 4)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", range(2, 9))
def test_quantising_keeps_values_within_a_step(bits, symmetric):
    rng = np.random.default_rng(bits)
    values = rng.normal(0, 1, (37, 128)).astype(np.float32)
    values[3, :64] = 0.0
    values[4] = 7.0
    for factors in (np.float32, np.float16):
        matrix = PackedMatrix.quantise(values, bits, group=64, symmetric=symmetric, factors=factors)
        step = np.repeat(np.abs(matrix.scale.astype(np.float32)), 64, axis=1)
        error = np.abs(matrix.dequantise() - values)
        assert (error <= (1.01 if symmetric else 0.501) * step + 0.005).all()
        assert (matrix.dequantise()[3, :64] == 0).all()


def test_zero_is_exact_when_symmetric():
    values = np.array([[0, 3, -8, 5] * 8], np.float32)
    matrix = PackedMatrix.quantise(values, 4, group=32, symmetric=True)
    assert np.array_equal(matrix.dequantise(), values)  # steps of 1 from -8 to 7


def test_arguments_are_refused_with_numbers():
    rng = np.random.default_rng(0)
    codes, matrix = matrix_of(rng, 4, 64, 4, 32)
    scale = matrix.scale
    x = np.zeros((1, 64), np.float32)
    too_large = codes.copy()
    too_large[2, 5] = 16
    spoilt = scale.copy()
    spoilt[3, 1] = np.inf
    pack = PackedMatrix.from_codes
    refused = [
        (lambda: pack(codes.astype(int), 4, group=32, scale=scale), TypeError, "codes is int64"),
        (lambda: pack(codes[0], 4, group=32, scale=scale), ValueError, "codes has shape (64,)"),
        (lambda: pack(codes[:, ::2], 4, group=32, scale=scale), ValueError, "codes has strides (64, 2)"),
        (lambda: pack(codes, 9, group=32, scale=scale), ValueError, "bits is 9; pass 1 .. 8"),
        (lambda: pack(codes, 4, group=48, scale=scale), ValueError, "group is 48; pass one of 16, 32"),
        (lambda: pack(codes, 4, group=8, scale=scale), ValueError, "group is 8; pass 16 .. 256"),
        (lambda: pack(codes, 4, group=128, scale=scale), ValueError, "codes has 64 columns, 64 more than"),
        (lambda: pack(codes[:0], 4, group=32, scale=scale), ValueError, "codes has shape (0, 64)"),
        (lambda: pack(codes, 4, group=32, scale=scale.astype(float)), TypeError, "scale is float64"),
        (lambda: pack(codes, 4, group=32, scale=scale[:3]), ValueError, "scale has shape (3, 2); pass (4, 2)"),
        (lambda: pack(codes, 4, group=32, scale=spoilt), ValueError, "scale[3, 1] is inf"),
        (lambda: pack(codes, 4, group=32, scale=scale, offset=scale.astype("f2")), TypeError, "offset is float16"),
        (lambda: pack(too_large, 4, group=32, scale=scale), ValueError, "codes[2, 5] is 16; pass codes 0 .. 15"),
        (lambda: PackedMatrix.quantise(x + np.nan, 4, group=32), ValueError, "values[0, 0:32] goes from nan"),
        (lambda: PackedMatrix.quantise(x, 4, group=32, factors=float), TypeError, "factors is float64"),
        (
            lambda: PackedMatrix.quantise(x + np.float32(1e30), 4, group=32, factors=np.float16),
            ValueError,
            "scale the values down, or pass factors=numpy.float32",
        ),
        (lambda: matmul(codes, x), TypeError, "matrix is ndarray"),
        (lambda: matmul(matrix, x.astype(float)), TypeError, "x is float64"),
        (lambda: matmul(matrix, x[0]), ValueError, "x has shape (64,)"),
        (lambda: matmul(matrix, x[:, :32]), ValueError, "x has shape (1, 32); pass (m, 64)"),
        (lambda: matmul(matrix, np.zeros((64, 2), np.float32).T), ValueError, "x has strides (4, 8)"),
        (lambda: matmul(matrix, x, bias=np.zeros(5, np.float32)), ValueError, "bias has shape (5,); pass (4,)"),
        (lambda: matmul(matrix, x, bias=np.zeros(4)), TypeError, "bias is float64"),
        (lambda: matmul(matrix, x, activations="int4"), ValueError, "activations is 'int4'"),
        (lambda: matmul(matrix, x, out=np.zeros((1, 5), np.float32)), ValueError, "out has shape (1, 5)"),
        (lambda: matmul(matrix, x, out=x[:, :4]), ValueError, "shares memory"),
        (lambda: matmul(matrix, x, num_threads=0), ValueError, "num_threads is 0"),
        (lambda: matrix.gather(np.array([0, 4])), ValueError, "rows[1] is 4; pass 0 .. 3"),
        (lambda: matrix.gather(np.array([-1])), ValueError, "rows[0] is -1"),
        (PackedMatrix, TypeError, "from_codes"),
    ]
    for call, error, words in refused:
        with pytest.raises(error) as caught:
            call()
        assert words in str(caught.value)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_clipping_for_the_least_error_lessens_it(bits):
    values = np.random.default_rng(3).standard_normal((64, 256)).astype(np.float32)
    whole, clipped = (PackedMatrix.quantise(values, bits, group=64, clip=clip) for clip in ("range", "mse"))
    errors = [float(((matrix.dequantise() - values) ** 2).sum()) for matrix in (whole, clipped)]
    assert errors[1] <= errors[0] * (1.001 if bits == 8 else 0.97)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda matrix: pickle.loads(pickle.dumps(matrix))])
def test_copies_and_pickles_multiply_alike(gemm_engine, again, symmetric):
    rng = np.random.default_rng(3)
    matrix = matrix_of(rng, 40, 96, 5, 32, symmetric=symmetric)[1]
    x = rng.normal(size=(3, 96)).astype(np.float32)
    expected = matmul(matrix, x).tobytes()  # and keeps what the kernels need beside it
    other = again(matrix)
    del matrix
    assert other.data.ctypes.data % 64 == other.scale_blocks.ctypes.data % 64 == 0
    assert other.symmetric == symmetric
    assert matmul(other, x).tobytes() == expected


def test_unknown_clip_is_an_error():
    for options in ({"clip": "none"}, {"clip": "mse", "symmetric": True}):
        with pytest.raises(ValueError, match="clip"):
            PackedMatrix.quantise(np.zeros((1, 64), np.float32), 4, group=64, **options)
