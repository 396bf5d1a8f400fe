"""Pieces: their bytes, their sizes, layers put together from them, and everything a hostile one could be."""

import struct
from math import prod

import numpy as np
import pytest

from edgebus.blobs import manifest_of
from qpart.errors import SegmentRejected
from qpart.network import Parameters
from qpart.ops import AddConstant, Affine, Conv2d, Embedding, Linear, Norm
from qpart.pieces import HALF, Layer, Step, address_of, encode_pieces, ladder, step_bytes, steps_to
from qpart.quantiser import dequantise_weight, quantise_weight
from qpart.tables import WIDTHS

WIDE = Linear(100, 41)  # 4100 codes: a piece for each plane, and planes that end within a byte
LAYERS = [
    WIDE,
    Linear(65, 32, False),
    Linear(7, 3),
    Linear(7, 3, False),
    Linear(1, 1),
    Conv2d((3, 3), (1, 1), (1, 1), 4, 6, (1, 1), 2),
    Conv2d((3, 3), (1, 1), (1, 1), 12, 12),
    Norm(5, 1, 1e-5),
    Affine(4, 0, False),
    AddConstant((3, 1, 5)),
    Embedding(9, 4),
]


def made(op, seed=0):
    random = np.random.default_rng(seed)
    bias = random.normal(size=op.weight_shape[0]).astype(np.float32) if op.has_bias else None
    return Parameters(random.normal(size=op.weight_shape).astype(np.float32), bias)


def needed(op, bits, seed=0):
    """Contents of the pieces of a layer at a width."""
    pieces = encode_pieces(made(op, seed))
    return [pieces[WIDTHS.index(step.first)] for step in steps_to(prod(op.weight_shape), bits)]


@pytest.mark.parametrize(
    ("num_codes", "expected"),
    [
        (4096, [(2, 2), (3, 3), (4, 4), (5, 5), (6, 6), (7, 7), (8, 8)]),
        (4088, [(2, 2), (3, 4), (5, 6), (7, 8)]),
        (2000, [(2, 4), (5, 8)]),
        (1000, [(2, 8)]),
        (1, [(2, 8)]),
    ],
)
def test_small_planes_share_a_piece(num_codes, expected):
    assert list(ladder(num_codes)) == [Step(*step) for step in expected]
    for bits in WIDTHS[:-1]:
        steps = steps_to(num_codes, bits)
        assert steps[-1].first <= bits <= steps[-1].last
        assert sum(step.num_planes for step in steps) == steps[-1].last
    assert steps_to(num_codes, HALF) == (Step(HALF, HALF),)


@pytest.mark.parametrize("op", LAYERS)
@pytest.mark.parametrize("bits", WIDTHS)
def test_sizes_are_as_announced_and_numbers_come_back(op, bits):
    parameters, steps = made(op), steps_to(prod(op.weight_shape), bits)
    contents = needed(op, bits)
    assert [len(content) for content in contents] == [step_bytes(op.weight_shape, op.has_bias, s) for s in steps]
    layer = Layer(contents, op, bits)
    weight, bias = layer.parameters()
    assert layer.bits == bits
    assert layer.held_bytes <= sum(map(len, contents))
    assert np.array_equal(weight, dequantise_weight(quantise_weight(parameters.weight, bits), op.weight_shape))
    assert (bias is None) == (parameters.bias is None)
    assert bias is None or np.array_equal(bias, parameters.bias)


def test_two_more_bits_are_two_planes_more():
    """From 3 to 5 bits: two planes of 4100 bits, each with a header and a factor, and nothing of what is there."""
    assert needed(WIDE, 5)[:2] == needed(WIDE, 3)
    assert [len(content) for content in needed(WIDE, 5)[2:]] == [4 + 2 + 513] * 2


def test_addresses_are_those_of_blobs():
    for content in filter(None, encode_pieces(made(WIDE))):
        assert address_of(content) == bytes.fromhex(manifest_of(content).blob_id)


def test_bytes_of_a_hand_worked_piece():
    """Steps of 1/2 from -15.75: at 8 bits each weight is the middle of a cell, at 2 bits of one of four."""
    weight = np.array([[-15.75, -5.25, 5.25, 15.75]], np.float32)
    content = encode_pieces(Parameters(weight, np.array([2.0], np.float32)))[0]
    magic, first, last, bend = content[:4]
    assert (magic, first, last) == (0xB2, 2, 8)
    gains, scale = np.frombuffer(content, "<f2", 7, 4), np.frombuffer(content, "<f2", 1, 18)
    assert struct.unpack_from("<f", content, 20) == (2.0,)
    planes = content[24:]
    assert len(planes) == 7 + 1
    assert planes[0] == 0b1100
    assert planes[1] == 0b1010
    codes = [sum((plane >> i & 1) << 7 - k for k, plane in enumerate(planes)) for i in range(4)]
    u = (2 * np.array(codes) + 1) / 256 - 1
    value = float(scale[0]) * float(gains[6]) * ((16 - bend) / 16 * u + bend / 16 * u**3)
    assert np.allclose(value, weight, rtol=0.02)
    assert np.allclose(Layer([content], Linear(4, 1), 8).parameters().weight, value, rtol=1e-6)


AT = {"gain": 4, "scale": 6, "bias": 6 + 2 * 41}  # of the first piece of WIDE, which has one gain


@pytest.mark.parametrize(
    ("piece", "where", "value", "what"),
    [
        (0, 0, b"\xb1", "unknown header"),
        (0, 1, b"\x03", "unknown header"),
        (0, 2, b"\x03", "unknown header"),
        (0, 3, b"\x0d", "another layer, or has an unknown grid"),
        (1, 0, b"Q", "unknown header"),
        (1, 1, b"\x04", "unknown header"),
        (2, 3, b"\xff", "another layer"),
        (0, AT["scale"], struct.pack("<e", np.inf), "not finite"),
        (0, AT["scale"], struct.pack("<e", -1.0), "negative scales"),
        (0, AT["bias"], struct.pack("<f", np.nan), "not finite"),
        (2, AT["gain"], struct.pack("<e", np.nan), "not finite"),
        (2, AT["gain"], struct.pack("<e", 5.0), "not finite"),
    ],
)
def test_a_spoiled_piece_is_rejected(piece, where, value, what):
    contents = [bytearray(content) for content in needed(WIDE, 4)]
    if value == b"\xff" and contents[piece][where] == 0xFF:
        value = b"\x00"
    contents[piece][where : where + len(value)] = value
    with pytest.raises(SegmentRejected, match=what):
        Layer([bytes(content) for content in contents], WIDE, 4)


@pytest.mark.parametrize(
    "mixed",
    [
        lambda own, other: [own[0], own[2], own[1]],
        lambda own, other: [own[1], own[0], own[2]],
        lambda own, other: [own[0], own[1], own[1]],
        lambda own, other: [own[0], own[1], other[2]],
        lambda own, other: [other[0], own[1], own[2]],
        lambda own, other: own[:2],
        lambda own, other: [*own, own[2]],
        lambda own, other: [],
    ],
    ids=["order", "first later", "twice", "another's", "another's first", "one less", "one more", "none"],
)
def test_pieces_that_do_not_belong_together_are_rejected(mixed):
    with pytest.raises(SegmentRejected):
        Layer(mixed(needed(WIDE, 4), needed(WIDE, 4, seed=1)), WIDE, 4)


@pytest.mark.parametrize("length", [0, 3, 4, 8, 100, -1])
def test_a_cut_off_piece_is_rejected(length):
    for bits in (2, HALF):
        contents = needed(Linear(7, 3), bits)
        with pytest.raises(SegmentRejected, match="does not fit"):
            Layer([contents[0][: length if length < len(contents[0]) else -1]], Linear(7, 3), bits)


def test_a_piece_with_more_bytes_is_rejected():
    with pytest.raises(SegmentRejected, match="does not fit"):
        Layer([needed(Linear(7, 3), 4)[0] + b"\0"], Linear(7, 3), 4)


def test_half_precision_numbers_that_are_not_finite_are_rejected():
    op = Linear(2, 1, False)
    with pytest.raises(SegmentRejected, match="not finite"):
        Layer([needed(op, HALF)[0][:-2] + struct.pack("<e", np.nan)], op, HALF)


def test_a_piece_of_another_width_is_rejected():
    op = Linear(7, 3)
    for bits, other in ((4, HALF), (HALF, 4)):
        with pytest.raises(SegmentRejected):
            Layer(needed(op, other), op, bits)


def test_a_piece_of_another_layer_is_rejected():
    with pytest.raises(SegmentRejected, match=r"does not fit a layer of shape \(3, 7\)"):
        Layer(needed(Linear(3, 7), 4), Linear(7, 3), 4)


def test_what_has_one_number_per_channel_is_smallest_and_best_in_float16():
    op = Norm(32, 1, 1e-5)
    sizes = {bits: sum(step_bytes(op.weight_shape, True, step) for step in steps_to(32, bits)) for bits in WIDTHS}
    assert min(sizes.values()) == sizes[HALF]
    for bits in WIDTHS:  # a scale each: nearly as good at any width
        weight = Layer(needed(op, bits), op, bits).parameters().weight
        assert np.allclose(weight, made(op).weight, rtol=2e-3)
