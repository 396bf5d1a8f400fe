# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: freethreading_compatible=True
"""Thin face of the C decoder, without the GIL. Callers check the arguments."""
import os

import numpy as np

from libc.stdint cimport int32_t, int64_t, uintptr_t
from libc.stdlib cimport calloc, free

from edgekernels._attend cimport ek_attend
from edgekernels._attend cimport kernels as attend_kernels
from edgekernels._gemm cimport Native, ek_gemm, ek_packed, kernels, native


cdef extern from "decode.h" nogil:
    ctypedef struct ek_cache:
        void* keys
        void* values
        int64_t capacity
        int64_t padded_dim
        int half

    ctypedef struct ek_decode:
        const char* name

    ctypedef struct ek_linear:
        ek_packed packed
        const float* values
        const float* bias
        int64_t rows
        int64_t columns

    ctypedef struct ek_layer:
        const float* attention_norm
        const float* query_norm
        const float* key_norm
        const float* ffn_norm
        ek_linear query
        ek_linear key
        ek_linear value
        ek_linear output
        ek_linear gate
        ek_linear up
        ek_linear down

    ctypedef struct ek_model:
        int64_t hidden
        int64_t ffn
        int64_t heads
        int64_t kv_heads
        int64_t head_dim
        int64_t vocab
        int64_t num_layers
        int64_t turning
        float epsilon
        int floats
        const float* frequencies
        const float* norm
        const ek_layer* layers
        ek_linear head

    ctypedef struct ek_kernels:
        const ek_decode* steps
        const ek_gemm* gemm
        const ek_attend* attend

    ctypedef struct ek_pages:
        float* keys
        float* values
        int64_t pages
        int64_t page_tokens

    ctypedef struct ek_spans:
        const int32_t* page_table
        const int64_t* page_starts
        const int64_t* token_starts
        const int64_t* past
        int64_t spans
        const int64_t* rows
        int64_t num_rows

    int64_t ek_workspace_bytes(const ek_model*, const ek_cache*, int threads) noexcept
    void ek_forward(const ek_kernels*, const ek_model*, const ek_cache*, int64_t past, const float* embedded,
                    int64_t count, int64_t num_logits, float* logits, int threads, void* workspace) noexcept
    int64_t ek_paged_workspace_bytes(const ek_model*, int threads) noexcept
    int ek_forward_paged(const ek_kernels*, const ek_model*, const ek_pages*, const ek_spans*, const float* embedded,
                         int64_t count, float* logits, int threads, void* workspace) noexcept
    const ek_decode* ek_find_decode(const char* name) noexcept
    bint ek_offers_decode(int level) noexcept


cdef extern from "cpu.h" nogil:
    const char* ek_level_name(int level) noexcept


cdef const ek_decode* LEVEL = NULL
NAME = "cython"
TILE = 16


def levels():
    """Names of the levels for which there are kernels and which this processor has, best first."""
    cdef int number = 0
    found = []
    while ek_level_name(number) != NULL:
        if ek_offers_decode(number):
            found.insert(0, ek_level_name(number).decode())
        number += 1
    return tuple(found)


def set_level(str name):
    """Use the kernels of this level from now on, or the best below it; "" is the best level there is.

    The products with packed matrices are those of edgekernels._gemm, which has a level of its own.
    """
    global LEVEL
    cdef const ek_decode* found = ek_find_decode(name.encode())
    if found == NULL:
        raise ValueError(f"level {name!r} is not available here; use one of {', '.join(levels())}")
    LEVEL = found


def level():
    """Name of the level whose kernels are in use."""
    return LEVEL.name.decode()


cdef const float* floats_of(list kept, array):
    """Address of a float32 array, which is kept alive; NULL for None."""
    cdef const float[::1] view
    if array is None:
        return NULL
    kept.append(array)
    view = array.reshape(-1)
    return &view[0]


cdef class Model:
    """A model's weights where C finds them."""
    cdef ek_model model
    cdef ek_layer* layers
    cdef list kept

    def __cinit__(self, config, weights, bint floats):
        cdef ek_layer* at
        self.kept = []
        self.layers = <ek_layer*>calloc(len(weights.layers), sizeof(ek_layer))
        if self.layers == NULL:
            raise MemoryError(f"no memory for {len(weights.layers)} layers")
        self.model.hidden, self.model.ffn, self.model.vocab = config.hidden_size, config.ffn_size, config.vocab_size
        self.model.heads, self.model.kv_heads = config.num_heads, config.num_kv_heads
        self.model.head_dim, self.model.turning = config.head_dim, len(config.frequencies)
        self.model.num_layers, self.model.epsilon, self.model.floats = len(weights.layers), config.norm_epsilon, floats
        self.model.frequencies = floats_of(self.kept, config.frequencies)
        self.model.norm = floats_of(self.kept, weights.norm)
        self.model.layers = self.layers
        self.fill(&self.model.head, weights.head)
        for number, layer in enumerate(weights.layers):
            at = &self.layers[<int64_t>number]
            at.attention_norm = floats_of(self.kept, layer.attention_norm)
            at.query_norm = floats_of(self.kept, layer.query_norm)
            at.key_norm = floats_of(self.kept, layer.key_norm)
            at.ffn_norm = floats_of(self.kept, layer.ffn_norm)
            self.fill(&at.query, layer.query)
            self.fill(&at.key, layer.key)
            self.fill(&at.value, layer.value)
            self.fill(&at.output, layer.output)
            self.fill(&at.gate, layer.gate)
            self.fill(&at.up, layer.up)
            self.fill(&at.down, layer.down)

    def __dealloc__(self):
        free(self.layers)

    cdef int fill(self, ek_linear* to, linear) except -1:
        """Describe a linear map to C."""
        matrix = linear.matrix
        to.bias = floats_of(self.kept, linear.bias)
        if isinstance(matrix, np.ndarray):
            to.rows, to.columns = matrix.shape
            to.values = floats_of(self.kept, matrix)
            return 0
        to.rows, to.columns = matrix.rows, matrix.columns
        described = native(matrix)
        self.kept.append(described)
        to.packed = (<Native>described).matrix
        return 0


cdef class Cache:
    """Keys and values of one sequence, and working memory."""
    cdef ek_cache cache
    cdef object keys, values, workspace

    def __cinit__(self, keys, values, int64_t capacity, int64_t padded_dim):
        self.keys, self.values, self.workspace = keys, values, None
        self.cache.keys, self.cache.values = <void*><uintptr_t>keys.ctypes.data, <void*><uintptr_t>values.ctypes.data
        self.cache.capacity, self.cache.padded_dim = capacity, padded_dim
        self.cache.half = keys.dtype == np.float16

    cdef void* memory(self, const ek_model* model, int threads) except NULL:
        """Working memory for so many threads, aligned to 64 bytes."""
        self.workspace = with_room(self.workspace, ek_workspace_bytes(model, &self.cache, threads))
        return aligned(self.workspace)


cdef with_room(workspace, int64_t wanted):
    """Memory with room for so many bytes from an address on which is a multiple of 64."""
    if workspace is None or workspace.nbytes < wanted + 64:
        return np.zeros(wanted + 64, np.uint8)
    return workspace


cdef void* aligned(workspace):
    """That address."""
    return <void*>((<uintptr_t>workspace.ctypes.data + 63) & ~<uintptr_t>63)


cdef class Pages:
    """Keys and values of many sequences, and working memory."""
    cdef ek_pages pages
    cdef object keys, values, workspace

    def __cinit__(self, float[:, :, :, :, ::1] keys, float[:, :, :, :, ::1] values):
        self.keys, self.values, self.workspace = keys, values, None
        self.pages.keys, self.pages.values = &keys[0, 0, 0, 0, 0], &values[0, 0, 0, 0, 0]
        self.pages.pages, self.pages.page_tokens = keys.shape[1], keys.shape[3]


def forward(Model model, Cache cache, int64_t past, const float[:, ::1] embedded, float[:, ::1] logits, int threads):
    """Take in embedded tokens and write the logits of the last of them."""
    cdef void* workspace = cache.memory(&model.model, threads)
    cdef int64_t count = embedded.shape[0], num_logits = logits.shape[0]
    cdef ek_kernels both
    cdef float* out = &logits[0, 0] if num_logits else NULL
    both.steps, both.gemm, both.attend = LEVEL, kernels(), attend_kernels()
    with nogil:
        ek_forward(&both, &model.model, &cache.cache, past, &embedded[0, 0], count, num_logits, out, threads,
                   workspace)


def forward_paged(Model model, Pages pages, const float[:, ::1] embedded, const int32_t[::1] page_table,
                  const int64_t[::1] page_starts, const int64_t[::1] token_starts, const int64_t[::1] past,
                  const int64_t[::1] rows, float[:, ::1] logits, int threads):
    """Take in embedded tokens of many sequences and write the logits of the rows."""
    cdef ek_spans spans
    cdef ek_kernels all
    cdef int64_t count = embedded.shape[0]
    cdef float* out = &logits[0, 0] if rows.shape[0] else NULL
    cdef int failed
    pages.workspace = with_room(pages.workspace, ek_paged_workspace_bytes(&model.model, threads))
    cdef void* workspace = aligned(pages.workspace)
    spans.page_table, spans.page_starts, spans.token_starts = &page_table[0], &page_starts[0], &token_starts[0]
    spans.past, spans.spans = &past[0], past.shape[0]
    spans.rows, spans.num_rows = &rows[0] if rows.shape[0] else NULL, rows.shape[0]
    all.steps, all.gemm, all.attend = LEVEL, kernels(), attend_kernels()
    with nogil:
        failed = ek_forward_paged(&all, &model.model, &pages.pages, &spans, &embedded[0, 0], count, out, threads,
                                  workspace)
    if failed:
        raise MemoryError(f"no memory for the attention of {count} tokens")


set_level(os.environ.get("EDGEKERNELS_LEVEL", ""))
