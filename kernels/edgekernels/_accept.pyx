# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: freethreading_compatible=True
"""Thin face of the C kernels: a loop over sequences without the GIL. Callers check the arguments."""
import os

from cython.parallel cimport prange
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset


cdef extern from "accept.h" nogil:
    ctypedef struct ek_rule:
        double temperature
        double top_p
        double log_min_p
        int64_t top_k
        uint64_t seed
        uint64_t position
        float repetition
        float frequency
        float presence
        float spare

    ctypedef void (*ek_words_of)(uint64_t, uint64_t, const int32_t*, int64_t, uint32_t*) noexcept nogil
    ctypedef int32_t (*ek_accepts)(double, double, double, double) noexcept nogil

    ctypedef struct ek_batch:
        const void* logits
        int64_t vocab
        int32_t dtype
        int32_t kind
        const int64_t* row_starts
        const int32_t* drafts
        const ek_rule* rules
        const int32_t* token_ids
        const int32_t* history
        const int64_t* history_starts
        const int64_t* num_prompt
        const int32_t* bias_ids
        const float* bias
        const int64_t* bias_starts
        const float* dense_q
        const int32_t* q_ids
        const float* q
        const int64_t* q_starts
        ek_words_of words_of
        ek_accepts accepts

    ctypedef struct ek_level:
        const char* name
        int32_t (*decide)(const ek_batch*, int64_t, int, int32_t*) noexcept nogil
        void (*noise)(uint64_t, uint64_t, const int32_t*, int64_t, uint32_t*) noexcept nogil

    int EK_FLOAT32
    void ek_prepare() noexcept
    const ek_level* ek_find_level(const char* name) noexcept
    bint ek_offers_level(int level) noexcept


cdef extern from "cpu.h" nogil:
    const char* ek_level_name(int level) noexcept


cdef const ek_level* LEVEL = NULL
NAME = "cython"


def levels():
    """Names of the levels for which there are kernels and which this processor has, best first."""
    cdef int number = 0
    found = []
    while ek_level_name(number) != NULL:
        if ek_offers_level(number):
            found.insert(0, ek_level_name(number).decode())
        number += 1
    return tuple(found)


def set_level(str name):
    """Use the kernels of this level from now on, or the best below it; "" is the best level there is."""
    global LEVEL
    cdef const ek_level* found = ek_find_level(name.encode())
    if found == NULL:
        raise ValueError(f"level {name!r} is not available here; use one of {', '.join(levels())}")
    LEVEL = found


def level():
    """Name of the level whose kernels are in use."""
    return LEVEL.name.decode()


# The arrays outlive the batch that points into them: the task holds them.
cdef const int32_t* ids_of(object array) except? NULL:
    cdef const int32_t[::1] view = array
    return &view[0] if view.shape[0] else NULL


cdef const int64_t* offsets_of(object array) except? NULL:
    cdef const int64_t[::1] view = array
    return &view[0] if view.shape[0] else NULL


cdef const float* floats_of(object array) except? NULL:
    cdef const float[::1] view = array
    return &view[0] if view.shape[0] else NULL


cdef int set_logits(ek_batch* batch, object logits, int dtype) except -1:
    cdef const float[:, ::1] wide
    cdef const uint16_t[:, ::1] narrow
    batch.dtype = dtype
    batch.vocab = logits.shape[1]
    if dtype == EK_FLOAT32:
        wide = logits
        batch.logits = &wide[0, 0]
    else:
        narrow = logits.view("u2")
        batch.logits = &narrow[0, 0]
    return 0


cdef int set_options(ek_batch* batch, object task) except -1:
    cdef const float[:, ::1] dense
    history, bias, q = task.history, task.bias, task.q
    if history is not None:
        batch.history = ids_of(history.ids)
        batch.history_starts = offsets_of(history.starts)
        batch.num_prompt = offsets_of(history.num_prompt)
    if bias is not None:
        batch.bias_ids = ids_of(bias.ids)
        batch.bias = floats_of(bias.values)
        batch.bias_starts = offsets_of(bias.starts)
    if isinstance(q, tuple):
        batch.q_ids = ids_of(q.ids)
        batch.q = floats_of(q.probabilities)
        batch.q_starts = offsets_of(q.starts)
    elif q is not None and q.shape[0]:
        dense = q
        batch.dense_q = &dense[0, 0]
    if task.noise is not None:
        batch.words_of = <ek_words_of><size_t>task.noise.address
    if task.accepts is not None:
        batch.accepts = <ek_accepts><size_t>task.accepts.address
    return 0


def decide(task):
    """Write the accepted count and the next token of every sequence of a task."""
    cdef const ek_level* kernels = LEVEL
    cdef ek_batch batch
    cdef const ek_rule[::1] rules = task.rules
    cdef int32_t[::1] accepted = task.accepted, next_token = task.next_token
    cdef Py_ssize_t b, size = accepted.shape[0]
    cdef int num_threads = task.num_threads
    cdef bint failed = False
    if size == 0:
        return
    memset(&batch, 0, sizeof(batch))
    set_logits(&batch, task.logits, task.dtype)
    batch.kind = task.kind
    batch.rules = &rules[0]
    if task.row_starts is not None:
        batch.row_starts = offsets_of(task.row_starts)
        batch.drafts = ids_of(task.drafts)
    if task.token_ids is not None:
        batch.token_ids = ids_of(task.token_ids)
    if (task.history is not None or task.bias is not None or task.q is not None or task.noise is not None
            or task.accepts is not None):
        set_options(&batch, task)
    if num_threads == 1 or size == 1:
        with nogil:
            for b in range(size):
                accepted[b] = kernels.decide(&batch, b, num_threads, &next_token[b])
    else:
        for b in prange(size, nogil=True, schedule="dynamic", chunksize=1, num_threads=num_threads):
            accepted[b] = kernels.decide(&batch, b, 1, &next_token[b])
    for b in range(size):
        failed |= accepted[b] < 0
    if failed:
        raise MemoryError(f"no memory for the scratch of a row of {batch.vocab} logits")


def noise_bits(uint64_t seed, uint64_t position, const int32_t[::1] token_ids, uint32_t[::1] words):
    """Write the noise word of every token id."""
    if token_ids.shape[0]:
        LEVEL.noise(seed, position, &token_ids[0], token_ids.shape[0], &words[0])


ek_prepare()
set_level(os.environ.get("EDGEKERNELS_LEVEL", ""))
