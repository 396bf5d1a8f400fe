"""Pieces: their bytes, their sizes, and everything a hostile one could be."""

import hashlib
import struct

import numpy as np
import pytest

from qpart.errors import SegmentRejected
from qpart.network import Parameters
from qpart.ops import Conv2d, Linear
from qpart.pieces import Piece, content_id, encode_piece, piece_bytes
from qpart.quantiser import dequantise_weight, quantise_weight
from qpart.tables import WIDTHS

LAYERS = [Linear(7, 3), Linear(7, 3, False), Linear(1, 1), Conv2d((3, 3), (1, 1), (1, 1), 4, 6, (1, 1), 2)]


def made(op, seed=0):
    random = np.random.default_rng(seed)
    bias = random.normal(size=op.weight_shape[0]).astype(np.float32) if op.has_bias else None
    return Parameters(random.normal(size=op.weight_shape).astype(np.float32), bias)


@pytest.mark.parametrize("op", LAYERS)
@pytest.mark.parametrize("bits", WIDTHS)
def test_size_is_as_announced_and_numbers_come_back(op, bits):
    parameters = made(op)
    content = encode_piece(parameters, bits)
    assert len(content) == piece_bytes(op.weight_shape, op.has_bias, bits)
    piece = Piece(content, op)
    weight, bias = piece.parameters()
    assert piece.bits == bits
    assert np.array_equal(weight, dequantise_weight(quantise_weight(parameters.weight, bits), op.weight_shape))
    assert (bias is None) == (parameters.bias is None)
    assert bias is None or np.array_equal(bias, parameters.bias)


def test_bytes_of_a_hand_worked_piece():
    weight, bias = np.array([[-1.5, -0.5, 0.5, 1.5]], np.float32), np.array([2.0], np.float32)
    content = encode_piece(Parameters(weight, bias), 2)
    expected = b"QPT1" + bytes([2, 1, 2, 0]) + struct.pack("<II", 1, 4)
    expected += struct.pack("<e", 1.0) + b"\0\0" + struct.pack("<f", 2.0) + bytes([0b11100100])
    assert content == expected
    assert content_id(content) == hashlib.blake2b(content, digest_size=16).digest()


@pytest.mark.parametrize(
    ("where", "value", "what"),
    [
        (0, b"X", "unknown header"),
        (4, b"\x09", "unknown header"),
        (4, b"\x01", "unknown header"),
        (5, b"\x04", "unknown header"),
        (6, b"\x03", "unknown header"),
        (7, b"\x01", "unknown header"),
        (8, b"\xff\xff\xff\xff", "does not fit"),
        (4, b"\x03", "does not fit"),
        (5, b"\x00", "does not fit"),
        (16, struct.pack("<e", np.inf), "not finite"),
        (16, struct.pack("<e", -1.0), "negative scales"),
        (24, struct.pack("<f", np.nan), "not finite"),
    ],
)
def test_a_spoiled_piece_is_rejected(where, value, what):
    op = Linear(7, 3)
    content = bytearray(encode_piece(made(op), 2))
    content[where : where + len(value)] = value
    with pytest.raises(SegmentRejected, match=what):
        Piece(bytes(content), op)


@pytest.mark.parametrize("length", [0, 3, 8, 15, 16, 20, -1])
def test_a_cut_off_piece_is_rejected(length):
    op = Linear(7, 3)
    with pytest.raises(SegmentRejected):
        Piece(encode_piece(made(op), 4)[:length], op)


def test_a_piece_with_more_bytes_is_rejected():
    with pytest.raises(SegmentRejected, match="does not fit"):
        Piece(encode_piece(made(Linear(7, 3)), 4) + b"\0", Linear(7, 3))


def test_half_precision_numbers_that_are_not_finite_are_rejected():
    op = Linear(2, 1, False)
    content = encode_piece(Parameters(np.ones((1, 2), np.float32), None), 16)[:-2] + struct.pack("<e", np.nan)
    with pytest.raises(SegmentRejected, match="not finite"):
        Piece(content, op)


def test_a_piece_of_another_layer_is_rejected():
    with pytest.raises(SegmentRejected, match="does not fit a layer of shape"):
        Piece(encode_piece(made(Linear(3, 7)), 4), Linear(7, 3))
