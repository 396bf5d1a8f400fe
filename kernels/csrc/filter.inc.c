/* Top-k and top-p as a floor on the logit: ids with logit >= floor survive.
   Masses are integers made with IEEE float32 sums and products only, so every level and numpy agree exactly. */

#define BINS 256
#define WAYS 4            /* histograms side by side: one for each lane of four, so that no addition waits */
#define WORTH_BOUNDS 1.01 /* of most over least mass */
#define FEW 24            /* so few candidates are sorted instead of binned */
#define MASS_BITS 30      /* the most likely token has mass 2^30 */
#define LOWEST_LOG2 -32.f /* a mass of 2^-2, truncated to 0 */

static const float exp2_series[7] = {1.0f,           0.69314718f,    0.24022651f,   0.055504109f,
                                     0.0096181291f,  0.0013333558f,  0.00015403530f};

/* Masses of FLOATS logits: trunc(2^(MASS_BITS + t)) with t = (logit - top) * scale, 0 for -inf and NaN. */
static inline vint32 masses_of(vfloat logits, float top, float scale)
{
    const vfloat zero = {0}, lowest = zero + LOWEST_LOG2;
    const float to_integer = 0x1.8p23f; /* adding it rounds to an integer, which then sits in the low bits */
    vfloat t = (logits - top) * scale;
    vint32 in_range = t > lowest;
    t = (vfloat)((in_range & (vint32)t) | (~in_range & (vint32)lowest));
    vfloat shifted = t + to_integer;
    vfloat f = t - (shifted - to_integer);
    vfloat series = zero + exp2_series[6];
    for (int i = 5; i >= 0; i--)
        series = series * f + exp2_series[i];
    vfloat mass = (vfloat)((vint32)series + (((vint32)shifted + MASS_BITS) << 23));
    return __builtin_convertvector(mass, vint32);
}

static inline vint64 widen(vint32 masses)
{
    vint32_half low, high;
    memcpy(&low, &masses, sizeof low);
    memcpy(&high, (const char *)&masses + sizeof low, sizeof high);
    return __builtin_convertvector(low, vint64) + __builtin_convertvector(high, vint64);
}

/* What a selection adds up: masses of values relative to `top`, or their number. */
typedef struct {
    int counts;
    float top, scale;
} weights;

static inline vint32 weigh(const weights *w, vfloat values)
{
    const vint32 ones = (vint32){0} + 1;
    return w->counts ? ones & (values > -INFINITY) : masses_of(values, w->top, w->scale);
}

/* FLOATS values from `from` on, -inf behind the last one. */
static inline vfloat load_up_to(const float *values, int64_t from, int64_t n)
{
    if (from + FLOATS <= n)
        return load_floats(values + from);
    float rest[FLOATS];
    for (int j = 0; j < FLOATS; j++)
        rest[j] = from + j < n ? values[from + j] : -INFINITY;
    return load_floats(rest);
}

/* Weight of all values >= least. */
static uint64_t weight_from(const weights *w, const float *values, int64_t n, float least)
{
    vint64 sum = {0};
    for (int64_t i = 0; i < n; i += FLOATS) {
        vfloat v = load_up_to(values, i, n);
        sum += widen(weigh(w, v) & (v >= least));
    }
    uint64_t total = 0;
    for (int j = 0; j < WIDE; j++)
        total += (uint64_t)sum[j];
    return total;
}

static void find_range(const float *values, int64_t n, float *low, float *high)
{
    vfloat most = (vfloat){0} - FLT_MAX, least = most;
    int64_t i = 0;
    for (; i + FLOATS <= n; i += FLOATS) {
        most = max_floats(load_floats(values + i), most);
        least = max_floats(-load_floats(values + i), least);
    }
    *high = max_lane(most);
    *low = -max_lane(least);
    for (; i < n; i++) {
        *high = values[i] > *high ? values[i] : *high;
        *low = values[i] < *low ? values[i] : *low;
    }
}

/* Bins of FLOATS values, from 0 for the highest on; rises as values fall. Halves, because a range may overflow. */
static inline vint32 bins_of(vfloat values, float high, float per_bin)
{
    const vfloat last = (vfloat){0} + (BINS - 1);
    vfloat place = (high * 0.5f - values * 0.5f) * per_bin;
    vint32 inside = place < last;
    return __builtin_convertvector((vfloat)((inside & (vint32)place) | (~inside & (vint32)last)), vint32);
}

static int falling(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

/* Sort and walk: for a handful of values, and for those which no bins can tell apart. */
static float select_sorted(const weights *w, float *values, int64_t n, uint64_t above, double target, double share)
{
    if (share > 0)
        target = share * (double)weight_from(w, values, n, -INFINITY);
    if (n <= FEW) {
        for (int64_t i = 1; i < n; i++) {
            float value = values[i];
            int64_t j = i;
            for (; j > 0 && values[j - 1] < value; j--)
                values[j] = values[j - 1];
            values[j] = value;
        }
    } else {
        qsort(values, (size_t)n, sizeof *values, falling);
    }
    int32_t each[FLOATS];
    for (int64_t i = 0; i < n; i++) {
        if (i % FLOATS == 0) {
            vint32 next = weigh(w, load_up_to(values, i, n));
            memcpy(each, &next, sizeof each);
        }
        above += (uint64_t)each[i % FLOATS];
        if ((i + 1 == n || values[i + 1] < values[i]) && (double)above >= target)
            return values[i];
    }
    return -INFINITY;
}

/* Largest value such that all values at least as large have a weight of `target` or more; -inf if none has. If `share`
   is not 0, the target is that share of the weight of all values. Values are finite and get shuffled. Bins over the
   range, then the bin that matters. */
static float select_floor(const weights *w, float *values, int64_t n, double target, double share)
{
    uint64_t above = 0;
    while (n > FEW) {
        float low, high;
        find_range(values, n, &low, &high);
        if (low == high)
            return share > 0 || (double)(above + weight_from(w, values, n, low)) >= target ? low : -INFINITY;
        float half = high * 0.5f - low * 0.5f, per_bin = (BINS - 1) / half;
        if (!(half > 1e-30f))
            break;
        uint64_t binned[WAYS][BINS] = {{0}};
        for (int64_t i = 0; i < n; i += FLOATS) {
            vfloat v = load_up_to(values, i, n);
            vint32 bins = bins_of(v, high, per_bin), weight = weigh(w, v);
            int32_t bin[FLOATS], each[FLOATS];
            memcpy(bin, &bins, sizeof bin);
            memcpy(each, &weight, sizeof each);
            for (int j = 0; j < FLOATS; j++)
                binned[j % WAYS][bin[j]] += (uint64_t)each[j];
        }
        uint64_t total = 0;
        for (int i = 0; i < BINS; i++) {
            binned[0][i] += binned[1][i] + binned[2][i] + binned[3][i];
            total += binned[0][i];
        }
        target = share > 0 ? share * (double)total : target;
        share = 0;
        int bin = 0;
        for (; (double)(above + binned[0][bin]) < target; bin++) {
            if (bin == BINS - 1)
                return -INFINITY;
            above += binned[0][bin];
        }
        int64_t kept = 0, before = n;
        for (int64_t i = 0; i < n; i += FLOATS) { /* writes up to FLOATS behind the last value */
            vfloat v = load_up_to(values, i, n);
            kept += append_where(values + kept, v, (bins_of(v, high, per_bin) == bin) & (v > -INFINITY));
        }
        n = kept;
        if (n == before)
            break;
    }
    return select_sorted(w, values, n, above, target, share);
}

/* Copy the finite logits >= floor, looking only into blocks whose maximum says there are some. */
static int64_t gather(const row_view *row, float floor, float *values)
{
    float least = floor > -FLT_MAX ? floor : -FLT_MAX, buffer[BLOCK];
    int64_t n = 0;
    for (int64_t block = 0; block < row->num_blocks; block++) {
        if (!(row->maxima[block] >= least))
            continue;
        const float *logits = block_at(row, block, buffer);
        for (int i = 0; i < BLOCK; i += FLOATS) {
            vfloat v = load_floats(logits + i);
            n += append_where(values + n, v, v >= least);
        }
    }
    return n;
}

/* The top_k-th largest logit, or -inf when that keeps every finite one. */
static float top_k_floor(const row_view *row, int64_t top_k, float *values)
{
    if (top_k == 0 || top_k >= row->vocab)
        return -INFINITY;
    const weights ones = {1, 0, 0};
    int64_t n = 0;
    float low, high;
    for (int64_t b = 0; b < row->num_blocks; b++) {
        values[n] = row->maxima[b];
        n += row->maxima[b] > -INFINITY;
    }
    float least;
    if (top_k <= n) { /* top_k blocks have a maximum this large, so at least top_k logits are */
        least = select_floor(&ones, values, n, (double)top_k, 0);
    } else { /* there are at least n logits as large as the smallest maximum, and usually many more */
        find_range(values, n, &low, &high);
        least = low;
    }
    n = gather(row, least, values);
    if (n < top_k)
        n = gather(row, -INFINITY, values);
    return select_floor(&ones, values, n, (double)top_k, 0);
}

/* The floor of top-p among the logits >= floor. Without a floor the total is known to lie within [least, most], or,
   if most is 0, is not known at all. */
static float top_p_floor(const row_view *row, float floor, float scale, double top_p, double least, double most,
                         float *values)
{
    const weights masses = {0, row->top, scale};
    int64_t n;
    float cut = -INFINITY, end = row->top - (float)(-LOWEST_LOG2 + 1) / scale; /* no mass below */
    if (floor == -INFINITY && most <= least * WORTH_BOUNDS) {
        for (float reach = 4; reach <= 16 && cut == -INFINITY; reach *= 2) { /* the few most likely tokens may do */
            n = gather(row, row->top - reach / scale, values);
            cut = select_floor(&masses, values, n, top_p * least, 0);
        }
        if (cut > -INFINITY) {
            n = gather(row, cut, values);
            if ((double)weight_from(&masses, values, n, cut) >= top_p * most)
                return cut; /* enough for any total within the bounds, and what lies above it is too little for any */
        }
    }
    n = gather(row, floor > end ? floor : end, values);
    return select_floor(&masses, values, n, 0, top_p);
}
