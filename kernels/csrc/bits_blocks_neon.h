/* Blocks of codes with NEON, 16 codes or 2 * bits bytes at a time: see bits_blocks.h. */
#include <arm_neon.h>

typedef struct {
    int bits;
    uint8x16_t spread_low, spread_high, close; /* indices of bytes */
    int16x8_t down_low, down_high;             /* shifts; negative ones go right */
    uint16x8_t mask;
    int16x8_t pairs;
    int32x4_t fours;
    int64x2_t eights;
} block_plan;

static block_plan make_block_plan(int bits)
{
    block_plan plan = {.bits = bits};
    if (bits == 8)
        return plan; /* such codes are bytes already */
    uint8_t spread[2][16], close[16];
    int16_t down[2][8];
    for (int i = 0; i < 8; i++)
        for (int high = 0; high < 2; high++) {
            int bit = (8 * high + i) * bits;
            down[high][i] = (int16_t)-(bit % 8);
            spread[high][2 * i] = (uint8_t)(bit / 8);
            spread[high][2 * i + 1] = (uint8_t)(bit / 8 + 1);
        }
    for (int i = 0; i < 16; i++) /* an index beyond the register gives 0 */
        close[i] = (uint8_t)(i < 2 * bits ? i / bits * 8 + i % bits : 0xFF);
    plan.spread_low = vld1q_u8(spread[0]);
    plan.spread_high = vld1q_u8(spread[1]);
    plan.close = vld1q_u8(close);
    plan.down_low = vld1q_s16(down[0]);
    plan.down_high = vld1q_s16(down[1]);
    plan.mask = vdupq_n_u16((uint16_t)((1 << bits) - 1));
    plan.pairs = vdupq_n_s16((int16_t)(bits - 8));
    plan.fours = vdupq_n_s32(2 * bits - 16);
    plan.eights = vdupq_n_s64(4 * bits - 32);
    return plan;
}

static inline void unpack_block(const block_plan *plan, const uint8_t *from, uint8_t *codes)
{
    for (int i = 0; i < BLOCK; i += 16, from += 2 * plan->bits) {
        uint8x16_t bytes = vld1q_u8(from);
        uint16x8_t low = vreinterpretq_u16_u8(vqtbl1q_u8(bytes, plan->spread_low));
        uint16x8_t high = vreinterpretq_u16_u8(vqtbl1q_u8(bytes, plan->spread_high));
        low = vandq_u16(vshlq_u16(low, plan->down_low), plan->mask);
        high = vandq_u16(vshlq_u16(high, plan->down_high), plan->mask);
        vst1q_u8(codes + i, vcombine_u8(vmovn_u16(low), vmovn_u16(high)));
    }
}

static inline void pack_block(const block_plan *plan, const uint8_t *codes, uint8_t *to)
{
    /* the upper half of every word comes down next to its lower half: of 2 codes, then of 4, then of 8 */
    const uint16x8_t upper_byte = vdupq_n_u16(0xFF00);
    const uint32x4_t upper_half = vdupq_n_u32(0xFFFF0000u);
    const uint64x2_t upper_word = vdupq_n_u64(0xFFFFFFFF00000000u);
    for (int i = 0; i < BLOCK; i += 16, to += 2 * plan->bits) {
        uint16x8_t twos = vreinterpretq_u16_u8(vld1q_u8(codes + i));
        twos = vorrq_u16(vbicq_u16(twos, upper_byte), vshlq_u16(vandq_u16(twos, upper_byte), plan->pairs));
        uint32x4_t fours = vreinterpretq_u32_u16(twos);
        fours = vorrq_u32(vbicq_u32(fours, upper_half), vshlq_u32(vandq_u32(fours, upper_half), plan->fours));
        uint64x2_t eights = vreinterpretq_u64_u32(fours);
        eights = vorrq_u64(vbicq_u64(eights, upper_word), vshlq_u64(vandq_u64(eights, upper_word), plan->eights));
        /* in order: each ends in what is not its own */
        vst1q_u8(to, vqtbl1q_u8(vreinterpretq_u8_u64(eights), plan->close));
    }
}
