/* Products of many tokens with float activations: codes are made floats once for all of them, some rows and columns at a
   time, and are read from there. Sums are those of `multiply_floats`, in its order, so the result is the same to the bit. */

#if defined(__AVX512F__)
#define PANELS(X) X(4) X(2) X(1) /* vectors of rows */
#define MOST_PANEL 4
#else
#define PANELS(X) X(2)
#define MOST_PANEL 2
#endif
#if defined(__AVX512F__)
#define WORTH_A_PANEL 24 /* tokens from which on it pays */
#else
#define WORTH_A_PANEL 12
#endif
#define PANEL_TOKENS 6  /* in one pass: as many sums as there are registers for */
#define PANEL_BATCH 64  /* for which codes are made floats once */
#define PANEL_BYTES (1 << 14)
#define MOST_COLUMNS 256 /* a whole group, at least */

/* Columns of some vectors of rows. */
typedef struct {
    vfloat codes[MOST_COLUMNS][MOST_PANEL];
    vfloat total[PANEL_BATCH][MOST_PANEL];
} panel;

/* The codes of columns from .. to - 1, column after column. */
INLINE void fill(const job *job, int64_t first, int64_t from, int64_t to, panel *p, const int vectors, const int bits,
                 const int steps)
{
    const place at = place_of(job->matrix, first, bits);
    for (int64_t column = from; column < to; column += steps * 4) {
#define FILL_STEP(step, i)                                                                                             \
    UNROLL for (int v = 0; v < vectors; v++) {                                                                         \
        const vwords c = codes_of(unit_of(&at, column, v), bits, step, 0);                                             \
        _Pragma("GCC unroll 4") for (int j = 0; j < 4; j++)                                                            \
            p->codes[column - from + (i)*4 + j][v] = floats_of(c, bits, j);                                            \
    }
        FOR_STEPS(FILL_STEP)
    }
}

typedef void filling(const job *, int64_t first, int64_t from, int64_t to, panel *, int vectors);
#define FILLING(bits, steps)                                                                                           \
    static void fill_##bits##_##steps(const job *job, int64_t first, int64_t from, int64_t to, panel *p, int vectors)  \
    {                                                                                                                  \
        if (vectors == 4 && MOST_PANEL == 4)                                                                           \
            fill(job, first, from, to, p, 4, bits, steps);                                                             \
        else if (vectors == 2)                                                                                         \
            fill(job, first, from, to, p, 2, bits, steps);                                                             \
        else                                                                                                           \
            fill(job, first, from, to, p, 1, bits, steps);                                                             \
    }
#define FILLINGS(bits) FILLING(bits, 8) FILLING(bits, 4)
FOR_BITS(FILLINGS)
#define FILLING_ROW(bits) {fill_##bits##_8, fill_##bits##_4},
static filling *const fillings[8][2] = {FOR_BITS(FILLING_ROW)};

/* Add the products of columns from .. to - 1 to the totals of `count` tokens from `token` on. */
INLINE void multiply_panel(const job *job, int64_t first, int64_t from, int64_t to, int64_t token, int64_t slot,
                           panel *p, const int count, const int vectors)
{
    const ek_packed *matrix = job->matrix;
    const int64_t columns = matrix->columns, group = matrix->group;
    const place at = place_of(matrix, first, matrix->bits);
    const float middle = (float)(1 << (matrix->bits - 1));
    const float *x = job->x + token * columns, *sum = job->tokens.sum + token * at.groups;
    for (int64_t g = from / group; g * group < to; g++) {
        vfloat d[PANEL_TOKENS][MOST_PANEL], scale[MOST_PANEL], offset[MOST_PANEL];
        UNROLL for (int t = 0; t < count; t++)
            UNROLL for (int v = 0; v < vectors; v++)
                d[t][v] = (vfloat){0};
        for (int64_t column = g * group; column < (g + 1) * group; column++) {
            vfloat w[MOST_PANEL];
            UNROLL for (int v = 0; v < vectors; v++)
                w[v] = p->codes[column - from][v];
            UNROLL for (int t = 0; t < count; t++) {
                const vfloat activation = spread_float(x[t * columns + column]);
                UNROLL for (int v = 0; v < vectors; v++)
                    d[t][v] = multiply_add(w[v], activation, d[t][v]);
            }
        }
        load_factors(matrix->scale, &at, g, vectors, matrix->half_scales, scale);
        if (matrix->offset != NULL) {
            load_factors(matrix->offset, &at, g, vectors, matrix->half_scales, offset);
            UNROLL for (int t = 0; t < count; t++)
                UNROLL for (int v = 0; v < vectors; v++)
                    p->total[slot + t][v] += scale[v] * d[t][v] + offset[v] * sum[t * at.groups + g];
        } else {
            UNROLL for (int t = 0; t < count; t++)
                UNROLL for (int v = 0; v < vectors; v++)
                    p->total[slot + t][v] += scale[v] * (d[t][v] - middle * sum[t * at.groups + g]);
        }
    }
}

typedef void paneling(const job *, int64_t first, int64_t from, int64_t to, int64_t token, int64_t slot, panel *);
#define PANELING(count, vectors)                                                                                       \
    static __attribute__((noinline)) void panel_##count##_##vectors(                                                   \
        const job *job, int64_t first, int64_t from, int64_t to, int64_t token, int64_t slot, panel *p)                \
    {                                                                                                                  \
        multiply_panel(job, first, from, to, token, slot, p, count, vectors);                                          \
    }
#define PANELINGS(vectors)                                                                                             \
    PANELING(1, vectors) PANELING(2, vectors) PANELING(3, vectors)                                                     \
    PANELING(4, vectors) PANELING(5, vectors) PANELING(6, vectors)
PANELS(PANELINGS)
#define PANELING_ROW(vectors)                                                                                          \
    [vectors] = {panel_1_##vectors, panel_2_##vectors, panel_3_##vectors,                                              \
                 panel_4_##vectors, panel_5_##vectors, panel_6_##vectors},
static paneling *const panelings[MOST_PANEL + 1][PANEL_TOKENS] = {PANELS(PANELING_ROW)};

/* Rows from .. to - 1 of `count` tokens from `token` on, at most PANEL_BATCH. */
static void run_panels(const job *job, int64_t token, int64_t count, int64_t from, int64_t to, const float *bias,
                       float *y, int64_t stride)
{
    const ek_packed *matrix = job->matrix;
    const int64_t last = (to + EK_BLOCK - 1) / EK_BLOCK * PARTS;
    filling *const fill_some = fillings[matrix->bits - 1][matrix->group < EK_UNIT];
    panel p;
    for (int64_t first = from / FLOATS, vectors; first < last; first += vectors) {
        for (vectors = MOST_PANEL; vectors > last - first;)
            vectors /= 2;
        int64_t width = PANEL_BYTES / (vectors * VECTOR_BYTES);
        width = width > MOST_COLUMNS ? MOST_COLUMNS : width < matrix->group ? matrix->group : width;
        memset(p.total, 0, (size_t)count * sizeof *p.total);
        for (int64_t column = 0, end; column < matrix->columns; column = end) {
            end = column + width < matrix->columns ? column + width : matrix->columns;
            fill_some(job, first, column, end, &p, (int)vectors);
            for (int64_t t = 0; t < count; t += PANEL_TOKENS) {
                int64_t tokens = count - t < PANEL_TOKENS ? count - t : PANEL_TOKENS;
                panelings[vectors][tokens - 1](job, first, column, end, token + t, t, &p);
            }
        }
        for (int64_t t = 0; t < count; t++)
            store((const float *)p.total[t], vectors * FLOATS, first * FLOATS, to, bias,
                  y + (token + t) * stride + first * FLOATS);
    }
}
