/* Blocks of 64 codes to and from 8 * bits bytes of a bitstream, for widths of 1 to 7; one way per instruction set.
   A block may read or write SPAN bytes of the stream, more than are its own. */
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the bitstream is read in words, which needs a little-endian processor; numpy serves elsewhere"
#endif

#define BLOCK 64
#define SPAN 64

#if defined(__AVX512BW__)

/* Unpacking moves to every code the bytes which hold it, shifts and masks. Packing joins neighbours by multiplying
   and adding (2, then 4 codes), by shifting (8 codes), and closes the gaps between the words of 8 codes. */
typedef struct {
    int bits;
    __m512i pairs, fours, eights;
    __m512i mask;
#if defined(__AVX512VBMI__)
    __m512i spread, shifts, close;
#else
    __m512i spread_words, close_words;           /* between the lanes of 128 bits, 16 codes each */
    __m512i spread_low, spread_high, close_lane; /* within a lane */
    __m512i shifts_low, shifts_high;
#endif
} block_plan;

static block_plan make_block_plan(int bits)
{
    block_plan plan = {.bits = bits};
    if (bits == 8)
        return plan; /* such codes are bytes already */
    plan.pairs = _mm512_set1_epi16((short)(1 | 1 << (bits + 8)));
    plan.fours = _mm512_set1_epi32(1 | 1 << (2 * bits + 16));
    plan.eights = _mm512_set1_epi64(32 - 4 * bits);
#if defined(__AVX512VBMI__)
    uint8_t spread[64], shifts[64], close[64] = {0};
    for (int i = 0; i < 64; i++) {
        int k = i % 8; /* of the 8 codes in one word */
        spread[i] = (uint8_t)(i / 8 * bits + (k < bits ? k : 0));
        shifts[i] = (uint8_t)(k * bits);
        if (i < 8 * bits)
            close[i] = (uint8_t)(i / bits * 8 + i % bits);
    }
    plan.mask = _mm512_set1_epi8((char)((1 << bits) - 1));
    plan.spread = _mm512_loadu_si512(spread);
    plan.shifts = _mm512_loadu_si512(shifts);
    plan.close = _mm512_loadu_si512(close);
#else
    uint16_t spread_words[32], close_words[32] = {0}, shifts[2][32];
    uint8_t spread[2][64], close_lane[64];
    for (int i = 0; i < 32; i++) {
        int lane = i / 8, k = i % 8;
        spread_words[i] = (uint16_t)(lane * bits + (k < bits ? k : 0));
        if (i < 4 * bits)
            close_words[i] = (uint16_t)(i / bits * 8 + i % bits);
        for (int high = 0; high < 2; high++) {
            int bit = (8 * high + k) * bits, last = 2 * bits - 1;
            shifts[high][i] = (uint16_t)(bit % 8);
            spread[high][2 * i] = (uint8_t)(bit / 8);
            spread[high][2 * i + 1] = (uint8_t)(bit / 8 < last ? bit / 8 + 1 : last);
        }
    }
    for (int i = 0; i < 64; i++) {
        int k = i % 16;
        close_lane[i] = (uint8_t)(k < 2 * bits ? k / bits * 8 + k % bits : 0x80);
    }
    plan.mask = _mm512_set1_epi16((short)((1 << bits) - 1));
    plan.spread_words = _mm512_loadu_si512(spread_words);
    plan.close_words = _mm512_loadu_si512(close_words);
    plan.spread_low = _mm512_loadu_si512(spread[0]);
    plan.spread_high = _mm512_loadu_si512(spread[1]);
    plan.close_lane = _mm512_loadu_si512(close_lane);
    plan.shifts_low = _mm512_loadu_si512(shifts[0]);
    plan.shifts_high = _mm512_loadu_si512(shifts[1]);
#endif
    return plan;
}

static inline void unpack_block(const block_plan *plan, const uint8_t *from, uint8_t *codes)
{
    __m512i bytes = _mm512_loadu_si512(from);
#if defined(__AVX512VBMI__)
    bytes = _mm512_permutexvar_epi8(plan->spread, bytes);
    bytes = _mm512_and_si512(_mm512_multishift_epi64_epi8(plan->shifts, bytes), plan->mask);
#else
    bytes = _mm512_permutexvar_epi16(plan->spread_words, bytes);
    __m512i low = _mm512_srlv_epi16(_mm512_shuffle_epi8(bytes, plan->spread_low), plan->shifts_low);
    __m512i high = _mm512_srlv_epi16(_mm512_shuffle_epi8(bytes, plan->spread_high), plan->shifts_high);
    bytes = _mm512_packus_epi16(_mm512_and_si512(low, plan->mask), _mm512_and_si512(high, plan->mask));
#endif
    _mm512_storeu_si512(codes, bytes);
}

static inline void pack_block(const block_plan *plan, const uint8_t *codes, uint8_t *to)
{
    __m512i words = _mm512_maddubs_epi16(plan->pairs, _mm512_loadu_si512(codes));
    words = _mm512_madd_epi16(words, plan->fours);
    /* the lower four codes go to the top of their 32 bits, next to the upper four, and both down again */
    words = _mm512_mask_sllv_epi32(words, 0x5555, words, plan->eights);
    words = _mm512_srlv_epi64(words, plan->eights);
#if defined(__AVX512VBMI__)
    words = _mm512_permutexvar_epi8(plan->close, words);
#else
    words = _mm512_permutexvar_epi16(plan->close_words, _mm512_shuffle_epi8(words, plan->close_lane));
#endif
    _mm512_storeu_si512(to, words);
}

#elif defined(__AVX2__)

/* As for AVX-512, in lanes of 128 bits, 16 codes or 2 * bits bytes each. BMI2's pdep and pext would be no faster. */
typedef struct {
    int bits;
    __m256i pairs, fours, eights_left;
    __m128i eights_right;
    __m256i close, spread_low, spread_high, factors_low, factors_high;
} block_plan;

static block_plan make_block_plan(int bits)
{
    block_plan plan = {.bits = bits};
    if (bits == 8)
        return plan; /* such codes are bytes already */
    uint8_t spread[2][32], close[32];
    uint16_t factors[2][16];
    for (int i = 0; i < 16; i++)
        for (int high = 0; high < 2; high++) {
            int bit = (8 * high + i % 8) * bits, last = 2 * bits - 1;
            factors[high][i] = (uint16_t)(1 << (16 - bits - bit % 8)); /* moves the code to the top of 16 bits */
            spread[high][2 * i] = (uint8_t)(bit / 8);
            spread[high][2 * i + 1] = (uint8_t)(bit / 8 < last ? bit / 8 + 1 : last);
        }
    for (int i = 0; i < 32; i++) {
        int k = i % 16;
        close[i] = (uint8_t)(k < 2 * bits ? k / bits * 8 + k % bits : 0x80);
    }
    plan.pairs = _mm256_set1_epi16((short)(1 | 1 << (bits + 8)));
    plan.fours = _mm256_set1_epi32(1 | 1 << (2 * bits + 16));
    plan.eights_left = _mm256_set1_epi64x(32 - 4 * bits);
    plan.eights_right = _mm_cvtsi32_si128(32 - 4 * bits);
    plan.close = _mm256_loadu_si256((const __m256i *)close);
    plan.spread_low = _mm256_loadu_si256((const __m256i *)spread[0]);
    plan.spread_high = _mm256_loadu_si256((const __m256i *)spread[1]);
    plan.factors_low = _mm256_loadu_si256((const __m256i *)factors[0]);
    plan.factors_high = _mm256_loadu_si256((const __m256i *)factors[1]);
    return plan;
}

static inline __m256i load_lanes(const uint8_t *low, const uint8_t *high)
{
    __m128i first = _mm_loadu_si128((const __m128i *)low), second = _mm_loadu_si128((const __m128i *)high);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(first), second, 1);
}

static inline void unpack_block(const block_plan *plan, const uint8_t *from, uint8_t *codes)
{
    const int lane = 2 * plan->bits, down = 16 - plan->bits;
    for (int half = 0; half < 2; half++, from += 2 * lane, codes += 32) {
        __m256i bytes = load_lanes(from, from + lane);
        __m256i low = _mm256_mullo_epi16(_mm256_shuffle_epi8(bytes, plan->spread_low), plan->factors_low);
        __m256i high = _mm256_mullo_epi16(_mm256_shuffle_epi8(bytes, plan->spread_high), plan->factors_high);
        bytes = _mm256_packus_epi16(_mm256_srli_epi16(low, down), _mm256_srli_epi16(high, down));
        _mm256_storeu_si256((__m256i *)codes, bytes);
    }
}

static inline void pack_block(const block_plan *plan, const uint8_t *codes, uint8_t *to)
{
    const int lane = 2 * plan->bits;
    for (int half = 0; half < 2; half++, codes += 32, to += 2 * lane) {
        __m256i words = _mm256_maddubs_epi16(plan->pairs, _mm256_loadu_si256((const __m256i *)codes));
        words = _mm256_madd_epi16(words, plan->fours);
        /* the lower four codes go to the top of their 32 bits, next to the upper four, and both down again */
        words = _mm256_srl_epi64(_mm256_sllv_epi32(words, plan->eights_left), plan->eights_right);
        words = _mm256_shuffle_epi8(words, plan->close);
        _mm_storeu_si128((__m128i *)to, _mm256_castsi256_si128(words)); /* in order: each ends in what is not its own */
        _mm_storeu_si128((__m128i *)(to + lane), _mm256_extracti128_si256(words, 1));
    }
}

#else

/* Words of 8 codes: the halves of the word are moved apart, then the halves of the halves, then single codes. */
typedef struct {
    int bits;
    uint64_t fours, twos, ones; /* where the lower half of each part stands before it is moved */
} block_plan;

static block_plan make_block_plan(int bits)
{
    block_plan plan = {.bits = bits};
    if (bits == 8)
        return plan; /* such codes are bytes already */
    plan.fours = ((uint64_t)1 << 4 * bits) - 1;
    plan.twos = (((uint64_t)1 << 2 * bits) - 1) * 0x0000000100000001u;
    plan.ones = (((uint64_t)1 << bits) - 1) * 0x0001000100010001u;
    return plan;
}

static inline void unpack_block(const block_plan *plan, const uint8_t *from, uint8_t *codes)
{
    const int bits = plan->bits;
    for (int i = 0; i < BLOCK; i += 8, from += bits) {
        uint64_t word;
        memcpy(&word, from, sizeof word);
        word = (word & plan->fours) | (word & plan->fours << 4 * bits) << (32 - 4 * bits);
        word = (word & plan->twos) | (word & plan->twos << 2 * bits) << (16 - 2 * bits);
        word = (word & plan->ones) | (word & plan->ones << bits) << (8 - bits);
        memcpy(codes + i, &word, sizeof word);
    }
}

static inline void pack_block(const block_plan *plan, const uint8_t *codes, uint8_t *to)
{
    const int bits = plan->bits;
    for (int i = 0; i < BLOCK; i += 8, to += bits) {
        uint64_t word;
        memcpy(&word, codes + i, sizeof word);
        word = (word & plan->ones) | (word >> (8 - bits) & plan->ones << bits);
        word = (word & plan->twos) | (word >> (16 - 2 * bits) & plan->twos << 2 * bits);
        word = (word & plan->fours) | (word >> (32 - 4 * bits) & plan->fours << 4 * bits);
        memcpy(to, &word, sizeof word); /* in order: each ends in what is not its own */
    }
}

#endif
