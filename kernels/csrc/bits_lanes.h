/* Floats in vectors as wide as the level has them: from codes, and into every format. */
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef uint32_t lane_words __attribute__((vector_size(4 * LANES)));
typedef uint16_t lane_halves __attribute__((vector_size(2 * LANES)));
typedef uint8_t lane_bytes __attribute__((vector_size(LANES)));

static inline lanes load_lanes_of(const float *from)
{
    lanes v;
    memcpy(&v, from, sizeof v);
    return v;
}

static inline lanes all_lanes(float x)
{
    return x - (lanes){0}; /* not +, which would lose the sign of -0 */
}

/* The larger and the smaller one; `bound` where x is NaN. */
static inline lanes at_least(lanes x, lanes bound)
{
#if defined(__AVX512F__)
    return (lanes)_mm512_max_ps((__m512)x, (__m512)bound);
#elif defined(__AVX2__)
    return (lanes)_mm256_max_ps((__m256)x, (__m256)bound);
#elif defined(__x86_64__)
    return (lanes)_mm_max_ps((__m128)x, (__m128)bound);
#elif defined(__aarch64__)
    return (lanes)vbslq_f32(vcgtq_f32((float32x4_t)x, (float32x4_t)bound), (float32x4_t)x, (float32x4_t)bound);
#else
    for (int i = 0; i < LANES; i++)
        bound[i] = x[i] > bound[i] ? x[i] : bound[i];
    return bound;
#endif
}

static inline lanes at_most(lanes x, lanes bound)
{
#if defined(__AVX512F__)
    return (lanes)_mm512_min_ps((__m512)x, (__m512)bound);
#elif defined(__AVX2__)
    return (lanes)_mm256_min_ps((__m256)x, (__m256)bound);
#elif defined(__x86_64__)
    return (lanes)_mm_min_ps((__m128)x, (__m128)bound);
#elif defined(__aarch64__)
    return (lanes)vbslq_f32(vcltq_f32((float32x4_t)x, (float32x4_t)bound), (float32x4_t)x, (float32x4_t)bound);
#else
    for (int i = 0; i < LANES; i++)
        bound[i] = x[i] < bound[i] ? x[i] : bound[i];
    return bound;
#endif
}

static inline lanes floats_of(const uint8_t *codes)
{
#if defined(__AVX512F__)
    return (lanes)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)codes)));
#elif defined(__AVX2__)
    return (lanes)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)codes)));
#elif defined(__x86_64__)
    int four;
    memcpy(&four, codes, sizeof four);
    __m128i zero = _mm_setzero_si128(), bytes = _mm_unpacklo_epi8(_mm_cvtsi32_si128(four), zero);
    return (lanes)_mm_cvtepi32_ps(_mm_unpacklo_epi16(bytes, zero));
#else
    lane_bytes bytes;
    memcpy(&bytes, codes, sizeof bytes);
    return __builtin_convertvector(bytes, lanes);
#endif
}

/* The nearest float16, halves to even, in integers: where there is no instruction for it. */
static inline uint16_t half_of(float x)
{
    uint32_t word, sign;
    memcpy(&word, &x, sizeof word);
    sign = word >> 16 & 0x8000u;
    word &= 0x7FFFFFFFu;
    if (word >= 0x47800000u) /* 65536 and more */
        return (uint16_t)(sign | 0x7C00u);
    if (word < 0x38800000u) { /* below 2^-14: a multiple of 2^-24, which is the last bit of 0.5 */
        float shifted;
        memcpy(&shifted, &word, sizeof shifted);
        shifted += 0.5f;
        memcpy(&word, &shifted, sizeof word);
        return (uint16_t)(sign | (word - 0x3F000000u));
    }
    word += 0xC8000FFFu + (word >> 13 & 1u); /* the exponent's other bias, and rounding */
    return (uint16_t)(sign | word >> 13);
}

/* Store bytes of a vector; past the caches if `past`, which wants an address that is a multiple of their number. */
static inline __attribute__((always_inline)) void store_bytes(void *to, const void *from, int num_bytes, int past)
{
#if defined(__x86_64__)
    if (past) {
#if defined(__AVX512F__)
        if (num_bytes == 64) {
            _mm512_stream_si512((__m512i *)to, _mm512_loadu_si512(from));
            return;
        }
#endif
#if defined(__AVX2__)
        if (num_bytes == 32) {
            _mm256_stream_si256((__m256i *)to, _mm256_loadu_si256((const __m256i *)from));
            return;
        }
#endif
        if (num_bytes == 16) {
            _mm_stream_si128((__m128i *)to, _mm_loadu_si128((const __m128i *)from));
            return;
        }
    }
#else
    (void)past;
#endif
    memcpy(to, from, (size_t)num_bytes);
}

/* Write values as `format`. None is NaN: they are sums of products of finite numbers, and at most these overflow. */
static inline __attribute__((always_inline)) void put(lanes values, ek_format format, int past, void *to)
{
    if (format == EK_FLOAT32) {
        store_bytes(to, &values, sizeof values, past);
        return;
    }
    lane_halves halves;
    if (format == EK_BFLOAT16) {
        lane_words words = (lane_words)values;
        words = (words + 0x7FFFu + (words >> 16 & 1u)) >> 16;
        halves = __builtin_convertvector(words, lane_halves);
    } else {
#if defined(__AVX512F__)
        halves = (lane_halves)_mm512_cvtps_ph((__m512)values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
        halves = (lane_halves)_mm256_cvtps_ph((__m256)values, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__aarch64__)
        halves = (lane_halves)vcvt_f16_f32((float32x4_t)values);
#else
        for (int i = 0; i < LANES; i++)
            halves[i] = half_of(values[i]);
#endif
    }
    store_bytes(to, &halves, sizeof halves, past);
}

static inline void put_one(float value, ek_format format, void *to)
{
    uint32_t word;
    uint16_t half;
    memcpy(&word, &value, sizeof word);
    if (format == EK_FLOAT32) {
        memcpy(to, &value, sizeof value);
        return;
    }
    half = format == EK_FLOAT16 ? half_of(value) : (uint16_t)((word + 0x7FFFu + (word >> 16 & 1u)) >> 16);
    memcpy(to, &half, sizeof half);
}
