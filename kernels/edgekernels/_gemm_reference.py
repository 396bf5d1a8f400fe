"""The specification in numpy: the layout of packed matrices, and the arithmetic of their products.

Every level of the compiled kernels has the same layout, and with int8 activations the same floats to the bit
(docs/spec/kernels-gemm.md). Arguments are checked by the callers.
"""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from edgekernels._matrix import PackedMatrix

NAME = "numpy"
BLOCK, UNIT, STEPS = 16, 32, 8  # rows of a block; columns of a unit; steps of 4 columns in it
SMALLEST = np.float32(2.0**-120)  # a group of activations without a larger one counts as 0

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


def bit_places(bits: int) -> list[list[tuple[int, int]]]:
    """For each step of a unit and each bit of its codes: the plane, and the bit of the plane's bytes."""
    whole, spare = 8 // bits, 8 % bits  # codes that fit a byte, and the bits left over at its high end
    places = [[(step // whole, step % whole * bits + bit) for bit in range(bits)] for step in range(whole * bits)]
    rest = [(plane, whole * bits + bit) for plane in range(bits) for bit in range(spare)]
    return places + [rest[step * bits : (step + 1) * bits] for step in range(STEPS - whole * bits)]


def pack(codes: Bytes, bits: int, data: Bytes) -> int:
    """Write the data of codes (rows, columns); returns all codes or-ed together, so that the caller can check them."""
    rows, columns = codes.shape
    blocks, units = -(-rows // BLOCK), -(-columns // UNIT)
    padded = np.zeros((blocks * BLOCK, units * UNIT), np.uint8)
    padded[:rows, :columns] = codes
    lanes = padded.reshape(blocks, BLOCK, units, STEPS, 4).transpose(3, 0, 2, 1, 4)  # (step, block, unit, row, 4)
    planes = data.reshape(blocks, units, bits, BLOCK, 4)
    planes[...] = 0
    for step, places in enumerate(bit_places(bits)):
        for bit, (plane, at) in enumerate(places):
            planes[:, :, plane] |= (lanes[step] >> bit & 1) << at
    return int(np.bitwise_or.reduce(codes, axis=None, initial=0))


def row_codes(matrix: "PackedMatrix", rows: Indices, codes: Bytes) -> None:
    """Write the codes (n, columns) of some rows."""
    units = -(-matrix.columns // UNIT)
    planes = matrix.data.reshape(-1, units, matrix.bits, BLOCK, 4)[rows // BLOCK, :, :, rows % BLOCK]
    lanes = np.zeros((len(rows), units, STEPS, 4), np.uint8)
    for step, places in enumerate(bit_places(matrix.bits)):
        for bit, (plane, at) in enumerate(places):
            lanes[:, :, step] |= (planes[:, :, plane] >> at & 1) << bit
    codes[:] = lanes.reshape(len(rows), -1)[:, : matrix.columns]


def row_values(matrix: "PackedMatrix", rows: Indices, values: Floats) -> None:
    """Write the values (n, columns) of some rows: a float32 product and a float32 sum, each rounded."""
    codes = np.empty(values.shape, np.uint8)
    row_codes(matrix, rows, codes)
    if matrix.bend is not None:
        u = (2 * np.arange(1 << matrix.bits) + 1) / (1 << matrix.bits) - 1  # in float64 the grid is exact
        grid = ((16 - matrix.bend) / 16 * u + matrix.bend / 16 * u**3).astype(np.float32)
        with np.errstate(all="ignore"):
            np.multiply(grid[codes], matrix.scale[rows].astype(np.float32), out=values)
        return
    grouped = codes.reshape(len(rows), -1, matrix.group).astype(np.float32)
    scale, offset = matrix.scale, matrix.offset
    with np.errstate(all="ignore"):
        if offset is None:
            spread = (grouped - np.float32(1 << (matrix.bits - 1))) * scale[rows, :, None].astype(np.float32)
        else:
            spread = grouped * scale[rows, :, None].astype(np.float32) + offset[rows, :, None].astype(np.float32)
    values[:] = spread.reshape(values.shape)


def values(matrix: "PackedMatrix", values: Floats) -> None:
    """Write all values (rows, columns)."""
    row_values(matrix, np.arange(matrix.rows), values)


def quantise_tokens(x: Floats, group: int, codes: npt.NDArray[np.int8], scale: Floats, sums: Floats) -> None:
    """Write the int8 activations of x (tokens, columns): codes (tokens, columns), scales and sums (tokens, groups)."""
    grouped = x.reshape(len(x), -1, group)
    most = np.abs(grouped).max(axis=2)  # NaN if there is one
    good = (most >= SMALLEST) & (most < np.inf)
    with np.errstate(all="ignore"):
        steps = np.rint(grouped * np.where(good, np.float32(127) / most, np.float32(0))[:, :, None])
        scale[:] = np.where(good, most / np.float32(127), np.where(most < SMALLEST, np.float32(0), np.float32(np.nan)))
    steps[~good] = 0
    codes[:] = steps.reshape(x.shape)
    sums[:] = steps.sum(axis=2)


def multiply(
    matrix: "PackedMatrix",
    x: Floats,
    *,
    bias: Floats | None,
    y: Floats,
    quantised: bool,
    num_threads: int,
) -> None:
    """Write the products (tokens, rows) of a packed matrix (rows, columns) with each row of x (tokens, columns)."""
    if not quantised:
        values = np.empty((matrix.rows, matrix.columns), np.float32)
        row_values(matrix, np.arange(matrix.rows), values)
        with np.errstate(all="ignore"):
            y[:] = x.astype(np.float64) @ values.T.astype(np.float64)
            y[:] = y if bias is None else y + bias
        return
    tokens, groups = len(x), matrix.columns // matrix.group
    activations, (scale, sums) = np.empty(x.shape, np.int8), np.empty((2, tokens, groups), np.float32)
    quantise_tokens(x, matrix.group, activations, scale, sums)
    codes = np.empty((matrix.rows, matrix.columns), np.uint8)
    row_codes(matrix, np.arange(matrix.rows), codes)
    row_scale, row_offset = matrix.scale.astype(np.float32), matrix.offset
    y[:] = 0
    with np.errstate(all="ignore"):
        for g in range(groups):  # in this order; every operation is float32 and rounded on its own
            part = slice(g * matrix.group, (g + 1) * matrix.group)
            dots = activations[:, part].astype(np.float32) @ codes[:, part].T.astype(np.float32)  # exact: below 2^24
            if row_offset is None:
                inner = row_scale[:, g] * (dots - np.float32(1 << (matrix.bits - 1)) * sums[:, g, None])
            else:
                inner = row_scale[:, g] * dots + row_offset[:, g].astype(np.float32) * sums[:, g, None]
            y += inner * scale[:, g, None]
        if bias is not None:
            y += bias
