"""C face of paged attention, for the extension modules that build on it (cimport edgekernels._attend)."""
from libc.stdint cimport int32_t, int64_t


cdef extern from "attend.h" nogil:
    ctypedef struct ek_paged:
        const void* query
        const void* keys
        const void* values
        void* out
        const int32_t* page_table
        const int64_t* page_starts
        const int64_t* token_starts
        const int64_t* past
        int64_t spans
        int64_t heads
        int64_t kv_heads
        int64_t page_tokens
        int64_t dim
        int64_t key_stride
        int64_t value_stride
        int64_t window
        float scale
        float softcap
        int32_t bfloat16

    ctypedef struct ek_attend:
        const char* name


cdef const ek_attend* kernels() noexcept nogil
"""The kernels of the level in use."""
