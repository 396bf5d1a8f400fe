/* Blocks of codes with AVX2: see bits_blocks.h. */
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
