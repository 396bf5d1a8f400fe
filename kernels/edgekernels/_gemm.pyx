# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: freethreading_compatible=True
"""Thin face of the C kernels of packed matrices, without the GIL. Callers check the arguments."""
import os

from cython.parallel cimport prange
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t
from libc.stdlib cimport free, malloc


cdef extern from "cpu.h" nogil:
    const char* ek_level_name(int level) noexcept


cdef enum:
    BLOCK = 16  # rows which lie interleaved
    SLICE = 64  # rows: the kernels like multiples of it
    NOT_BENT = -1
    CHUNK = 64  # tokens whose quantised activations are kept at a time

cdef const ek_gemm* LEVEL = NULL
NAME = "cython"


cdef const ek_gemm* kernels() noexcept nogil:
    return LEVEL


def levels():
    """Names of the levels for which there are kernels and which this processor has, best first."""
    cdef int number = 0
    found = []
    while ek_level_name(number) != NULL:
        if ek_offers_gemm(number):
            found.insert(0, ek_level_name(number).decode())
        number += 1
    return tuple(found)


def set_level(str name):
    """Use the kernels of this level from now on, or the best below it; "" is the best level there is."""
    global LEVEL
    cdef const ek_gemm* found = ek_find_gemm(name.encode())
    if found == NULL:
        raise ValueError(f"level {name!r} is not available here; use one of {', '.join(levels())}")
    LEVEL = found


def level():
    """Name of the level whose kernels are in use."""
    return LEVEL.name.decode()


cdef class Native:
    def __cinit__(self, object matrix):
        cdef const uint8_t[::1] data = matrix.data
        cdef const uint8_t[::1] factors = matrix.scale_blocks.reshape(-1).view("u1")
        self.arrays = (matrix.data, matrix.scale_blocks, matrix.offset_blocks)
        self.matrix.rows, self.matrix.columns = matrix.rows, matrix.columns
        self.matrix.bits, self.matrix.group = matrix.bits, matrix.group
        self.matrix.bend = NOT_BENT if matrix.bend is None else matrix.bend
        self.matrix.half_scales = matrix.scale_blocks.itemsize == 2
        self.matrix.data = &data[0]
        self.matrix.scale = &factors[0]
        self.matrix.offset = NULL
        if matrix.offset_blocks is not None:
            factors = matrix.offset_blocks.reshape(-1).view("u1")
            self.matrix.offset = &factors[0]


cdef Native native(object matrix):
    found = matrix.native
    if found is None:
        found = matrix.native = Native(matrix)
    return <Native>found


def pack(const uint8_t[:, ::1] codes, int bits, uint8_t[::1] data):
    """Write the data of codes (rows, columns); returns all codes or-ed together."""
    cdef int64_t rows = codes.shape[0], columns = codes.shape[1]
    cdef int seen
    with nogil:
        seen = ek_pack_blocks(&codes[0, 0], rows, columns, bits, 0, (rows + BLOCK - 1) // BLOCK, &data[0])
    return seen


def row_codes(object matrix, const int64_t[::1] rows, uint8_t[:, ::1] codes):
    """Write the codes of some rows."""
    cdef const ek_packed* packed = &native(matrix).matrix
    cdef Py_ssize_t i
    with nogil:
        for i in range(rows.shape[0]):
            ek_row_codes(packed, rows[i], &codes[i, 0])


def row_values(object matrix, const int64_t[::1] rows, float[:, ::1] values):
    """Write the values of some rows."""
    cdef const ek_packed* packed = &native(matrix).matrix
    cdef Py_ssize_t i
    with nogil:
        for i in range(rows.shape[0]):
            ek_row_values(packed, rows[i], &values[i, 0])


def values(object matrix, float[:, ::1] values):
    """Write all values."""
    cdef const ek_packed* packed = &native(matrix).matrix
    cdef int64_t block
    with nogil:
        for block in range((packed.rows + BLOCK - 1) // BLOCK):
            ek_block_values(packed, block, &values[block * BLOCK, 0])


cdef void multiply_slice(const ek_gemm* level, const ek_packed* packed, const ek_tokens* tokens, const float* x,
                         int64_t count, int64_t part, int64_t parts, const float* bias, float* y) noexcept nogil:
    """One thread's share of the rows; float activations if x is not NULL."""
    cdef int64_t slices = (packed.rows + SLICE - 1) // SLICE
    cdef int64_t first = slices * part // parts * SLICE, last = slices * (part + 1) // parts * SLICE
    if last > packed.rows:
        last = packed.rows
    if x != NULL:
        level.floats(packed, x, tokens.sum, count, first, last, bias, y, packed.rows)
    else:
        level.quantised(packed, tokens, count, first, last, bias, y, packed.rows)


cdef void prepare_token(const ek_gemm* level, const ek_packed* packed, const ek_tokens* tokens, const float* x,
                        int64_t t, bint quantised) noexcept nogil:
    """What the products need of one token's activations."""
    cdef int64_t columns = packed.columns, groups = packed.columns // packed.group
    if quantised:
        level.quantise(x + t * columns, columns, packed.group, tokens.codes + t * columns, tokens.scale + t * groups,
                       tokens.sum + t * groups)
    else:
        level.sum_groups(x + t * columns, columns, packed.group, tokens.sum + t * groups)


def multiply(object matrix, const float[:, ::1] x, *, const float[::1] bias, float[:, ::1] y, bint quantised,
             int num_threads):
    """Write the products of a packed matrix with each row of x."""
    cdef const ek_gemm* level = LEVEL
    cdef const ek_packed* packed = &native(matrix).matrix
    cdef int64_t columns = packed.columns, groups = packed.columns // packed.group
    cdef int64_t count = x.shape[0], chunk = min(count, <int64_t>CHUNK), first = 0, n, t
    cdef int parts = <int>min(<int64_t>num_threads, (packed.rows + SLICE - 1) // SLICE), part
    cdef const float* floats = NULL
    cdef const float* added = NULL
    cdef const float* each
    cdef ek_tokens tokens
    if count == 0:
        return
    if bias is not None:
        added = &bias[0]
    cdef void* scratch = malloc(chunk * (8 * groups + (columns if quantised else 0)))
    if scratch == NULL:
        raise MemoryError(f"no memory for the activations of {chunk} tokens of {columns} columns")
    tokens.scale = <float*>scratch
    tokens.sum = tokens.scale + chunk * groups
    tokens.codes = <int8_t*>(tokens.sum + chunk * groups)
    with nogil:
        while first < count:
            n = min(count - first, <int64_t>CHUNK)
            each = &x[first, 0]
            if not quantised:
                floats = each
            if parts == 1 or n == 1:
                for t in range(n):
                    prepare_token(level, packed, &tokens, each, t, quantised)
            else:
                for t in prange(n, num_threads=parts, schedule="static"):
                    prepare_token(level, packed, &tokens, each, t, quantised)
            if parts == 1:
                multiply_slice(level, packed, &tokens, floats, n, 0, 1, added, &y[first, 0])
            else:
                for part in prange(parts, num_threads=parts, schedule="static", chunksize=1):
                    multiply_slice(level, packed, &tokens, floats, n, part, parts, added, &y[first, 0])
            first += CHUNK
    free(scratch)


def quantise_tokens(const float[:, ::1] x, int group, int8_t[:, ::1] codes, float[:, ::1] scale, float[:, ::1] sums):
    """Write the int8 activations of each row of x, as multiply makes them."""
    cdef Py_ssize_t t
    for t in range(x.shape[0]):
        LEVEL.quantise(&x[t, 0], x.shape[1], group, &codes[t, 0], &scale[t, 0], &sums[t, 0])


set_level(os.environ.get("EDGEKERNELS_LEVEL", ""))
