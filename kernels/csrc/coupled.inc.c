/* Choice by keyed noise: the argmax of logits / temperature + gumbel, without most of the noise. */

#define LARGEST_GUMBEL 22.875 /* -log(-log(1 - 2^-33)) = 22.8738..., rounded up */

/* A row being searched: the best choice so far. */
typedef struct {
    const row_view *row;
    const ek_batch *batch;
    const noise_key *key;
    uint64_t seed, position;
    double inverse_temperature;
    float floor; /* logits below it do not survive the filters */
    double best;
    int32_t best_id;
} search;

/* Lowest id whose logit is the largest of the row; lowest id at all if that is -inf. */
static int32_t lowest_id_at_top(const row_view *row, const int32_t *token_ids)
{
    int32_t lowest = INT32_MAX;
    float buffer[BLOCK];
    for (int64_t block = 0; block < row->num_blocks; block++) {
        if (row->maxima[block] != row->top)
            continue;
        const float *logits = block_at(row, block, buffer);
        for (int64_t i = block * BLOCK; i < row->vocab && i < (block + 1) * BLOCK; i++) {
            if (logits[i % BLOCK] != row->top && row->top != -INFINITY)
                continue;
            if (!token_ids)
                return (int32_t)i;
            lowest = token_ids[i] < lowest ? token_ids[i] : lowest;
        }
    }
    return lowest;
}

/* Lowest column with the largest logit of an unchanged row; its piece is still in the cache when it is searched. */
static int32_t greedy(const row_view *row)
{
    enum { piece = 32 };
    int64_t whole = row->vocab / BLOCK, best = 0;
    float top = -INFINITY, buffer[BLOCK];
    for (int64_t from = 0; from < whole; from += piece) {
        float most = largest(row, from, from + piece < whole ? from + piece : whole);
        best = most > top ? from : best;
        top = most > top ? most : top;
    }
    if (whole < row->num_blocks) {
        float most = largest_as(EK_FLOAT32, plain_block(row, whole, buffer), 0, 1);
        best = most > top ? whole : best;
        top = most > top ? most : top;
    }
    if (top == -INFINITY)
        return 0;
    for (int64_t block = best;; block++) {
        const float *logits = plain_block(row, block, buffer);
        for (int i = 0; i < BLOCK; i++)
            if (logits[i] == top)
                return (int32_t)(block * BLOCK) + i;
    }
}

/* Score one token exactly and keep it if it is the best, the lowest id among equals. */
static inline void consider(search *s, float logit, int64_t column, uint32_t word)
{
    if (!(logit >= s->floor))
        return;
    int32_t id = s->batch->token_ids ? s->batch->token_ids[column] : (int32_t)column;
    double score = (double)logit * s->inverse_temperature + gumbel_of(word);
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

static void words_for(const search *s, const int32_t *ids, int64_t num_ids, uint32_t *words)
{
    if (s->batch->words_of)
        s->batch->words_of(s->seed, s->position, ids, num_ids, words);
    else
        words_of_ids(s->key, ids, num_ids, words);
}

static void search_block(search *s, int64_t block, uint32_t least)
{
    enum { quads = 4 * WIDE }; /* tokens of one call of philox(): token t is in lane t / 4 of vector t % 4 */
    vuint64 out[2][4], counters = lane_numbers() + (uint64_t)(block * BLOCK / 4);
    float buffer[BLOCK];
    for (int first = 0; first < BLOCK; first += 2 * quads, counters += 2 * WIDE) {
        philox(s->key, counters, out[0]);
        philox(s->key, counters + WIDE, out[1]);
        if (!any_reaches(out[0], out[1], least))
            continue;
        const float *logits = block_at(s->row, block, buffer);
        for (int half = 0; half < 2; half++) {
            uint32_t words[4][WIDE];
            int64_t begin = first + half * quads, column = block * BLOCK + begin;
            for (int w = 0; w < 4; w++)
                store_words(words[w], out[half][w]);
            for (int t = 0; t < quads && column + t < s->row->vocab; t++)
                if (words[t & 3][t >> 2] >= least)
                    consider(s, logits[begin + t], column + t, words[t & 3][t >> 2]);
        }
    }
}

/* The same for columns with ids of their own, and for a noise of the caller's own. */
static void search_ids_of_block(search *s, int64_t block, uint32_t least)
{
    uint32_t words[BLOCK];
    int32_t columns[BLOCK];
    float buffer[BLOCK];
    const float *logits = block_at(s->row, block, buffer);
    int64_t first = block * BLOCK, n = s->row->vocab - first < BLOCK ? s->row->vocab - first : BLOCK;
    for (int64_t t = 0; t < n; t++)
        columns[t] = (int32_t)(first + t);
    words_for(s, s->batch->token_ids ? s->batch->token_ids + first : columns, n, words);
    for (int64_t t = 0; t < n; t++)
        if (words[t] >= least)
            consider(s, logits[t], first + t, words[t]);
}

static void search_blocks(search *s, int64_t from, int64_t to)
{
    int by_id = s->batch->token_ids || s->batch->words_of;
    for (int64_t block = from; block < to; block++) {
        float most = s->row->maxima[block];
        if (most == -INFINITY || most < s->floor)
            continue;
        int64_t least = least_word(s, most);
        if (least < 0)
            continue;
        if (by_id)
            search_ids_of_block(s, block, (uint32_t)least);
        else
            search_block(s, block, (uint32_t)least);
    }
}

static void keep_better(search *s, const search *other)
{
    if (other->best > s->best || (other->best == s->best && other->best_id < s->best_id)) {
        s->best = other->best;
        s->best_id = other->best_id;
    }
}

/* The id with the best score among the survivors of a row whose largest logit is finite. */
static int32_t choose_coupled(const row_view *row, const ek_batch *batch, const ek_rule *rule, uint64_t position,
                              float floor)
{
    noise_key key = make_noise_key(rule->seed, position, DOMAIN);
    search at = {row, batch, &key, rule->seed, position, 1 / rule->temperature, floor, -INFINITY, INT32_MAX};

    /* start with a most likely token, so that the best score is high at once */
    float buffer[BLOCK];
    int64_t block = 0, column = 0;
    while (row->maxima[block] != row->top)
        block++;
    const float *logits = block_at(row, block, buffer);
    while (logits[column] != row->top)
        column++;
    uint32_t word;
    int32_t id = (int32_t)(block * BLOCK + column);
    id = batch->token_ids ? batch->token_ids[id] : id;
    words_for(&at, &id, 1, &word);
    consider(&at, row->top, block * BLOCK + column, word);

    if (row->threads == 1) {
        search_blocks(&at, 0, row->num_blocks);
        return at.best_id;
    }
    const search begin = at;
#pragma omp parallel for num_threads(row->threads) schedule(static, 1)
    for (int t = 0; t < row->threads; t++) {
        int64_t from, to;
        search own = begin;
        part_of(row->num_blocks, t, row->threads, &from, &to);
        search_blocks(&own, from, to);
#pragma omp critical(ek_keep_better)
        keep_better(&at, &own);
    }
    return at.best_id;
}
