# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Fronts of all prefixes by merging: the same points as `qpart.fronts.extend`, which is the specification."""

import numpy as np

from libc.math cimport INFINITY
from libc.stdint cimport INT64_MAX, int64_t, uint8_t

cdef enum:
    MOST_WIDTHS = 8  # of a tensor


cdef struct Front:
    const int64_t* num_bytes
    const double* psi
    int64_t size
    int64_t base  # position of its first point among those of all fronts


cdef int64_t merge(
    Front front, const int64_t* more_bytes, const double* more_psi, const int64_t* width, int num_widths,
    double most_psi, int64_t most_bytes, int64_t* num_bytes, double* psi, int64_t* steps,
) noexcept nogil:
    """The points that no other beats, in ascending bytes; returns how many, 0 where all have too much of either.

    Of every width the points of the front come in ascending bytes. The next one is the least of at most eight heads:
    bytes first, then the position of the width. It stays if it is quieter than all before it, and takes the place of
    one with as many bytes; the first stays even if its noise is infinite.
    """
    cdef int64_t key[MOST_WIDTHS]
    cdef int64_t at[MOST_WIDTHS]
    cdef double extra[MOST_WIDTHS]
    cdef int64_t low, high, middle, least, here, size = front.size, count = 0
    cdef int64_t a, b, c, d
    cdef double noise, quietest = INFINITY
    cdef int w
    for w in range(MOST_WIDTHS):
        key[w], at[w], extra[w] = INT64_MAX, size, 0.0
    for w in range(num_widths):
        extra[w] = more_psi[w]
        low, high = 0, size  # the first point that is quiet enough: noise descends
        while low < high:
            middle = (low + high) >> 1
            if front.psi[middle] + extra[w] <= most_psi:
                high = middle
            else:
                low = middle + 1
        at[w] = low
        if low < size:
            key[w] = ((front.num_bytes[low] + more_bytes[w]) << 3) | w
    while True:
        a = key[0] if key[0] < key[1] else key[1]
        b = key[2] if key[2] < key[3] else key[3]
        c = key[4] if key[4] < key[5] else key[5]
        d = key[6] if key[6] < key[7] else key[7]
        a = a if a < b else b
        c = c if c < d else d
        least = a if a < c else c
        if least >> 3 > most_bytes or least == INT64_MAX:
            return count
        w = <int>(least & 7)
        here = at[w]
        noise = front.psi[here] + extra[w]
        if count == 0 or noise < quietest:
            quietest = noise
            if count > 0 and num_bytes[count - 1] == least >> 3:
                count -= 1
            num_bytes[count], psi[count] = least >> 3, noise
            steps[count] = ((front.base + here) << 3) | width[w]
            count += 1
        here += 1
        while here < size and front.psi[here] + extra[w] >= quietest:  # noise descends
            here += 1
        at[w] = here
        key[w] = ((front.num_bytes[here] + more_bytes[w]) << 3) | w if here < size else INT64_MAX


def extended(
    int64_t[::1] num_bytes, double[::1] psi, int64_t[::1] steps, list sizes,
    const int64_t[:, ::1] more_bytes, const double[:, ::1] more_psi, const int64_t[:, ::1] widths,
    const int64_t[::1] num_widths, double most_psi, const int64_t[::1] most_bytes,
):
    """See the stub."""
    cdef int64_t used = num_bytes.shape[0], room = used, size = sizes[len(sizes) - 1], first, need, count
    cdef int k, many
    cdef Front front
    cdef object all_bytes = np.asarray(num_bytes), all_psi = np.asarray(psi), all_steps = np.asarray(steps)
    cdef list counts = list(sizes)
    for k in range(more_bytes.shape[0]):
        many = <int>num_widths[k]
        first, need = used - size, used + size * many
        if need > room:
            room = 2 * need
            all_bytes, all_psi, all_steps = (_roomier(one, used, room) for one in (all_bytes, all_psi, all_steps))
            num_bytes, psi, steps = all_bytes, all_psi, all_steps
        front.num_bytes, front.psi, front.size, front.base = &num_bytes[first], &psi[first], size, first
        with nogil:
            count = merge(
                front, &more_bytes[k, 0], &more_psi[k, 0], &widths[k, 0], many, most_psi, most_bytes[k],
                &num_bytes[used], &psi[used], &steps[used],
            )
            if count == 0:  # nothing is left: the quietest stays
                count = merge(
                    front, &more_bytes[k, 0], &more_psi[k, 0], &widths[k, 0], many, INFINITY, INT64_MAX,
                    &num_bytes[used], &psi[used], &steps[used],
                )
                num_bytes[used], psi[used] = num_bytes[used + count - 1], psi[used + count - 1]
                steps[used] = steps[used + count - 1]
                count = 1
        used, size = used + count, count
        counts.append(count)
    return all_bytes[:used], all_psi[:used], all_steps[:used], counts


def summed(const int64_t[::1] steps, const int64_t[::1] starts, const int64_t[:, ::1] values):
    """See the stub."""
    found = np.zeros(steps.shape[0], np.int64)
    cdef int64_t[::1] sums = found
    cdef int64_t k, i
    with nogil:
        for k in range(1, starts.shape[0] - 1):
            for i in range(starts[k], starts[k + 1]):
                sums[i] = sums[steps[i] >> 3] + values[k - 1, steps[i] & 7]
    return found


def first_within(
    const double[::1] psi, const int64_t[::1] starts, const int64_t[::1] ends, const double[::1] extra,
    const int64_t[::1] cut, const double[::1] budgets,
):
    """See the stub."""
    cdef int64_t num_pairs = starts.shape[0], i, low, high, middle
    cdef double budget
    positions, exist = np.empty(num_pairs, np.int64), np.empty(num_pairs, np.bool_)
    cdef int64_t[::1] position = positions
    cdef uint8_t[::1] exists = exist.view(np.uint8)
    with nogil:
        for i in range(num_pairs):
            budget, low, high = budgets[cut[i]], starts[i], ends[i]
            if not extra[i] <= budget:
                low = high
            while low < high:
                middle = (low + high) >> 1
                if psi[middle] + extra[i] > budget:  # noise descends
                    low = middle + 1
                else:
                    high = middle
            exists[i] = low < ends[i]
            position[i] = low if low < ends[i] else ends[i] - 1
    return positions, exist


def cheapest(
    const int64_t[::1] num_bytes, const double[::1] psi, const int64_t[::1] points, const uint8_t[::1] exist,
    const int64_t[::1] first, const int64_t[::1] manifest, const int64_t[::1] held, const int64_t[::1] up,
    const double[::1] extra, double down_weight, double up_weight, int64_t most_held,
):
    """See the stub."""
    cdef int64_t cuts = first.shape[0], pairs = points.shape[0], cut, i, end, best, least_bytes, moved
    cdef double least, cost, quietest, noise
    existing, chosen, chosen_points = np.empty(cuts, np.bool_), np.empty(cuts, np.int64), np.empty(cuts, np.int64)
    cdef uint8_t[::1] any_there = existing.view(np.uint8)
    cdef int64_t[::1] pair = chosen, point = chosen_points
    with nogil:
        for cut in range(cuts):
            best, end = -1, first[cut + 1] if cut + 1 < cuts else pairs
            least = quietest = INFINITY
            least_bytes = INT64_MAX
            for i in range(first[cut], end):
                if not exist[i] or num_bytes[points[i]] > most_held - held[i]:
                    continue
                moved = num_bytes[points[i]] + manifest[i]
                cost = down_weight * <double>moved + up_weight * <double>up[i]
                moved += up[i]
                noise = psi[points[i]] + extra[i]
                if best < 0 or cost < least or (
                    cost == least and (moved < least_bytes or (moved == least_bytes and noise < quietest))
                ):
                    best, least, least_bytes, quietest = i, cost, moved, noise
            any_there[cut] = best >= 0
            pair[cut] = best if best >= 0 else first[cut]
            point[cut] = points[pair[cut]]
    return existing, chosen, chosen_points


def widths_back(
    const int64_t[::1] steps, const int64_t[::1] points, const int64_t[::1] prefix, int64_t most,
    const uint8_t[::1] widths, held,
):
    """See the stub."""
    cdef int64_t num_points = points.shape[0], i, k, at, tensor
    cdef bint counts = held is not None
    cdef const int64_t[:, ::1] sizes = held if counts else np.empty((0, 0), np.int64)
    bits, sums = np.zeros((num_points, most), np.uint8), np.zeros(num_points, np.int64)
    cdef uint8_t[:, ::1] bit = bits
    cdef int64_t[::1] total = sums
    with nogil:
        for i in range(num_points):
            at = points[i]
            for k in range(prefix[i]):
                tensor = prefix[i] - 1 - k
                bit[i, most - 1 - k] = widths[steps[at] & 7]
                if counts:
                    total[i] += sizes[tensor, steps[at] & 7]
                at = steps[at] >> 3
    return bits, sums


def _roomier(array, int64_t used, int64_t room):
    larger = np.empty(room, array.dtype)
    larger[:used] = array[:used]
    return larger
