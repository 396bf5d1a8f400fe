/* Vectors as wide as the instruction set level being compiled: GCC vector extensions, and the few operations
   which they cannot say (a maximum that drops NaN, the widening 32-bit product). */
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX2__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
#define FLOATS (VECTOR_BYTES / 4)
#define WIDE (VECTOR_BYTES / 8)

typedef float vfloat __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t vint32 __attribute__((vector_size(VECTOR_BYTES)));
typedef int64_t vint64 __attribute__((vector_size(VECTOR_BYTES)));
typedef uint64_t vuint64 __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t vint32_half __attribute__((vector_size(VECTOR_BYTES / 2)));
typedef uint32_t vuint32 __attribute__((vector_size(VECTOR_BYTES)));
typedef double vdouble __attribute__((vector_size(VECTOR_BYTES)));
typedef uint16_t vuint16_half __attribute__((vector_size(VECTOR_BYTES / 2)));
typedef uint32_t vuint32_half __attribute__((vector_size(VECTOR_BYTES / 2)));

static inline vfloat load_floats(const float *from)
{
    vfloat v;
    memcpy(&v, from, sizeof v);
    return v;
}

/* FLOATS numbers of 16 bits, widened: bfloat16 is the upper half of a float32. */
static inline vfloat load_bfloat16(const uint16_t *from)
{
#if defined(__AVX512F__)
    return (vfloat)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)), 16);
#elif defined(__AVX2__)
    return (vfloat)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from)), 16);
#elif defined(__x86_64__)
    return (vfloat)_mm_unpacklo_epi16(_mm_setzero_si128(), _mm_loadl_epi64((const __m128i *)from));
#else
    vuint16_half v;
    memcpy(&v, from, sizeof v);
    return (vfloat)(__builtin_convertvector(v, vuint32) << 16);
#endif
}

static inline vfloat load_float16(const uint16_t *from)
{
#if defined(__AVX512F__)
    return (vfloat)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
#elif defined(__AVX2__)
    return (vfloat)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from));
#elif defined(__aarch64__)
    return (vfloat)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from)));
#else /* exponent and fraction in place, times 2^112; infinities and NaN on their own */
    vuint16_half v;
    memcpy(&v, from, sizeof v);
    vuint32 wide = __builtin_convertvector(v, vuint32), size = (wide & 0x7FFF) << 13;
    vuint32 large = (vuint32)((vint32)size >= 0x7C00 << 13);
    vuint32 bits = (large & (size | 0x7F800000)) | (~large & (vuint32)((vfloat)size * 0x1p112f));
    return (vfloat)(bits | (wide & 0x8000) << 16);
#endif
}

/* Lane-wise maximum; where x is NaN the lane of `most` stays (the order of operands matters on x86). */
static inline vfloat max_floats(vfloat x, vfloat most)
{
#if defined(__AVX512F__)
    return (vfloat)_mm512_max_ps((__m512)x, (__m512)most);
#elif defined(__AVX2__)
    return (vfloat)_mm256_max_ps((__m256)x, (__m256)most);
#elif defined(__x86_64__)
    return (vfloat)_mm_max_ps((__m128)x, (__m128)most);
#elif defined(__aarch64__)
    return (vfloat)vbslq_f32(vcgtq_f32((float32x4_t)x, (float32x4_t)most), (float32x4_t)x, (float32x4_t)most);
#else
    for (int i = 0; i < FLOATS; i++)
        most[i] = x[i] > most[i] ? x[i] : most[i];
    return most;
#endif
}

#if defined(__x86_64__)
static inline float max_of_four(__m128 v)
{
    v = _mm_max_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_max_ss(v, _mm_shuffle_ps(v, v, 1)));
}
#endif

/* Largest lane of a vector without NaN. */
static inline float max_lane(vfloat v)
{
#if defined(__AVX512F__)
    __m256 half = _mm256_max_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
    return max_of_four(_mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
#elif defined(__AVX2__)
    return max_of_four(_mm_max_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1)));
#elif defined(__x86_64__)
    return max_of_four((__m128)v);
#elif defined(__aarch64__)
    return vmaxvq_f32((float32x4_t)v);
#else
    float most = v[0];
    for (int i = 1; i < FLOATS; i++)
        most = v[i] > most ? v[i] : most;
    return most;
#endif
}

/* Full product of the low 32 bits of each lane and of b; the high halves of a are ignored. */
static inline vuint64 multiply_low(vuint64 a, uint32_t b)
{
#if defined(__AVX512F__)
    return (vuint64)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64((int64_t)b));
#elif defined(__AVX2__)
    return (vuint64)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x((int64_t)b));
#elif defined(__x86_64__)
    return (vuint64)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x((int64_t)b));
#elif defined(__aarch64__)
    return (vuint64)vmull_u32(vmovn_u64((uint64x2_t)a), vdup_n_u32(b));
#else
    return (a & 0xFFFFFFFFu) * (uint64_t)b;
#endif
}

/* Exclusive or of three. */
static inline vuint64 xor_three(vuint64 a, vuint64 b, vuint64 c)
{
#if defined(__AVX512F__)
    return (vuint64)_mm512_ternarylogic_epi64((__m512i)a, (__m512i)b, (__m512i)c, 0x96);
#else
    return a ^ b ^ c;
#endif
}

/* Whether the low 32 bits of any lane of two times four vectors are `least` or more. */
static inline int any_reaches(const vuint64 a[4], const vuint64 b[4], uint32_t least)
{
#if defined(__AVX512F__)
    const __m512i bound = _mm512_set1_epi32((int32_t)least);
    __mmask16 hits = 0;
    for (int w = 0; w < 4; w++)
        hits |= _mm512_cmpge_epu32_mask((__m512i)a[w], bound) | _mm512_cmpge_epu32_mask((__m512i)b[w], bound);
    return (hits & 0x5555) != 0;
#else
    vint64 below = (vint64){0} - 1; /* the sign stays where all words are below: no 64-bit comparison in SSE2 */
    for (int w = 0; w < 4; w++) {
        below &= (vint64)(a[w] & 0xFFFFFFFFu) - (int64_t)least;
        below &= (vint64)(b[w] & 0xFFFFFFFFu) - (int64_t)least;
    }
#if defined(__AVX2__)
    return _mm256_movemask_pd((__m256d)below) != 15;
#elif defined(__x86_64__)
    return _mm_movemask_pd((__m128d)below) != 3;
#else
    int64_t all = -1;
    for (int i = 0; i < WIDE; i++)
        all &= below[i];
    return all >= 0;
#endif
#endif
}

/* Whether any lane of a mask (all ones or zero in each lane) is set. */
static inline int any_lane(vint32 mask)
{
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
    return _mm256_movemask_ps((__m256)mask) != 0;
#elif defined(__x86_64__)
    return _mm_movemask_ps((__m128)mask) != 0;
#else
    int32_t any = 0;
    for (int i = 0; i < FLOATS; i++)
        any |= mask[i];
    return any != 0;
#endif
}

/* a * b + c, fused where the level can; only for what need not be the same everywhere. */
static inline vfloat multiply_add(vfloat a, vfloat b, vfloat c)
{
#if defined(__AVX512F__)
    return (vfloat)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (vfloat)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    return (vfloat)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

/* The larger of integers. */
static inline vint32 max_integers(vint32 a, vint32 b)
{
#if defined(__AVX512F__)
    return (vint32)_mm512_max_epi32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (vint32)_mm256_max_epi32((__m256i)a, (__m256i)b);
#elif defined(__aarch64__)
    return (vint32)vmaxq_s32((int32x4_t)a, (int32x4_t)b);
#else
    vint32 larger = a > b;
    return (larger & a) | (~larger & b);
#endif
}

/* Each lane as the nearest integer, halves to even. */
static inline vint32 nearest_integers(vfloat v)
{
#if defined(__AVX512F__)
    return (vint32)_mm512_cvtps_epi32((__m512)v);
#elif defined(__AVX2__)
    return (vint32)_mm256_cvtps_epi32((__m256)v);
#elif defined(__x86_64__)
    return (vint32)_mm_cvtps_epi32((__m128)v);
#elif defined(__aarch64__)
    return (vint32)vcvtnq_s32_f32((float32x4_t)v);
#else
    vint32 n;
    for (int i = 0; i < FLOATS; i++)
        n[i] = (int32_t)rintf(v[i]);
    return n;
#endif
}

static inline int32_t sum_lanes(vint32 v)
{
#if defined(__AVX512F__)
    return _mm512_reduce_add_epi32((__m512i)v);
#elif defined(__x86_64__)
#if defined(__AVX2__)
    __m128i half = _mm_add_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
#else
    __m128i half = (__m128i)v;
#endif
    half = _mm_add_epi32(half, _mm_unpackhi_epi64(half, half));
    return _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 1)));
#elif defined(__aarch64__)
    return vaddvq_s32((int32x4_t)v);
#else
    int32_t sum = 0;
    for (int i = 0; i < FLOATS; i++)
        sum += v[i];
    return sum;
#endif
}

/* Sum of all lanes, in no particular order. */
static inline float sum_floats(vfloat v)
{
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#elif defined(__x86_64__)
#if defined(__AVX2__)
    __m128 half = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
#else
    __m128 half = (__m128)v;
#endif
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
#elif defined(__aarch64__)
    return vaddvq_f32((float32x4_t)v);
#else
    float sum = 0;
    for (int i = 0; i < FLOATS; i++)
        sum += v[i];
    return sum;
#endif
}

/* Append the lanes whose mask is set to `to`, which has room for all lanes; returns how many there were. */
static inline int append_where(float *to, vfloat v, vint32 mask)
{
#if defined(__AVX512F__)
    __mmask16 kept = _mm512_movepi32_mask((__m512i)mask);
    _mm512_storeu_ps(to, _mm512_maskz_compress_ps(kept, (__m512)v));
    return __builtin_popcount(kept);
#else
    int n = 0;
    if (any_lane(mask))
        for (int i = 0; i < FLOATS; i++) {
            to[n] = v[i];
            n -= mask[i];
        }
    return n;
#endif
}
