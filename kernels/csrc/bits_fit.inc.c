/* Scale and offset of groups of values. The search for the least squared error is the same sequence of float32
   operations at every level: sixteen running sums, whatever the vectors, and then a tree (docs/spec/kernels.md). */

#define MOST_VALUE 0x1p126f   /* so that differences and their squares stay finite */
#define LEAST_SEARCHED 0x1p-100 /* a smaller scale is not searched for: its reciprocal is too large */
#define UNITS 128             /* parts into which the range is divided */
#define COARSE 4              /* of the first steps of a search, and the narrowest range */
#define FINE 3                /* units to each side in its last steps */
#define SUMS 16
#define PART 4096 /* values after which the sums go into a float64 */

typedef struct {
    const float *values;
    int64_t n;
    double low, high; /* of the values; `high` alone for the grids around 0: the largest magnitude */
    float top;
    float reach; /* codes from 0 on to the largest value, of the grids around 0 */
    ek_grid grid;
    int bits;
} fit_task;

typedef struct {
    double error; /* squares of steps times the square of the scale */
    float scale, offset;
    int from, to; /* the range, in units */
} fit_found;

static inline lanes add_squares(lanes sums, lanes values, lanes offset, lanes inverse, lanes top)
{
    const lanes zero = all_lanes(0), magic = all_lanes(0x1.8p23f);
    lanes steps = (values - offset) * inverse;
    lanes codes = (at_most(at_least(steps, zero), top) + magic) - magic;
    lanes error = codes - steps;
    return sums + error * error;
}

static double squares_of_steps(const fit_task *task, float scale, float offset)
{
    const lanes low = all_lanes(offset), inverse = all_lanes(1 / scale), top = all_lanes(task->top);
    double total = 0;
    for (int64_t first = 0; first < task->n; first += PART) {
        const float *values = task->values + first;
        const int64_t count = least_of(task->n - first, PART);
        lanes sums[SUMS / LANES] = {{0}};
        float each[SUMS];
        int64_t i = 0;
        for (; i + SUMS <= count; i += SUMS)
            for (int k = 0; k < SUMS / LANES; k++)
                sums[k] = add_squares(sums[k], load_lanes_of(values + i + k * LANES), low, inverse, top);
        if (i < count) { /* the others are without error */
            for (int k = 0; k < SUMS; k++)
                each[k] = i + k < count ? values[i + k] : offset;
            for (int k = 0; k < SUMS / LANES; k++)
                sums[k] = add_squares(sums[k], load_lanes_of(each + k * LANES), low, inverse, top);
        }
        memcpy(each, sums, sizeof each);
        for (int half = SUMS / 2; half; half /= 2)
            for (int k = 0; k < half; k++)
                each[k] += each[k + half];
        total += each[0];
    }
    return total;
}

/* The offset of a grid around 0. */
static inline float offset_around(const fit_task *task, float scale)
{
    return task->grid == EK_SYMMETRIC ? -scale * (float)(1 << (task->bits - 1)) : -(scale * task->reach);
}

/* Keep the range from .. to, in units, if it is better than what is known. */
static void consider(const fit_task *task, int from, int to, fit_found *best)
{
    fit_found new = {.from = from, .to = to};
    if (task->grid == EK_ASYMMETRIC) {
        double range = task->high - task->low;
        new.scale = (float)(range * ((to - from) / (double)UNITS) / task->top);
        new.offset = (float)(task->low + range * (from / (double)UNITS));
    } else {
        new.scale = (float)(task->high * (to / (double)UNITS) / task->reach);
        new.offset = offset_around(task, new.scale);
    }
    new.error = squares_of_steps(task, new.scale, new.offset) * ((double)new.scale * new.scale);
    if (new.error < best->error)
        *best = new;
}

static void search(const fit_task *task, fit_found *best)
{
    best->error = INFINITY;
    if (task->grid == EK_ASYMMETRIC) {
        for (int cut = 0; 2 * cut <= UNITS - COARSE; cut += COARSE / 2)
            consider(task, cut, UNITS - cut, best);
        for (int to = UNITS, from = best->from; to >= from + COARSE; to -= COARSE)
            consider(task, from, to, best);
        for (int from = 0, to = best->to; from <= to - COARSE; from += COARSE)
            consider(task, from, to, best);
    } else {
        for (int to = UNITS; to >= COARSE; to -= COARSE)
            consider(task, 0, to, best);
    }
    fit_found rough = *best;
    for (int to = rough.to - FINE; to <= rough.to + FINE; to++)
        if (to != rough.to && to <= UNITS && to > rough.from)
            consider(task, rough.from, to, best);
    rough = *best;
    for (int from = rough.from - FINE; task->grid == EK_ASYMMETRIC && from <= rough.from + FINE; from++)
        if (from != rough.from && from >= 0 && from < rough.to)
            consider(task, from, rough.to, best);
}

/* Least and largest value in the order of their bits, -0 before 0; NaN is beyond the infinities on either side. */
static void range_of(const float *values, int64_t n, float *low, float *high)
{
    int32_t least = INT32_MAX, most = INT32_MIN;
    for (int64_t i = 0; i < n; i++) {
        int32_t key;
        memcpy(&key, values + i, sizeof key);
        key ^= key >> 31 & INT32_MAX;
        least = key < least ? key : least;
        most = key > most ? key : most;
    }
    least ^= least >> 31 & INT32_MAX;
    most ^= most >> 31 & INT32_MAX;
    memcpy(low, &least, sizeof least);
    memcpy(high, &most, sizeof most);
}

static int64_t fit(const float *values, int64_t groups, int64_t group, int bits, ek_grid grid, int searched,
                   float *scale, float *offset)
{
    for (int64_t g = 0; g < groups; g++) {
        float low, high;
        range_of(values + g * group, group, &low, &high);
        if (!(low >= -MOST_VALUE && high <= MOST_VALUE))
            return g;
        fit_task task = {values + g * group, group, low, high, (float)((1 << bits) - 1), 0, grid, bits};
        if (grid == EK_ASYMMETRIC) {
            scale[g] = (float)((task.high - task.low) / task.top);
            offset[g] = low;
        } else {
            task.high = fabsf(low) > fabsf(high) ? fabsf(low) : fabsf(high);
            task.reach = grid == EK_EVEN ? task.top / 2 : bits > 1 ? (float)((1 << (bits - 1)) - 1) : 1;
            scale[g] = (float)(task.high / task.reach);
            offset[g] = scale[g] == 0 ? 0 : offset_around(&task, scale[g]);
        }
        if (searched && scale[g] >= LEAST_SEARCHED) {
            fit_found best;
            search(&task, &best);
            scale[g] = best.scale;
            offset[g] = best.offset;
        }
    }
    return -1;
}

#undef PART
