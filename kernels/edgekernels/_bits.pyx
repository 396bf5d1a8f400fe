# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: freethreading_compatible=True
"""Thin face of the C kernels of low-bit codes, without the GIL. Callers check the arguments."""
import os

from libc.stdint cimport int64_t, uint8_t


cdef extern from "bits.h" nogil:
    ctypedef struct ek_matrix:
        int64_t rows
        int64_t columns
        int bits
        int align_rows

    ctypedef struct ek_bits:
        const char* name
        int (*pack)(const uint8_t*, int64_t, int, uint8_t*) noexcept nogil
        void (*unpack)(const uint8_t*, int64_t, int, uint8_t*) noexcept nogil
        void (*quantise)(const float*, const ek_matrix*, const float*, const float*, uint8_t*) noexcept nogil
        void (*dequantise)(const uint8_t*, const ek_matrix*, const float*, const float*, float*) noexcept nogil

    const ek_bits* ek_find_bits(const char* name) noexcept
    bint ek_offers_bits(int level) noexcept


cdef extern from "cpu.h" nogil:
    const char* ek_level_name(int level) noexcept


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


def quantise(const float[:, ::1] values, int bits, *, const float[::1] scale, const float[::1] offset,
             bint align_rows, uint8_t[::1] packed):
    """Write the bitstream of the codes of values."""
    cdef const ek_bits* kernels = LEVEL
    cdef ek_matrix shape
    shape.rows, shape.columns, shape.bits, shape.align_rows = values.shape[0], values.shape[1], bits, align_rows
    if shape.rows:
        with nogil:
            kernels.quantise(&values[0, 0], &shape, &scale[0], &offset[0], &packed[0])


def dequantise(const uint8_t[::1] packed, int bits, *, const float[::1] scale, const float[::1] offset,
               bint align_rows, float[:, ::1] values):
    """Write the values of a bitstream."""
    cdef const ek_bits* kernels = LEVEL
    cdef ek_matrix shape
    shape.rows, shape.columns, shape.bits, shape.align_rows = values.shape[0], values.shape[1], bits, align_rows
    if shape.rows:
        with nogil:
            kernels.dequantise(&packed[0], &shape, &scale[0], &offset[0], &values[0, 0])


set_level(os.environ.get("EDGEKERNELS_LEVEL", ""))
