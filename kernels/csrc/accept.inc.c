/* Acceptance of one sequence, compiled once per instruction set level with EK_LEVEL as the suffix.
   Specification: docs/spec/kernels.md and edgekernels/_reference.py. */
#include <float.h>
#include <stdlib.h>

#include "accept.h"
#include "vectors.h"

#include "noise.inc.c"

#include "rows.inc.c"

#include "changes.inc.c"

#include "filter.inc.c"

#include "masses.inc.c"

#include "coupled.inc.c"

#include "rejection.inc.c"

#define WORTH_A_THREAD 16384 /* columns */
#define LEAST_ESTIMATED_SCALE 1e-6
#define MOST_ESTIMATED_SCALE 1e6

/* Everything one sequence needs while its rows are read. */
typedef struct {
    row_view row;
    changes changes;
    row_masses masses;
    float *values; /* scratch of the filters */
    int filtered, rejects;
    double least, most; /* bounds of the mass of the row; 0 if there are none */
} worker;

static int reserve(worker *w, const ek_batch *batch, int64_t b, int64_t num_drafts, int threads)
{
    const ek_rule *rule = &batch->rules[b];
    int64_t num_blocks = (batch->vocab + BLOCK - 1) / BLOCK;
    size_t blocks = (size_t)num_blocks;
    *w = (worker){.row = {.vocab = batch->vocab, .num_blocks = num_blocks, .dtype = batch->dtype}};
    w->row.threads = batch->vocab < 2 * WORTH_A_THREAD ? 1 : threads;
    w->filtered = rule->temperature > 0 && (rule->top_k > 0 || rule->top_p < 1);
    w->rejects = batch->kind == EK_REJECTION && rule->temperature > 0;
    w->row.maxima = malloc(blocks * 3 * sizeof *w->row.maxima);
    w->values = w->filtered ? malloc((blocks + 1) * BLOCK * sizeof *w->values) : NULL;
    w->masses.sums = w->rejects || w->filtered ? malloc(blocks * sizeof *w->masses.sums) : NULL;
    if (!w->row.maxima || (w->filtered && !w->values) || ((w->rejects || w->filtered) && !w->masses.sums))
        return 0;
    w->masses.estimates = w->row.maxima + blocks;
    w->masses.references = w->masses.estimates + blocks;
    if (has_changes(batch, b)) {
        w->row.changes = &w->changes;
        return prepare_changes(batch, b, num_drafts, &w->changes);
    }
    return 1;
}

static void release(worker *w)
{
    free(w->row.maxima);
    free(w->values);
    free(w->masses.sums);
    free(w->changes.place);
    free(w->changes.blocks);
}

/* Read a row; afterwards its largest logit, the floor of its filters and perhaps bounds of its mass are known.
   Returns whether there is a choice at all: not if it is greedy, or the largest logit is infinite. */
static int read_row(worker *w, const ek_rule *rule)
{
    double inverse = 1 / rule->temperature, scale = inverse * 1.4426950408889634;
    int open = rule->top_k == 0 || rule->top_k >= w->row.vocab; /* the mass of the whole row matters */
    int bounded = rule->temperature > 0 && open && (rule->top_p < 1 || w->rejects) &&
                  scale >= LEAST_ESTIMATED_SCALE && scale <= MOST_ESTIMATED_SCALE;
    w->least = w->most = 0;
    w->masses.scale = scale;
    if (w->row.changes)
        change_row(&w->row, rule, &w->changes);
    int64_t scanned = 0;
    if (bounded)
        scanned = scan_with_estimates(&w->row, &w->masses);
    else
        scan(&w->row, 0);
    if (rule->temperature == 0 || isinf(w->row.top))
        return 0;
    w->masses.floor = -INFINITY;
    if (bounded)
        bound_total(&w->row, &w->masses, scanned, &w->least, &w->most);
    if (w->filtered) {
        double least = w->least * 0x1p-10 * (1 - 1e-5) - (double)w->row.vocab; /* masses of top-p are truncated */
        double most = w->most * 0x1p-10 * (1 + 1e-5);
        float floor = top_k_floor(&w->row, rule->top_k, w->values);
        if (rule->top_p < 1)
            floor = top_p_floor(&w->row, floor, (float)scale, rule->top_p, least, most, w->values);
        w->masses.floor = floor;
    }
    float least_likely = (float)((double)w->row.top + rule->temperature * rule->log_min_p);
    if (w->masses.floor < least_likely)
        w->masses.floor = least_likely;
    if (w->masses.floor > -INFINITY)
        w->least = w->most = 0;
    return 1;
}

/* One row of the rejection rule: whether its draft passes, else the token instead of it. */
static int reject_row(worker *w, const law *q, uint64_t seed, uint64_t position, int32_t *token)
{
    int exact = 0;
    if (q->draft >= 0) {
        if (passes(&w->row, &w->masses, q, uniform(seed, position, 0), w->least, w->most, &exact))
            return 1;
    } else if (w->least > 0) {
        *token = emit_from_bounds(&w->row, &w->masses, w->least, w->most, uniform(seed, position, 1));
        if (*token >= 0)
            return 0;
    }
    if (!exact)
        weigh_row(&w->row, &w->masses);
    *token = emit(&w->row, &w->masses, q, uniform(seed, position, 1));
    return 0;
}

static int32_t decide(const ek_batch *batch, int64_t b, int threads, int32_t *next_token)
{
    const ek_rule *rule = &batch->rules[b];
    int64_t start = batch->row_starts ? batch->row_starts[b] : b;
    int64_t num_rows = batch->row_starts ? batch->row_starts[b + 1] - start : 1;
    size_t row_bytes = (size_t)batch->vocab * (batch->dtype == EK_FLOAT32 ? 4 : 2);
    worker w;
    int64_t accepted = -1;
    if (reserve(&w, batch, b, num_rows - 1, threads)) {
        for (accepted = 0; accepted < num_rows; accepted++) {
            uint64_t position = rule->position + (uint64_t)accepted;
            int last = accepted == num_rows - 1, passed;
            law q = {batch, last ? -1 : start - b + accepted, last ? -1 : batch->drafts[start - b + accepted]};
            const char *logits = (const char *)batch->logits + (size_t)(start + accepted) * row_bytes;
            int plain = rule->temperature == 0 && !w.row.changes && !batch->token_ids && w.row.threads == 1;
            int random = 0;
            w.row.logits = logits;
            if (plain)
                *next_token = greedy(&w.row);
            else
                random = read_row(&w, rule);
            if (random && w.rejects) {
                passed = reject_row(&w, &q, rule->seed, position, next_token);
            } else {
                if (random)
                    *next_token = choose_coupled(&w.row, batch, rule, position, w.masses.floor);
                else if (!plain)
                    *next_token = lowest_id_at_top(&w.row, batch->token_ids);
                passed = !last && *next_token == q.token;
            }
            if (!passed)
                break;
            if (w.row.changes)
                see(&w.changes, q.token, 1);
        }
    }
    release(&w);
    return (int32_t)accepted;
}

static void noise(uint64_t seed, uint64_t position, const int32_t *ids, int64_t num_ids, uint32_t *words)
{
    noise_key key = make_noise_key(seed, position, DOMAIN);
    words_of_ids(&key, ids, num_ids, words);
}

#define EK_PASTE(a, b) a##b
#define EK_NAME(a, b) EK_PASTE(a, b)
#define EK_QUOTE(a) #a
#define EK_STRING(a) EK_QUOTE(a)
const ek_level EK_NAME(ek_level_, EK_LEVEL) = {EK_STRING(EK_LEVEL), decide, noise};
