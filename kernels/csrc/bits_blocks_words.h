/* Blocks of codes in words of 64 bits: see bits_blocks.h. */
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
