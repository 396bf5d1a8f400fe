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

/* `width` vectors of values from dimension `d` on, of unit n: a position, or a pair of them. */
ALWAYS void load_values(vfloat *v, const char *const *values, int64_t n, int64_t d, int width, int form)
{
    for (int w = 0; w < width; w++, d += FLOATS) {
        if (form == HALVES)
            v[w] = load_bfloat16((const uint16_t *)values[n] + d);
#if defined(EK_PAIRS)
        else if (form == TWO_HALVES && w + 1 < width) {
            pair_of((const uint16_t *)values[2 * n] + d, (const uint16_t *)values[2 * n + 1] + d, v + w);
            w++, d += FLOATS;
        } else if (form == TWO_HALVES)
            v[w] = half_a_pair((const uint16_t *)values[2 * n] + d, (const uint16_t *)values[2 * n + 1] + d);
#endif
        else
            v[w] = load_floats((const float *)values[n] + d);
    }
}

/* sums = sums * factor + weights @ values, for `width` vectors of dimensions; `from` and `to` count units of four
   bytes of weights: numbers, or pairs of bfloat16. */
ALWAYS void mix_some(const float *weights, const char *const *values, int64_t d, int64_t from, int64_t to,
                     const float *factors, float *sums, int64_t padded, int rows, int width, int form)
{
    vfloat sum[ROWS][WIDTH];
    for (int r = 0; r < rows; r++)
        for (int w = 0; w < width; w++)
            sum[r][w] = load_floats(sums + r * padded + d + w * FLOATS) * factors[r];
    for (int64_t n = from; n < to; n++) {
        vfloat v[WIDTH];
        load_values(v, values, n, d, width, form);
        for (int r = 0; r < rows; r++) {
            vfloat x = spread_word(weights + r * EK_KEYS + n);
            for (int w = 0; w < width; w++)
                sum[r][w] = accumulate(x, v[w], sum[r][w], in_pairs(form));
        }
    }
    for (int r = 0; r < rows; r++)
        for (int w = 0; w < width; w++)
            put_floats(sums + r * padded + d + w * FLOATS, sum[r][w]);
}

/* Scores of all rows of a block, if they are few, for one vector of keys, which stays in registers once turned. */
ALWAYS void score_few(const block *b, int64_t n, int rows, int kind)
{
    int64_t dim = b->what->dim, whole = whole_units(dim, kind);
    vfloat sum[ROWS];
    for (int r = 0; r < rows; r++)
        sum[r] = (vfloat){0};
    for (int64_t u = 0; u < whole; u += FLOATS) {
        vfloat key[FLOATS];
        fetch(b, n, u * (kind == WIDENED ? 2 : 4));
        for (int i = 0; i < FLOATS; i++)
            key[i] = load_units(b->key_at[n + i], u, kind);
        turn(key);
        for (int i = 0; i < FLOATS; i++)
            for (int r = 0; r < rows; r++) {
                vfloat x = spread_word(b->query + r * b->units + u + i);
                sum[r] = accumulate(x, key[i], sum[r], kind == PAIRED);
            }
    }
    for (int64_t u = whole; u < b->units; u++) {
        float key[FLOATS];
        for (int i = 0; i < FLOATS; i++)
            key[i] = unit_of(b->key_at[n + i], u, dim, kind);
        for (int r = 0; r < rows; r++)
            sum[r] = accumulate(spread_word(b->query + r * b->units + u), load_floats(key), sum[r], kind == PAIRED);
    }
    for (int r = 0; r < rows; r++)
        put_floats(b->scores + r * EK_KEYS + n, sum[r]);
}

typedef void score_function(const float *, int64_t, const float *, float *);
typedef void few_function(const block *, int64_t);
typedef void mix_function(const float *, const char *const *, int64_t, int64_t, int64_t, const float *, float *,
                          int64_t);
#define SLOW static __attribute__((noinline)) void
#define SCORE(R, W, P) \
    SLOW score_##P##_##R##_##W(const float *q, int64_t units, const float *k, float *s) \
    { \
        score_some(q, units, k, s, R, W, P); \
    }
#define FEW(R, W, K) \
    SLOW few_##K##_##R(const block *b, int64_t n) \
    { \
        score_few(b, n, R, K); \
    }
#define MIX(R, W, F) \
    SLOW mix_##F##_##R##_##W(const float *p, const char *const *v, int64_t d, int64_t from, int64_t to, \
                             const float *factors, float *sums, int64_t padded) \
    { \
        mix_some(p, v, d, from, to, factors, sums, padded, R, W, F); \
    }
#if WIDTH == 4
#define WIDTHS(M, R, X) M(R, 1, X) M(R, 2, X) M(R, 3, X) M(R, 4, X)
#define ROW(N, R) {N##_##R##_1, N##_##R##_2, N##_##R##_3, N##_##R##_4}
#else
#define WIDTHS(M, R, X) M(R, 1, X) M(R, 2, X)
#define ROW(N, R) {N##_##R##_1, N##_##R##_2}
#endif
#if ROWS == 6
#define ALL(M, X) WIDTHS(M, 1, X) WIDTHS(M, 2, X) WIDTHS(M, 3, X) WIDTHS(M, 4, X) WIDTHS(M, 5, X) WIDTHS(M, 6, X)
#define ALL_FEW(K) FEW(1, 0, K) FEW(2, 0, K) FEW(3, 0, K) FEW(4, 0, K) FEW(5, 0, K) FEW(6, 0, K)
#define TABLE(N) {ROW(N, 1), ROW(N, 2), ROW(N, 3), ROW(N, 4), ROW(N, 5), ROW(N, 6)}
#define FEW_TABLE(K) {few_##K##_1, few_##K##_2, few_##K##_3, few_##K##_4, few_##K##_5, few_##K##_6}
#else
#define ALL(M, X) WIDTHS(M, 1, X) WIDTHS(M, 2, X) WIDTHS(M, 3, X) WIDTHS(M, 4, X)
#define ALL_FEW(K) FEW(1, 0, K) FEW(2, 0, K) FEW(3, 0, K) FEW(4, 0, K)
#define TABLE(N) {ROW(N, 1), ROW(N, 2), ROW(N, 3), ROW(N, 4)}
#define FEW_TABLE(K) {few_##K##_1, few_##K##_2, few_##K##_3, few_##K##_4}
#endif
/* Kinds, forms and whether there are pairs are numbers here, for they become parts of names. */
ALL(SCORE, 0)
ALL(MIX, 0)
ALL_FEW(0)
#if defined(EK_PAIRS)
ALL(SCORE, 1)
ALL(MIX, 2)
ALL(MIX, 3)
ALL_FEW(2)
static score_function *const score_of[2][ROWS][WIDTH] = {TABLE(score_0), TABLE(score_1)};
static few_function *const few_of[3][ROWS] = {FEW_TABLE(0), {0}, FEW_TABLE(2)};
static mix_function *const mix_of[4][ROWS][WIDTH] = {TABLE(mix_0), {{0}}, TABLE(mix_2), TABLE(mix_3)};
#else
ALL(MIX, 1)
ALL_FEW(1)
static score_function *const score_of[1][ROWS][WIDTH] = {TABLE(score_0)};
static few_function *const few_of[2][ROWS] = {FEW_TABLE(0), FEW_TABLE(1)};
static mix_function *const mix_of[2][ROWS][WIDTH] = {TABLE(mix_0), TABLE(mix_1)};
#endif

static const float ones[] = {1, 1, 1, 1, 1, 1};

ALWAYS void mix(const block *b, const float *weights, int64_t from, int64_t to, const float *factors, float *sums,
                int rows, int form)
{
    for (int64_t d = 0; d < b->padded; d += WIDTH * FLOATS) {
        int width = (int)smaller(WIDTH, (b->padded - d) / FLOATS);
        mix_of[form][rows - 1][width - 1](weights, b->value_at, d, from, to, factors, sums, b->padded);
    }
}

/* One row's share of the values from position `from` to before `to`, of which only `seen_from` .. `seen_to` exist for
   it: a pair may have one that does not. */
ALWAYS void mix_edge(const block *b, const float *weights, int64_t from, int64_t to, int64_t seen_from,
                     int64_t seen_to, float *sums, int form)
{
    int pairs = in_pairs(form), size = pairs ? 2 : 1;
    for (int64_t n = from / size; n < (to + size - 1) / size; n++) {
        vint32 seen = (vint32){0} - 1;
        if (pairs && n * 2 < seen_from)
            seen = seen << 16;
        if (pairs && n * 2 + 1 >= seen_to)
            seen = seen & 0xFFFF;
        vfloat x = spread_word(weights + n);
        for (int64_t d = 0; d < b->padded; d += FLOATS) {
            vfloat v;
            load_values(&v, b->value_at, n, d, 1, form);
            v = (vfloat)((vint32)v & seen);
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
                     float *sums, int form)
{
    int64_t from = seen_from(b, row + rows - 1, start), to = seen_to(b, row, start, count);
    int64_t size = in_pairs(form) ? 2 : 1;
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
        mix_edge(b, own, begin, smaller(from, end), begin, end, sum, form);
    }
    mix(b, b->scores, from / size, to / size, uneven ? ones : factors, sums, rows, form);
    for (int r = 0; r < rows; r++) {
        int64_t begin = seen_from(b, row + r, start), end = seen_to(b, row + r, start, count);
        if (end > to)
            mix_edge(b, b->scores + r * EK_KEYS, larger(to, begin), end, begin, end, sums + r * b->padded, form);
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

/* All rows of a block against the tile of positions from `start` on, which is located; then the next one is. */
ALWAYS void attend_tile(block *b, const ek_part *part, const ek_part *after, const state *s, int64_t start, int kind)
{
    int pairs = kind == PAIRED;
    int64_t count = b->located;
    memcpy(b->key_at, b->next_key_at, sizeof b->key_at);
    memcpy(b->value_at, b->next_value_at, sizeof b->value_at);
    locate(b, part, start + EK_KEYS);
    if (b->located == 0 && after)
        locate(b, after, first_of(b->what, after));
    int few = b->rows <= ROWS; /* nothing is gained by bringing keys and values into another form once for all */
    int form = value_form(b, few, kind);
    pad_tile(b, count);
    if (!few)
        turn_keys(b, count, kind);
    copy_values(b, count, kind, form);
    for (int64_t row = 0; row < b->rows; row += ROWS) {
        int rows = (int)smaller(ROWS, b->rows - row);
        int64_t columns = seen_to(b, row + rows - 1, start, count);
        if (columns == 0 || begin_of(b, row) >= start + count)
            continue;
        float factors[ROWS];
        if (few)
            for (int64_t c = 0; c < columns; c += FLOATS)
                few_of[kind][rows - 1](b, c);
        for (int64_t c = 0; !few && c < columns; c += WIDTH * FLOATS) {
            int width = (int)smaller(WIDTH, (columns - c + FLOATS - 1) / FLOATS);
            score_of[pairs][rows - 1][width - 1](b->query + row * b->units, b->units, b->turned + c, b->scores + c);
        }
        soften(b, s, row, rows, start, columns, factors, pairs);
        mix_rows(b, row, rows, start, columns, factors, s->sums + row * b->padded, form);
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
