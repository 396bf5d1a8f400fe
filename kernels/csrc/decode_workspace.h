/* Where intermediate results of a forward pass lie: one piece of memory, divided among the batch and its threads. */
#ifndef EDGEKERNELS_DECODE_WORKSPACE_H
#define EDGEKERNELS_DECODE_WORKSPACE_H

#include <stddef.h>

#include "decode.h"
#include "decode_paged.h"
#include "decode_team.h"

#define BATCH 16       /* tokens of a sequence taken through all layers together */
#define PAGED_BATCH 64 /* the same of many sequences */
#define SLOTS 3  /* matrices with different groups that may share an input */

/* What goes into matrices: floats, and for every group size among them codes or sums. */
typedef struct {
    float *x; /* (tokens, columns) */
    int num_slots;
    int32_t group[SLOTS];
    ek_tokens tokens[SLOTS];
} input;

/* Working memory which all threads share, or one for each of them. */
typedef struct {
    float *x;      /* the stream through the layers */
    float *normed; /* input of a matrix, where it is not one of the following */
    int8_t *codes[SLOTS];
    float *scale[SLOTS], *sum[SLOTS];
} buffers;

typedef struct {
    const ek_kernels *kernels;
    const ek_model *model;
    const ek_cache *cache; /* of one sequence, */
    paging *paging;        /* or the pages of many */
    ek_team *team;
    buffers common;
    float *query, *key, *value, *mixed, *y, *gate, *up, *cosine, *sine;
    int64_t room;           /* tokens which a batch may have */
    int64_t at, tokens;     /* of this batch: its first one in the call, how many */
    int64_t past;           /* positions before it, in the cache of one sequence */
    int64_t first, wanted;  /* its tokens with logits: the last ones, or `wanted` rows from number `first` on */
    int failed;             /* no memory */
} pass;

/* One thread's view of it. */
typedef struct {
    const pass *all;
    buffers own;
    float *scores, *sums;
    int number, size;
} member;

/* Where the next piece of the working memory begins; without `start` it only counts. */
typedef struct {
    char *start;
    int64_t used;
} memory;

static void *carve(memory *from, int64_t bytes)
{
    void *taken = from->start ? from->start + from->used : NULL;
    from->used += (bytes + 63) / 64 * 64;
    return taken;
}

static float *carve_floats(memory *from, int64_t count)
{
    return carve(from, count * (int64_t)sizeof(float));
}

static int64_t widest(const ek_model *m)
{
    int64_t most = m->hidden, heads = m->heads * m->head_dim;
    most = heads > most ? heads : most;
    return m->ffn > most ? m->ffn : most;
}

static void carve_buffers(const ek_model *m, int64_t tokens, memory *from, buffers *b)
{
    int64_t columns = widest(m), groups = (columns + 15) / 16;
    b->x = carve_floats(from, tokens * m->hidden);
    b->normed = carve_floats(from, tokens * m->hidden);
    for (int s = 0; s < SLOTS; s++) {
        b->codes[s] = carve(from, tokens * columns);
        b->scale[s] = carve_floats(from, tokens * groups);
        b->sum[s] = carve_floats(from, tokens * groups);
    }
}

static void carve_pass(const ek_model *m, memory *from, pass *p)
{
    carve_buffers(m, p->room, from, &p->common);
    p->query = carve_floats(from, p->room * m->heads * m->head_dim);
    p->mixed = carve_floats(from, p->room * m->heads * m->head_dim);
    p->key = carve_floats(from, p->room * m->kv_heads * m->head_dim);
    p->value = carve_floats(from, p->room * m->kv_heads * m->head_dim);
    p->y = carve_floats(from, p->room * m->hidden);
    p->gate = carve_floats(from, p->room * m->ffn);
    p->up = carve_floats(from, p->room * m->ffn);
    p->cosine = carve_floats(from, p->room * m->turning);
    p->sine = carve_floats(from, p->room * m->turning);
}

static void carve_paging(int64_t room, memory *from, paging *p)
{
    int64_t **const arrays[] = {&p->page_starts, &p->token_starts, &p->past, &p->positions, &p->places};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        *arrays[i] = carve(from, (room + 1) * (int64_t)sizeof(int64_t));
}

static void carve_member(const ek_model *m, const ek_cache *cache, memory *from, member *own)
{
    carve_buffers(m, 1, from, &own->own);
    own->scores = cache ? carve_floats(from, EK_QUERIES * cache->capacity) : NULL;
    own->sums = cache ? carve_floats(from, EK_QUERIES * cache->padded_dim) : NULL;
}

#endif
