/* Top-k and top-p as a floor on the logit: ids with logit >= floor survive.
   Masses are integers made with IEEE float32 sums and products only, so every level and numpy agree exactly. */

#define BINS 256
#define FEW 24            /* so few candidates are sorted instead of binned */
#define MANY 2048         /* so many are narrowed down first */
#define HALVINGS 8
#define REACHES 4
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

/* Mass of every value, written to `masses` unless NULL; returns the sum. */
static uint64_t sum_masses(const float *values, int64_t n, float top, float scale, int32_t *masses)
{
    vint64 sum = {0};
    int64_t i = 0;
    for (; i + FLOATS <= n; i += FLOATS) {
        vint32 mass = masses_of(load_floats(values + i), top, scale);
        sum += widen(mass);
        if (masses)
            memcpy(masses + i, &mass, sizeof mass);
    }
    if (i < n) {
        float rest[FLOATS];
        for (int j = 0; j < FLOATS; j++)
            rest[j] = i + j < n ? values[i + j] : -INFINITY;
        vint32 mass = masses_of(load_floats(rest), top, scale);
        sum += widen(mass);
        if (masses)
            memcpy(masses + i, &mass, (size_t)(n - i) * sizeof *masses);
    }
    uint64_t total = 0;
    for (int j = 0; j < WIDE; j++)
        total += (uint64_t)sum[j];
    return total;
}

/* Sort descending and walk: for a handful of values. */
static float select_few(float *values, int32_t *masses, int64_t n, uint64_t above, double target)
{
    for (int64_t i = 1; i < n; i++) {
        float value = values[i];
        int32_t mass = masses ? masses[i] : 1;
        int64_t j = i;
        for (; j > 0 && values[j - 1] < value; j--) {
            values[j] = values[j - 1];
            if (masses)
                masses[j] = masses[j - 1];
        }
        values[j] = value;
        if (masses)
            masses[j] = mass;
    }
    for (int64_t i = 0; i < n; i++) {
        above += masses ? (uint64_t)masses[i] : 1;
        if ((double)above >= target)
            return values[i];
    }
    return -INFINITY;
}

/* Sum of the masses of all values >= least, or their number if masses is NULL. */
static uint64_t mass_from(const float *values, const int32_t *masses, int64_t n, float least)
{
    vint64 sum = {0};
    vint32 ones = (vint32){0} + 1;
    int64_t i = 0;
    for (; i + FLOATS <= n; i += FLOATS) {
        vint32 mass = ones;
        if (masses)
            memcpy(&mass, masses + i, sizeof mass);
        sum += widen(mass & (load_floats(values + i) >= least));
    }
    uint64_t total = 0;
    for (int j = 0; j < WIDE; j++)
        total += (uint64_t)sum[j];
    for (; i < n; i++)
        if (values[i] >= least)
            total += masses ? (uint64_t)masses[i] : 1;
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

/* Keep what is >= low and < high, in order; returns how many. */
static int64_t keep_range(float *values, int32_t *masses, int64_t n, float low, float high)
{
    int64_t kept = 0;
    for (int64_t first = 0; first < n; first += FLOATS) {
        int64_t end = n - first < FLOATS ? n : first + FLOATS;
        if (end - first == FLOATS) {
            vfloat v = load_floats(values + first);
            if (!any_lane((v >= low) & (v < high)))
                continue;
        }
        for (int64_t i = first; i < end; i++) {
            float value = values[i];
            values[kept] = value;
            if (masses)
                masses[kept] = masses[i];
            kept += value >= low && value < high;
        }
    }
    return kept;
}

/* First cut of a large set: halve the range of the floor by counting, several times, before anything is moved.
   Adds the mass of what lies above the range to *above; returns how many values are left. */
static int64_t narrow(float *values, int32_t *masses, int64_t n, uint64_t *above, double target)
{
    float low, high, end = INFINITY;
    uint64_t beyond = 0;
    find_range(values, n, &low, &high);
    for (int i = 0; i < HALVINGS; i++) {
        float middle = (float)(((double)low + high) / 2);
        if (!(middle > low && middle < high))
            break;
        uint64_t mass = mass_from(values, masses, n, middle);
        if ((double)(*above + mass) >= target) {
            low = middle;
        } else {
            end = high = middle;
            beyond = mass;
        }
    }
    *above += beyond;
    return keep_range(values, masses, n, low, end);
}

/* Largest value such that all values at least as large have a mass of `target` or more; -inf if none has.
   Values are finite and get shuffled; masses NULL counts values. Bins over the range, then the bin that matters. */
static float select_floor(float *values, int32_t *masses, int64_t n, double target)
{
    uint64_t above = 0;
    if (n > MANY)
        n = narrow(values, masses, n, &above, target);
    while (n > FEW) {
        float low, high;
        find_range(values, n, &low, &high);
        if (low == high)
            return (double)(above + mass_from(values, masses, n, low)) >= target ? low : -INFINITY;
        uint64_t bin_mass[BINS] = {0};
        double per_bin = (BINS - 1) / ((double)high - low);
        for (int64_t i = 0; i < n; i++)
            bin_mass[(int)(((double)high - values[i]) * per_bin)] += masses ? (uint64_t)masses[i] : 1;
        int bin = 0;
        while (bin < BINS && (double)(above + bin_mass[bin]) < target)
            above += bin_mass[bin++];
        if (bin == BINS)
            return -INFINITY;
        int64_t kept = 0;
        for (int64_t i = 0; i < n; i++) {
            float value = values[i];
            values[kept] = value;
            if (masses)
                masses[kept] = masses[i];
            kept += (int)(((double)high - value) * per_bin) == bin;
        }
        n = kept;
    }
    return select_few(values, masses, n, above, target);
}

/* Copy the finite logits >= floor, looking only into blocks whose maximum says there are some. */
static int64_t gather(const float *row, int64_t vocab, const float *maxima, float floor, float *values)
{
    float least = floor > -FLT_MAX ? floor : -FLT_MAX;
    int64_t n = 0;
    for (int64_t first = 0; first < vocab; first += BLOCK) {
        if (!(maxima[first / BLOCK] >= least))
            continue;
        int64_t i = first;
        for (; i < first + BLOCK && i + FLOATS <= vocab; i += FLOATS)
            n += append_from(values + n, load_floats(row + i), least);
        for (; i < first + BLOCK && i < vocab; i++) {
            values[n] = row[i];
            n += row[i] >= least;
        }
    }
    return n;
}

/* The top_k-th largest logit, or -inf when that keeps every finite one. `values` is scratch of vocab floats. */
static float top_k_floor(const float *row, int64_t vocab, const float *maxima, float top, int64_t top_k,
                         float *values)
{
    if (top_k == 0 || top_k >= vocab)
        return -INFINITY;
    int64_t blocks = (vocab + BLOCK - 1) / BLOCK, n = 0;
    for (int64_t b = 0; b < blocks; b++) {
        values[n] = maxima[b];
        n += maxima[b] > -INFINITY;
    }
    float least;
    if (top_k <= n) { /* top_k blocks have a maximum this large, so at least top_k logits are */
        least = select_floor(values, NULL, n, (double)top_k);
    } else { /* reach down from the top, a few times, until there are enough */
        float low, high;
        find_range(values, n, &low, &high);
        float reach = high - low;
        least = -INFINITY;
        for (int i = 0; i < REACHES && least == -INFINITY; i++, reach *= 2)
            if (mass_from(row, NULL, vocab, top - reach) >= (uint64_t)top_k)
                least = top - reach;
    }
    n = gather(row, vocab, maxima, least, values);
    return select_floor(values, NULL, n, (double)top_k);
}

/* Mass of a whole row, without the stretches of blocks which have none. */
static uint64_t row_mass(const float *row, int64_t vocab, const float *maxima, float top, float scale)
{
    uint64_t total = 0;
    int64_t blocks = (vocab + BLOCK - 1) / BLOCK;
    for (int64_t b = 0; b < blocks; b++) {
        int64_t from = b;
        while (b < blocks && (maxima[b] - top) * scale > LOWEST_LOG2)
            b++;
        int64_t end = b * BLOCK < vocab ? b * BLOCK : vocab;
        if (b > from)
            total += sum_masses(row + from * BLOCK, end - from * BLOCK, top, scale, NULL);
    }
    return total;
}

/* The floor of top-p among the logits >= floor. `values` and `masses` are scratch of vocab entries. */
static float top_p_floor(const float *row, int64_t vocab, const float *maxima, float floor, float top,
                         float scale, double top_p, float *values, int32_t *masses)
{
    if (floor > -INFINITY) {
        int64_t n = gather(row, vocab, maxima, floor, values);
        double total = (double)sum_masses(values, n, top, scale, masses);
        return select_floor(values, masses, n, top_p * total);
    }
    double target = top_p * (double)row_mass(row, vocab, maxima, top, scale);
    for (float reach = 4;; reach *= 2) { /* usually the few most likely tokens are enough */
        float least = top - reach / scale;
        int last = reach > -LOWEST_LOG2 || least == -INFINITY;
        int64_t n = gather(row, vocab, maxima, last ? -INFINITY : least, values);
        uint64_t mass = sum_masses(values, n, top, scale, masses);
        if (last || (double)mass >= target)
            return select_floor(values, masses, n, target);
    }
}
