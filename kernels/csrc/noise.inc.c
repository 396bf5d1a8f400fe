/* Counter-based noise: Philox4x32-10 (Salmon et al., SC'11), keyed as docs/spec/kernels.md says.
   A lane is 64 bits wide and holds one 32-bit word in its low half; the high half is left dirty. */

#define ROUNDS 10
#define DOMAIN 0x534C4544u    /* "SLED": noise of tokens */
#define REJECTION 0x524A4354u /* "RJCT": numbers of the rejection rule */
#define MULTIPLIER_0 0xD2511F53u
#define MULTIPLIER_1 0xCD9E8D57u

/* Only counter word 0 differs between the tokens of a position, so half of the first two rounds is the same for all. */
typedef struct {
    vuint64 round_keys[2 * ROUNDS]; /* from the third round on */
    vuint64 second_2, third_0, third_2, third_3;
} noise_key;

static noise_key make_noise_key(uint64_t seed, uint64_t position, uint32_t domain)
{
    const vuint64 zero = {0};
    noise_key key;
    uint32_t low = (uint32_t)seed, high = (uint32_t)(seed >> 32), lows[2], highs[2];
    for (int r = 0; r < ROUNDS; r++) {
        if (r < 2) {
            lows[r] = low;
            highs[r] = high;
        }
        key.round_keys[2 * r] = zero + low;
        key.round_keys[2 * r + 1] = zero + high;
        low += 0x9E3779B9u;
        high += 0xBB67AE85u;
    }
    uint64_t p1 = (uint64_t)MULTIPLIER_1 * (uint32_t)(position >> 32);
    uint64_t p0 = (uint64_t)MULTIPLIER_0 * ((uint32_t)(p1 >> 32) ^ (uint32_t)position ^ lows[0]);
    key.second_2 = zero + (domain ^ highs[0]);
    key.third_0 = zero + ((uint32_t)p1 ^ lows[1]);
    key.third_2 = zero + ((uint32_t)(p0 >> 32) ^ highs[1]);
    key.third_3 = zero + (uint32_t)p0;
    return key;
}

/* The four output words of WIDE counters whose first words stand in c0. */
static inline void philox(const noise_key *key, vuint64 c0, vuint64 out[4])
{
    vuint64 p0 = multiply_low(c0, MULTIPLIER_0);
    vuint64 p1 = multiply_low((p0 >> 32) ^ key->second_2, MULTIPLIER_1);
    c0 = (p1 >> 32) ^ key->third_0;
    vuint64 c1 = p1, c2 = p0 ^ key->third_2, c3 = key->third_3;
    for (int r = 2; r < ROUNDS; r++) {
        p0 = multiply_low(c0, MULTIPLIER_0), p1 = multiply_low(c2, MULTIPLIER_1);
        c0 = xor_three(p1 >> 32, c1, key->round_keys[2 * r]);
        c1 = p1;
        c2 = xor_three(p0 >> 32, c3, key->round_keys[2 * r + 1]);
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

/* A number in [0, 1) of 53 bits: stream 0 is that of the acceptance test, 1 that of the token after it. */
static double uniform(uint64_t seed, uint64_t position, uint32_t stream)
{
    noise_key key = make_noise_key(seed, position, REJECTION);
    int32_t ids[2] = {(int32_t)(stream * 4), (int32_t)(stream * 4 + 1)};
    uint32_t words[2];
    words_of_ids(&key, ids, 2, words);
    return (double)(((uint64_t)words[0] << 32 | words[1]) >> 11) * 0x1p-53;
}

static inline double gumbel_of(uint32_t word)
{
    return -log(-log(((double)word + 0.5) * 0x1p-32));
}
