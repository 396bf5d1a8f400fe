"""Bent matrices: the values of their codes to the bit, products within their bound, and what is refused."""

import copy
import pickle

import numpy as np
import pytest
from edgekernels import PackedMatrix, matmul
from edgekernels.decoder import DecoderError
from edgekernels.decoder.checks import _matrix as check_matrix


def matrix_of(rng, rows, columns, bits, bend):
    codes = rng.integers(0, 1 << bits, (rows, columns)).astype(np.uint8)
    scale = rng.normal(0, 1, (rows, 1)).astype(np.float32)
    return codes, PackedMatrix.from_codes(codes, bits, group=columns, scale=scale, bend=bend)


def test_a_product_by_hand(gemm_engine):
    """At 2 bits and half bent the codes stand for -+0.5859375 and -+0.1328125."""
    codes = np.zeros((2, 32), np.uint8)
    codes[0, :4], codes[1, :4] = [0, 1, 2, 3], [3, 3, 0, 1]
    matrix = PackedMatrix.from_codes(codes, 2, group=32, scale=np.array([[2], [-4]], np.float32), bend=8)
    x = np.zeros((1, 32), np.float32)
    x[0, :4] = [1, 2, 4, 8]
    first = 2 * (-0.5859375 - 2 * 0.1328125 + 4 * 0.1328125 + 8 * 0.5859375)
    second = -4 * (3 * 0.5859375 - 4 * 0.5859375 - 8 * 0.1328125)
    found = matmul(matrix, x, bias=np.array([0.5, 0], np.float32), activations="float")
    assert found.tolist() == [[first + 0.5, second]]
    assert matrix.dequantise()[0, :4].tolist() == [-1.171875, -0.265625, 0.265625, 1.171875]


@pytest.mark.parametrize("bits", range(1, 9))
def test_values_are_those_of_the_grid_to_the_bit(gemm_engine, bits):
    """In float64 the grid is exact: one rounding makes it, a second one its product with the scale."""
    rng = np.random.default_rng(bits)
    u = (2 * np.arange(2**bits) + 1) / 2**bits - 1
    for bend, rows, columns in ((0, 1, 32), (3, 17, 96), (8, 16, 800), (15, 40, 288)):
        codes, matrix = matrix_of(rng, rows, columns, bits, bend)
        grid = ((16 - bend) / 16 * u + bend / 16 * u**3).astype(np.float32)
        values = grid[codes] * matrix.scale
        assert matrix.dequantise().tobytes() == values.tobytes()
        some = rng.integers(0, rows, 5)
        assert matrix.gather(some).tobytes() == values[some].tobytes()
        assert np.array_equal(matrix.codes(), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_products_are_within_their_bound(gemm_engine, bits):
    rng = np.random.default_rng(bits)
    for bend, rows, columns, tokens in ((0, 1, 32, 1), (5, 15, 64, 2), (12, 33, 800, 3), (15, 130, 544, 17)):
        _, matrix = matrix_of(rng, rows, columns, bits, bend)
        x, bias = (rng.normal(0, 1, shape).astype(np.float32) for shape in ((tokens, columns), rows))
        values = matrix.dequantise().astype(float)
        found = matmul(matrix, x, bias=bias, activations="float")
        size = np.abs(x.astype(float)) @ np.abs(values).T + np.abs(bias)
        assert (np.abs(found - (x.astype(float) @ values.T + bias)) <= (columns + 4) * 2.0**-24 * size).all()


def test_products_depend_neither_on_the_number_of_tokens_nor_on_threads(gemm_level):
    rng = np.random.default_rng(3)
    for bits in (2, 4, 5, 8):
        _, matrix = matrix_of(rng, 150, 160, bits, 7)
        x = rng.normal(0, 1, (70, 160)).astype(np.float32)
        whole = matmul(matrix, x, activations="float", num_threads=3)
        for part in (slice(0, 1), slice(1, 3), slice(3, 70)):
            assert matmul(matrix, x[part], activations="float").tobytes() == whole[part].tobytes()


@pytest.mark.parametrize("symmetric", [False, True])
def test_all_values_of_an_even_matrix_are_those_of_its_rows(gemm_level, symmetric):
    """They are made by blocks of rows, of which the last may be cut short, and units that may hold two groups."""
    rng = np.random.default_rng(1)
    for bits in range(1, 9):
        for group, rows, columns in ((16, 5, 48), (32, 33, 96), (256, 16, 512)):
            codes = rng.integers(0, 1 << bits, (rows, columns)).astype(np.uint8)
            scale = rng.normal(0, 1, (rows, columns // group)).astype(np.float16)
            matrix = PackedMatrix.from_codes(
                codes, bits, group=group, scale=scale, offset=None if symmetric else scale[::-1].copy()
            )
            assert matrix.dequantise().tobytes() == matrix.gather(np.arange(rows)).tobytes()


@pytest.mark.parametrize("again", [copy.deepcopy, lambda matrix: pickle.loads(pickle.dumps(matrix))])
def test_copies_are_bent_alike(gemm_engine, again):
    rng = np.random.default_rng(3)
    _, matrix = matrix_of(rng, 20, 64, 3, 9)
    assert repr(matrix) == "<PackedMatrix 20 x 64, 3 bits, group 64, bent 9/16>"
    x = rng.normal(size=(3, 64)).astype(np.float32)
    expected = matmul(matrix, x, activations="float").tobytes()
    assert matmul(again(matrix), x, activations="float").tobytes() == expected


def test_pickles_of_before_are_not_bent():
    codes = np.zeros((1, 32), np.uint8)
    matrix = PackedMatrix.from_codes(codes, 2, group=32, scale=np.ones((1, 1), np.float32))
    state = matrix.__getstate__()
    del state["bend"]
    old = object.__new__(PackedMatrix)
    old.__setstate__(state)
    assert old.bend is None
    assert matmul(old, np.ones((1, 32), np.float32)).tolist() == [[-64.0]]


def test_what_cannot_be_bent_is_refused():
    codes, one = np.zeros((2, 64), np.uint8), np.ones((2, 1), np.float32)
    pack = PackedMatrix.from_codes
    matrix = pack(codes, 4, group=64, scale=one, bend=4)
    refused = [
        (lambda: pack(codes, 4, group=64, scale=one, bend=16), ValueError, "bend is 16; pass 0 .. 15"),
        (lambda: pack(codes, 4, group=64, scale=one, bend=0.5), TypeError, "bend is"),
        (lambda: pack(codes, 4, group=64, scale=one, offset=one, bend=4), ValueError, "offset given"),
        (lambda: pack(codes, 4, group=32, scale=one, bend=4), ValueError, "group is 32"),
        (lambda: pack(codes[:, :48].copy(), 4, group=48, scale=one, bend=4), ValueError, "48 columns"),
        (lambda: matmul(matrix, np.ones((1, 64), np.float32)), ValueError, "pass 'float'"),
        (lambda: check_matrix("layer", matrix, (2, 64)), DecoderError, "evenly spaced"),
    ]
    for call, error, words in refused:
        with pytest.raises(error) as caught:
            call()
        assert words in str(caught.value)
