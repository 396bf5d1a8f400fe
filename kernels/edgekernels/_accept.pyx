# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: freethreading_compatible=True
"""Thin face of the C kernels: loops over sequences and rows without the GIL. Callers check the arguments."""
import os

from cython.parallel cimport prange
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t


cdef extern from "accept.h" nogil:
    ctypedef struct ek_rule:
        double temperature
        double top_p
        int64_t top_k
        uint64_t seed

    ctypedef struct ek_level:
        const char* name
        int32_t (*accept)(const float*, int64_t, int64_t, const int32_t*, const ek_rule*, uint64_t,
                          int32_t*) noexcept nogil
        int32_t (*choose)(const float*, int64_t, const ek_rule*, uint64_t, const int32_t*) noexcept nogil
        void (*noise)(uint64_t, uint64_t, const int32_t*, int64_t, uint32_t*) noexcept nogil

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


cdef int32_t accept_one(const ek_level* kernels, const float* logits, int64_t vocab, const int32_t* drafts,
                        const int64_t* row_starts, Py_ssize_t b, double temperature, int64_t top_k, double top_p,
                        uint64_t seed, uint64_t position, int32_t* next_token) noexcept nogil:
    cdef ek_rule rule
    rule.temperature = temperature
    rule.top_k = top_k
    rule.top_p = top_p
    rule.seed = seed
    return kernels.accept(logits + row_starts[b] * vocab, row_starts[b + 1] - row_starts[b], vocab,
                          drafts + (row_starts[b] - b), &rule, position, next_token)


cdef int32_t choose_one(const ek_level* kernels, const float* row, int64_t vocab, double temperature,
                        int64_t top_k, double top_p, uint64_t seed, uint64_t position,
                        const int32_t* token_ids) noexcept nogil:
    cdef ek_rule rule
    rule.temperature = temperature
    rule.top_k = top_k
    rule.top_p = top_p
    rule.seed = seed
    return kernels.choose(row, vocab, &rule, position, token_ids)


def accept(const float[:, ::1] logits, const int32_t[::1] drafts, const int64_t[::1] row_starts, *,
           const double[::1] temperature, const int64_t[::1] top_k, const double[::1] top_p,
           const uint64_t[::1] seed, const uint64_t[::1] position, int32_t[::1] accepted,
           int32_t[::1] next_token, int num_threads):
    """Write accepted counts and next tokens of every sequence."""
    cdef const ek_level* kernels = LEVEL
    cdef Py_ssize_t b, batch = accepted.shape[0]
    cdef int64_t vocab = logits.shape[1]
    cdef const float* first_logit
    cdef const int32_t* first_draft = &drafts[0] if drafts.shape[0] > 0 else NULL
    cdef bint failed = False
    if batch == 0:
        return
    first_logit = &logits[0, 0]
    if num_threads == 1 or batch == 1:
        with nogil:
            for b in range(batch):
                accepted[b] = accept_one(kernels, first_logit, vocab, first_draft, &row_starts[0], b, temperature[b],
                                         top_k[b], top_p[b], seed[b], position[b], &next_token[b])
    else:
        for b in prange(batch, nogil=True, schedule="dynamic", chunksize=1, num_threads=num_threads):
            accepted[b] = accept_one(kernels, first_logit, vocab, first_draft, &row_starts[0], b, temperature[b],
                                     top_k[b], top_p[b], seed[b], position[b], &next_token[b])
    for b in range(batch):
        failed |= accepted[b] < 0
    if failed:
        raise MemoryError(f"no memory for the scratch of a row of {vocab} logits")


def sample(const float[:, ::1] logits, *, const double[::1] temperature, const int64_t[::1] top_k,
           const double[::1] top_p, const uint64_t[::1] seed, const uint64_t[::1] position,
           const int32_t[::1] token_ids, int32_t[::1] chosen, int num_threads):
    """Write the choice of every row."""
    cdef const ek_level* kernels = LEVEL
    cdef Py_ssize_t r, rows = logits.shape[0]
    cdef int64_t vocab = logits.shape[1]
    cdef const int32_t* ids = NULL
    cdef bint failed = False
    if token_ids is not None:
        ids = &token_ids[0]
    if num_threads == 1 or rows == 1:
        with nogil:
            for r in range(rows):
                chosen[r] = choose_one(kernels, &logits[r, 0], vocab, temperature[r], top_k[r], top_p[r], seed[r],
                                       position[r], ids)
    else:
        for r in prange(rows, nogil=True, schedule="dynamic", chunksize=1, num_threads=num_threads):
            chosen[r] = choose_one(kernels, &logits[r, 0], vocab, temperature[r], top_k[r], top_p[r], seed[r],
                                   position[r], ids)
    for r in range(rows):
        failed |= chosen[r] < 0
    if failed:
        raise MemoryError(f"no memory for the scratch of a row of {vocab} logits")


def noise_bits(uint64_t seed, uint64_t position, const int32_t[::1] token_ids, uint32_t[::1] words):
    """Write the noise word of every token id."""
    if token_ids.shape[0]:
        LEVEL.noise(seed, position, &token_ids[0], token_ids.shape[0], &words[0])


ek_prepare()
set_level(os.environ.get("EDGEKERNELS_LEVEL", ""))
