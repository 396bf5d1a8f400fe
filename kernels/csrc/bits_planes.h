/* Bit planes of 64 codes, 8 bytes of each: bit i of a plane's bytes is one bit of code i. */
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__GFNI__) && defined(__AVX512VBMI__)
#include "bits_planes_gfni.h"
#endif

#if defined(__AVX512BW__)

static inline void split_block(const uint8_t *codes, int bits, uint8_t *planes, int64_t stride)
{
    const __m512i all = _mm512_loadu_si512(codes);
    for (int k = 0; k < bits; k++) {
        uint64_t plane = _cvtmask64_u64(_mm512_test_epi8_mask(all, _mm512_set1_epi8((char)(1 << (bits - 1 - k)))));
        memcpy(planes + k * stride, &plane, sizeof plane);
    }
}

static inline void merge_block(const uint8_t *planes, int64_t stride, int bits, uint8_t *codes)
{
    __m512i all = _mm512_setzero_si512();
    for (int k = 0; k < bits; k++) {
        uint64_t plane;
        memcpy(&plane, planes + k * stride, sizeof plane);
        __m512i bit = _mm512_set1_epi8((char)(1 << (bits - 1 - k)));
        all = _mm512_mask_add_epi8(all, _cvtu64_mask64(plane), all, bit);
    }
    _mm512_storeu_si512(codes, all);
}

#elif defined(__AVX2__)

static inline void split_block(const uint8_t *codes, int bits, uint8_t *planes, int64_t stride)
{
    const __m128i up = _mm_cvtsi32_si128(8 - bits); /* the bit that is wanted goes to the top of its byte */
    __m256i low = _mm256_sll_epi16(_mm256_loadu_si256((const __m256i *)codes), up);
    __m256i high = _mm256_sll_epi16(_mm256_loadu_si256((const __m256i *)(codes + 32)), up);
    for (int k = 0; k < bits; k++) {
        uint32_t halves[2] = {(uint32_t)_mm256_movemask_epi8(low), (uint32_t)_mm256_movemask_epi8(high)};
        memcpy(planes + k * stride, halves, sizeof halves);
        low = _mm256_add_epi8(low, low);
        high = _mm256_add_epi8(high, high);
    }
}

static inline void merge_block(const uint8_t *planes, int64_t stride, int bits, uint8_t *codes)
{
    const __m256i spread = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3,
                                            3, 3, 3, 3, 3, 3, 3);
    const __m256i own = _mm256_set1_epi64x((int64_t)0x8040201008040201u);
    __m256i low = _mm256_setzero_si256(), high = low;
    for (int k = 0; k < bits; k++) {
        int32_t halves[2];
        memcpy(halves, planes + k * stride, sizeof halves);
        __m256i first = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(halves[0]), spread), own);
        __m256i second = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(halves[1]), spread), own);
        low = _mm256_sub_epi8(_mm256_add_epi8(low, low), _mm256_cmpeq_epi8(first, own)); /* - -1 where the bit is set */
        high = _mm256_sub_epi8(_mm256_add_epi8(high, high), _mm256_cmpeq_epi8(second, own));
    }
    _mm256_storeu_si256((__m256i *)codes, low);
    _mm256_storeu_si256((__m256i *)(codes + 32), high);
}

#elif defined(__x86_64__)

static inline void split_block(const uint8_t *codes, int bits, uint8_t *planes, int64_t stride)
{
    const __m128i up = _mm_cvtsi32_si128(8 - bits); /* the bit that is wanted goes to the top of its byte */
    for (int i = 0; i < 4; i++) {
        __m128i some = _mm_sll_epi16(_mm_loadu_si128((const __m128i *)(codes + 16 * i)), up);
        for (int k = 0; k < bits; k++) {
            uint16_t quarter = (uint16_t)_mm_movemask_epi8(some);
            memcpy(planes + k * stride + 2 * i, &quarter, sizeof quarter);
            some = _mm_add_epi8(some, some);
        }
    }
}

static inline void merge_block(const uint8_t *planes, int64_t stride, int bits, uint8_t *codes)
{
    const __m128i own = _mm_set1_epi64x((int64_t)0x8040201008040201u);
    for (int i = 0; i < 4; i++) {
        __m128i some = _mm_setzero_si128();
        for (int k = 0; k < bits; k++) {
            const uint8_t *two = planes + k * stride + 2 * i;
            __m128i spread = _mm_unpacklo_epi64(_mm_set1_epi8((char)two[0]), _mm_set1_epi8((char)two[1]));
            __m128i set = _mm_cmpeq_epi8(_mm_and_si128(spread, own), own);
            some = _mm_sub_epi8(_mm_add_epi8(some, some), set); /* - -1 where the bit is set */
        }
        _mm_storeu_si128((__m128i *)(codes + 16 * i), some);
    }
}

#elif defined(__aarch64__)

static inline void split_block(const uint8_t *codes, int bits, uint8_t *planes, int64_t stride)
{
    static const uint8_t weights[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const uint8x16_t own = vld1q_u8(weights);
    uint8x16_t part[4] = {vld1q_u8(codes), vld1q_u8(codes + 16), vld1q_u8(codes + 32), vld1q_u8(codes + 48)};
    for (int k = 0; k < bits; k++) {
        const uint8x16_t bit = vdupq_n_u8((uint8_t)(1 << (bits - 1 - k)));
        uint8x16_t set[4];
        for (int i = 0; i < 4; i++)
            set[i] = vandq_u8(vtstq_u8(part[i], bit), own);
        uint8x16_t sums = vpaddq_u8(vpaddq_u8(set[0], set[1]), vpaddq_u8(set[2], set[3]));
        vst1_u8(planes + k * stride, vget_low_u8(vpaddq_u8(sums, sums)));
    }
}

static inline void merge_block(const uint8_t *planes, int64_t stride, int bits, uint8_t *codes)
{
    static const uint8_t weights[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    static const uint8_t bytes[16] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
    const uint8x16_t own = vld1q_u8(weights), first = vld1q_u8(bytes);
    uint8x16_t part[4] = {vdupq_n_u8(0), vdupq_n_u8(0), vdupq_n_u8(0), vdupq_n_u8(0)};
    for (int k = 0; k < bits; k++) {
        uint8x8_t eight = vld1_u8(planes + k * stride);
        for (int i = 0; i < 4; i++) {
            uint8x16_t index = vaddq_u8(first, vdupq_n_u8((uint8_t)(2 * i)));
            uint8x16_t set = vtstq_u8(vqtbl1q_u8(vcombine_u8(eight, eight), index), own);
            part[i] = vsubq_u8(vaddq_u8(part[i], part[i]), set); /* - -1 where the bit is set */
        }
    }
    for (int i = 0; i < 4; i++)
        vst1q_u8(codes + 16 * i, part[i]);
}

#else

static inline void split_block(const uint8_t *codes, int bits, uint8_t *planes, int64_t stride)
{
    for (int k = 0; k < bits; k++)
        for (int i = 0; i < 8; i++) {
            int byte = 0;
            for (int j = 0; j < 8; j++)
                byte |= (codes[8 * i + j] >> (bits - 1 - k) & 1) << j;
            planes[k * stride + i] = (uint8_t)byte;
        }
}

static inline void merge_block(const uint8_t *planes, int64_t stride, int bits, uint8_t *codes)
{
    memset(codes, 0, 64);
    for (int k = 0; k < bits; k++)
        for (int i = 0; i < 64; i++)
            codes[i] = (uint8_t)(codes[i] << 1 | (planes[k * stride + i / 8] >> i % 8 & 1));
}

#endif
