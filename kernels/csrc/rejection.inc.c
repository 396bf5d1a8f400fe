/* Rejection sampling: accept while u * q < p, then a token of max(p - q, 0) (docs/spec/kernels-acceptance.md). */

/* Which q belongs to a draft. */
typedef struct {
    const ek_batch *batch;
    int64_t draft; /* -1: none, for the token behind the last draft */
    int32_t token; /* the drafted one, which is all of q if the batch gives none */
} law;

static int64_t first_entry_from(const law *q, int64_t id)
{
    int64_t low = q->batch->q_starts[q->draft], high = q->batch->q_starts[q->draft + 1];
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (q->batch->q_ids[middle] < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static float q_of_draft(const law *q)
{
    const ek_batch *batch = q->batch;
    if (batch->dense_q)
        return batch->dense_q[q->draft * batch->vocab + q->token];
    if (!batch->q_starts)
        return 1;
    int64_t entry = first_entry_from(q, q->token);
    return entry < batch->q_starts[q->draft + 1] && batch->q_ids[entry] == q->token ? batch->q[entry] : 0;
}

/* The mass that is left of one id; `share` turns a probability into masses of its block. */
static inline int32_t left_over(int32_t mass, float q, float share)
{
    float taken = q * share;
    if (q >= 1 || taken >= (float)mass)
        return 0;
    return taken > 0 ? mass - (int32_t)taken : mass;
}

/* The same for a whole block; returns the sum. */
static int32_t left_over_block(int32_t *masses, const float *q, float share)
{
    const vfloat zero = {0}, one = zero + 1;
    vint32 sum = {0};
    for (int i = 0; i < BLOCK; i += FLOATS) {
        vint32 mass;
        memcpy(&mass, masses + i, sizeof mass);
        vfloat some = load_floats(q + i), taken = some * share;
        vint32 stays = ~((some >= one) | (taken >= __builtin_convertvector(mass, vfloat)));
        taken = (vfloat)((vint32)taken & stays & (taken > zero));
        mass = (mass - __builtin_convertvector(taken, vint32)) & stays;
        sum += mass;
        memcpy(masses + i, &mass, sizeof mass);
    }
    return sum_lanes(sum);
}

/* Masses of a block, less those of q; returns their sum. */
static int32_t residual_masses(const row_view *row, const row_masses *masses, const law *q, int64_t block,
                               int32_t *left)
{
    const ek_batch *batch = q->batch;
    float buffer[BLOCK];
    int64_t first = block * BLOCK, n = row->vocab - first < BLOCK ? row->vocab - first : BLOCK;
    int32_t sum = mass_of_block(block_at(row, block, buffer), row->maxima[block], (float)masses->scale, masses->floor,
                                left);
    if (q->draft < 0)
        return sum;
    float share = (float)((double)masses->total / block_weight(row->maxima[block], row->top, masses->scale));
    if (batch->dense_q) {
        const float *dense = batch->dense_q + q->draft * batch->vocab + first;
        if (n < BLOCK) {
            memset(buffer, 0, sizeof buffer);
            memcpy(buffer, dense, (size_t)n * sizeof *dense);
            dense = buffer;
        }
        return left_over_block(left, dense, share);
    } else if (batch->q_starts) {
        int64_t end = batch->q_starts[q->draft + 1];
        for (int64_t e = first_entry_from(q, first); e < end && batch->q_ids[e] < first + n; e++)
            left[batch->q_ids[e] - first] = left_over(left[batch->q_ids[e] - first], batch->q[e], share);
    } else if (q->token >= first && q->token < first + n) {
        left[q->token - first] = 0;
    }
    sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += left[i];
    return sum;
}

/* Take q out of the sum of one block; returns what the total loses. */
static int64_t correct(const row_view *row, const row_masses *masses, const law *q, int64_t block)
{
    int32_t left[BLOCK];
    int64_t before = masses->sums[block];
    if (before == 0)
        return 0;
    int32_t sum = residual_masses(row, masses, q, block, left);
    masses->sums[block] = (int64_t)((double)sum * block_weight(row->maxima[block], row->top, masses->scale));
    return before - masses->sums[block];
}

/* Take q out of all sums; returns the total that is left. The masses keep their own, for later blocks. */
static int64_t correct_row(const row_view *row, const row_masses *masses, const law *q)
{
    int64_t left = masses->total;
    if (q->draft < 0)
        return left;
    if (q->batch->dense_q) {
        for (int64_t block = 0; block < row->num_blocks; block++)
            left -= correct(row, masses, q, block);
    } else if (q->batch->q_starts) {
        int64_t done = -1;
        for (int64_t e = q->batch->q_starts[q->draft]; e < q->batch->q_starts[q->draft + 1]; e++)
            if (q->batch->q_ids[e] / BLOCK > done) {
                done = q->batch->q_ids[e] / BLOCK;
                left -= correct(row, masses, q, done);
            }
    } else if (q->token >= 0 && q->token < row->vocab) {
        left -= correct(row, masses, q, q->token / BLOCK);
    }
    return left;
}

/* The token at the place of a number in [0, 1) among p - q, or p if that is nothing. Needs exact sums. */
static int32_t emit(const row_view *row, row_masses *masses, const law *q, double number)
{
    law source = *q;
    int64_t left = correct_row(row, masses, &source);
    if (left <= 0) {
        weigh_row(row, masses);
        source.draft = -1;
        left = masses->total;
    }
    int64_t rest = place_of(number, left), block = 0;
    for (; rest >= masses->sums[block]; block++)
        rest -= masses->sums[block];
    int32_t each[BLOCK];
    residual_masses(row, masses, &source, block, each);
    return (int32_t)(block * BLOCK) +
           pick_in_block(each, block_weight(row->maxima[block], row->top, masses->scale), rest);
}

/* The same without q, if bounds of the total are enough to tell; -1 if not. */
static int32_t emit_from_bounds(const row_view *row, const row_masses *masses, double least, double most,
                                double number)
{
    const double margin = 1 + 1e-9 * most;
    double from = number * least - margin, to = number * most + margin, low = 0, high = 0;
    for (int64_t block = 0; block < row->num_blocks; block++) {
        if (block % GROUP == 0) /* what was estimated may stand anywhere in its group */
            high += masses->estimates[block / GROUP] * MOST_OF_ESTIMATE + GROUP;
        if (masses->sums[block] > 0) {
            double known = (double)masses->sums[block], rest_from = from - high, rest_to = to - low;
            if (rest_from < known) {
                if (rest_from < 0 || rest_to >= known)
                    return -1;
                int32_t each[BLOCK];
                float buffer[BLOCK];
                double weight = block_weight(row->maxima[block], row->top, masses->scale);
                mass_of_block(block_at(row, block, buffer), row->maxima[block], (float)masses->scale, masses->floor,
                              each);
                int first = pick_in_block(each, weight, (int64_t)rest_from);
                int last = pick_in_block(each, weight, (int64_t)rest_to + 1);
                return first == last ? (int32_t)(block * BLOCK) + first : -1;
            }
            low += known;
            high += known;
        }
        if (block % GROUP == GROUP - 1) {
            low += masses->estimates[block / GROUP] * LEAST_OF_ESTIMATE - GROUP;
            if (to - low < 0)
                return -1; /* it may have been among those estimated */
        }
    }
    return -1;
}

/* Whether a draft passes; `exact` says that the sums are, and becomes true if they had to be. */
static int passes(const row_view *row, row_masses *masses, const law *q, double u, double least, double most,
                  int *exact)
{
    if (q->token < 0 || q->token >= row->vocab)
        return 0;
    int32_t each[BLOCK];
    float buffer[BLOCK], q_token = q_of_draft(q);
    int64_t block = q->token / BLOCK;
    double mass = 0;
    if (has_mass(row, masses, block)) {
        mass_of_block(block_at(row, block, buffer), row->maxima[block], (float)masses->scale, masses->floor, each);
        mass = each[q->token % BLOCK] * block_weight(row->maxima[block], row->top, masses->scale);
    }
    ek_accepts accepts = q->batch->accepts;
    if (!accepts && !(q_token > 0 && mass > 0))
        return 0;
    double left = u * (double)q_token;
    if (!accepts && !*exact && least > 0) {
        if (left < mass / most)
            return 1;
        if (!(left < mass / least))
            return 0;
    }
    if (!*exact)
        weigh_row(row, masses);
    *exact = 1;
    double total = (double)masses->total;
    return accepts ? accepts(mass / total, q_token, u, 0x1p40 / total) != 0 : left < mass / total;
}
