/* Probabilities of a row as integers, block by block (docs/spec/kernels-acceptance.md, section 2): 64 ids have masses
   relative to the likeliest of them, blocks have weights. Sums of integers do not depend on their order. */

#define TEST_MASS_BITS 24 /* the likeliest id of a block has mass 2^24 */
#define ROW_MASS_BITS 40  /* and 2^40 if it is the likeliest of the row */
#define LOWEST_WEIGHT -64.0
#define GROUP 16 /* blocks whose small masses are estimated together */
#define LEAST_OF_ESTIMATE (0.9418 * 0.9995) /* 1 / 1.0615 = 0.9420..., and rounding */
#define MOST_OF_ESTIMATE 1.0005
#define ESTIMATE_STEPS 0x1p14f
#define MOST_REFERENCE 2048 /* log2 of the largest logit's mass: beyond it estimates are too coarse */
#define MOST_ABOVE 60       /* powers of two by which a logit may exceed what its estimate is relative to */
#define HEAD -8             /* blocks whose likeliest id has 2^HEAD of the likeliest's mass are worth an exact sum, */
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
    float *estimates;  /* of each group: upper estimate of what is not in `sums` */
    float *references; /* of each group: the logit to which its estimate is relative while the row is read */
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

/* Upper estimates of the masses of some logits, lane by lane: 2^t is at most, and within 6.2 % of, the number whose
   bits are those of (t + 127) * 2^23 (Schraudolph, Neural Computation 11, 1999). Adding 2^23 to (t + 127) * 2^14 makes
   them in one step, but for a shift; NaN and -inf come out as 0. */
static inline vfloat estimate(vfloat logits, vfloat slope, vfloat start)
{
    const vint32 none = (vint32)((vfloat){0} + 0x1p23f);
    return (vfloat)(max_integers((vint32)multiply_add(logits, slope, start), none) << 9);
}

static inline float estimate_start(float reference, float scale)
{
    return 0x1p23f + 127 * ESTIMATE_STEPS - reference * scale * ESTIMATE_STEPS;
}

static float estimate_block(const float *logits, float reference, float scale)
{
    const vfloat zero = {0}, slope = zero + scale * ESTIMATE_STEPS, start = zero + estimate_start(reference, scale);
    vfloat sum = zero;
    for (int i = 0; i < BLOCK; i += FLOATS)
        sum += estimate(load_floats(logits + i), slope, start);
    return sum_floats(sum);
}

/* Maxima of the blocks of a whole group, and an estimate of its mass relative to `reference`. Returns the largest. */
static float scan_group(const row_view *row, row_masses *masses, int64_t group, float reference)
{
    const float scale = (float)masses->scale, *logits = (const float *)row->logits + group * GROUP * BLOCK;
    const vfloat zero = {0}, slope = zero + scale * ESTIMATE_STEPS, start = zero + estimate_start(reference, scale);
    vfloat even = zero, odd = zero, most = zero - INFINITY;
    for (int64_t block = group * GROUP; block < (group + 1) * GROUP; block++, logits += BLOCK) {
        vfloat a = zero - INFINITY, b = a;
        for (int i = 0; i < BLOCK; i += 2 * FLOATS) {
            vfloat first = load_floats(logits + i), second = load_floats(logits + i + FLOATS);
            a = max_floats(first, a);
            b = max_floats(second, b);
            even += estimate(first, slope, start);
            odd += estimate(second, slope, start);
        }
        a = max_floats(a, b);
        most = max_floats(a, most);
        row->maxima[block] = max_lane(a);
    }
    masses->estimates[group] = sum_floats(even + odd);
    masses->references[group] = reference;
    return max_lane(most);
}

/* Groups [from, to) of a row that is plain there: read once, estimates relative to the largest logit so far. */
static float scan_groups(const row_view *row, row_masses *masses, int64_t from, int64_t to)
{
    float top = -INFINITY;
    for (int64_t group = from; group < to; group++) {
        if (top == -INFINITY)
            top = scan_as(EK_FLOAT32, row->logits, group * GROUP, (group + 1) * GROUP, row->maxima);
        float most = scan_group(row, masses, group, top);
        if (((double)most - (double)top) * masses->scale > MOST_ABOVE)
            scan_group(row, masses, group, most);
        top = most > top ? most : top;
    }
    return top;
}

/* Read a row as `scan` does, with estimates of all whole groups; returns how many these are. */
static int64_t scan_with_estimates(row_view *row, row_masses *masses)
{
    int64_t groups = row->dtype == EK_FLOAT32 && !row->changes ? row->vocab / (GROUP * BLOCK) : 0;
    if (groups == 0) {
        scan(row, 0);
        return 0;
    }
    if (row->threads == 1) {
        row->top = scan_groups(row, masses, 0, groups);
    } else {
#pragma omp parallel for num_threads(row->threads) schedule(static, 1)
        for (int t = 0; t < row->threads; t++) {
            int64_t from, to;
            part_of(groups, t, row->threads, &from, &to);
            scan_groups(row, masses, from, to);
        }
    }
    scan(row, groups * GROUP);
    return groups;
}

/* Exact sums of the blocks of a group that matter, also added to `exact`, -1 for all others, and an estimate of these
   relative to 2^ROW_MASS_BITS for the row's likeliest id. False if the estimates are too coarse. */
static int estimate_group(const row_view *row, row_masses *masses, int64_t group, int scanned, float head,
                          int64_t *exact)
{
    const float scale = (float)masses->scale;
    int64_t end = (group + 1) * GROUP < row->num_blocks ? (group + 1) * GROUP : row->num_blocks;
    float buffer[BLOCK], reference = scanned ? masses->references[group] : row->top;
    float sum = scanned ? masses->estimates[group] : 0;
    if (reference == -INFINITY)
        reference = row->top; /* nothing but -inf so far */
    if (!(fabs((double)reference * masses->scale) < MOST_REFERENCE))
        return 0;
    int any = 0;
    for (int64_t block = group * GROUP; block < end; block++) {
        masses->sums[block] = -1;
        any |= row->maxima[block] >= head;
    }
    for (int64_t block = group * GROUP; (any || !scanned) && block < end; block++) {
        int matters = row->maxima[block] >= head;
        if (matters)
            *exact += masses->sums[block] = exact_sum(row, masses, block);
        if (matters == scanned)
            sum += (scanned ? -1 : 1) * estimate_block(block_at(row, block, buffer), reference, scale);
    }
    sum = sum > 0 ? sum : 0;
    masses->estimates[group] = sum * (float)(block_weight(reference, row->top, masses->scale) * 0x1p24);
    return 1;
}

/* Bounds of the total from estimates, and exact sums of the few blocks that matter most; 0 if estimates are no use. */
static void bound_total(const row_view *row, row_masses *masses, int64_t scanned, double *least, double *most)
{
    int64_t num_groups = (row->num_blocks + GROUP - 1) / GROUP, exact = 0;
    int32_t heads = 0;
    float lowest = (float)(row->top + HEAD / masses->scale);
    double tail = 0;
    *least = *most = 0;
    for (int64_t block = 0; block < row->num_blocks; block++)
        heads += row->maxima[block] >= lowest;
    lowest = (int64_t)heads * MOST_HEADS > row->num_blocks ? INFINITY : lowest;
    for (int64_t group = 0; group < num_groups; group++) {
        if (!estimate_group(row, masses, group, group < scanned, lowest, &exact))
            return;
        tail += masses->estimates[group];
    }
    /* rounding of these sums, also where estimates of blocks that matter were taken out; truncation of exact ones */
    double slack = 1e-5 * (tail + (double)exact) + (double)row->num_blocks;
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
