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

from qpart._merging cimport WIDTHS, Edge, Heads, next_of, sort

cdef enum:
    ROUNDS = 8  # of making a pattern cheaper, by one tensor each
    MOST_BITS = 16

cdef double ROUNDING = 4e-12  # more than sums of 4,096 numbers are off, as a share
cdef double FIRST_SHARE = 1.0 / 4, MORE = 4.0  # of the distance between bound and best known
cdef double MOST_SLOPE = 1e200, MOST_NOISE = 1e100  # beyond these products are no numbers any more
cdef int64_t LEAST_ROOM = 1 << 14, KEPT_ROOM = 1 << 18  # points


cdef struct Ranked:
    double bound
    double slope
    double upper
    int64_t cut
    bint known  # bound, slope and upper are as sharp as they get


cdef class Search:
    """See the stub."""

    cdef const double[:, ::1] psi
    cdef const int64_t[:, ::1] held, pieces
    cdef const int64_t[::1] row, prefix, first, pair_up, manifest, besides, hull_first, hull, front_bytes, front_starts
    cdef const double[::1] pair_psi, front_psi
    cdef readonly int64_t room  # for so many points is place
    cdef int64_t tensors, cuts, num_edges, prepared, most_held
    # of one question: bytes to load; widths of use in ascending bytes, their bytes, noise and excess
    cdef int64_t[:, ::1] load
    cdef int64_t[::1] count, option_bytes, option_width, selected, most_loaded
    cdef double[::1] option_psi, excess
    # (tensors + 1,) of the first so many: fewest bytes, and noise with those, least noise, least priced bytes
    cdef double[::1] least_bytes, loud_psi, least_psi, priced
    cdef uint8_t[::1] edges, merged, ranks
    cdef int64_t[::1] num_bytes, steps, starts
    cdef double[::1] noise
    cdef double down, up, rate
    cdef bint busy

    def __init__(
        self, psi, held, pieces, row, prefix, first, pair_psi, pair_up, manifest, besides, hull_first, hull,
        front_bytes, front_psi, front_starts,
    ):
        self.psi, self.held, self.pieces, self.row, self.prefix, self.first = psi, held, pieces, row, prefix, first
        self.pair_psi, self.pair_up, self.manifest, self.besides = pair_psi, pair_up, manifest, besides
        self.hull_first, self.hull = hull_first, hull
        self.front_bytes, self.front_psi, self.front_starts = front_bytes, front_psi, front_starts
        self.tensors, self.cuts = self.psi.shape[0], self.prefix.shape[0]
        cdef int64_t options = self.tensors * WIDTHS
        self.load = np.zeros((self.tensors, WIDTHS), np.int64)
        self.count, self.selected = (np.zeros(self.tensors + 1, np.int64) for _ in range(2))
        self.option_bytes, self.option_width = (np.zeros(options + 1, np.int64) for _ in range(2))
        self.option_psi, self.excess = (np.zeros(options + 1) for _ in range(2))
        self.least_bytes, self.loud_psi, self.priced = (np.zeros(self.tensors + 1) for _ in range(3))
        self.least_psi = np.append(0.0, np.cumsum(np.min(psi, axis=1, initial=np.inf)))
        most = np.append(0, np.cumsum(np.max(held, axis=1, initial=0)))[prefix]
        self.most_loaded, self.most_held = manifest + most, int((besides + most).max())
        self.edges, self.merged = (np.zeros((options + 1) * sizeof(Edge), np.uint8) for _ in range(2))
        self.ranks = np.zeros(self.cuts * sizeof(Ranked), np.uint8)
        self.starts = np.zeros(self.tensors + 2, np.int64)
        self.num_bytes, self.steps, self.noise = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
        self.make_room(LEAST_ROOM)

    cdef make_room(self, int64_t room):
        """Place for so many points; those that are there stay as far as they have place."""
        self.room = min(self.room, room)  # should memory end below, all three have as much
        self.num_bytes, self.steps = _resized(self.num_bytes, room), _resized(self.steps, room)
        self.noise = _resized(self.noise, room)
        self.room = room

    def run(
        self, cached, const double[::1] budgets, const double[::1] base, double down, double up, int64_t memory_bytes
    ):
        """See the stub."""
        if self.busy:  # of another thread, which may go on while this one makes objects
            return None
        self.busy = True
        try:
            self.down, self.up, self.rate = down, up, up / down
            self.read(cached)
            return self.leaders(budgets, base, memory_bytes)
        finally:
            try:
                if self.room > KEPT_ROOM:  # few questions need as much
                    self.make_room(LEAST_ROOM)
            finally:
                self.busy = False

    def loads(self, cached):
        """See the stub."""
        self.read(cached)
        return np.array(self.load)

    cdef void read(self, cached) except *:
        """Bytes to load, and fewest of the first tensors; `qpart.tables.Tables.load_bytes` of all layers."""
        cdef int64_t t, w, node, bits, saved, least
        cdef const int64_t* held
        cdef int64_t* load
        if self.tensors == 0:
            return
        held, load = &self.held[0, 0], &self.load[0, 0]
        for t in range(self.tensors * WIDTHS):
            load[t] = 0
        for node, bits in cached:
            if not (0 <= node < self.row.shape[0] and self.row[node] >= 0):
                continue
            if 2 <= bits <= WIDTHS:
                w = bits - 2
            elif bits == MOST_BITS:
                w = WIDTHS - 1
            else:
                continue
            load[self.row[node] * WIDTHS + w] = self.pieces[self.row[node], w]
        for t in range(self.tensors):
            saved, least = 0, INT64_MAX
            for w in range(WIDTHS - 1):
                saved += load[w]
                load[w] = held[w] - saved
                least = load[w] if load[w] < least else least
            load[WIDTHS - 1] = held[WIDTHS - 1] - load[WIDTHS - 1]
            least = load[WIDTHS - 1] if load[WIDTHS - 1] < least else least
            self.least_bytes[t + 1] = self.least_bytes[t] + <double>least
            held += WIDTHS
            load += WIDTHS
        self.prepared = self.num_edges = 0

    cdef list leaders(self, const double[::1] budgets, const double[::1] base, int64_t memory_bytes):
        """The cuts by their bounds, until a bound exceeds the best cut known."""
        cdef Ranked* ranks = <Ranked*>&self.ranks[0]
        cdef Ranked* one
        cdef int64_t cut, many, k, num = 0, pair, at, total
        cdef double best = INFINITY, known, down = self.down
        cdef bint fits, roomy = memory_bytes >= self.most_held  # whatever keeps to the budget will do
        cdef list found = []
        for cut in range(self.cuts):
            many, pair = self.prefix[cut], self.first[cut + 1] - 1  # the quietest
            if not budgets[cut] < MOST_NOISE:
                return None
            if base[cut] == INFINITY or (
                self.front_psi[self.front_starts[many + 1] - 1] + self.pair_psi[pair] > budgets[cut]
            ):
                continue
            one = ranks + num
            one.cut, one.known = cut, False
            one.upper = <double>self.most_loaded[cut] + self.rate * <double>self.pair_up[pair]
            known = base[cut] + down * one.upper
            if roomy and known < best:
                best = known
            known = self.least_bytes[many] + <double>self.manifest[cut]
            known += self.rate * <double>self.pair_up[self.first[cut]]  # of a front: the least
            one.bound = base[cut] + down * known
            num += 1
        while num:
            one = ranks
            for k in range(1, num):
                if ranks[k].bound < one.bound:
                    one = ranks + k
            if one.bound > best * (1 + ROUNDING):
                break
            cut = one.cut
            if one.known:
                known = (best - base[cut] + 10 * ROUNDING * best) / down
                pair = self.solved(cut, budgets[cut], one.slope, one.upper, known, &at)
                num -= 1
                one[0] = ranks[num]
                if pair < 0:
                    continue
                total = 0
                widths = self.widths_at(self.prefix[cut], at, &total)
                fits = total <= memory_bytes - self.besides[cut]
                known = <double>(self.num_bytes[at] + self.manifest[cut]) + self.rate * <double>self.pair_up[pair]
                if fits and base[cut] + down * known < best:
                    best = base[cut] + down * known
                found.append((cut, pair, self.num_bytes[at], total, self.noise[at], widths, fits))
                continue
            if not roomy and not self.within(one, budgets[cut], memory_bytes):
                num -= 1
                one[0] = ranks[num]
                continue
            if base[cut] + down * one.upper < best:
                best = base[cut] + down * one.upper
            self.prepare(self.prefix[cut])
            one.slope = self.slope(cut, budgets[cut])
            known = self.rounded_pattern(cut, budgets[cut], memory_bytes, &fits)
            if known < one.upper:
                one.upper = known
            if fits and base[cut] + down * known < best:
                best = base[cut] + down * known
            one.bound = base[cut] + down * self.bound(cut, budgets[cut], one.slope)
            one.known = True
        return found

    cdef bint within(self, Ranked* one, double budget, int64_t memory_bytes) noexcept:
        """Whether any pattern of a cut keeps to budget and memory: if so, the one that holds least is an upper bound.

        A device that has nothing loads what it holds, so the fronts without a cache tell.
        """
        cdef int64_t many = self.prefix[one.cut], low = self.front_starts[many], high = self.front_starts[many + 1]
        cdef int64_t pair = self.first[one.cut + 1] - 1, middle
        while low < high:
            middle = (low + high) >> 1
            if self.front_psi[middle] + self.pair_psi[pair] > budget:
                low = middle + 1
            else:
                high = middle
        if self.front_bytes[low] > memory_bytes - self.besides[one.cut]:
            return False
        one.upper = <double>(self.front_bytes[low] + self.manifest[one.cut])
        one.upper += self.rate * <double>self.pair_up[pair]
        return True

    cdef void prepare(self, int64_t many) noexcept:
        """Options of the first tensors, the edges of their convex hulls by slope, and sums."""
        cdef Edge* edges = <Edge*>&self.edges[0]
        cdef int64_t t, w, i, j, width, at, found, begin = self.prepared
        cdef int64_t order[WIDTHS]
        cdef int64_t corner[WIDTHS]
        if many <= begin:
            return
        many = min(self.tensors, max(many, 2 * begin))  # each time sorting takes all of them
        for t in range(begin, many):
            for w in range(WIDTHS):  # by bytes, then noise, then width
                i = w
                while i > 0 and (
                    self.load[t, w] < self.load[t, order[i - 1]]
                    or (self.load[t, w] == self.load[t, order[i - 1]] and self.psi[t, w] < self.psi[t, order[i - 1]])
                ):
                    order[i] = order[i - 1]
                    i -= 1
                order[i] = w
            found, at = 0, t * WIDTHS
            for i in range(WIDTHS):
                width = order[i]
                if found and self.psi[t, width] >= self.option_psi[at + found - 1]:
                    continue
                self.option_bytes[at + found], self.option_width[at + found] = self.load[t, width], width
                self.option_psi[at + found] = self.psi[t, width]
                found += 1
            self.count[t] = found
            self.loud_psi[t + 1] = self.loud_psi[t] + self.option_psi[at]
            j = 0
            for i in range(found):  # corners of the hull
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
        self.prepared = many
        sort(edges, <Edge*>&self.merged[0], self.num_edges)

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

    cdef double rounded_pattern(self, int64_t cut, double budget, int64_t memory_bytes, bint* fits) noexcept:
        """Priced bytes of a good pattern that keeps to the budget, infinite if none is at hand; whether it fits.

        Begins with `selected`, and changes one tensor at a time, the one that saves most.
        """
        cdef int64_t many = self.prefix[cut], pair = self.selected[many], t, i, at, turn, best_at, best_to
        cdef double psi = 0.0, extra, room, gain, most_gain
        cdef int64_t held = self.besides[cut], num_bytes = self.manifest[cut]
        fits[0] = False
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
        if not psi + self.pair_psi[pair] <= budget:
            return INFINITY
        fits[0] = held <= memory_bytes
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
        cdef int64_t many = self.prefix[cut], t, i, n, w, size = 1, used = 1, best, least, here
        cdef int64_t key[WIDTHS]
        cdef int64_t option[WIDTHS]
        cdef Heads heads
        cdef double live = self.pair_psi[self.first[cut + 1] - 1]
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
            heads.num_bytes, heads.noise = &self.num_bytes[0], &self.noise[0]
            heads.end, heads.slope, heads.quietest = used, slope, INFINITY
            heads.most_psi = (
                budget * (1 + ROUNDING) - live - (self.least_psi[many] - self.least_psi[t + 1]) * (1 - ROUNDING)
            )
            heads.most = self.priced[t + 1] + gap + ROUNDING * self.priced[many]
            for w in range(n):
                heads.at[w], heads.more[w] = used - size, self.option_bytes[option[w]]
                heads.psi[w] = self.option_psi[option[w]]
                key[w] = next_of(&heads, w)
            here = used
            while True:
                best, least = 0, INT64_MAX
                for w in range(n):
                    if key[w] < least:
                        best, least = w, key[w]
                if least == INT64_MAX:
                    break
                if heads.noise[heads.at[best]] + heads.psi[best] < heads.quietest:
                    heads.quietest = heads.noise[heads.at[best]] + heads.psi[best]
                    if here > used and heads.num_bytes[here - 1] == least:
                        here -= 1
                    heads.num_bytes[here], heads.noise[here] = least, heads.quietest
                    self.steps[here] = (heads.at[best] << 3) | self.option_width[option[best]]
                    here += 1
                heads.at[best] += 1
                key[best] = next_of(&heads, best)
            if here == used:
                return False
            size, used = here - used, here
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


def _resized(array, int64_t room):
    known = np.asarray(array)
    other = np.empty(room, known.dtype)
    other[: len(known)] = known[:room]
    return other
