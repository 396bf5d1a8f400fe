# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The cheapest cut without the fronts of all cuts: what `qpart.solve.Solver.best_of_each` finds at cuts that matter.

Costs are in bytes to load: a byte of a request counts as `up / down` of them. A multiplier of the noise, bytes per
noise, turns the budget into a price, and every tensor by itself then has a cheapest width; what another width costs
more than that is its *excess*. The excesses of a pattern add up to what it costs more than the bound of its cut, but
for the noise that it leaves unused, so whatever exceeds the distance of bound and best known pattern is out. What
remains of a front is a handful of points. They are merged in the order of the tensors, noise is summed and equals are
decided as by `qpart.fronts.extend`: what is left out never beats what is kept, so the answer is the same to the bit.
"""

import numpy as np

from libc.math cimport INFINITY
from libc.stdint cimport INT64_MAX, int64_t, uint8_t
from libc.stdlib cimport qsort

cdef enum:
    WIDTHS = 8  # of a tensor
    ROUNDS = 8  # of making a pattern cheaper, by one tensor each

cdef double ROUNDING = 4e-12  # more than sums of 4,096 numbers are off, as a share
cdef double FIRST_SHARE = 1.0 / 64, MORE = 4.0  # of the distance between bound and best known
cdef double MOST_SLOPE = 1e200  # noise may differ by next to nothing
cdef int64_t LEAST_ROOM = 1 << 14


cdef struct Edge:
    double slope  # bytes for less noise
    double psi  # how much less
    int64_t tensor
    int64_t to  # the option that it leads to


cdef struct Ranked:
    double bound
    double slope
    double upper
    int64_t cut


cdef int by_slope(const void* one, const void* other) noexcept nogil:
    cdef double a = (<const Edge*>one).slope, b = (<const Edge*>other).slope
    return (a > b) - (a < b)


cdef int by_bound(const void* one, const void* other) noexcept nogil:
    cdef double a = (<const Ranked*>one).bound, b = (<const Ranked*>other).bound
    return (a > b) - (a < b)


cdef class Search:
    """See the stub."""

    cdef const double[:, ::1] psi
    cdef const int64_t[:, ::1] held
    cdef const int64_t[::1] prefix, first, pair_up, manifest, besides, hull_first, hull
    cdef const double[::1] pair_psi
    cdef int64_t tensors, cuts, room, num_edges
    # of one question: widths of use in ascending bytes, their bytes, noise and excess
    cdef int64_t[::1] count, option_bytes, option_width, selected
    cdef double[::1] option_psi, excess
    # (tensors + 1,) of the first so many: fewest bytes, and noise with those, least noise, least priced bytes
    cdef double[::1] least_bytes, loud_psi, least_psi, priced
    cdef uint8_t[::1] edges, ranks
    cdef int64_t[::1] num_bytes, steps, starts
    cdef double[::1] noise
    cdef double down, up, rate
    cdef bint busy

    def __init__(self, psi, held, prefix, first, pair_psi, pair_up, manifest, besides, hull_first, hull):
        self.psi, self.held, self.prefix, self.first = psi, held, prefix, first
        self.pair_psi, self.pair_up, self.manifest, self.besides = pair_psi, pair_up, manifest, besides
        self.hull_first, self.hull = hull_first, hull
        self.tensors, self.cuts = self.psi.shape[0], self.prefix.shape[0]
        cdef int64_t options = self.tensors * WIDTHS
        self.count, self.selected = (np.zeros(self.tensors + 1, np.int64) for _ in range(2))
        self.option_bytes, self.option_width = (np.zeros(options + 1, np.int64) for _ in range(2))
        self.option_psi, self.excess = (np.zeros(options + 1) for _ in range(2))
        self.least_bytes, self.loud_psi, self.least_psi, self.priced = (np.zeros(self.tensors + 1) for _ in range(4))
        self.edges = np.zeros((options + 1) * sizeof(Edge), np.uint8)
        self.ranks = np.zeros(self.cuts * sizeof(Ranked), np.uint8)
        self.starts = np.zeros(self.tensors + 2, np.int64)
        self.num_bytes, self.steps, self.noise = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
        self.make_room(LEAST_ROOM)

    cdef make_room(self, int64_t room):
        """Place for so many points; those that are there stay, and so does the place."""
        self.num_bytes, self.steps = _roomier(self.num_bytes, room), _roomier(self.steps, room)
        self.noise = _roomier(self.noise, room)
        self.room = room

    def run(
        self, const int64_t[:, ::1] load, const double[::1] budgets, const double[::1] base,
        const double[::1] upper, double down, double up, int64_t most_held,
    ):
        """See the stub."""
        if self.busy:  # of another thread, which may go on while this one makes objects
            return None
        self.busy = True
        try:
            self.down, self.up, self.rate = down, up, up / down
            self.prepare(load)
            return self.leaders(budgets, base, upper, most_held)
        finally:
            self.busy = False

    cdef list leaders(
        self, const double[::1] budgets, const double[::1] base, const double[::1] upper, int64_t most_held,
    ):
        """The cuts by their bounds, until a bound exceeds the best cut known."""
        cdef Ranked* ranks = <Ranked*>&self.ranks[0]
        cdef int64_t cut, k, i, num = 0, found_pair, at, total
        cdef double best = INFINITY, known, least_up
        cdef bint fits
        cdef double down = self.down
        cdef list found = []
        for cut in range(self.cuts):
            if upper[cut] == INFINITY:
                continue
            known = base[cut] + down * upper[cut]
            best = known if known < best else best
        for cut in range(self.cuts):
            if upper[cut] == INFINITY:
                continue
            least_up = <double>self.pair_up[self.first[cut]]  # of a front: the least
            known = self.least_bytes[self.prefix[cut]] + <double>self.manifest[cut] + self.rate * least_up
            if base[cut] + down * known > best * (1 + ROUNDING):
                continue
            ranks[num].bound, ranks[num].cut = base[cut] + down * known, cut
            num += 1
        qsort(ranks, num, sizeof(Ranked), by_bound)
        i = 0
        for k in range(num):
            if ranks[k].bound > best * (1 + ROUNDING):
                break
            cut = ranks[k].cut
            ranks[i].cut = cut
            ranks[i].slope = self.slope(cut, budgets[cut])
            known = self.rounded_pattern(cut, budgets[cut], most_held)
            ranks[i].upper = known if known < upper[cut] else upper[cut]
            ranks[i].bound = base[cut] + down * self.bound(cut, budgets[cut], ranks[i].slope)
            known = base[cut] + down * ranks[i].upper
            best = known if known < best else best
            i += 1
        num = i
        qsort(ranks, num, sizeof(Ranked), by_bound)
        for k in range(num):
            if ranks[k].bound > best * (1 + ROUNDING):
                break
            cut = ranks[k].cut
            known = (best - base[cut] + 10 * ROUNDING * best) / down
            found_pair = self.solved(cut, budgets[cut], ranks[k].slope, ranks[k].upper, known, &at)
            if found_pair < 0:
                continue
            total = 0
            widths = self.widths_at(self.prefix[cut], at, &total)
            fits = total <= most_held - self.besides[cut]
            known = <double>(self.num_bytes[at] + self.manifest[cut]) + self.rate * <double>self.pair_up[found_pair]
            if fits:
                known = base[cut] + down * known
                best = known if known < best else best
            found.append((cut, found_pair, self.num_bytes[at], total, widths, fits))
        return found

    cdef void prepare(self, const int64_t[:, ::1] load) noexcept:
        """Options of every tensor, the edges of their convex hulls by slope, and sums over the first tensors."""
        cdef Edge* edges = <Edge*>&self.edges[0]
        cdef int64_t t, w, i, j, many, width, at
        cdef int64_t order[WIDTHS]
        cdef int64_t corner[WIDTHS]
        cdef double less, psi, quiet
        self.num_edges = 0
        for t in range(self.tensors):
            for w in range(WIDTHS):  # by bytes, then noise, then width
                i = w
                while i > 0 and (
                    load[t, w] < load[t, order[i - 1]]
                    or (load[t, w] == load[t, order[i - 1]] and self.psi[t, w] < self.psi[t, order[i - 1]])
                ):
                    order[i] = order[i - 1]
                    i -= 1
                order[i] = w
            many, at = 0, t * WIDTHS
            for i in range(WIDTHS):
                width = order[i]
                if many and self.psi[t, width] >= self.option_psi[at + many - 1]:
                    continue
                self.option_bytes[at + many], self.option_width[at + many] = load[t, width], width
                self.option_psi[at + many] = self.psi[t, width]
                many += 1
            self.count[t] = many
            self.least_bytes[t + 1] = self.least_bytes[t] + <double>self.option_bytes[at]
            self.loud_psi[t + 1] = self.loud_psi[t] + self.option_psi[at]
            self.least_psi[t + 1] = self.least_psi[t] + self.option_psi[at + many - 1]
            j = 0
            for i in range(many):  # corners of the hull
                while j >= 2 and (
                    self.steepness(at, corner[j - 2], corner[j - 1]) >= self.steepness(at, corner[j - 1], i)
                ):
                    j -= 1
                corner[j] = i
                j += 1
            for i in range(1, j):
                edges[self.num_edges].slope = self.steepness(at, corner[i - 1], corner[i])
                edges[self.num_edges].psi = self.option_psi[at + corner[i - 1]] - self.option_psi[at + corner[i]]
                edges[self.num_edges].tensor, edges[self.num_edges].to = t, corner[i]
                self.num_edges += 1
        qsort(edges, self.num_edges, sizeof(Edge), by_slope)

    cdef double steepness(self, int64_t at, int64_t one, int64_t other) noexcept:
        """Bytes per noise from an option of a tensor to a quieter one."""
        cdef double more = <double>(self.option_bytes[at + other] - self.option_bytes[at + one])
        return more / (self.option_psi[at + one] - self.option_psi[at + other])

    cdef double slope(self, int64_t cut, double budget) noexcept:
        """The multiplier with the largest bound: that of the edge which takes the noise to the budget.

        `selected` is then the pattern there, of every tensor an option, behind them the pair: the rounded solution of
        the relaxation. Any multiplier gives a bound, so rounding costs sharpness alone.
        """
        cdef Edge* edges = <Edge*>&self.edges[0]
        cdef int64_t many = self.prefix[cut], t, i = 0, j = self.hull_first[cut], end = self.hull_first[cut + 1] - 1
        cdef double psi = self.loud_psi[many] + self.pair_psi[self.hull[j]], slope = 0.0, live, limit
        limit = budget * (1 + ROUNDING)
        for t in range(many):
            self.selected[t] = 0
        live = self.live_slope(j) if j < end else INFINITY
        while psi > limit:
            while i < self.num_edges and edges[i].tensor >= many:
                i += 1
            if i < self.num_edges and edges[i].slope <= live:
                slope = edges[i].slope
                psi -= edges[i].psi
                self.selected[edges[i].tensor] = edges[i].to
                i += 1
            elif j < end:
                slope = live
                psi -= self.pair_psi[self.hull[j]] - self.pair_psi[self.hull[j + 1]]
                j += 1
                live = self.live_slope(j) if j < end else INFINITY
            else:
                break
        self.selected[many] = self.hull[j]
        return slope if slope < MOST_SLOPE else MOST_SLOPE

    cdef double live_slope(self, int64_t at) noexcept:
        """Priced bytes per noise from a corner of the live values' hull to the next."""
        cdef int64_t one = self.hull[at], other = self.hull[at + 1]
        cdef double more = self.rate * <double>(self.pair_up[other] - self.pair_up[one])
        return more / (self.pair_psi[one] - self.pair_psi[other])

    cdef double rounded_pattern(self, int64_t cut, double budget, int64_t most_held) noexcept:
        """Priced bytes of a good pattern that keeps to budget and memory, infinite if none is at hand.

        Begins with `selected`, and changes one tensor at a time, the one that saves most.
        """
        cdef int64_t many = self.prefix[cut], pair = self.selected[many], t, i, at, turn, best_at, best_to
        cdef double psi = 0.0, extra, room, gain, most_gain
        cdef int64_t held = self.besides[cut], num_bytes = self.manifest[cut]
        for t in range(many):
            psi += self.option_psi[t * WIDTHS + self.selected[t]]
        if not psi + self.pair_psi[pair] <= budget:
            return INFINITY
        for turn in range(ROUNDS):
            room = budget * (1 - ROUNDING) - psi - self.pair_psi[pair]
            most_gain, best_at, best_to = 0.0, -1, -1
            for t in range(many):
                at = t * WIDTHS
                for i in range(self.selected[t]):
                    extra = self.option_psi[at + i] - self.option_psi[at + self.selected[t]]
                    if extra <= room:
                        gain = <double>(self.option_bytes[at + self.selected[t]] - self.option_bytes[at + i])
                        if gain > most_gain:
                            most_gain, best_at, best_to = gain, t, i
                        break  # further ones have more bytes
            for i in range(self.first[cut], pair):
                if self.pair_psi[i] - self.pair_psi[pair] <= room:
                    gain = self.rate * <double>(self.pair_up[pair] - self.pair_up[i])
                    if gain > most_gain:
                        most_gain, best_at, best_to = gain, many, i
                    break
            if best_at < 0:
                break
            if best_at == many:
                pair = best_to
            else:
                at = best_at * WIDTHS
                psi += self.option_psi[at + best_to] - self.option_psi[at + self.selected[best_at]]
                self.selected[best_at] = best_to
        psi = 0.0
        for t in range(many):
            at = t * WIDTHS + self.selected[t]
            psi += self.option_psi[at]
            num_bytes += self.option_bytes[at]
            held += self.held[t, self.option_width[at]]
        if not psi + self.pair_psi[pair] <= budget or held > most_held:
            return INFINITY
        return <double>num_bytes + self.rate * <double>self.pair_up[pair]

    cdef double bound(self, int64_t cut, double budget, double slope) noexcept:
        """Priced bytes that no pattern of a cut within the budget goes below; what each option exceeds it by."""
        cdef int64_t many = self.prefix[cut], t, i, at
        cdef double least, here
        for t in range(many):
            at, least = t * WIDTHS, INFINITY
            for i in range(at, at + self.count[t]):
                here = <double>self.option_bytes[i] + slope * self.option_psi[i]
                self.excess[i] = here
                least = here if here < least else least
            for i in range(at, at + self.count[t]):
                self.excess[i] -= least
            self.priced[t + 1] = self.priced[t] + least
        least = INFINITY
        for i in range(self.first[cut], self.first[cut + 1]):
            here = self.rate * <double>self.pair_up[i] + slope * self.pair_psi[i]
            least = here if here < least else least
        least += self.priced[many] + <double>self.manifest[cut]
        return least - slope * budget * (1 + ROUNDING) - ROUNDING * least

    cdef int64_t solved(
        self, int64_t cut, double budget, double slope, double upper, double others, int64_t* at,
    ) except -2:
        """The best pair of a cut and where its point is, -1 if it costs more than another cut for sure.

        Args:
            upper: priced bytes of some pattern of the cut that is within the budget.
            others: likewise of the best of the other cuts.
        """
        cdef double bound = self.bound(cut, budget, slope), cost, gap, share = FIRST_SHARE
        cdef int64_t pair
        gap = (upper if upper < others else others) - bound
        if upper < others:
            gap += ROUNDING * upper
        while True:  # what is left within a part of the gap is far less, and most often the best is there
            if self.grown(cut, budget, slope, share * gap):
                pair = self.cheapest_pair(cut, budget, at)
                if pair >= 0:
                    cost = <double>(self.num_bytes[at[0]] + self.manifest[cut])
                    cost += self.rate * <double>self.pair_up[pair]
                    if cost - bound <= share * gap:  # a bound far below 0 swallows what is added to it
                        return pair
            if share == 1.0:
                return -1
            share *= MORE

    cdef bint grown(self, int64_t cut, double budget, double slope, double gap) except -1:
        """The points of the fronts up to a cut's whose excesses are within the gap; False if none is left."""
        cdef int64_t many = self.prefix[cut], t, i, n, w, size = 1, used = 1, begin = 0, best, here, j, place
        cdef int64_t num_bytes, least
        cdef int64_t key[WIDTHS]
        cdef int64_t head[WIDTHS]
        cdef int64_t option[WIDTHS]
        cdef double psi, quietest, most_psi, most, live = self.pair_psi[self.first[cut + 1] - 1]
        self.num_bytes[0], self.noise[0], self.steps[0] = 0, 0.0, 0
        self.starts[0], self.starts[1] = 0, 1
        for t in range(many):
            n = 0
            for i in range(t * WIDTHS, t * WIDTHS + self.count[t]):
                if self.excess[i] <= gap:
                    option[n] = i
                    n += 1
            if used + size * n > self.room:
                self.make_room(2 * (used + size * n))
            most_psi = budget * (1 + ROUNDING) - live - (self.least_psi[many] - self.least_psi[t + 1]) * (1 - ROUNDING)
            most = self.priced[t + 1] + gap + ROUNDING * self.priced[many]
            begin, place = used - size, used
            quietest = INFINITY
            for w in range(n):
                head[w] = begin
                key[w] = self.num_bytes[begin] + self.option_bytes[option[w]]
            while True:
                best, least = -1, INT64_MAX
                for w in range(n):
                    if key[w] < least:
                        best, least = w, key[w]
                if best < 0:
                    break
                here = head[best]
                psi = self.noise[here] + self.option_psi[option[best]]
                head[best] = here + 1
                if here + 1 < used:
                    key[best] = self.num_bytes[here + 1] + self.option_bytes[option[best]]
                else:
                    key[best] = INT64_MAX
                if psi >= quietest:
                    continue
                if psi > most_psi or <double>least + slope * psi > most:
                    continue
                quietest = psi
                if place > used and self.num_bytes[place - 1] == least:
                    place -= 1
                self.num_bytes[place], self.noise[place] = least, psi
                self.steps[place] = (here << 3) | self.option_width[option[best]]
                place += 1
            if place == used:
                return False
            size, used = place - used, place
            self.starts[t + 1], self.starts[t + 2] = used - size, used
        return True

    cdef int64_t cheapest_pair(self, int64_t cut, double budget, int64_t* at) noexcept:
        """See `qpart._fronts.first_within` and `cheapest`: the same choice, of the points that are there."""
        cdef int64_t begin = self.starts[self.prefix[cut]], end = self.starts[self.prefix[cut] + 1]
        cdef int64_t best = -1, i, low, high, middle, moved, least_bytes = INT64_MAX
        cdef double cost, noise, least = INFINITY, quietest = INFINITY
        for i in range(self.first[cut], self.first[cut + 1]):
            if not self.pair_psi[i] <= budget:
                continue
            low, high = begin, end
            while low < high:
                middle = (low + high) >> 1
                if self.noise[middle] + self.pair_psi[i] > budget:
                    low = middle + 1
                else:
                    high = middle
            if low == end:
                continue
            moved = self.num_bytes[low] + self.manifest[cut]
            cost = self.down * <double>moved + self.up * <double>self.pair_up[i]
            moved += self.pair_up[i]
            noise = self.noise[low] + self.pair_psi[i]
            if best < 0 or cost < least or (
                cost == least and (moved < least_bytes or (moved == least_bytes and noise < quietest))
            ):
                best, least, least_bytes, quietest = i, cost, moved, noise
                at[0] = low
        return best

    cdef bytes widths_at(self, int64_t many, int64_t at, int64_t* held):
        """Width indices of the first tensors at a point of their front, and what they hold together."""
        cdef bytearray widths = bytearray(many)
        cdef int64_t t
        for t in range(many - 1, -1, -1):
            widths[t] = self.steps[at] & 7
            held[0] += self.held[t, self.steps[at] & 7]
            at = self.steps[at] >> 3
        return bytes(widths)


def _roomier(array, int64_t room):
    known = np.asarray(array)
    larger = np.empty(room, known.dtype)
    larger[: len(known)] = known
    return larger
