/* Paged attention: scores, weights and weighted sums of few rows, whose sums stay in registers. */

/* Scores of `rows` rows for `width` vectors of keys. */
ALWAYS void score_some(const float *query, int64_t units, const float *turned, float *scores, int rows, int width,
                       int pairs)
{
    vfloat sum[ROWS][WIDTH];
    for (int r = 0; r < rows; r++)
        for (int w = 0; w < width; w++)
            sum[r][w] = (vfloat){0};
    for (int64_t u = 0; u < units; u++) {
        vfloat key[WIDTH];
        for (int w = 0; w < width; w++)
            key[w] = load_floats(turned + u * EK_KEYS + w * FLOATS);
        for (int r = 0; r < rows; r++) {
            vfloat x = spread_word(query + r * units + u);
            for (int w = 0; w < width; w++)
                sum[r][w] = accumulate(x, key[w], sum[r][w], pairs);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int w = 0; w < width; w++)
            put_floats(scores + r * EK_KEYS + w * FLOATS, sum[r][w]);
}

/* sums = sums * factor + weights @ values, for `width` vectors of dimensions; `from` and `to` count units of four
   bytes of weights: numbers, or pairs of bfloat16. */
ALWAYS void mix_some(const float *weights, const char *const *values, int64_t d, int64_t from, int64_t to,
                     const float *factors, float *sums, int64_t padded, int rows, int width, int pairs)
{
    vfloat sum[ROWS][WIDTH];
    for (int r = 0; r < rows; r++)
        for (int w = 0; w < width; w++)
            sum[r][w] = load_floats(sums + r * padded + d + w * FLOATS) * factors[r];
    for (int64_t n = from; n < to; n++) {
        const float *value = (const float *)values[n] + d;
        vfloat v[WIDTH];
        for (int w = 0; w < width; w++)
            v[w] = load_floats(value + w * FLOATS);
        for (int r = 0; r < rows; r++) {
            vfloat x = spread_word(weights + r * EK_KEYS + n);
            for (int w = 0; w < width; w++)
                sum[r][w] = accumulate(x, v[w], sum[r][w], pairs);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int w = 0; w < width; w++)
            put_floats(sums + r * padded + d + w * FLOATS, sum[r][w]);
}

typedef void score_function(const float *, int64_t, const float *, float *);
typedef void mix_function(const float *, const char *const *, int64_t, int64_t, int64_t, const float *, float *,
                          int64_t);

#define INSTANCE(R, W, P) \
    static __attribute__((noinline)) void score_##R##_##W##_##P(const float *q, int64_t units, const float *k, float *s) \
    { \
        score_some(q, units, k, s, R, W, P); \
    } \
    static __attribute__((noinline)) void mix_##R##_##W##_##P(const float *p, const char *const *v, int64_t d, \
                                                              int64_t from, int64_t to, const float *factors, \
                                                              float *sums, int64_t padded) \
    { \
        mix_some(p, v, d, from, to, factors, sums, padded, R, W, P); \
    }
#if WIDTH == 4
#define WIDTHS(R, P) INSTANCE(R, 1, P) INSTANCE(R, 2, P) INSTANCE(R, 3, P) INSTANCE(R, 4, P)
#define NAMES(F, R, P) {F##_##R##_1_##P, F##_##R##_2_##P, F##_##R##_3_##P, F##_##R##_4_##P}
#else
#define WIDTHS(R, P) INSTANCE(R, 1, P) INSTANCE(R, 2, P)
#define NAMES(F, R, P) {F##_##R##_1_##P, F##_##R##_2_##P}
#endif
#if ROWS == 6
#define INSTANCES(P) WIDTHS(1, P) WIDTHS(2, P) WIDTHS(3, P) WIDTHS(4, P) WIDTHS(5, P) WIDTHS(6, P)
#define TABLE(F, P) \
    {NAMES(F, 1, P), NAMES(F, 2, P), NAMES(F, 3, P), NAMES(F, 4, P), NAMES(F, 5, P), NAMES(F, 6, P)}
#else
#define INSTANCES(P) WIDTHS(1, P) WIDTHS(2, P) WIDTHS(3, P) WIDTHS(4, P)
#define TABLE(F, P) {NAMES(F, 1, P), NAMES(F, 2, P), NAMES(F, 3, P), NAMES(F, 4, P)}
#endif
INSTANCES(0)
#if defined(EK_PAIRS)
INSTANCES(1)
static score_function *const score_of[2][ROWS][WIDTH] = {TABLE(score, 0), TABLE(score, 1)};
static mix_function *const mix_of[2][ROWS][WIDTH] = {TABLE(mix, 0), TABLE(mix, 1)};
#else
static score_function *const score_of[1][ROWS][WIDTH] = {TABLE(score, 0)};
static mix_function *const mix_of[1][ROWS][WIDTH] = {TABLE(mix, 0)};
#endif

static const float ones[] = {1, 1, 1, 1, 1, 1};

ALWAYS void mix(const block *b, const float *weights, int64_t from, int64_t to, const float *factors, float *sums,
                int rows, int pairs)
{
    for (int64_t d = 0; d < b->padded; d += WIDTH * FLOATS) {
        int width = (int)smaller(WIDTH, (b->padded - d) / FLOATS);
        mix_of[pairs][rows - 1][width - 1](weights, b->value_at, d, from, to, factors, sums, b->padded);
    }
}

/* One row's share of the values from position `from` to before `to`, of which only `seen_from` .. `seen_to` exist for
   it: a pair may have one that does not. */
ALWAYS void mix_edge(const block *b, const float *weights, int64_t from, int64_t to, int64_t seen_from,
                     int64_t seen_to, float *sums, int pairs)
{
    int size = pairs ? 2 : 1;
    for (int64_t n = from / size; n < (to + size - 1) / size; n++) {
        vint32 seen = (vint32){0} - 1;
        if (pairs && n * 2 < seen_from)
            seen = seen << 16;
        if (pairs && n * 2 + 1 >= seen_to)
            seen = seen & 0xFFFF;
        vfloat x = spread_word(weights + n);
        for (int64_t d = 0; d < b->padded; d += FLOATS) {
            vfloat v = (vfloat)((vint32)load_floats((const float *)b->value_at[n] + d) & seen);
            put_floats(sums + d, accumulate(x, v, load_floats(sums + d), pairs));
        }
    }
}

/* Positions of the tile from `start` on which a row sees. */
ALWAYS int64_t seen_from(const block *b, int64_t row, int64_t start)
{
    return larger(0, begin_of(b, row) - start);
}

ALWAYS int64_t seen_to(const block *b, int64_t row, int64_t start, int64_t count)
{
    return larger(0, smaller(count, end_of(b, row) - start));
}

/* Add the values of a tile to the sums of some rows; what only some of them see, to those alone: 0 times a value which
   a row does not see might be NaN. */
ALWAYS void mix_rows(const block *b, int64_t row, int rows, int64_t start, int64_t count, const float *factors,
                     float *sums, int pairs)
{
    int64_t from = seen_from(b, row + rows - 1, start), to = seen_to(b, row, start, count), size = pairs ? 2 : 1;
    from = (from + size - 1) / size * size;
    to = to / size * size;
    if (from >= to)
        to = from; /* no position which all of them see */
    int uneven = seen_from(b, row, start) < from;
    for (int r = 0; uneven && r < rows; r++) {
        const float *own = b->scores + r * EK_KEYS;
        float *sum = sums + r * b->padded;
        for (int64_t d = 0; d < b->padded; d += FLOATS)
            put_floats(sum + d, load_floats(sum + d) * factors[r]);
        int64_t begin = seen_from(b, row + r, start), end = seen_to(b, row + r, start, count);
        mix_edge(b, own, begin, smaller(from, end), begin, end, sum, pairs);
    }
    mix(b, b->scores, from / size, to / size, uneven ? ones : factors, sums, rows, pairs);
    for (int r = 0; r < rows; r++) {
        int64_t begin = seen_from(b, row + r, start), end = seen_to(b, row + r, start, count);
        if (end > to)
            mix_edge(b, b->scores + r * EK_KEYS, larger(to, begin), end, begin, end, sums + r * b->padded, pairs);
    }
}

/* The exponent of 2 which is added to all scores below a largest one, so that none is above 0. */
ALWAYS float shift_of(const block *b, float top)
{
    return top == -INFINITY ? 0 : -(top * b->factor);
}

/* Make weights of the scores of some rows, whose sums so far have to be multiplied with `factors`. */
ALWAYS void soften(const block *b, const state *s, int64_t row, int rows, int64_t start, int64_t columns,
                   float *factors, int pairs)
{
    int64_t width = whole_vectors(columns);
    float shift[16], change[16];
    for (int r = 0; r < 16; r++)
        change[r] = 0;
    for (int r = 0; r < rows; r++) {
        float *own = b->scores + r * EK_KEYS;
        int64_t from = seen_from(b, row + r, start), to = seen_to(b, row + r, start, columns);
        if (b->inner > 0)
            for (int64_t c = 0; c < width; c += FLOATS)
                put_floats(own + c, tanh_floats(load_floats(own + c) * b->inner));
        for (int64_t c = 0; c < smaller(from, width); c++)
            own[c] = -INFINITY;
        for (int64_t c = to; c < width; c++)
            own[c] = -INFINITY;
        vfloat most = spread(-INFINITY);
        for (int64_t c = 0; c < width; c += FLOATS)
            most = max_floats(load_floats(own + c), most);
        float old = s->tops[row + r], top = max_lane(most);
        s->tops[row + r] = top = top > old ? top : old;
        shift[r] = shift_of(b, top);
        change[r] = old == -INFINITY ? -INFINITY : shift[r] - shift_of(b, old);
    }
    for (int r = 0; r < ROWS; r += FLOATS)
        put_floats(change + r, power_of_two(load_floats(change + r)));
    for (int r = 0; r < rows; r++) {
        float *own = b->scores + r * EK_KEYS;
        vfloat sum = load_floats(s->norms + (row + r) * FLOATS) * change[r];
        for (int64_t c = 0; c < width; c += FLOATS) {
            vfloat p = power_of_two(multiply_add(load_floats(own + c), spread(b->factor), spread(shift[r])));
            sum += p;
            put_floats(own + c, p);
        }
        put_floats(s->norms + (row + r) * FLOATS, sum);
        factors[r] = change[r];
#if defined(EK_PAIRS)
        for (int64_t c = 0; pairs && c < width; c += 2 * FLOATS) {
            __m512 odd = c + FLOATS < width ? (__m512)load_floats(own + c + FLOATS) : _mm512_setzero_ps();
            __m512bh both = _mm512_cvtne2ps_pbh(odd, (__m512)load_floats(own + c));
            memcpy(own + c / 2, &both, sizeof both);
        }
#endif
    }
    (void)pairs;
}

/* All rows of a block against the `count` positions from `start` on. */
ALWAYS void attend_tile(block *b, const state *s, int64_t start, int64_t count, int kind)
{
    int pairs = kind == PAIRED;
    locate(b, start, count);
    turn_keys(b, count, kind);
    copy_values(b, count, kind);
    for (int64_t row = 0; row < b->rows; row += ROWS) {
        int rows = (int)smaller(ROWS, b->rows - row);
        int64_t columns = seen_to(b, row + rows - 1, start, count);
        if (columns == 0 || begin_of(b, row) >= start + count)
            continue;
        float factors[ROWS];
        for (int64_t c = 0; c < columns; c += WIDTH * FLOATS) {
            int width = (int)smaller(WIDTH, (columns - c + FLOATS - 1) / FLOATS);
            score_of[pairs][rows - 1][width - 1](b->query + row * b->units, b->units, b->turned + c, b->scores + c);
        }
        soften(b, s, row, rows, start, columns, factors, pairs);
        mix_rows(b, row, rows, start, columns, factors, s->sums + row * b->padded, pairs);
    }
}

ALWAYS void clear(const block *b, const state *s)
{
    memset(s->sums, 0, (size_t)(b->rows * b->padded) * sizeof(float));
    memset(s->norms, 0, (size_t)(b->rows * FLOATS) * sizeof(float));
    for (int64_t r = 0; r < b->rows; r++)
        s->tops[r] = -INFINITY;
}

/* Add what is known of later positions to what is known of earlier ones. */
static void add_state(const block *b, const state *s, const state *later)
{
    for (int64_t r = 0; r < b->rows; r++) {
        float first = s->tops[r], second = later->tops[r], top = first > second ? first : second;
        float shift = shift_of(b, top), change[2][FLOATS];
        put_floats(change[0], power_of_two(spread(first == -INFINITY ? -INFINITY : shift - shift_of(b, first))));
        put_floats(change[1], power_of_two(spread(second == -INFINITY ? -INFINITY : shift - shift_of(b, second))));
        s->tops[r] = top;
        float *norm = s->norms + r * FLOATS, *sum = s->sums + r * b->padded;
        vfloat both = load_floats(later->norms + r * FLOATS) * change[1][0];
        put_floats(norm, multiply_add(load_floats(norm), spread(change[0][0]), both));
        for (int64_t d = 0; d < b->padded; d += FLOATS) {
            both = load_floats(later->sums + r * b->padded + d) * change[1][0];
            put_floats(sum + d, multiply_add(load_floats(sum + d), spread(change[0][0]), both));
        }
    }
}

/* Write the rows of a block as elements of the output. */
static void answer(const block *b, const ek_part *part, const state *s)
{
    const ek_paged *what = b->what;
    int64_t token = what->token_starts[part->span], dim = what->dim;
    for (int64_t r = 0; r < b->rows; r++) {
        int64_t row = b->first + r;
        int64_t at = ((token + row / b->group) * what->heads + part->head * b->group + row % b->group) * dim;
        float inverse = 1 / sum_floats(load_floats(s->norms + r * FLOATS));
        float *sum = s->sums + r * b->padded;
        for (int64_t d = 0; d < b->padded; d += FLOATS)
            put_floats(sum + d, load_floats(sum + d) * inverse);
        if (what->bfloat16)
            for (int64_t d = 0; d < dim; d++)
                ((uint16_t *)what->out)[at + d] = bfloat16_of(sum[d]);
        else
            memcpy((float *)what->out + at, sum, (size_t)dim * sizeof(float));
    }
}
