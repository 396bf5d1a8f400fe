/* Products with packed matrices, compiled once per instruction set level with EK_LEVEL as the suffix.

   A block of 16 rows is 16 lanes; one step multiplies 4 columns of them. Codes are unpacked in registers and used for
   up to MOST_TOKENS tokens. docs/spec/kernels-gemm.md has the arithmetic, which must not change between levels. */
#include "gemm.h"
#include "gemm_layout.h"
#include "gemm_ops.h"

#define EK_JOIN(a, b) a##b
#define EK_NAME(a, b) EK_JOIN(a, b)
#define EK_QUOTE(a) #a
#define EK_STRING(a) EK_QUOTE(a)

#if defined(__AVX512F__) || defined(__aarch64__)
#define MOST_TOKENS 8 /* so that sums stay in 32 registers */
#else
#define MOST_TOKENS 4
#endif

/* The codes of one step from its unit's planes, which begin at the wanted part of the rows. */
INLINE vwords codes_of(const uint8_t *planes, const int bits, const int step)
{
    vwords codes = {0};
#pragma GCC unroll 8
    for (int done = 0; done < bits;) {
        const ek_piece p = ek_piece_of(bits, step, done);
        vwords v = load_words(planes + p.plane * EK_PLANE);
        if (p.at > done)
            v >>= p.at - done; /* in 16 bits; the mask drops what came from the neighbour */
        else if (p.at < done)
            v <<= done - p.at;
        if (p.size < 8)
            v &= every_byte(((1 << p.size) - 1) << done);
        codes |= v;
        done += p.size;
    }
    return codes;
}

/* Sums of one block for count tokens; y is (count, 16). */
INLINE void multiply_block(const ek_packed *matrix, const ek_tokens *tokens, int64_t block, float *y, const int bits,
                           const int count, const int steps)
{
    const int64_t columns = matrix->columns, group = matrix->group, groups = columns / group;
    const int64_t units = (columns + EK_UNIT - 1) / EK_UNIT, unit_bytes = (int64_t)bits * EK_PLANE;
    const uint8_t *planes = matrix->data + block * units * unit_bytes;
    const int half = matrix->half_scales;
    const float middle = (float)(1 << (bits - 1));
    vfloat total[MOST_TOKENS][PARTS];
    for (int t = 0; t < count; t++)
        for (int part = 0; part < PARTS; part++)
            total[t][part] = (vfloat){0};
    for (int64_t g = 0; g < groups; g++) {
        for (int part = 0; part < PARTS; part++) {
            dots d[MOST_TOKENS];
            for (int t = 0; t < count; t++)
                d[t] = start_dots(bits, tokens->sum[t * groups + g]);
            for (int64_t column = g * group; column < (g + 1) * group; column += steps * 4) {
                const uint8_t *unit = planes + column / EK_UNIT * unit_bytes + part * VECTOR_BYTES;
                const int8_t *x = tokens->codes + column;
#define STEP(step, i)                                                                                                  \
    if ((i) < steps) {                                                                                                 \
        const vwords c = codes_of(unit, bits, step);                                                                   \
        for (int t = 0; t < count; t++)                                                                                \
            d[t] = add_step(d[t], c, spread_of(x + t * columns + (i)*4), bits, i);                                     \
    }
                if (steps == EK_STEPS || column % EK_UNIT == 0) {
                    STEP(0, 0) STEP(1, 1) STEP(2, 2) STEP(3, 3) STEP(4, 4) STEP(5, 5) STEP(6, 6) STEP(7, 7)
                } else {
                    STEP(4, 0) STEP(5, 1) STEP(6, 2) STEP(7, 3)
                }
            }
            const int64_t i = (block * groups + g) * EK_BLOCK + part * FLOATS;
            const vfloat scale = load_factors(matrix->scale, i, half);
            if (matrix->offset != NULL) {
                const vfloat offset = load_factors(matrix->offset, i, half);
                for (int t = 0; t < count; t++) {
                    const vfloat dot = __builtin_convertvector(finish_dots(d[t]), vfloat);
                    total[t][part] +=
                        (scale * dot + offset * tokens->sum[t * groups + g]) * tokens->scale[t * groups + g];
                }
            } else {
                for (int t = 0; t < count; t++) {
                    const vfloat dot = __builtin_convertvector(finish_dots(d[t]), vfloat);
                    total[t][part] +=
                        scale * (dot - middle * tokens->sum[t * groups + g]) * tokens->scale[t * groups + g];
                }
            }
        }
    }
    for (int t = 0; t < count; t++)
        for (int part = 0; part < PARTS; part++)
            memcpy(y + t * EK_BLOCK + part * FLOATS, &total[t][part], sizeof(vfloat));
}

/* The same for float activations x (count, columns) with their sums. */
INLINE void multiply_block_floats(const ek_packed *matrix, const float *x, const float *sum, int64_t block, float *y,
                                  const int bits, const int count, const int steps)
{
    const int64_t columns = matrix->columns, group = matrix->group, groups = columns / group;
    const int64_t units = (columns + EK_UNIT - 1) / EK_UNIT, unit_bytes = (int64_t)bits * EK_PLANE;
    const uint8_t *planes = matrix->data + block * units * unit_bytes;
    const int half = matrix->half_scales;
    const float middle = (float)(1 << (bits - 1));
    vfloat total[MOST_TOKENS][PARTS];
    for (int t = 0; t < count; t++)
        for (int part = 0; part < PARTS; part++)
            total[t][part] = (vfloat){0};
    for (int64_t g = 0; g < groups; g++) {
        for (int part = 0; part < PARTS; part++) {
            vfloat d[MOST_TOKENS];
            for (int t = 0; t < count; t++)
                d[t] = (vfloat){0};
            for (int64_t column = g * group; column < (g + 1) * group; column += steps * 4) {
                const uint8_t *unit = planes + column / EK_UNIT * unit_bytes + part * VECTOR_BYTES;
#define FLOAT_STEP(step, i)                                                                                            \
    if ((i) < steps) {                                                                                                 \
        const vint32 c = (vint32)codes_of(unit, bits, step);                                                           \
        _Pragma("GCC unroll 4") for (int j = 0; j < 4; j++)                                                            \
        {                                                                                                              \
            const vfloat w = __builtin_convertvector((c >> 8 * j) & 255, vfloat);                                      \
            for (int t = 0; t < count; t++)                                                                            \
                d[t] = multiply_add(w, spread_float(x[t * columns + column + (i)*4 + j]), d[t]);                       \
        }                                                                                                              \
    }
                if (steps == EK_STEPS || column % EK_UNIT == 0) {
                    FLOAT_STEP(0, 0) FLOAT_STEP(1, 1) FLOAT_STEP(2, 2) FLOAT_STEP(3, 3)
                    FLOAT_STEP(4, 4) FLOAT_STEP(5, 5) FLOAT_STEP(6, 6) FLOAT_STEP(7, 7)
                } else {
                    FLOAT_STEP(4, 0) FLOAT_STEP(5, 1) FLOAT_STEP(6, 2) FLOAT_STEP(7, 3)
                }
            }
            const int64_t i = (block * groups + g) * EK_BLOCK + part * FLOATS;
            const vfloat scale = load_factors(matrix->scale, i, half);
            for (int t = 0; t < count; t++) {
                const float s = sum[t * groups + g];
                if (matrix->offset != NULL)
                    total[t][part] += scale * d[t] + load_factors(matrix->offset, i, half) * s;
                else
                    total[t][part] += scale * (d[t] - middle * s);
            }
        }
    }
    for (int t = 0; t < count; t++)
        for (int part = 0; part < PARTS; part++)
            memcpy(y + t * EK_BLOCK + part * FLOATS, &total[t][part], sizeof(vfloat));
}

/* One function for each width, number of tokens, and number of steps between changes of the group. */
typedef void (*block_function)(const ek_packed *, const ek_tokens *, int64_t, float *);
typedef void (*float_function)(const ek_packed *, const float *, const float *, int64_t, float *);

#define VARIANT(bits, count, steps)                                                                                    \
    static void block_##bits##_##count##_##steps(const ek_packed *matrix, const ek_tokens *tokens, int64_t block,      \
                                                 float *y)                                                             \
    {                                                                                                                  \
        multiply_block(matrix, tokens, block, y, bits, count, steps);                                                  \
    }                                                                                                                  \
    static void float_block_##bits##_##count##_##steps(const ek_packed *matrix, const float *x, const float *sum,      \
                                                       int64_t block, float *y)                                        \
    {                                                                                                                  \
        multiply_block_floats(matrix, x, sum, block, y, bits, count, steps);                                           \
    }
#if MOST_TOKENS == 8
#define FOR_COUNTS(X, bits)                                                                                            \
    X(bits, 1, 8) X(bits, 2, 8) X(bits, 3, 8) X(bits, 4, 8) X(bits, 6, 8) X(bits, 8, 8) X(bits, 1, 4) X(bits, 4, 4)
#define COUNTS(X, bits)                                                                                                \
    {X##bits##_1_8, X##bits##_2_8, X##bits##_3_8, X##bits##_4_8, X##bits##_6_8, X##bits##_8_8},                        \
    {X##bits##_1_4, X##bits##_4_4},
static const int sizes[2][7] = {{1, 2, 3, 4, 6, 8, 0}, {1, 4, 0}};
#else
#define FOR_COUNTS(X, bits) X(bits, 1, 8) X(bits, 2, 8) X(bits, 4, 8) X(bits, 1, 4) X(bits, 4, 4)
#define COUNTS(X, bits) {X##bits##_1_8, X##bits##_2_8, X##bits##_4_8}, {X##bits##_1_4, X##bits##_4_4},
static const int sizes[2][7] = {{1, 2, 4, 0}, {1, 4, 0}};
#endif
#define FOR_BITS(X)                                                                                                    \
    FOR_COUNTS(X, 1) FOR_COUNTS(X, 2) FOR_COUNTS(X, 3) FOR_COUNTS(X, 4)                                                \
    FOR_COUNTS(X, 5) FOR_COUNTS(X, 6) FOR_COUNTS(X, 7) FOR_COUNTS(X, 8)
#define ALL(X) COUNTS(X, 1) COUNTS(X, 2) COUNTS(X, 3) COUNTS(X, 4) COUNTS(X, 5) COUNTS(X, 6) COUNTS(X, 7) COUNTS(X, 8)

FOR_BITS(VARIANT)

/* By bits - 1, then whether a unit holds two groups; then in the order of sizes. */
static const block_function block_functions[16][6] = {ALL(block_)};
static const float_function float_functions[16][6] = {ALL(float_block_)};

/* Index of the largest variant for at most that many tokens. */
static int choose(const int *size, int64_t count)
{
    int i = 0;
    while (size[i + 1] != 0 && size[i + 1] <= count)
        i++;
    return i;
}

/* Copy the sums of a block, which may be the last and short, and add the bias. */
static void store_block(const float *sums, int64_t first_row, int64_t rows, const float *bias, float *y)
{
    const int64_t count = rows < EK_BLOCK ? rows : EK_BLOCK;
    for (int64_t r = 0; r < count; r++)
        y[r] = bias == NULL ? sums[r] : sums[r] + bias[first_row + r];
}

static void multiply_quantised(const ek_packed *matrix, const ek_tokens *tokens, int64_t count, int64_t from,
                               int64_t to, const float *bias, float *y, int64_t stride)
{
    const int64_t groups = matrix->columns / matrix->group;
    const int halves = matrix->group < EK_UNIT;
    const block_function *variants = block_functions[(matrix->bits - 1) * 2 + halves];
    float sums[MOST_TOKENS * EK_BLOCK];
    for (int64_t row = from; row < to; row += EK_BLOCK)
        for (int64_t t = 0; t < count;) {
            const int i = choose(sizes[halves], count - t);
            const ek_tokens part = {tokens->codes + t * matrix->columns, tokens->scale + t * groups,
                                    tokens->sum + t * groups};
            variants[i](matrix, &part, row / EK_BLOCK, sums);
            for (int n = 0; n < sizes[halves][i]; n++, t++)
                store_block(sums + n * EK_BLOCK, row, to - row, bias, y + t * stride + row);
        }
}

static void multiply_floats(const ek_packed *matrix, const float *x, const float *sum, int64_t count, int64_t from,
                            int64_t to, const float *bias, float *y, int64_t stride)
{
    const int64_t groups = matrix->columns / matrix->group;
    const int halves = matrix->group < EK_UNIT;
    const float_function *variants = float_functions[(matrix->bits - 1) * 2 + halves];
    float sums[MOST_TOKENS * EK_BLOCK];
    for (int64_t row = from; row < to; row += EK_BLOCK)
        for (int64_t t = 0; t < count;) {
            const int i = choose(sizes[halves], count - t);
            variants[i](matrix, x + t * matrix->columns, sum + t * groups, row / EK_BLOCK, sums);
            for (int n = 0; n < sizes[halves][i]; n++, t++)
                store_block(sums + n * EK_BLOCK, row, to - row, bias, y + t * stride + row);
        }
}

#define SMALLEST 0x1p-120f /* below it 127 / x would overflow: a group without a larger activation counts as 0 */

/* The largest magnitude of a group, or NaN or infinity if there is one. */
static float largest(const float *x, int32_t group)
{
    vint32 most = {0};
    int32_t found = 0;
    float value;
    for (int i = 0; i < group; i += FLOATS) { /* as integers, so that NaN wins */
        const vint32 v = (vint32)load_floats(x + i) & 0x7FFFFFFF, more = v > most;
        most = (v & more) | (most & ~more);
    }
    for (int i = 0; i < FLOATS; i++)
        found = most[i] > found ? most[i] : found;
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
        int32_t all = 0;
        for (int i = 0; i < FLOATS; i++)
            all += total[i];
        sum[g] = (float)all;
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
                                             multiply_floats};
