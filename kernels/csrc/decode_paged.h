/* A batch of tokens of many sequences, whose keys and values lie in pages: where each token stands, and how threads
   divide the attention, which is the same for all layers and so is planned once. */
#ifndef EDGEKERNELS_DECODE_PAGED_H
#define EDGEKERNELS_DECODE_PAGED_H

#include <math.h>

#include "attend_jobs.h"
#include "decode.h"

#define WORTH 20000 /* cost of attention from which on it is divided among threads, which are awake */

typedef struct {
    const ek_pages *pages;
    const ek_spans *spans;
    int64_t span;                               /* the first one of the batch */
    int64_t *page_starts, *token_starts, *past; /* of the batch's parts of spans */
    int64_t *positions;                         /* of its tokens */
    int64_t *places;                            /* and where their keys and values go in a layer, in head 0 */
    ek_paged what;
    crew crew;
    int64_t num_jobs;
    int64_t most_jobs;   /* for which there is room */
    int64_t most_floats; /* for which there is room in `memory` */
    void *memory;
} paging;

/* Elements of a page and of a layer. */
static int64_t page_floats(const paging *p)
{
    return p->what.kv_heads * p->pages->page_tokens * p->what.dim;
}

static int64_t layer_floats(const paging *p)
{
    return p->pages->pages * page_floats(p);
}

static void begin_paging(paging *p, const ek_kernels *kernels, const ek_model *m)
{
    p->what = (ek_paged){
        .page_table = p->spans->page_table,
        .page_starts = p->page_starts,
        .token_starts = p->token_starts,
        .past = p->past,
        .heads = m->heads,
        .kv_heads = m->kv_heads,
        .page_tokens = p->pages->page_tokens,
        .dim = m->head_dim,
        .scale = (float)(1 / sqrt((double)m->head_dim)),
    };
    p->what.key_stride = p->what.value_stride = page_floats(p);
    p->crew.level = kernels->attend;
    p->crew.what = &p->what;
}

static void end_paging(paging *p)
{
    free(p->crew.jobs);
    free(p->crew.pieces);
    free(p->memory);
}

/* Where the tokens from number `at` on stand. Batches come in order. */
static void lay_batch(paging *p, int64_t at, int64_t tokens)
{
    const ek_spans *all = p->spans;
    int64_t n = 0, slots = p->pages->page_tokens;
    while (all->token_starts[p->span + 1] <= at)
        p->span++;
    for (int64_t s = p->span; s < all->spans && all->token_starts[s] < at + tokens; s++) {
        int64_t from = all->token_starts[s] > at ? all->token_starts[s] - at : 0;
        int64_t to = all->token_starts[s + 1] < at + tokens ? all->token_starts[s + 1] - at : tokens;
        if (from == to)
            continue;
        const int32_t *table = all->page_table + all->page_starts[s];
        p->token_starts[n] = from;
        p->page_starts[n] = all->page_starts[s];
        p->past[n++] = all->past[s] + at + from - all->token_starts[s];
        for (int64_t t = from; t < to; t++) {
            p->positions[t] = p->past[n - 1] + t - from;
            p->places[t] = table[p->positions[t] / slots] * page_floats(p) + p->positions[t] % slots * p->what.dim;
        }
    }
    p->token_starts[n] = tokens;
    p->what.spans = n;
}

/* Divide the batch's attention among threads; 0, or -1 without memory. */
static int plan_batch(paging *p, int threads)
{
    crew *c = &p->crew;
    c->threads = threads;
    c->num_pieces = 0;
    p->num_jobs = make_jobs(&p->what, NULL);
    if (p->num_jobs > p->most_jobs) {
        free(c->jobs);
        free(c->pieces);
        c->jobs = malloc((size_t)p->num_jobs * sizeof *c->jobs);
        c->pieces = malloc((size_t)(p->num_jobs + SHARE * threads + 1) * sizeof *c->pieces);
        p->most_jobs = p->num_jobs;
        if (c->jobs == NULL || c->pieces == NULL)
            return -1;
    }
    make_jobs(&p->what, c->jobs);
    int64_t floats = plan_pieces(c, p->num_jobs, WORTH);
    if (floats > p->most_floats) {
        free(p->memory);
        p->most_floats = floats;
        if (posix_memalign(&p->memory, 64, (size_t)floats * sizeof(float))) {
            p->memory = NULL;
            return -1;
        }
    }
    give_memory(c, p->num_jobs, p->memory);
    return 0;
}

/* Before the attention of a layer: all of its pieces are to be taken. */
static void begin_layer(paging *p, int64_t layer, const float *query, float *mixed)
{
    p->what.query = query;
    p->what.out = mixed;
    p->what.keys = p->pages->keys + layer * layer_floats(p);
    p->what.values = p->pages->values + layer * layer_floats(p);
    atomic_store(&p->crew.next, 0);
    for (int64_t i = 0; i < p->num_jobs; i++)
        atomic_store(&p->crew.jobs[i].left, (int)p->crew.jobs[i].pieces);
}

static void store_paged(const paging *p, int64_t layer, int64_t head, int64_t token, const float *key,
                        const float *value)
{
    int64_t at = layer * layer_floats(p) + p->places[token] + head * p->what.page_tokens * p->what.dim;
    memcpy(p->pages->keys + at, key, (size_t)p->what.dim * sizeof *key);
    memcpy(p->pages->values + at, value, (size_t)p->what.dim * sizeof *value);
}

#endif
