/* The jobs of one run of paged attention and how threads divide them: the longest first, the very longest in pieces. */
#ifndef EDGEKERNELS_ATTEND_JOBS_H
#define EDGEKERNELS_ATTEND_JOBS_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "attend.h"

#define SHARE 4 /* parts of a thread at least, so that none waits long for the last one */

/* Rows which go through their positions together, and where their answer is put together if several threads do it. */
typedef struct {
    ek_part all;
    int64_t cost;
    int64_t pieces;
    atomic_int left;
} job;

typedef struct {
    int64_t job;
    int64_t piece;
    int64_t cost;
} piece;

typedef struct {
    const ek_attend *level;
    const ek_paged *what;
    job *jobs;
    piece *pieces;
    int64_t num_pieces;
    float *scratch;
    int64_t scratch_floats;
    int threads;
    atomic_llong next;
    atomic_int arrived;
} crew;

/* Positions which the rows of a part see together: from the first one of the first row to the last one of the last. */
static void range_of(const ek_paged *what, const ek_part *part, int64_t *from, int64_t *to)
{
    int64_t group = what->heads / what->kv_heads, past = what->past[part->span];
    *to = past + (part->first + part->rows - 1) / group + 1;
    *from = what->window ? past + part->first / group + 1 - what->window : 0;
    if (*from < 0)
        *from = 0;
}

/* All jobs in order; with `jobs` NULL only their number. */
static int64_t make_jobs(const ek_paged *what, job *jobs)
{
    int64_t group = what->heads / what->kv_heads, n = 0;
    for (int64_t s = 0; s < what->spans; s++) {
        int64_t rows = (what->token_starts[s + 1] - what->token_starts[s]) * group;
        int64_t blocks = (rows + EK_ROWS - 1) / EK_ROWS;
        for (int64_t head = 0; head < what->kv_heads; head++)
            for (int64_t i = 0; i < blocks; i++, n++) {
                if (jobs == NULL)
                    continue;
                job *j = &jobs[n];
                memset(j, 0, sizeof *j);
                int64_t first = i * EK_ROWS, last = first + EK_ROWS < rows ? first + EK_ROWS : rows, from, to;
                j->all.span = s, j->all.head = head, j->all.first = first, j->all.rows = last - first;
                range_of(what, &j->all, &from, &to);
                j->all.segment = from / EK_SEGMENT;
                j->all.segments = (to + EK_SEGMENT - 1) / EK_SEGMENT - j->all.segment;
                j->cost = (to - from) * (last - first + 8) * (what->dim + 16) / 16;
                j->pieces = 1;
            }
    }
    return n;
}

/* The part which a piece is. */
static ek_part part_of(const crew *c, const piece *p)
{
    const job *j = &c->jobs[p->job];
    ek_part part = j->all;
    if (j->pieces > 1) {
        int64_t first = part.segments * p->piece / j->pieces, last = part.segments * (p->piece + 1) / j->pieces;
        part.states += first * c->level->state_floats(c->what, part.rows);
        part.segment += first;
        part.segments = last - first;
    }
    return part;
}

/* Take pieces as thread number `own` until there are none. */
static void take_pieces(crew *c, int own)
{
    if (own >= c->threads)
        return;
    float *scratch = c->scratch + own * c->scratch_floats;
    for (;;) {
        int64_t n = atomic_fetch_add(&c->next, 1), next = n + c->threads; /* as it is if all are equally fast */
        if (n >= c->num_pieces)
            return;
        ek_part part = part_of(c, &c->pieces[n]), after;
        if (next < c->num_pieces)
            after = part_of(c, &c->pieces[next]);
        c->level->attend(c->what, &part, next < c->num_pieces ? &after : NULL, scratch);
        job *j = &c->jobs[c->pieces[n].job];
        if (j->pieces > 1 && atomic_fetch_sub(&j->left, 1) == 1)
            c->level->join(c->what, &j->all, scratch);
    }
}

static int dearer_first(const void *a, const void *b)
{
    int64_t x = ((const piece *)a)->cost, y = ((const piece *)b)->cost;
    return (x < y) - (x > y);
}

/* Cut the longest jobs into pieces if there is not enough to do for all; floats of their states. */
static int64_t make_pieces(crew *c, int64_t num_jobs, int64_t most)
{
    int64_t states = 0;
    for (int64_t i = 0; i < num_jobs; i++) {
        job *j = &c->jobs[i];
        if (c->threads > 1 && j->cost > most) {
            j->pieces = (j->cost + most - 1) / most;
            if (j->pieces > j->all.segments)
                j->pieces = j->all.segments;
        }
        atomic_init(&j->left, (int)j->pieces);
        for (int64_t p = 0; p < j->pieces; p++) {
            piece made = {i, p, j->cost / j->pieces};
            c->pieces[c->num_pieces++] = made;
        }
        if (j->pieces > 1)
            states += j->all.segments * c->level->state_floats(c->what, j->all.rows);
    }
    return states;
}

/* Divide the jobs among at most c->threads threads, of which a second one is worth it from a cost on; the floats of
   scratch memory and states which they need. */
static int64_t plan_pieces(crew *c, int64_t num_jobs, int64_t worth)
{
    int64_t total = 0;
    for (int64_t i = 0; i < num_jobs; i++)
        total += c->jobs[i].cost;
    if (total < worth)
        c->threads = 1;
    int64_t states = make_pieces(c, num_jobs, total / (SHARE * c->threads) + 1);
    if (c->num_pieces < c->threads)
        c->threads = (int)c->num_pieces;
    if (c->threads > 1)
        qsort(c->pieces, (size_t)c->num_pieces, sizeof *c->pieces, dearer_first);
    c->scratch_floats = c->level->scratch_floats(c->what);
    return c->scratch_floats * c->threads + states;
}

/* Divide such memory among scratch and states. */
static void give_memory(crew *c, int64_t num_jobs, float *memory)
{
    c->scratch = memory;
    float *at = c->scratch + c->scratch_floats * c->threads;
    for (int64_t i = 0; i < num_jobs; i++)
        if (c->jobs[i].pieces > 1) {
            c->jobs[i].all.states = at;
            at += c->jobs[i].all.segments * c->level->state_floats(c->what, c->jobs[i].all.rows);
        }
}

#endif
