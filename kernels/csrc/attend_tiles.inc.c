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

/* Where the keys and values of the `count` positions from `start` on lie. */
ALWAYS void locate(block *b, int64_t start, int64_t count)
{
    const ek_paged *what = b->what;
    int64_t page = start / what->page_tokens, slot = start % what->page_tokens;
    int64_t row = what->dim * b->item;
    for (int64_t n = 0; n < count; page++, slot = 0) {
        const char *key = b->keys + b->pages[page] * what->key_stride * b->item;
        const char *value = b->values + b->pages[page] * what->value_stride * b->item;
        for (; slot < what->page_tokens && n < count; slot++, n++) {
            b->key_at[n] = key + slot * row;
            b->value_at[n] = value + slot * row;
        }
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

/* Turn the tile's keys: a lane is a key. Behind the last one up to a whole vector they are 0. */
ALWAYS void turn_keys(block *b, int64_t count, int kind)
{
    int64_t dim = b->what->dim, whole = (kind == PAIRED ? dim / 2 : dim) / FLOATS * FLOATS;
    for (int64_t n = count; n < whole_vectors(count); n++)
        b->key_at[n] = (const char *)b->nothing;
    for (int64_t n = 0; n < count; n += FLOATS) {
        for (int64_t u = 0; u < whole; u += FLOATS) {
            vfloat v[FLOATS];
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

#if defined(EK_PAIRS)
/* Pairs of the values of two positions, dimension by dimension. */
ALWAYS void pair_values(const uint16_t *even, const uint16_t *odd, int64_t dim, float *to)
{
    int64_t d = 0;
    for (; d + FLOATS <= dim; d += FLOATS) {
        __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(even + d)));
        __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(odd + d)));
        _mm512_storeu_si512(to + d, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
    for (; d < dim; d++) {
        uint16_t pair[2] = {even[d], odd[d]};
        memcpy(to + d, pair, sizeof pair);
    }
}
#endif

/* Values as they are multiplied, filled up with 0; values of float32 in whole vectors stay where they are. */
ALWAYS void copy_values(block *b, int64_t count, int kind)
{
    int64_t dim = b->what->dim;
    if (kind == PLAIN && dim == b->padded)
        return;
#if defined(EK_PAIRS)
    if (kind == PAIRED) {
        if (count % 2)
            b->value_at[count] = (const char *)b->nothing;
        for (int64_t n = 0; n < count; n += 2) {
            float *to = b->copied + n / 2 * b->padded;
            pair_values((const uint16_t *)b->value_at[n], (const uint16_t *)b->value_at[n + 1], dim, to);
            memset(to + dim, 0, (size_t)(b->padded - dim) * sizeof(float));
            b->value_at[n / 2] = (const char *)to;
        }
        return;
    }
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
