/* Probabilities of a row as integers, block by block (docs/spec/kernels.md, section 5): 64 ids have masses relative
   to the likeliest of them, blocks have weights. Sums of integers do not depend on their order. */

#define TEST_MASS_BITS 24 /* the likeliest id of a block has mass 2^24 */
#define ROW_MASS_BITS 40  /* and 2^40 if it is the likeliest of the row */
#define LOWEST_WEIGHT -64.0
#define LEAST_OF_ESTIMATE (0.9418 * 0.9999) /* 1 / 1.0615 = 0.9420..., and rounding */
#define MOST_OF_ESTIMATE 1.0001
#define HEAD 0x1p-12 /* blocks with this share of a row are worth an exact sum */

static const double exp2_fine[8] = {1.0,
                                    0.6931471805599453,
                                    0.24022650695910072,
                                    0.05550410866482158,
                                    0.009618129107628477,
                                    0.0013333558146428443,
                                    0.0001540353039338161,
                                    1.5252733804059841e-05};

typedef struct {
    double scale;      /* log2(e) / temperature */
    float floor;       /* logits below it have mass 0 */
    int64_t *sums;     /* of each block times its weight, when exact */
    int64_t total;
} row_masses;

/* 2^(ROW_MASS_BITS - TEST_MASS_BITS) times the probability of a block's likeliest id over that of the row's. */
static double block_weight(float maximum, float top, double scale)
{
    double t = ((double)maximum - (double)top) * scale;
    t = t > LOWEST_WEIGHT ? t : LOWEST_WEIGHT;
    const double to_integer = 0x1.8p52; /* adding and subtracting it rounds to an integer */
    double whole = t + to_integer - to_integer, f = t - whole, series = exp2_fine[7];
    for (int i = 6; i >= 0; i--)
        series = series * f + exp2_fine[i];
    return ldexp(series, (int)whole + ROW_MASS_BITS - TEST_MASS_BITS);
}

/* Masses of FLOATS logits of a block: round(2^(24 + t)) with t = (logit - maximum) * scale. */
static inline vint32 test_masses(vfloat logits, float maximum, float scale, float floor)
{
    const vfloat zero = {0}, lowest = zero - (TEST_MASS_BITS + 2);
    const float to_integer = 0x1.8p23f;
    vfloat t = max_floats((logits - maximum) * scale, lowest);
    vfloat shifted = t + to_integer;
    vfloat f = t - (shifted - to_integer);
    vfloat series = zero + exp2_series[6];
    for (int i = 5; i >= 0; i--)
        series = series * f + exp2_series[i];
    vfloat mass = (vfloat)((vint32)series + (((vint32)shifted + TEST_MASS_BITS) << 23));
    return nearest_integers(mass) & (logits >= floor);
}

/* Mass of a block, and of each of its ids unless `masses` is NULL. */
static int32_t mass_of_block(const float *logits, float maximum, float scale, float floor, int32_t *masses)
{
    vint32 sum = {0};
    for (int i = 0; i < BLOCK; i += FLOATS) {
        vint32 mass = test_masses(load_floats(logits + i), maximum, scale, floor);
        sum += mass;
        if (masses)
            memcpy(masses + i, &mass, sizeof mass);
    }
    return sum_lanes(sum);
}

static inline int has_mass(const row_view *row, const row_masses *masses, int64_t block)
{
    return row->maxima[block] > -INFINITY && row->maxima[block] >= masses->floor;
}

static int64_t exact_sum(const row_view *row, const row_masses *masses, int64_t block)
{
    float buffer[BLOCK];
    int32_t mass = mass_of_block(block_at(row, block, buffer), row->maxima[block], (float)masses->scale,
                                 masses->floor, NULL);
    return (int64_t)((double)mass * block_weight(row->maxima[block], row->top, masses->scale));
}

static int64_t weigh_part(const row_view *row, row_masses *masses, int64_t from, int64_t to)
{
    int64_t total = 0;
    for (int64_t block = from; block < to; block++) {
        masses->sums[block] = has_mass(row, masses, block) ? exact_sum(row, masses, block) : 0;
        total += masses->sums[block];
    }
    return total;
}

/* Exact sums of all blocks. */
static void weigh_row(const row_view *row, row_masses *masses)
{
    int64_t total = 0;
    if (row->threads == 1) {
        masses->total = weigh_part(row, masses, 0, row->num_blocks);
        return;
    }
#pragma omp parallel for num_threads(row->threads) schedule(static, 1) reduction(+ : total)
    for (int t = 0; t < row->threads; t++) {
        int64_t from, to;
        part_of(row->num_blocks, t, row->threads, &from, &to);
        total += weigh_part(row, masses, from, to);
    }
    masses->total = total;
}

/* Bounds of the total from the estimates, and exact sums of the few blocks that matter most (-1 for all others).
   Afterwards the estimates are relative to the row's largest logit. */
static void bound_total(row_view *row, row_masses *masses, double *least, double *most)
{
    double sum = 0, tail = 0, head = 0;
    for (int64_t from = 0, to; from < row->num_blocks; from = to) {
        float reference = row->references[from];
        float factor = reference > -INFINITY
                           ? (float)(block_weight(reference, row->top, masses->scale) * 0x1p24)
                           : 0; /* nothing but -inf so far */
        for (to = from; to < row->num_blocks && row->references[to] == reference; to++) {
            row->sums[to] *= factor;
            sum += row->sums[to];
        }
    }
    float threshold = (float)(sum * HEAD);
    for (int64_t block = 0; block < row->num_blocks; block++) {
        masses->sums[block] = -1;
        if (row->sums[block] >= threshold && has_mass(row, masses, block)) {
            masses->sums[block] = exact_sum(row, masses, block);
            head += (double)masses->sums[block];
            tail += row->sums[block];
        }
    }
    tail = sum - tail;
    double slack = 1e-6 * sum + (double)row->num_blocks; /* rounding of these sums, truncation of the exact ones */
    *least = head + tail * LEAST_OF_ESTIMATE - slack;
    *most = head + tail * MOST_OF_ESTIMATE + slack;
}

/* First id of a block at which the running mass, weighed, exceeds `rest`; the last with a mass if none does. */
static int pick_in_block(const int32_t *masses, double weight, int64_t rest)
{
    int64_t running = 0;
    int last = 0;
    for (int i = 0; i < BLOCK; i++) {
        if (masses[i] == 0)
            continue;
        last = i;
        running += masses[i];
        if ((double)running * weight > (double)rest)
            break;
    }
    return last;
}

/* The place of a number in [0, 1) in a total. */
static int64_t place_of(double number, int64_t total)
{
    int64_t place = (int64_t)(number * (double)total);
    return place < total ? place : total - 1;
}
