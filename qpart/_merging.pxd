# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What `qpart/_search.pyx` merges by: edges of convex hulls by slope, points of a front by bytes."""

from libc.stdint cimport INT64_MAX, int64_t
from libc.string cimport memcpy

cdef enum:
    WIDTHS = 8  # of a tensor


cdef struct Edge:
    double slope  # bytes for less noise
    double psi  # how much less
    int64_t tensor
    int64_t to  # the option that it leads to


cdef struct Heads:
    int64_t at[WIDTHS]
    int64_t more[WIDTHS]
    double psi[WIDTHS]
    int64_t end
    int64_t* num_bytes
    double* noise
    double slope, most, most_psi, quietest


cdef inline int64_t next_of(Heads* heads, int64_t w) noexcept nogil:
    """Bytes of the next point of use that an option leads to; those are out which are dominated or exceed a limit."""
    cdef int64_t at = heads.at[w], num_bytes = INT64_MAX
    cdef double psi, limit = min(heads.most_psi, heads.quietest)
    while at < heads.end:
        psi = heads.noise[at] + heads.psi[w]
        if psi <= limit and <double>(heads.num_bytes[at] + heads.more[w]) + heads.slope * psi <= heads.most:
            num_bytes = heads.num_bytes[at] + heads.more[w]
            break
        at += 1
    heads.at[w] = at
    return num_bytes


cdef inline void sort(Edge* edges, Edge* spare, int64_t num) noexcept nogil:
    """By slope: runs that ascend already, as those of one tensor do, are merged by twos until one is left."""
    cdef int64_t i, j, k, middle, end, runs = 2
    while runs > 1:
        runs = i = 0
        while i < num:
            middle = i + 1
            while middle < num and edges[middle - 1].slope <= edges[middle].slope:
                middle += 1
            end = min(middle + 1, num)
            while end < num and edges[end - 1].slope <= edges[end].slope:
                end += 1
            runs += 1
            if middle == num and runs == 1:
                return
            memcpy(spare, edges + i, (middle - i) * sizeof(Edge))
            j, k, middle = 0, middle, middle - i
            while j < middle and k < end:
                if edges[k].slope < spare[j].slope:
                    edges[i] = edges[k]
                    k += 1
                else:
                    edges[i] = spare[j]
                    j += 1
                i += 1
            memcpy(edges + i, spare + j, (middle - j) * sizeof(Edge))
            i = end
