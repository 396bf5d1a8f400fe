/* Greedy and coupled acceptance, compiled once per instruction set level with EK_LEVEL as the suffix.
   Specification: docs/spec/kernels.md and edgekernels/_reference.py. */
#include <float.h>
#include <stdlib.h>

#include "accept.h"
#include "vectors.h"

#include "noise.inc.c"

#include "filter.inc.c"

#define LARGEST_GUMBEL 22.875 /* -log(-log(1 - 2^-33)) = 22.8738..., rounded up */

typedef struct {
    float *maxima;    /* one per block of the row */
    float *values;    /* vocab floats, with filters only */
    int32_t *masses;  /* vocab masses, with filters only */
} scratch;

/* A row being searched: the best choice so far. */
typedef struct {
    const float *row;
    int64_t vocab;
    const int32_t *token_ids;
    double inverse_temperature;
    float floor; /* logits below it do not survive the filters */
    double best;
    int32_t best_id;
} search;

static int reserve(scratch *s, int64_t vocab, const ek_rule *rule)
{
    int64_t blocks = (vocab + BLOCK - 1) / BLOCK;
    int filtered = rule->temperature > 0 && (rule->top_k > 0 || rule->top_p < 1);
    s->maxima = malloc((size_t)blocks * sizeof *s->maxima);
    s->values = filtered ? malloc((size_t)vocab * sizeof *s->values) : NULL;
    s->masses = filtered ? malloc((size_t)vocab * sizeof *s->masses) : NULL;
    return s->maxima && (!filtered || (s->values && s->masses));
}

static void release(scratch *s)
{
    free(s->maxima);
    free(s->values);
    free(s->masses);
}

/* Maximum of each block and, returned, of the row; NaN counts as -inf. */
static float block_maxima(const float *row, int64_t vocab, float *maxima)
{
    const vfloat lowest = (vfloat){0} - INFINITY;
    vfloat most = lowest;
    int64_t first = 0;
    for (; first + BLOCK <= vocab; first += BLOCK) {
        vfloat a = lowest, b = lowest;
        for (int i = 0; i < BLOCK; i += 2 * FLOATS) {
            a = max_floats(load_floats(row + first + i), a);
            b = max_floats(load_floats(row + first + i + FLOATS), b);
        }
        a = max_floats(a, b);
        most = max_floats(a, most);
        maxima[first / BLOCK] = max_lane(a);
    }
    float top = max_lane(most);
    if (first < vocab) {
        float last = -INFINITY;
        for (int64_t i = first; i < vocab; i++)
            last = row[i] > last ? row[i] : last;
        maxima[first / BLOCK] = last;
        top = last > top ? last : top;
    }
    return top;
}

/* Lowest id whose logit is `top`, the maximum of the row; lowest id at all if that is -inf. */
static int32_t lowest_id_at(const float *row, int64_t vocab, const float *maxima, float top,
                            const int32_t *token_ids)
{
    int32_t lowest = INT32_MAX;
    for (int64_t first = 0; first < vocab; first += BLOCK) {
        if (maxima[first / BLOCK] != top)
            continue;
        int64_t end = vocab - first < BLOCK ? vocab : first + BLOCK;
        for (int64_t i = first; i < end; i++) {
            if (row[i] != top && top != -INFINITY)
                continue;
            if (!token_ids)
                return (int32_t)i;
            lowest = token_ids[i] < lowest ? token_ids[i] : lowest;
        }
    }
    return lowest;
}

/* Score one token exactly and keep it if it is the best, the lowest id among equals. */
static inline void consider(search *s, int64_t column, uint32_t word)
{
    if (!(s->row[column] >= s->floor))
        return;
    int32_t id = s->token_ids ? s->token_ids[column] : (int32_t)column;
    double score = (double)s->row[column] * s->inverse_temperature + gumbel_of(word);
    if (score > s->best || (score == s->best && id < s->best_id)) {
        s->best = score;
        s->best_id = id;
    }
}

/* Smallest word with which a logit of `most` might still reach the best score, or -1 if none can. The slack
   covers the rounding of the two sums, which matters for huge logits only. */
static inline int64_t least_word(const search *s, float most)
{
    double score = (double)most * s->inverse_temperature;
    double needed = s->best - score - (1e-9 + 4 * DBL_EPSILON * (fabs(s->best) + fabs(score)));
    if (needed > LARGEST_GUMBEL)
        return -1;
    if (needed < EK_FLOOR_FROM)
        return 0;
    return ek_word_floor[(int)((needed - EK_FLOOR_FROM) * (1 / EK_FLOOR_STEP))];
}

static void search_block(search *s, const noise_key *key, int64_t first, uint32_t least)
{
    const int quads = 4 * WIDE; /* tokens of one call of philox(): token t is in lane t / 4 of vector t % 4 */
    vuint64 out[4], counters = lane_numbers() + (uint64_t)(first >> 2);
    int64_t end = s->vocab - first < BLOCK ? s->vocab : first + BLOCK;
    for (; first < end; first += quads, counters += WIDE) {
        philox(key, counters, out);
        if (!any_reaches(out, least))
            continue;
        uint32_t words[4][WIDE];
        for (int w = 0; w < 4; w++)
            store_words(words[w], out[w]);
        for (int t = 0; t < quads && first + t < end; t++)
            if (words[t & 3][t >> 2] >= least)
                consider(s, first + t, words[t & 3][t >> 2]);
    }
}

static void search_mapped_block(search *s, const noise_key *key, int64_t first, uint32_t least)
{
    uint32_t words[BLOCK];
    int n = s->vocab - first < BLOCK ? (int)(s->vocab - first) : BLOCK;
    words_of_ids(key, s->token_ids + first, n, words);
    for (int t = 0; t < n; t++)
        if (words[t] >= least)
            consider(s, first + t, words[t]);
}

static float survivors_floor(const float *row, int64_t vocab, const ek_rule *rule, float top, scratch *s)
{
    float scale = (float)((1 / rule->temperature) * 1.4426950408889634);
    float floor = top_k_floor(row, vocab, s->maxima, top, rule->top_k, s->values);
    if (rule->top_p < 1)
        floor = top_p_floor(row, vocab, s->maxima, floor, top, scale, rule->top_p, s->values, s->masses);
    return floor;
}

static int32_t choose_in(const float *row, int64_t vocab, const ek_rule *rule, uint64_t position,
                         const int32_t *token_ids, scratch *s)
{
    float top = block_maxima(row, vocab, s->maxima);
    if (rule->temperature == 0 || isinf(top))
        return lowest_id_at(row, vocab, s->maxima, top, token_ids);
    search at = {row, vocab, token_ids, 1 / rule->temperature, -INFINITY, -INFINITY, INT32_MAX};
    if (s->values)
        at.floor = survivors_floor(row, vocab, rule, top, s);
    noise_key key = make_noise_key(rule->seed, position);

    /* start with a most likely token, so that the best score is high at once */
    int64_t start = 0;
    while (s->maxima[start / BLOCK] != top)
        start += BLOCK;
    while (row[start] != top)
        start++;
    uint32_t word;
    int32_t start_id = token_ids ? token_ids[start] : (int32_t)start;
    words_of_ids(&key, &start_id, 1, &word);
    consider(&at, start, word);

    for (int64_t first = 0; first < vocab; first += BLOCK) {
        float most = s->maxima[first / BLOCK];
        if (most == -INFINITY || most < at.floor)
            continue;
        int64_t least = least_word(&at, most);
        if (least < 0)
            continue;
        if (token_ids)
            search_mapped_block(&at, &key, first, (uint32_t)least);
        else
            search_block(&at, &key, first, (uint32_t)least);
    }
    return at.best_id;
}

static int32_t choose(const float *row, int64_t vocab, const ek_rule *rule, uint64_t position,
                      const int32_t *token_ids)
{
    scratch s;
    int32_t id = -1;
    if (reserve(&s, vocab, rule))
        id = choose_in(row, vocab, rule, position, token_ids, &s);
    release(&s);
    return id;
}

static int32_t accept_drafts(const float *rows, int64_t num_rows, int64_t vocab, const int32_t *drafts,
                             const ek_rule *rule, uint64_t position, int32_t *next_token)
{
    scratch s;
    int64_t accepted = -1;
    if (reserve(&s, vocab, rule)) {
        for (accepted = 0; accepted < num_rows; accepted++) {
            *next_token = choose_in(rows + accepted * vocab, vocab, rule, position + (uint64_t)accepted, NULL, &s);
            if (accepted == num_rows - 1 || *next_token != drafts[accepted])
                break;
        }
    }
    release(&s);
    return (int32_t)accepted;
}

static void noise(uint64_t seed, uint64_t position, const int32_t *ids, int64_t num_ids, uint32_t *words)
{
    noise_key key = make_noise_key(seed, position);
    words_of_ids(&key, ids, num_ids, words);
}

#define EK_PASTE(a, b) a##b
#define EK_NAME(a, b) EK_PASTE(a, b)
#define EK_QUOTE(a) #a
#define EK_STRING(a) EK_QUOTE(a)
const ek_level EK_NAME(ek_level_, EK_LEVEL) = {EK_STRING(EK_LEVEL), accept_drafts, choose, noise};
