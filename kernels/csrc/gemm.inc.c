/* Products with packed matrices, compiled once per instruction set level with EK_LEVEL as the suffix.

   A block of 16 rows is 16 lanes, of one or more vectors; one step multiplies 4 columns of them.
   docs/spec/kernels-gemm.md has the arithmetic, which must not change between levels. */
#include "gemm_block.h"

/* Kernels as X(tokens, vectors of rows, ...), most tokens first, then most vectors: as many sums as there are registers
   for, since the vectors share what is read of the activations, and the tokens share the codes. */
#if defined(EK_VNNI)
#define TAKE_APART(count, vectors, bits) ((count) == 1 && (bits) >= 2)
#define WHOLE(X, ...)                                                                                                  \
    X(4, 4, __VA_ARGS__) X(4, 1, __VA_ARGS__) X(3, 4, __VA_ARGS__) X(3, 1, __VA_ARGS__) X(2, 4, __VA_ARGS__)           \
    X(2, 1, __VA_ARGS__) X(1, 4, __VA_ARGS__) X(1, 2, __VA_ARGS__) X(1, 1, __VA_ARGS__)
#define PLAIN(X, ...) X(4, 4, __VA_ARGS__) X(4, 1, __VA_ARGS__) X(1, 4, __VA_ARGS__) X(1, 1, __VA_ARGS__)
#elif defined(__AVX512F__)
#define WHOLE(X, ...)                                                                                                  \
    X(8, 1, __VA_ARGS__) X(4, 2, __VA_ARGS__) X(4, 1, __VA_ARGS__) X(2, 4, __VA_ARGS__) X(2, 1, __VA_ARGS__)           \
    X(1, 4, __VA_ARGS__) X(1, 1, __VA_ARGS__)
#define PLAIN(X, ...) X(4, 2, __VA_ARGS__) X(4, 1, __VA_ARGS__) X(1, 4, __VA_ARGS__) X(1, 1, __VA_ARGS__)
#elif defined(__AVX2__)
#define WHOLE(X, ...)                                                                                                  \
    X(4, 1, __VA_ARGS__) X(2, 2, __VA_ARGS__) X(1, 4, __VA_ARGS__) X(1, 2, __VA_ARGS__)
#define PLAIN(X, ...) X(4, 1, __VA_ARGS__) X(1, 4, __VA_ARGS__) X(1, 2, __VA_ARGS__)
#elif defined(__aarch64__)
#define WHOLE(X, ...) X(4, 2, __VA_ARGS__) X(2, 4, __VA_ARGS__) X(1, 4, __VA_ARGS__)
#define PLAIN(X, ...) X(4, 2, __VA_ARGS__) X(1, 4, __VA_ARGS__)
#else
#define WHOLE(X, ...) X(4, 2, __VA_ARGS__) X(2, 4, __VA_ARGS__) X(1, 4, __VA_ARGS__)
#define PLAIN(X, ...) X(4, 2, __VA_ARGS__) X(1, 4, __VA_ARGS__)
#endif
#ifndef TAKE_APART
#define TAKE_APART(count, vectors, bits) 0
#endif
#define MOST_TOKENS 8 /* of any kernel above */

/* Do something for the steps of columns column .. column + 4 * steps - 1: a unit, or one half of it. */
#define FOR_STEPS(DO)                                                                                                  \
    if (steps == EK_STEPS || column % EK_UNIT == 0) {                                                                  \
        DO(0, 0) DO(1, 1) DO(2, 2) DO(3, 3)                                                                            \
        if (steps == EK_STEPS) {                                                                                       \
            DO(4, 4) DO(5, 5) DO(6, 6) DO(7, 7)                                                                        \
        }                                                                                                              \
    } else {                                                                                                           \
        DO(4, 0) DO(5, 1) DO(6, 2) DO(7, 3)                                                                            \
    }

/* What is multiplied: the tokens are int8, or floats with the sums of their groups. */
typedef struct {
    const ek_packed *matrix;
    ek_tokens tokens;
    const float *x;
} job;

/* Sums of `vectors` vectors of rows from number `first` on, for `count` tokens from `token` on: y (count, vectors,
   FLOATS). */
INLINE void multiply(const job *job, int64_t first, int64_t token, float *y, const int count, const int vectors,
                     const int bits, const int steps)
{
    const ek_packed *matrix = job->matrix;
    const int64_t columns = matrix->columns, group = matrix->group;
    const int half = matrix->half_scales, apart = TAKE_APART(count, vectors, bits);
    const place at = place_of(matrix, first, bits);
    const int8_t *codes = job->tokens.codes + token * columns;
    const float *token_scale = job->tokens.scale + token * at.groups, *sum = job->tokens.sum + token * at.groups;
    vfloat total[MOST_TOKENS][MOST_VECTORS];
    UNROLL for (int t = 0; t < count; t++)
        UNROLL for (int v = 0; v < vectors; v++)
            total[t][v] = (vfloat){0};
    for (int64_t g = 0; g < at.groups; g++) {
        dots d[MOST_TOKENS][MOST_VECTORS];
        UNROLL for (int t = 0; t < count; t++)
        {
            const float s = sum[t * at.groups + g];
            const int32_t start = matrix->offset != NULL ? 0 : -(1 << (bits - 1)) * (int32_t)s;
            UNROLL for (int v = 0; v < vectors; v++)
                d[t][v] = start_dots(bits, start, s);
        }
        for (int64_t column = g * group; column < (g + 1) * group; column += steps * 4) {
#define ADD_STEP(step, i)                                                                                              \
    {                                                                                                                  \
        vwords c[MOST_VECTORS];                                                                                        \
        UNROLL for (int v = 0; v < vectors; v++)                                                                       \
            c[v] = codes_of(unit_of(&at, column, v), bits, step, apart);                                               \
        UNROLL for (int t = 0; t < count; t++) {                                                                       \
            const spread x = spread_of(codes + t * columns + column + (i)*4);                                  \
            UNROLL for (int v = 0; v < vectors; v++)                                                                   \
                d[t][v] = add_step(d[t][v], c[v], x, bits, apart ? step : i, apart);                                   \
        }                                                                                                              \
    }
            FOR_STEPS(ADD_STEP)
        }
        vfloat scale[MOST_VECTORS], offset[MOST_VECTORS];
        load_factors(matrix->scale, &at, g, vectors, half, scale);
        if (matrix->offset != NULL) {
            load_factors(matrix->offset, &at, g, vectors, half, offset);
            UNROLL for (int t = 0; t < count; t++)
                UNROLL for (int v = 0; v < vectors; v++) {
                    const vfloat dot = __builtin_convertvector(finish_dots(d[t][v], bits, apart), vfloat);
                    total[t][v] += (scale[v] * dot + offset[v] * sum[t * at.groups + g]) *
                                   token_scale[t * at.groups + g];
                }
        } else {
            UNROLL for (int t = 0; t < count; t++)
                UNROLL for (int v = 0; v < vectors; v++) {
                    const vfloat dot = __builtin_convertvector(finish_dots(d[t][v], bits, apart), vfloat);
                    total[t][v] += scale[v] * dot * token_scale[t * at.groups + g];
                }
        }
    }
    UNROLL for (int t = 0; t < count; t++)
        UNROLL for (int v = 0; v < vectors; v++)
            memcpy(y + (t * vectors + v) * FLOATS, &total[t][v], sizeof(vfloat));
}

/* The same for float activations; where the codes are bent, all columns are one group. */
INLINE void multiply_floats(const job *job, int64_t first, int64_t token, float *y, const int count, const int vectors,
                            const int bits, const int steps, const int is_bent)
{
    const ek_packed *matrix = job->matrix;
    const int64_t columns = matrix->columns, group = matrix->group;
    const int half = matrix->half_scales;
    const float middle = (float)(1 << (bits - 1));
    const place at = place_of(matrix, first, bits);
    const float *x = job->x + token * columns, *sum = job->tokens.sum + token * at.groups;
    const curve k = is_bent ? curve_of(matrix->bend, bits) : (curve){{0}, {0}, {0}, {0}, {0}};
    vfloat total[MOST_TOKENS][MOST_VECTORS];
    UNROLL for (int t = 0; t < count; t++)
        UNROLL for (int v = 0; v < vectors; v++)
            total[t][v] = (vfloat){0};
    for (int64_t g = 0; g < at.groups; g++) {
        vfloat d[MOST_TOKENS][MOST_VECTORS];
        UNROLL for (int t = 0; t < count; t++)
            UNROLL for (int v = 0; v < vectors; v++)
                d[t][v] = (vfloat){0};
        for (int64_t column = g * group; column < (g + 1) * group; column += steps * 4) {
#define ADD_FLOAT_STEP(step, i)                                                                                        \
    {                                                                                                                  \
        vwords c[MOST_VECTORS];                                                                                        \
        UNROLL for (int v = 0; v < vectors; v++)                                                                       \
            c[v] = codes_of(unit_of(&at, column, v), bits, step, 0);                                                   \
        _Pragma("GCC unroll 4") for (int j = 0; j < 4; j++)                                                            \
        {                                                                                                              \
            vfloat w[MOST_VECTORS];                                                                                    \
            UNROLL for (int v = 0; v < vectors; v++)                                                                   \
                w[v] = is_bent ? bent_floats_of(&k, c[v], bits, j) : floats_of(c[v], bits, j);                         \
            UNROLL for (int t = 0; t < count; t++) {                                                                   \
                const vfloat activation = spread_float(x[t * columns + column + (i)*4 + j]);                           \
                UNROLL for (int v = 0; v < vectors; v++)                                                               \
                    d[t][v] = multiply_add(w[v], activation, d[t][v]);                                                 \
            }                                                                                                          \
        }                                                                                                              \
    }
            FOR_STEPS(ADD_FLOAT_STEP)
        }
        vfloat scale[MOST_VECTORS], offset[MOST_VECTORS];
        load_factors(matrix->scale, &at, g, vectors, half, scale);
        if (is_bent) {
            UNROLL for (int t = 0; t < count; t++)
                UNROLL for (int v = 0; v < vectors; v++)
                    total[t][v] += scale[v] * d[t][v];
        } else if (matrix->offset != NULL) {
            load_factors(matrix->offset, &at, g, vectors, half, offset);
            UNROLL for (int t = 0; t < count; t++)
                UNROLL for (int v = 0; v < vectors; v++)
                    total[t][v] += scale[v] * d[t][v] + offset[v] * sum[t * at.groups + g];
        } else {
            UNROLL for (int t = 0; t < count; t++)
                UNROLL for (int v = 0; v < vectors; v++)
                    total[t][v] += scale[v] * (d[t][v] - middle * sum[t * at.groups + g]);
        }
    }
    UNROLL for (int t = 0; t < count; t++)
        UNROLL for (int v = 0; v < vectors; v++)
            memcpy(y + (t * vectors + v) * FLOATS, &total[t][v], sizeof(vfloat));
}

/* One function for each kernel, width, and number of steps between changes of the group. */
typedef void (*pass)(const job *, int64_t first, int64_t token, float *y);
typedef struct {
    int count, vectors;
    pass run;
} kernel;

#define INTS(count, vectors, bits, steps)                                                                              \
    static void ints_##count##_##vectors##_##bits##_##steps(const job *job, int64_t first, int64_t token, float *y)    \
    {                                                                                                                  \
        multiply(job, first, token, y, count, vectors, bits, steps);                                                   \
    }
#define FLOATS_TOO(count, vectors, bits, steps)                                                                        \
    static void floats_##count##_##vectors##_##bits##_##steps(const job *job, int64_t first, int64_t token, float *y)  \
    {                                                                                                                  \
        multiply_floats(job, first, token, y, count, vectors, bits, steps, 0);                                         \
    }
#define BENT(count, vectors, bits)                                                                                     \
    static void bent_##count##_##vectors##_##bits(const job *job, int64_t first, int64_t token, float *y)              \
    {                                                                                                                  \
        multiply_floats(job, first, token, y, count, vectors, bits, EK_STEPS, 1);                                      \
    }
#define FOR_BITS(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8)
#define DEFINE(bits)                                                                                                   \
    WHOLE(INTS, bits, 8) PLAIN(INTS, bits, 4) PLAIN(FLOATS_TOO, bits, 8) PLAIN(FLOATS_TOO, bits, 4) PLAIN(BENT, bits)
FOR_BITS(DEFINE)

#define INTS_ENTRY(count, vectors, bits, steps) {count, vectors, ints_##count##_##vectors##_##bits##_##steps},
#define FLOATS_ENTRY(count, vectors, bits, steps) {count, vectors, floats_##count##_##vectors##_##bits##_##steps},
#define BENT_ENTRY(count, vectors, bits) {count, vectors, bent_##count##_##vectors##_##bits},
#define BENT_ROW(bits) {PLAIN(BENT_ENTRY, bits)},
#define INTS_ROW(bits) {{WHOLE(INTS_ENTRY, bits, 8)}, {PLAIN(INTS_ENTRY, bits, 4)}},
#define FLOATS_ROW(bits) {{PLAIN(FLOATS_ENTRY, bits, 8)}, {PLAIN(FLOATS_ENTRY, bits, 4)}},

/* By bits - 1, and whether a unit holds two groups. */
static const kernel int_kernels[8][2][16] = {FOR_BITS(INTS_ROW)};
static const kernel float_kernels[8][2][16] = {FOR_BITS(FLOATS_ROW)};
static const kernel bent_kernels[8][16] = {FOR_BITS(BENT_ROW)};

/* The first kernel in its order which is not too large; the smallest ones fit everything. */
static const kernel *choose(const kernel *from, int64_t count, int64_t vectors)
{
    while (from->count > count || from->vectors > vectors)
        from++;
    return from;
}

/* Copy sums of rows first_row .. to - 1, as far as there are any, and add the bias. */
static void store(const float *sums, int64_t count, int64_t first_row, int64_t to, const float *bias, float *y)
{
    if (count > to - first_row)
        count = to - first_row;
    for (int64_t r = 0; r < count; r++)
        y[r] = bias == NULL ? sums[r] : sums[r] + bias[first_row + r];
}

/* All products of rows from .. to - 1, so many vectors of rows at a time that their codes stay in the cache. */
static void run(const kernel *kernels, const job *job, int64_t count, int64_t from, int64_t to, const float *bias,
                float *y, int64_t stride)
{
    const int64_t last = (to + EK_BLOCK - 1) / EK_BLOCK * PARTS;
    float sums[MOST_TOKENS * MOST_VECTORS * FLOATS];
    for (int64_t first = from / FLOATS, next; first < last; first = next) {
        next = first + MOST_VECTORS < last ? first + MOST_VECTORS : last;
        for (int64_t t = 0, tokens; t < count; t += tokens) {
            const kernel *k = choose(kernels, count - t, MOST_VECTORS);
            tokens = k->count;
            for (int64_t v = first; v < next; v += k->vectors) {
                k = choose(k, tokens, next - v);
                k->run(job, v, t, sums);
                for (int n = 0; n < k->count; n++)
                    store(sums + n * k->vectors * FLOATS, k->vectors * FLOATS, v * FLOATS, to, bias,
                          y + (t + n) * stride + v * FLOATS);
            }
        }
    }
}

#include "gemm_panels.inc.c"

static void multiply_quantised(const ek_packed *matrix, const ek_tokens *tokens, int64_t count, int64_t from,
                               int64_t to, const float *bias, float *y, int64_t stride)
{
    const job job = {matrix, *tokens, NULL};
    run(int_kernels[matrix->bits - 1][matrix->group < EK_UNIT], &job, count, from, to, bias, y, stride);
}

static void multiply_floating(const ek_packed *matrix, const float *x, const float *sum, int64_t count, int64_t from,
                              int64_t to, const float *bias, float *y, int64_t stride)
{
    const job all = {matrix, {NULL, NULL, (float *)sum}, x};
    const kernel *kernels = matrix->bend != EK_NOT_BENT ? bent_kernels[matrix->bits - 1]
                                                        : float_kernels[matrix->bits - 1][matrix->group < EK_UNIT];
    int64_t token = 0;
    while (matrix->bend == EK_NOT_BENT && count - token >= WORTH_A_PANEL) {
        int64_t tokens = count - token < PANEL_BATCH ? count - token : PANEL_BATCH;
        run_panels(&all, token, tokens, from, to, bias, y, stride);
        token += tokens;
    }
    const job rest = {matrix, {NULL, NULL, (float *)sum + token * (matrix->columns / matrix->group)},
                      x + token * matrix->columns};
    run(kernels, &rest, count - token, from, to, bias, y + token * stride, stride);
}

#define SMALLEST 0x1p-120f /* below it 127 / x would overflow: a group without a larger activation counts as 0 */

/* The largest magnitude of a group, or NaN or infinity if there is one. */
static float largest(const float *x, int32_t group)
{
    vint32 most = {0};
    int32_t found;
    float value;
    for (int i = 0; i < group; i += FLOATS) { /* as integers, so that NaN wins */
        const vint32 v = (vint32)load_floats(x + i) & 0x7FFFFFFF, more = v > most;
        most = (v & more) | (most & ~more);
    }
    found = largest_lane(most);
    memcpy(&value, &found, 4);
    return value;
}

static void quantise(const float *x, int64_t columns, int32_t group, int8_t *codes, float *scale, float *sum)
{
    const float magic = 0x1.8p23f; /* adding it rounds to an integer, halves to even */
    for (int64_t g = 0; g < columns / group; g++, x += group, codes += group) {
        const float most = largest(x, group);
        vint32 total = {0};
        if (!(most >= SMALLEST && most < INFINITY)) { /* NaN and infinity make the scale NaN, and all rows with it */
            for (int i = 0; i < group; i++)
                codes[i] = 0;
            scale[g] = most < SMALLEST ? 0 : NAN;
            sum[g] = 0;
            continue;
        }
        const float inverse = 127 / most;
        for (int i = 0; i < group; i += FLOATS) {
            const vint32 code = (vint32)(load_floats(x + i) * inverse + magic) - 0x4B400000;
            typedef int8_t small __attribute__((vector_size(FLOATS)));
            const small bytes = __builtin_convertvector(code, small);
            total += code;
            memcpy(codes + i, &bytes, sizeof bytes);
        }
        scale[g] = most / 127;
        sum[g] = (float)sum_of_lanes(total);
    }
}

static void sum_groups(const float *x, int64_t columns, int32_t group, float *sum)
{
    for (int64_t g = 0; g < columns / group; g++) {
        vfloat total = {0};
        float all = 0;
        for (int i = 0; i < group; i += FLOATS)
            total += load_floats(x + g * group + i);
        for (int i = 0; i < FLOATS; i++)
            all += total[i];
        sum[g] = all;
    }
}

const ek_gemm EK_NAME(ek_gemm_, EK_LEVEL) = {EK_STRING(EK_LEVEL), quantise, sum_groups, multiply_quantised,
                                             multiply_floating};
