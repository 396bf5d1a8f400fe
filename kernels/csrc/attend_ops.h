/* Vectors of paged attention: a number spread over all lanes, products of floats or of pairs of bfloat16 with a sum,
   powers of two, and a square of numbers turned over its diagonal. */
#include "vectors.h"

#define ALWAYS static inline __attribute__((always_inline))

ALWAYS vfloat spread(float x)
{
#if defined(__AVX512F__)
    return (vfloat)_mm512_set1_ps(x);
#elif defined(__AVX2__)
    return (vfloat)_mm256_set1_ps(x);
#elif defined(__x86_64__)
    return (vfloat)_mm_set1_ps(x);
#elif defined(__aarch64__)
    return (vfloat)vdupq_n_f32(x);
#else
    vfloat v;
    for (int i = 0; i < FLOATS; i++)
        v[i] = x;
    return v;
#endif
}

/* Four bytes, whatever they are, in all lanes. */
ALWAYS vfloat spread_word(const float *from)
{
    int32_t word;
    memcpy(&word, from, sizeof word);
#if defined(__AVX512F__)
    return (vfloat)_mm512_set1_epi32(word);
#else
    return (vfloat)((vint32){0} + word);
#endif
}

ALWAYS void put_floats(float *to, vfloat v)
{
    memcpy(to, &v, sizeof v);
}

/* a * b + c: of floats, or of the two bfloat16 in each lane. */
ALWAYS vfloat accumulate(vfloat a, vfloat b, vfloat c, int pairs)
{
#if defined(EK_PAIRS)
    if (pairs)
        return (vfloat)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
#endif
    (void)pairs;
    return multiply_add(a, b, c);
}

/* 2^x for x <= 0, exactly 1 for 0 and exactly 0 below -127; NaN stays NaN. Relative error below 2e-7.
   Source: nearest integer by adding 1.5 * 2^23; a polynomial of the least relative error on -1/2 .. 1/2 for the rest. */
ALWAYS vfloat power_of_two(vfloat x)
{
    const vfloat magic = spread(0x1.8p23f);
    x = max_floats(spread(-127.0f), x); /* in this order NaN stays */
    vfloat shifted = x + magic, r = x - (shifted - magic);
    vfloat p = multiply_add(spread(1.3264591107144952e-3f), r, spread(9.671619161963463e-3f));
    p = multiply_add(p, r, spread(5.55073507130146e-2f));
    p = multiply_add(p, r, spread(2.4022240936756134e-1f));
    p = multiply_add(p, r, spread(6.931470036506653e-1f));
    p = multiply_add(p, r, spread(1.0f));
    vint32 exponent = ((vint32)shifted << 23) + 0x3F800000; /* the low bits of `shifted` are the integer */
    return p * (vfloat)exponent;
}

/* tanh, absolute error below 4e-7; NaN stays NaN. */
ALWAYS vfloat tanh_floats(vfloat x)
{
    vfloat size = (vfloat)((vint32)x & 0x7FFFFFFF);
    vfloat e = power_of_two(size * -2.885390082f); /* e^(-2|x|) */
    vfloat y = (1.0f - e) / (1.0f + e);
    return (vfloat)((vint32)y | ((vint32)x & (int32_t)0x80000000));
}

/* The nearest bfloat16 of one number, ties to even; NaN stays NaN. */
ALWAYS uint16_t bfloat16_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7FFFFFFF) > 0x7F800000)
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

ALWAYS float float_of(uint16_t x)
{
    uint32_t bits = (uint32_t)x << 16;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

/* Turn a square: lane j of vector i becomes lane i of vector j. */
ALWAYS void turn(vfloat v[FLOATS])
{
#if defined(__AVX512F__)
    __m512 t[16], u[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps((__m512)v[i], (__m512)v[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps((__m512)v[i], (__m512)v[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            __m512d a = _mm512_castps_pd(t[i + j]), b = _mm512_castps_pd(t[i + 2 + j]);
            u[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            u[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    for (int j = 0; j < 4; j++) {
        __m512 e = _mm512_shuffle_f32x4(u[j], u[4 + j], 0x88), f = _mm512_shuffle_f32x4(u[j], u[4 + j], 0xDD);
        __m512 g = _mm512_shuffle_f32x4(u[8 + j], u[12 + j], 0x88);
        __m512 h = _mm512_shuffle_f32x4(u[8 + j], u[12 + j], 0xDD);
        v[j] = (vfloat)_mm512_shuffle_f32x4(e, g, 0x88);
        v[4 + j] = (vfloat)_mm512_shuffle_f32x4(f, h, 0x88);
        v[8 + j] = (vfloat)_mm512_shuffle_f32x4(e, g, 0xDD);
        v[12 + j] = (vfloat)_mm512_shuffle_f32x4(f, h, 0xDD);
    }
#elif defined(__AVX2__)
    __m256 t[8], u[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps((__m256)v[i], (__m256)v[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps((__m256)v[i], (__m256)v[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            u[i + 2 * j] = _mm256_shuffle_ps(t[i + j], t[i + 2 + j], 0x44);
            u[i + 2 * j + 1] = _mm256_shuffle_ps(t[i + j], t[i + 2 + j], 0xEE);
        }
    for (int j = 0; j < 4; j++) {
        v[j] = (vfloat)_mm256_permute2f128_ps(u[j], u[4 + j], 0x20);
        v[4 + j] = (vfloat)_mm256_permute2f128_ps(u[j], u[4 + j], 0x31);
    }
#elif defined(__x86_64__)
    __m128 a = (__m128)v[0], b = (__m128)v[1], c = (__m128)v[2], d = (__m128)v[3];
    _MM_TRANSPOSE4_PS(a, b, c, d);
    v[0] = (vfloat)a, v[1] = (vfloat)b, v[2] = (vfloat)c, v[3] = (vfloat)d;
#elif defined(__aarch64__)
    float64x2_t a = (float64x2_t)vtrn1q_f32((float32x4_t)v[0], (float32x4_t)v[1]);
    float64x2_t b = (float64x2_t)vtrn2q_f32((float32x4_t)v[0], (float32x4_t)v[1]);
    float64x2_t c = (float64x2_t)vtrn1q_f32((float32x4_t)v[2], (float32x4_t)v[3]);
    float64x2_t d = (float64x2_t)vtrn2q_f32((float32x4_t)v[2], (float32x4_t)v[3]);
    v[0] = (vfloat)vtrn1q_f64(a, c), v[1] = (vfloat)vtrn1q_f64(b, d);
    v[2] = (vfloat)vtrn2q_f64(a, c), v[3] = (vfloat)vtrn2q_f64(b, d);
#else
    for (int i = 0; i < FLOATS; i++)
        for (int j = 0; j < i; j++) {
            float x = v[i][j];
            v[i][j] = v[j][i];
            v[j][i] = x;
        }
#endif
}
