/* Paged attention: bringing queries, keys and values into the form in which they are multiplied. */

/* A row of `dim` elements as four-byte units: numbers, or pairs of bfloat16 (the last one with 0 if it is alone). */
ALWAYS void copy_units(const void *from, int64_t dim, float *to, int kind)
{
    if (kind == WIDENED) {
        for (int64_t d = 0; d < dim; d++)
            to[d] = float_of(((const uint16_t *)from)[d]);
        return;
    }
    if (kind == PAIRED && dim % 2) {
        uint16_t last[2] = {((const uint16_t *)from)[dim - 1], 0};
        memcpy(to + dim / 2, last, sizeof last);
        memcpy(to, from, (size_t)(dim - 1) * 2);
        return;
    }
    memcpy(to, from, (size_t)dim * (kind == PAIRED ? 2 : 4));
}

ALWAYS void load_queries(block *b, const ek_part *part, int kind)
{
    const ek_paged *what = b->what;
    const char *query = (const char *)what->query;
    int64_t token = what->token_starts[part->span];
    for (int64_t r = 0; r < b->rows; r++) {
        int64_t at = (token + (b->first + r) / b->group) * what->heads + part->head * b->group + (b->first + r) % b->group;
        copy_units(query + at * what->dim * b->item, what->dim, b->query + r * b->units, kind);
    }
}

/* Where the keys and values of the tile of a part's positions from `start` on lie, which is the next one; of none where
   they are at an end. */
ALWAYS void locate(block *b, const ek_part *part, int64_t start)
{
    const ek_paged *what = b->what;
    const int32_t *pages = what->page_table + what->page_starts[part->span];
    int64_t page = start / what->page_tokens, slot = start % what->page_tokens, row = what->dim * b->item;
    int64_t head = part->head * what->page_tokens * row, count = smaller(EK_KEYS, last_of(what, part) - start), n = 0;
    for (; n < count; page++, slot = 0) {
        const char *key = (const char *)what->keys + pages[page] * what->key_stride * b->item + head;
        const char *value = (const char *)what->values + pages[page] * what->value_stride * b->item + head;
        for (; slot < what->page_tokens && n < count; slot++, n++) {
            b->next_key_at[n] = key + slot * row;
            b->next_value_at[n] = value + slot * row;
        }
    }
    b->located = n;
}

/* Fetch a cache line of some rows of the next tile, while this one is worked on: pages lie anywhere, and no processor
   looks ahead over the end of one. */
ALWAYS void fetch(const block *b, int64_t n, int64_t bytes)
{
    if (bytes % 64 == 0)
        for (int64_t i = n; i < n + FLOATS && i < b->located; i++) {
            __builtin_prefetch(b->next_key_at[i] + bytes, 0, 2);
            __builtin_prefetch(b->next_value_at[i] + bytes, 0, 2);
        }
}

ALWAYS vfloat load_units(const char *from, int64_t unit, int kind)
{
    if (kind == WIDENED)
        return load_bfloat16((const uint16_t *)from + unit);
    return load_floats((const float *)(from + 4 * unit));
}

ALWAYS float unit_of(const char *key, int64_t unit, int64_t dim, int kind)
{
    float x;
    if (kind == WIDENED)
        return float_of(((const uint16_t *)key)[unit]);
    if (kind == PAIRED && 2 * unit + 1 == dim) {
        uint16_t last[2] = {((const uint16_t *)key)[dim - 1], 0};
        memcpy(&x, last, sizeof x);
        return x;
    }
    memcpy(&x, key + 4 * unit, sizeof x);
    return x;
}

/* How many four-byte units of a key make whole vectors. */
ALWAYS int64_t whole_units(int64_t dim, int kind)
{
    return (kind == PAIRED ? dim / 2 : dim) / FLOATS * FLOATS;
}

/* Rows of zeros behind the tile's last position, up to a whole vector of keys and a pair of values. */
ALWAYS void pad_tile(block *b, int64_t count)
{
    for (int64_t n = count; n < whole_vectors(count); n++)
        b->key_at[n] = b->value_at[n] = (const char *)b->nothing;
}

/* Turn the tile's keys: a lane is a key. Behind the last one up to a whole vector they are 0. */
ALWAYS void turn_keys(block *b, int64_t count, int kind)
{
    int64_t dim = b->what->dim, whole = whole_units(dim, kind);
    for (int64_t n = 0; n < count; n += FLOATS) {
        for (int64_t u = 0; u < whole; u += FLOATS) {
            vfloat v[FLOATS];
            fetch(b, n, u * (kind == WIDENED ? 2 : 4));
            for (int i = 0; i < FLOATS; i++)
                v[i] = load_units(b->key_at[n + i], u, kind);
            turn(v);
            for (int i = 0; i < FLOATS; i++)
                put_floats(b->turned + (u + i) * EK_KEYS + n, v[i]);
        }
        for (int64_t u = whole; u < b->units; u++)
            for (int i = 0; i < FLOATS; i++)
                b->turned[u * EK_KEYS + n + i] = unit_of(b->key_at[n + i], u, dim, kind);
    }
}

/* Forms of the values of a tile: float32, bfloat16 as they are, pairs made of two rows, and the two rows of a pair. */
enum { FLOAT_ROWS, HALVES, PAIRS, TWO_HALVES };

ALWAYS int in_pairs(int form)
{
    return form >= PAIRS;
}

#if defined(EK_PAIRS)
/* Two vectors of pairs of the values of two positions, dimension by dimension. */
ALWAYS void pair_of(const uint16_t *even, const uint16_t *odd, vfloat *to)
{
    const __m512i first = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6,
                                           37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    __m512i a = _mm512_loadu_si512(even), b = _mm512_loadu_si512(odd);
    to[0] = (vfloat)_mm512_permutex2var_epi16(a, first, b);
    to[1] = (vfloat)_mm512_permutex2var_epi16(a, _mm512_add_epi16(first, _mm512_set1_epi16(16)), b);
}

/* The same for as many dimensions as one vector of pairs holds. */
ALWAYS vfloat half_a_pair(const uint16_t *even, const uint16_t *odd)
{
    __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)even));
    __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)odd));
    return (vfloat)_mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

ALWAYS void pair_values(const uint16_t *even, const uint16_t *odd, int64_t dim, float *to)
{
    int64_t d = 0;
    for (; d + 2 * FLOATS <= dim; d += 2 * FLOATS) {
        vfloat pairs[2];
        pair_of(even + d, odd + d, pairs);
        put_floats(to + d, pairs[0]);
        put_floats(to + d + FLOATS, pairs[1]);
    }
    for (; d + FLOATS <= dim; d += FLOATS)
        put_floats(to + d, half_a_pair(even + d, odd + d));
    for (; d < dim; d++) {
        uint16_t pair[2] = {even[d], odd[d]};
        memcpy(to + d, pair, sizeof pair);
    }
}
#endif

/* The form in which values are multiplied. */
ALWAYS int value_form(const block *b, int few, int kind)
{
    int raw = few && b->what->dim == b->padded;
    if (kind == PAIRED)
        return raw ? TWO_HALVES : PAIRS;
    return kind == WIDENED && raw ? HALVES : FLOAT_ROWS;
}

/* Copy values into their form, filled up with 0, unless they have it. */
ALWAYS void copy_values(block *b, int64_t count, int kind, int form)
{
    int64_t dim = b->what->dim;
    if (form == HALVES || form == TWO_HALVES || (kind == PLAIN && dim == b->padded))
        return;
#if defined(EK_PAIRS)
    for (int64_t n = 0; kind == PAIRED && n < count; n += 2) {
        float *to = b->copied + n / 2 * b->padded;
        pair_values((const uint16_t *)b->value_at[n], (const uint16_t *)b->value_at[n + 1], dim, to);
        memset(to + dim, 0, (size_t)(b->padded - dim) * sizeof(float));
        b->value_at[n / 2] = (const char *)to;
    }
    if (kind == PAIRED)
        return;
#endif
    for (int64_t n = 0; n < count; n++) {
        float *to = b->copied + n * b->padded;
        int64_t d = 0;
        if (kind == WIDENED)
            for (; d + FLOATS <= dim; d += FLOATS)
                put_floats(to + d, load_bfloat16((const uint16_t *)b->value_at[n] + d));
        for (; d < dim; d++)
            to[d] = unit_of(b->value_at[n], d, dim, kind);
        memset(to + dim, 0, (size_t)(b->padded - dim) * sizeof(float));
        b->value_at[n] = (const char *)to;
    }
}
