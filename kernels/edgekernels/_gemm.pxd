"""C face of packed matrices, for the extension modules that build on it (cimport edgekernels._gemm)."""
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t


cdef extern from "gemm.h" nogil:
    ctypedef struct ek_packed:
        int64_t rows
        int64_t columns
        int32_t bits
        int32_t group
        int32_t bend
        int32_t half_scales
        const uint8_t* data
        const void* scale
        const void* offset

    ctypedef struct ek_tokens:
        int8_t* codes
        float* scale
        float* sum

    ctypedef struct ek_gemm:
        const char* name
        void (*quantise)(const float*, int64_t, int32_t, int8_t*, float*, float*) noexcept nogil
        void (*sum_groups)(const float*, int64_t, int32_t, float*) noexcept nogil
        void (*quantised)(const ek_packed*, const ek_tokens*, int64_t, int64_t, int64_t, const float*, float*,
                          int64_t) noexcept nogil
        void (*floats)(const ek_packed*, const float*, const float*, int64_t, int64_t, int64_t, const float*, float*,
                       int64_t) noexcept nogil

    const ek_gemm* ek_find_gemm(const char* name) noexcept
    bint ek_offers_gemm(int level) noexcept
    int64_t ek_data_bytes(int64_t rows, int64_t columns, int32_t bits) noexcept
    int ek_pack_blocks(const uint8_t* codes, int64_t rows, int64_t columns, int32_t bits, int64_t first, int64_t last,
                       uint8_t* data) noexcept
    void ek_row_codes(const ek_packed* matrix, int64_t row, uint8_t* codes) noexcept
    void ek_row_values(const ek_packed* matrix, int64_t row, float* values) noexcept
    void ek_block_values(const ek_packed* matrix, int64_t block, float* values) noexcept


cdef class Native:
    """A PackedMatrix as C sees it; keeps its arrays alive."""

    cdef ek_packed matrix
    cdef object arrays


cdef Native native(object matrix)
"""The C description of a PackedMatrix, made once and kept by it."""

cdef const ek_gemm* kernels() noexcept nogil
"""The kernels of the level in use."""
