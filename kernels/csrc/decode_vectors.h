/* Float32 vectors of the level being compiled: products with a fused sum where the level has them, half precision in
   memory, and the exponential. Everything is written with GCC vector extensions but for what they cannot say. */
#include "vectors.h"

#if defined(__AVX512F__)
typedef int16_t vhalf __attribute__((vector_size(32)));
#elif defined(__AVX2__)
typedef int16_t vhalf __attribute__((vector_size(16)));
#else
typedef int16_t vhalf __attribute__((vector_size(8)));
#endif

static inline void store_floats(float *to, vfloat v)
{
    memcpy(to, &v, sizeof v);
}

/* Widen FLOATS half-precision numbers, which are finite. */
static inline vfloat load_halves(const uint16_t *from)
{
#if defined(__AVX512F__)
    return (vfloat)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
#elif defined(__AVX2__)
    return (vfloat)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from));
#elif defined(__aarch64__)
    return (vfloat)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from)));
#elif defined(__x86_64__)
    /* exponent and fraction in their new place, then 2^112: subnormal numbers come out right as well */
    __m128i wide = _mm_unpacklo_epi16(_mm_loadl_epi64((const __m128i *)from), _mm_setzero_si128());
    __m128i sign = _mm_slli_epi32(_mm_and_si128(wide, _mm_set1_epi32(0x8000)), 16);
    __m128i size = _mm_slli_epi32(_mm_and_si128(wide, _mm_set1_epi32(0x7FFF)), 13);
    return (vfloat)_mm_or_ps(_mm_mul_ps(_mm_castsi128_ps(size), _mm_set1_ps(0x1p112f)), _mm_castsi128_ps(sign));
#else
    vfloat v;
    for (int i = 0; i < FLOATS; i++) {
        uint32_t bits = (uint32_t)(from[i] & 0x7FFF) << 13;
        float size;
        memcpy(&size, &bits, sizeof size);
        v[i] = from[i] & 0x8000 ? -size * 0x1p112f : size * 0x1p112f;
    }
    return v;
#endif
}

/* Half precision of one number: nearest, ties to even, saturated at the largest finite value; NaN becomes it too. */
static inline uint16_t half_of(float x)
{
    uint32_t bits, sign;
    memcpy(&bits, &x, sizeof bits);
    sign = bits >> 16 & 0x8000;
    bits &= 0x7FFFFFFF;
    if (bits >= 0x477FE000) /* 65504 and more, infinity, NaN */
        return (uint16_t)(sign | 0x7BFF);
    if (bits < 0x38800000) { /* below 2^-14: the fraction of a half counts 2^-24 */
        float size, shifted;
        memcpy(&size, &bits, sizeof size);
        shifted = size + 0.5f; /* its last place is 2^-24 */
        memcpy(&bits, &shifted, sizeof bits);
        return (uint16_t)(sign | (bits - 0x3F000000));
    }
    return (uint16_t)(sign | ((bits + 0xFFF + (bits >> 13 & 1) - 0x38000000) >> 13));
}

static inline vfloat min_floats(vfloat x, vfloat least)
{
    return -max_floats(-x, -least);
}

/* e^x for x in -87 .. 87, clamped outside; relative error below 2e-7. Source: Cody and Waite's reduction, Taylor. */
static inline vfloat exp_floats(vfloat x)
{
    const vfloat zero = (vfloat){0}, magic = zero + 0x1.8p23f;
    x = max_floats(x, zero - 87.0f);
    x = min_floats(x, zero + 87.0f);
    vfloat shifted = multiply_add(x, zero + 1.44269504f, magic);
    vfloat n = shifted - magic;
    vfloat r = multiply_add(n, zero - 0.693359375f, x);
    r = multiply_add(n, zero + 2.12194440e-4f, r);
    vfloat p = zero + 1.9875691500e-4f;
    p = multiply_add(p, r, zero + 1.3981999507e-3f);
    p = multiply_add(p, r, zero + 8.3334519073e-3f);
    p = multiply_add(p, r, zero + 4.1665795894e-2f);
    p = multiply_add(p, r, zero + 1.6666665459e-1f);
    p = multiply_add(p, r, zero + 5.0000001201e-1f);
    p = multiply_add(p, r * r, r + 1.0f);
    vint32 scale = ((vint32)shifted << 23) + 0x3F800000; /* the low bits of `shifted` are n */
    return p * (vfloat)scale;
}

static inline float sum_float_lanes(vfloat v)
{
    float lanes[FLOATS], sum = 0;
    store_floats(lanes, v);
    for (int i = 0; i < FLOATS; i++)
        sum += lanes[i];
    return sum;
}
