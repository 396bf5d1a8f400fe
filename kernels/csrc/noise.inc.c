/* Counter-based noise: Philox4x32-10 (Salmon et al., SC'11), keyed as docs/spec/kernels.md says.
   A lane is 64 bits wide and holds one 32-bit word in its low half; the high half is left dirty. */

#define BLOCK 64 /* tokens whose maximum is kept together; a multiple of what one philox() covers */
#define ROUNDS 10
#define DOMAIN 0x534C4544u /* "SLED" */

typedef struct {
    uint64_t round_keys[2 * ROUNDS];
    uint32_t position_low, position_high;
} noise_key;

static noise_key make_noise_key(uint64_t seed, uint64_t position)
{
    noise_key key = {{0}, (uint32_t)position, (uint32_t)(position >> 32)};
    uint32_t low = (uint32_t)seed, high = (uint32_t)(seed >> 32);
    for (int r = 0; r < ROUNDS; r++) {
        key.round_keys[2 * r] = low;
        key.round_keys[2 * r + 1] = high;
        low += 0x9E3779B9u;
        high += 0xBB67AE85u;
    }
    return key;
}

/* The four output words of WIDE counters whose first words stand in c0. */
static inline void philox(const noise_key *key, vuint64 c0, vuint64 out[4])
{
    const vuint64 zero = {0};
    vuint64 c1 = zero + key->position_low, c2 = zero + key->position_high, c3 = zero + DOMAIN;
    for (int r = 0; r < ROUNDS; r++) {
        vuint64 p0 = multiply_low(c0, 0xD2511F53u), p1 = multiply_low(c2, 0xCD9E8D57u);
        c0 = (p1 >> 32) ^ c1 ^ key->round_keys[2 * r];
        c1 = p1;
        c2 = (p0 >> 32) ^ c3 ^ key->round_keys[2 * r + 1];
        c3 = p0;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

static inline void store_words(uint32_t *to, vuint64 lanes)
{
    vuint32_half words = __builtin_convertvector(lanes, vuint32_half);
    memcpy(to, &words, sizeof words);
}

static inline vuint64 lane_numbers(void)
{
    vuint64 lanes;
    for (int i = 0; i < WIDE; i++)
        lanes[i] = (uint64_t)i;
    return lanes;
}

/* Words of any `num_ids` tokens, one counter each. */
static void words_of_ids(const noise_key *key, const int32_t *ids, int64_t num_ids, uint32_t *words)
{
    uint32_t out_words[4][WIDE];
    for (int64_t i = 0; i < num_ids; i += WIDE) {
        int n = num_ids - i < WIDE ? (int)(num_ids - i) : WIDE;
        vuint64 counters = {0}, out[4];
        for (int j = 0; j < n; j++)
            counters[j] = (uint32_t)ids[i + j] >> 2;
        philox(key, counters, out);
        for (int w = 0; w < 4; w++)
            store_words(out_words[w], out[w]);
        for (int j = 0; j < n; j++)
            words[i + j] = out_words[ids[i + j] & 3][j];
    }
}

static inline double gumbel_of(uint32_t word)
{
    return -log(-log(((double)word + 0.5) * 0x1p-32));
}
