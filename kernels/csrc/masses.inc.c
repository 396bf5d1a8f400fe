/* Probabilities of a row as integers, block by block (docs/spec/kernels-acceptance.md, section 2): 64 ids have masses relative
   to the likeliest of them, blocks have weights. Sums of integers do not depend on their order. */

#define TEST_MASS_BITS 24 /* the likeliest id of a block has mass 2^24 */
#define ROW_MASS_BITS 40  /* and 2^40 if it is the likeliest of the row */
#define LOWEST_WEIGHT -64.0
#define GROUP 16 /* blocks whose small masses are estimated together */
#define LEAST_OF_ESTIMATE (0.9418 * 0.9995) /* 1 / 1.0615 = 0.9420..., and rounding */
#define MOST_OF_ESTIMATE 1.0005
#define ESTIMATE_STEPS 0x1p14f
#define MOST_REFERENCE 2048 /* log2 of the largest logit's mass: beyond it estimates are too coarse */
#define HEAD -9             /* blocks whose likeliest id has 2^HEAD of the likeliest's mass are worth an exact sum, */
#define MOST_HEADS 8        /* unless more than one in so many is such a block */

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
    int64_t *sums;     /* of each block times its weight; -1 if the block is part of an estimate */
    float *estimates;  /* of each group: upper estimate of what is not in `sums`, relative to 2^0 for the likeliest id */
    int64_t total;
} row_masses;

/* 2^(ROW_MASS_BITS - TEST_MASS_BITS) times the probability of a block's likeliest id over that of the row's. */
static inline double block_weight(float maximum, float top, double scale)
{
    double t = ((double)maximum - (double)top) * scale;
    t = t > LOWEST_WEIGHT ? t : LOWEST_WEIGHT;
    const double to_integer = 0x1.8p52; /* adding it rounds to an integer, which then sits in the low bits */
    double shifted = t + to_integer, f = t - (shifted - to_integer), series = exp2_fine[7], power;
    int64_t bits;
    for (int i = 6; i >= 0; i--)
        series = series * f + exp2_fine[i];
    memcpy(&bits, &shifted, sizeof bits);
    bits = (int64_t)((uint64_t)(bits + 1023 + ROW_MASS_BITS - TEST_MASS_BITS) << 52);
    memcpy(&power, &bits, sizeof power);
    return series * power;
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

static __attribute__((noinline)) int64_t exact_sum(const row_view *row, const row_masses *masses, int64_t block)
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

/* Upper estimate of the mass of some logits, lane by lane: 2^t is at most, and within 6.2 % of, the number whose bits
   are those of (t + 127) * 2^23 (Schraudolph, Neural Computation 11, 1999). Adding 2^23 to (t + 127) * 2^14 makes them
   in one step, but for a shift; NaN and -inf come out as 0. */
static inline vfloat estimate(vfloat logits, vfloat slope, vfloat start)
{
    const vint32 none = (vint32)((vfloat){0} + 0x1p23f);
    return (vfloat)(max_integers((vint32)multiply_add(logits, slope, start), none) << 9);
}

/* Exact sums of the blocks of a group that matter, an estimate of all others. */
static inline __attribute__((always_inline)) void estimate_group(const row_view *row, row_masses *masses, int plain,
                                                                 int64_t group, float head)
{
    const float scale = (float)masses->scale;
    const vfloat zero = {0}, slope = zero + scale * ESTIMATE_STEPS;
    const vfloat start = zero + (0x1p23f + 127 * ESTIMATE_STEPS - row->top * scale * ESTIMATE_STEPS);
    int64_t end = (group + 1) * GROUP < row->num_blocks ? (group + 1) * GROUP : row->num_blocks;
    vfloat even = zero, odd = zero;
    for (int64_t block = group * GROUP; block < end; block++) {
        float buffer[BLOCK];
        const float *logits = plain ? (const float *)row->logits + block * BLOCK : block_at(row, block, buffer);
        if (row->maxima[block] >= head) {
            masses->sums[block] = exact_sum(row, masses, block);
            continue;
        }
        masses->sums[block] = -1;
        for (int i = 0; i < BLOCK; i += 2 * FLOATS) {
            even += estimate(load_floats(logits + i), slope, start);
            odd += estimate(load_floats(logits + i + FLOATS), slope, start);
        }
    }
    masses->estimates[group] = sum_floats(even + odd) * 0x1p40f;
}

static void estimate_groups(const row_view *row, row_masses *masses, int64_t from, int64_t to, float head)
{
    for (int64_t group = from; group < to; group++) {
        if (is_plain(row, (group + 1) * GROUP))
            estimate_group(row, masses, 1, group, head);
        else
            estimate_group(row, masses, 0, group, head);
    }
}

/* Bounds of the total from estimates, and exact sums of the few blocks that matter most; 0 if estimates are no use. */
static void bound_total(const row_view *row, row_masses *masses, double *least, double *most)
{
    int64_t num_groups = (row->num_blocks + GROUP - 1) / GROUP, heads = 0;
    double tail = 0;
    float lowest = (float)(row->top + HEAD / masses->scale);
    *least = *most = 0;
    if (!(fabs((double)row->top * masses->scale) < MOST_REFERENCE))
        return;
    for (int64_t block = 0; block < row->num_blocks; block++)
        heads += row->maxima[block] >= lowest;
    lowest = heads * MOST_HEADS > row->num_blocks ? INFINITY : lowest;
    if (row->threads == 1) {
        estimate_groups(row, masses, 0, num_groups, lowest);
    } else {
#pragma omp parallel for num_threads(row->threads) schedule(static, 1)
        for (int t = 0; t < row->threads; t++) {
            int64_t from, to;
            part_of(num_groups, t, row->threads, &from, &to);
            estimate_groups(row, masses, from, to, lowest);
        }
    }
    for (int64_t group = 0; group < num_groups; group++)
        tail += masses->estimates[group];
    int64_t exact = 0;
    for (int64_t block = 0; block < row->num_blocks; block++)
        exact += masses->sums[block] > 0 ? masses->sums[block] : 0;
    double slack = 1e-5 * tail + (double)row->num_blocks; /* rounding of these sums, truncation of the exact ones */
    *least = (double)exact + tail * LEAST_OF_ESTIMATE - slack;
    *most = (double)exact + tail * MOST_OF_ESTIMATE + slack;
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
