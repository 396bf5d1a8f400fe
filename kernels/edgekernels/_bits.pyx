# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: freethreading_compatible=True
"""Thin face of the C kernels of low-bit codes, without the GIL. Callers check the arguments."""
import os

from libc.stdint cimport int64_t, uint8_t


cdef extern from "bits.h" nogil:
    ctypedef struct ek_matrix:
        int64_t rows
        int64_t columns
        int64_t group
        int bits
        int align_rows

    ctypedef enum ek_format:
        EK_FLOAT32
        EK_FLOAT16
        EK_BFLOAT16

    ctypedef enum ek_grid:
        EK_ASYMMETRIC

    ctypedef struct ek_bits:
        const char* name
        int (*pack)(const uint8_t*, int64_t, int, uint8_t*) noexcept nogil
        void (*unpack)(const uint8_t*, int64_t, int, uint8_t*) noexcept nogil
        void (*quantise)(const float*, const ek_matrix*, const float*, const float*, uint8_t*) noexcept nogil
        void (*dequantise)(const uint8_t*, const ek_matrix*, const float*, const float*, ek_format,
                           void*) noexcept nogil
        void (*split)(const uint8_t*, int64_t, int, uint8_t*) noexcept nogil
        void (*merge)(const uint8_t*, int64_t, int, uint8_t*) noexcept nogil
        int64_t (*fit)(const float*, int64_t, int64_t, int, ek_grid, int, float*, float*) noexcept nogil

    const ek_bits* ek_find_bits(const char* name) noexcept
    bint ek_offers_bits(int level) noexcept


cdef extern from "cpu.h" nogil:
    const char* ek_level_name(int level) noexcept
    int64_t ek_cache_bytes() noexcept


cdef const ek_bits* LEVEL = NULL
NAME = "cython"


def levels():
    """Names of the levels for which there are kernels and which this processor has, best first."""
    cdef int number = 0
    found = []
    while ek_level_name(number) != NULL:
        if ek_offers_bits(number):
            found.insert(0, ek_level_name(number).decode())
        number += 1
    return tuple(found)


def set_level(str name):
    """Use the kernels of this level from now on, or the best below it; "" is the best level there is."""
    global LEVEL
    cdef const ek_bits* found = ek_find_bits(name.encode())
    if found == NULL:
        raise ValueError(f"level {name!r} is not available here; use one of {', '.join(levels())}")
    LEVEL = found


def level():
    """Name of the level whose kernels are in use."""
    return LEVEL.name.decode()


def pack(const uint8_t[::1] codes, int bits, uint8_t[::1] packed):
    """Write the bitstream of codes; returns all codes or-ed together."""
    cdef const ek_bits* kernels = LEVEL
    cdef int seen = 0
    if codes.shape[0]:
        with nogil:
            seen = kernels.pack(&codes[0], codes.shape[0], bits, &packed[0])
    return seen


def unpack(const uint8_t[::1] packed, int bits, uint8_t[::1] codes):
    """Write the codes with which a bitstream begins."""
    cdef const ek_bits* kernels = LEVEL
    if codes.shape[0]:
        with nogil:
            kernels.unpack(&packed[0], codes.shape[0], bits, &codes[0])


cdef ek_matrix matrix(int64_t rows, int64_t columns, int64_t scales, int bits, bint align_rows) noexcept:
    """What C wants to know of a matrix with that many scales."""
    cdef ek_matrix shape
    shape.rows, shape.columns, shape.bits, shape.align_rows = rows, columns, bits, align_rows
    shape.group = rows * columns // scales
    return shape


def quantise(const float[:, ::1] values, int bits, *, const float[::1] scale, const float[::1] offset,
             bint align_rows, uint8_t[::1] packed):
    """Write the bitstream of the codes of values."""
    cdef const ek_bits* kernels = LEVEL
    cdef ek_matrix shape
    if values.shape[0]:
        shape = matrix(values.shape[0], values.shape[1], scale.shape[0], bits, align_rows)
        with nogil:
            kernels.quantise(&values[0, 0], &shape, &scale[0], &offset[0], &packed[0])


def dequantise(const uint8_t[::1] packed, int bits, *, const float[::1] scale, const float[::1] offset,
               bint align_rows, values):
    """Write the values of a bitstream as float32, float16, or bfloat16 (whose array is uint16)."""
    cdef const ek_bits* kernels = LEVEL
    cdef ek_format format = EK_FLOAT32
    cdef uint8_t[:, ::1] memory = values.view("uint8")
    cdef ek_matrix shape
    if values.dtype.char != "f":
        format = EK_FLOAT16 if values.dtype.char == "e" else EK_BFLOAT16
    if memory.shape[0]:
        shape = matrix(memory.shape[0], values.shape[1], scale.shape[0], bits, align_rows)
        with nogil:
            kernels.dequantise(&packed[0], &shape, &scale[0], &offset[0], format, &memory[0, 0])


def split(const uint8_t[::1] packed, int64_t num_codes, int bits, uint8_t[::1] planes):
    """Write the planes of a bitstream, the most significant one first."""
    cdef const ek_bits* kernels = LEVEL
    if num_codes:
        with nogil:
            kernels.split(&packed[0], num_codes, bits, &planes[0])


def merge(const uint8_t[::1] planes, int64_t num_codes, int bits, uint8_t[::1] packed):
    """Write the bitstream of the codes of planes."""
    cdef const ek_bits* kernels = LEVEL
    if num_codes:
        with nogil:
            kernels.merge(&planes[0], num_codes, bits, &packed[0])


def fit(const float[:, ::1] values, int bits, *, int grid, bint search, float[::1] scale, float[::1] offset):
    """Write the scales and offsets of groups of values; returns the first one with a bad number, or -1."""
    cdef const ek_bits* kernels = LEVEL
    cdef int64_t bad = -1
    if values.shape[0]:
        with nogil:
            bad = kernels.fit(&values[0, 0], values.shape[0], values.shape[1], bits, <ek_grid>grid, search, &scale[0],
                              &offset[0])
    return bad


def cache_bytes():
    """Bytes of an output from which on it is written past the caches."""
    return ek_cache_bytes()


set_level(os.environ.get("EDGEKERNELS_LEVEL", ""))
