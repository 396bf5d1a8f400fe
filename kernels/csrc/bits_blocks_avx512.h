/* Blocks of codes with AVX-512, with VBMI where the level has it: see bits_blocks.h. */
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

static inline __m512i block_of_codes(const block_plan *plan, const uint8_t *from)
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
    return bytes;
}

static inline void unpack_block(const block_plan *plan, const uint8_t *from, uint8_t *codes)
{
    _mm512_storeu_si512(codes, block_of_codes(plan, from));
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
