"""Every level of the kernels of packed matrices equals the numpy reference, with int8 activations to the bit."""

import numpy as np
import pytest
from edgekernels import PackedMatrix, _gemm_reference, matmul
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

GROUPS = (16, 32, 64, 128, 256)
relaxed = settings(
    deadline=None,
    max_examples=60,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def matrix_of(rng, rows, columns, bits, group, *, symmetric, dtype):
    codes = rng.integers(0, 1 << bits, (rows, columns)).astype(np.uint8)
    scale = rng.normal(0, 1, (rows, columns // group)).astype(dtype)
    offset = None if symmetric else rng.normal(0, 1, scale.shape).astype(dtype)
    return codes, PackedMatrix.from_codes(codes, bits, group=group, scale=scale, offset=offset)


def expected(matrix, x, bias):
    y = np.empty((len(x), matrix.rows), np.float32)
    _gemm_reference.multiply(matrix, x, bias=bias, y=y, quantised=True, num_threads=1)
    return y


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("bits", range(1, 9))
def test_every_width_and_group_equals_the_reference(gemm_level, bits, group, symmetric):
    rng = np.random.default_rng(bits * group)
    extra = 16 if group == 16 else 0  # half a unit
    for rows, blocks, tokens, dtype in ((1, 1, 1, "f2"), (17, 2, 2, "f4"), (47, 3, 7, "f2"), (32, 1, 16, "f4")):
        columns = blocks * 256 + extra
        codes, matrix = matrix_of(rng, rows, columns, bits, group, symmetric=symmetric, dtype=dtype)
        data = np.empty_like(matrix.data)
        _gemm_reference.pack(codes, bits, data)
        assert np.array_equal(matrix.data, data)
        x = (rng.normal(0, 1, (tokens, columns)) * 10.0 ** rng.integers(-3, 4)).astype(np.float32)
        bias = rng.normal(0, 1, rows).astype(np.float32)
        assert matmul(matrix, x, bias=bias).tobytes() == expected(matrix, x, bias).tobytes()
        assert matmul(matrix, x).tobytes() == expected(matrix, x, None).tobytes()


@relaxed
@given(
    data=st.data(), bits=st.integers(1, 8), group=st.sampled_from(GROUPS), symmetric=st.booleans(),
    rows=st.integers(1, 100), groups=st.integers(1, 6), tokens=st.integers(1, 20) | st.sampled_from([64, 65, 130]),
    threads=st.integers(1, 3), dtype=st.sampled_from(["f2", "f4"]), extreme=st.booleans(),
)  # fmt: skip
def test_any_product_equals_the_reference(
    gemm_level, data, bits, group, symmetric, rows, groups, tokens, threads, dtype, extreme
):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    codes, matrix = matrix_of(rng, rows, groups * group, bits, group, symmetric=symmetric, dtype=dtype)
    if extreme:  # the largest sums there are, of either sign
        codes[:] = rng.choice([0, (1 << bits) - 1], codes.shape)
        matrix = PackedMatrix.from_codes(codes, bits, group=group, scale=matrix.scale, offset=matrix.offset)
        x = rng.choice(np.array([1, -1], np.float32), (tokens, 1)) * np.ones((1, codes.shape[1]), np.float32)
    else:
        x = rng.normal(0, 1, (tokens, codes.shape[1])).astype(np.float32)
        x[rng.random(x.shape) < 0.02] = rng.choice(np.array([0, -0.0, 1e-45, 1e-38, 1e30], np.float32))
    assert matmul(matrix, x, num_threads=threads).tobytes() == expected(matrix, x, None).tobytes()


@relaxed
@given(
    x=st.lists(st.floats(width=32), min_size=16, max_size=16), group=st.sampled_from((16, 32)),
)  # fmt: skip
def test_any_activations_are_quantised_as_in_the_reference(gemm_level, x, group):
    from edgekernels import _gemm

    x = np.array([x * 2], np.float32)
    found, wanted = (
        (np.empty(x.shape, np.int8), np.empty((1, 32 // group), np.float32), np.empty((1, 32 // group), np.float32))
        for _ in range(2)
    )
    _gemm.quantise_tokens(x, group, *found)
    _gemm_reference.quantise_tokens(x, group, *wanted)
    for a, b in zip(found, wanted, strict=True):
        assert np.array_equal(a, b, equal_nan=a.dtype != np.int8)


@pytest.mark.parametrize("activations", ["int8", "float"])
def test_threads_and_batches_change_nothing(gemm_level, activations):
    rng = np.random.default_rng(5)
    _, matrix = matrix_of(rng, 1000, 576, 4, 32, symmetric=False, dtype="f2")
    x = rng.normal(0, 1, (16, 576)).astype(np.float32)
    whole = matmul(matrix, x, activations=activations)
    for threads in (2, 5, 1000):
        assert np.array_equal(matmul(matrix, x, activations=activations, num_threads=threads), whole)
    for first, last in ((0, 1), (3, 10), (4, 16)):
        assert np.array_equal(matmul(matrix, x[first:last], activations=activations), whole[first:last])


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("bits", range(1, 9))
def test_many_tokens_give_the_float_products_of_each_alone(gemm_level, bits, group, symmetric):
    """To the bit: of many tokens the codes are made floats once for all of them."""
    rng = np.random.default_rng(bits * group)
    _, matrix = matrix_of(rng, 70, 3 * group, bits, group, symmetric=symmetric, dtype="f2")
    x, bias = rng.normal(0, 1, (91, 3 * group)).astype(np.float32), rng.normal(0, 1, 70).astype(np.float32)
    alone = np.concatenate([matmul(matrix, row[None], bias=bias, activations="float") for row in x])
    for count in (12, 24, 29, 91):
        assert np.array_equal(matmul(matrix, x[:count], bias=bias, activations="float", num_threads=2), alone[:count])
