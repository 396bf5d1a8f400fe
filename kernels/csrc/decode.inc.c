/* Steps of a decoder's forward pass between its matrices, compiled once per instruction set level with EK_LEVEL as
   the suffix. Specification: docs/spec/kernels-decoder.md and edgekernels/decoder/_reference.py. */
#include "decode.h"
#include "decode_vectors.h"

#define ALWAYS static inline __attribute__((always_inline))
#define PARTS (EK_TILE / FLOATS) /* vectors in a tile */

static void norm(const float *x, const float *weight, int64_t n, float epsilon, float *out)
{
    vfloat a = {0}, b = {0};
    int64_t i = 0;
    for (; i + 2 * FLOATS <= n; i += 2 * FLOATS) {
        vfloat v = load_floats(x + i), w = load_floats(x + i + FLOATS);
        a = multiply_add(v, v, a);
        b = multiply_add(w, w, b);
    }
    double square = sum_float_lanes(a + b);
    for (; i < n; i++)
        square += (double)x[i] * x[i];
    float scale = (float)(1 / sqrt(square / (double)n + epsilon));
    for (i = 0; i + FLOATS <= n; i += FLOATS)
        store_floats(out + i, load_floats(x + i) * scale * load_floats(weight + i));
    for (; i < n; i++)
        out[i] = x[i] * scale * weight[i];
}

static void rotate(float *head, int64_t half, const float *cosine, const float *sine)
{
    int64_t i = 0;
    for (; i + FLOATS <= half; i += FLOATS) {
        vfloat a = load_floats(head + i), b = load_floats(head + half + i);
        vfloat c = load_floats(cosine + i), s = load_floats(sine + i);
        store_floats(head + i, a * c - b * s);
        store_floats(head + half + i, b * c + a * s);
    }
    for (; i < half; i++) {
        float a = head[i], b = head[half + i];
        head[i] = a * cosine[i] - b * sine[i];
        head[half + i] = b * cosine[i] + a * sine[i];
    }
}

static void add(float *x, const float *y, int64_t n)
{
    int64_t i = 0;
    for (; i + FLOATS <= n; i += FLOATS)
        store_floats(x + i, load_floats(x + i) + load_floats(y + i));
    for (; i < n; i++)
        x[i] += y[i];
}

ALWAYS vfloat gated(vfloat g, vfloat u)
{
    return g / (1.0f + exp_floats(-g)) * u;
}

static void gate(float *g, const float *up, int64_t n)
{
    int64_t i = 0;
    for (; i + FLOATS <= n; i += FLOATS)
        store_floats(g + i, gated(load_floats(g + i), load_floats(up + i)));
    if (i < n) {
        float rest[2][FLOATS] = {{0}};
        memcpy(rest[0], g + i, (size_t)(n - i) * sizeof *g);
        memcpy(rest[1], up + i, (size_t)(n - i) * sizeof *g);
        store_floats(rest[0], gated(load_floats(rest[0]), load_floats(rest[1])));
        memcpy(g + i, rest[0], (size_t)(n - i) * sizeof *g);
    }
}

static void store(const ek_cache *cache, int64_t head_dim, void *keys, void *values, int64_t position,
                  const float *key, const float *value)
{
    int64_t tile = position / EK_TILE * EK_TILE * head_dim + position % EK_TILE;
    int64_t row = position * cache->padded_dim;
    for (int64_t d = 0; d < head_dim; d++)
        if (cache->half) {
            ((uint16_t *)keys)[tile + d * EK_TILE] = half_of(key[d]);
            ((uint16_t *)values)[row + d] = half_of(value[d]);
        } else {
            ((float *)keys)[tile + d * EK_TILE] = key[d];
            ((float *)values)[row + d] = value[d];
        }
}

ALWAYS vfloat load_stored(const void *from, int64_t at, int half)
{
    return half ? load_halves((const uint16_t *)from + at) : load_floats((const float *)from + at);
}

/* Scores of `count` queries for all tiles of positions up to `most`. */
ALWAYS void score(const ek_attention *what, int64_t head_dim, int64_t most, int64_t stride, int count, int half)
{
    for (int64_t first = 0; first < most; first += EK_TILE)
        for (int part = 0; part < PARTS; part++) {
            vfloat even[EK_QUERIES], odd[EK_QUERIES];
            for (int q = 0; q < count; q++)
                even[q] = odd[q] = (vfloat){0};
            int64_t at = first * head_dim + part * FLOATS, d = 0;
            for (; d + 2 <= head_dim; d += 2, at += 2 * EK_TILE) {
                vfloat a = load_stored(what->keys, at, half), b = load_stored(what->keys, at + EK_TILE, half);
                for (int q = 0; q < count; q++) {
                    even[q] = multiply_add(a, (vfloat){0} + what->query[q][d], even[q]);
                    odd[q] = multiply_add(b, (vfloat){0} + what->query[q][d + 1], odd[q]);
                }
            }
            for (; d < head_dim; d++)
                for (int q = 0; q < count; q++)
                    even[q] = multiply_add(load_stored(what->keys, at, half), (vfloat){0} + what->query[q][d], even[q]);
            for (int q = 0; q < count; q++)
                store_floats(what->scores + q * stride + first + part * FLOATS, (even[q] + odd[q]) * what->scale);
        }
}

/* Turn the scores of one query into weights which sum to 1; what it may not see, up to `padded`, gets 0. */
static void soften(float *scores, int64_t visible, int64_t padded)
{
    int64_t whole = (visible + FLOATS - 1) / FLOATS * FLOATS;
    for (int64_t t = visible; t < padded; t++)
        scores[t] = -INFINITY;
    vfloat most = load_floats(scores), sum = {0};
    for (int64_t t = FLOATS; t < whole; t += FLOATS)
        most = max_floats(load_floats(scores + t), most);
    float top = max_lane(most);
    for (int64_t t = 0; t < whole; t += FLOATS)
        store_floats(scores + t, exp_floats(load_floats(scores + t) - top));
    for (int64_t t = visible; t < padded; t++)
        scores[t] = 0;
    for (int64_t t = 0; t < whole; t += FLOATS)
        sum += load_floats(scores + t);
    float inverse = 1 / sum_float_lanes(sum);
    for (int64_t t = 0; t < whole; t += FLOATS)
        store_floats(scores + t, load_floats(scores + t) * inverse);
}

/* Weighted sums of `width` vectors of values from dimension `d` on. */
ALWAYS void mix_part(const ek_attention *what, int64_t row, int64_t d, int64_t most, int64_t stride, int count,
                     int half, int width)
{
    vfloat sum[EK_QUERIES][4];
    for (int q = 0; q < count; q++)
        for (int w = 0; w < width; w++)
            sum[q][w] = (vfloat){0};
    for (int64_t t = 0; t < most; t++) {
        vfloat v[4];
        for (int w = 0; w < width; w++)
            v[w] = load_stored(what->values, t * row + d + w * FLOATS, half);
        for (int q = 0; q < count; q++)
            for (int w = 0; w < width; w++)
                sum[q][w] = multiply_add(v[w], (vfloat){0} + what->scores[q * stride + t], sum[q][w]);
    }
    for (int q = 0; q < count; q++)
        for (int w = 0; w < width; w++)
            store_floats(what->sums + q * row + d + w * FLOATS, sum[q][w]);
}

#if defined(__AVX512F__)
#define WIDTH 4 /* 16 sums of 32 registers */
#else
#define WIDTH 2 /* 8 sums of 16 registers */
#endif

ALWAYS void mix(const ek_attention *what, int64_t row, int64_t most, int64_t stride, int count, int half)
{
    int64_t d = 0;
    for (; d + WIDTH * FLOATS <= row; d += WIDTH * FLOATS)
        mix_part(what, row, d, most, stride, count, half, WIDTH);
    for (; d < row; d += FLOATS)
        mix_part(what, row, d, most, stride, count, half, 1);
}

ALWAYS void attend_some(const ek_cache *cache, int64_t head_dim, const ek_attention *what, int count, int half)
{
    int64_t most = 0, row = cache->padded_dim;
    for (int q = 0; q < count; q++)
        most = what->visible[q] > most ? what->visible[q] : most;
    score(what, head_dim, most, cache->capacity, count, half);
    for (int q = 0; q < count; q++)
        soften(what->scores + q * cache->capacity, what->visible[q], (most + EK_TILE - 1) / EK_TILE * EK_TILE);
    mix(what, row, most, cache->capacity, count, half);
    for (int q = 0; q < count; q++)
        memcpy(what->mixed[q], what->sums + q * row, (size_t)head_dim * sizeof(float));
}

#define ATTEND(N) \
    static __attribute__((noinline)) void attend_##N(const ek_cache *cache, int64_t head_dim, \
                                                     const ek_attention *what) \
    { \
        if (cache->half) \
            attend_some(cache, head_dim, what, N, 1); \
        else \
            attend_some(cache, head_dim, what, N, 0); \
    }
ATTEND(1)
ATTEND(2)
ATTEND(3)
ATTEND(4)

static void attend(const ek_cache *cache, int64_t head_dim, const ek_attention *what)
{
    void (*const by_count[])(const ek_cache *, int64_t, const ek_attention *) = {attend_1, attend_2, attend_3,
                                                                                 attend_4};
    by_count[what->count - 1](cache, head_dim, what);
}

#include "decode_products.h"

#define EK_PASTE(a, b) a##b
#define EK_NAME(a, b) EK_PASTE(a, b)
#define EK_QUOTE(a) #a
#define EK_STRING(a) EK_QUOTE(a)
const ek_decode EK_NAME(ek_decode_, EK_LEVEL) = {EK_STRING(EK_LEVEL), norm, rotate, add, gate, store, attend, multiply};
