/* How a call is cut into batches, and which of a batch's tokens have logits. */
#ifndef EDGEKERNELS_DECODE_BATCH_H
#define EDGEKERNELS_DECODE_BATCH_H

#include "decode_workspace.h"

/* What is to be computed: `count` tokens, and logits of some of them. */
typedef struct {
    const float *embedded;
    int64_t count, num_logits;
    float *logits;
    int64_t past;
} call;

/* The batch from token `at` on. */
static void begin_batch(pass *p, const call *what, int64_t at)
{
    p->at = at;
    p->past = what->past + at;
    p->tokens = what->count - at < p->room ? what->count - at : p->room;
    p->first = at == 0 ? 0 : p->first + p->wanted;
    if (p->paging == NULL) {
        int64_t skipped = what->count - what->num_logits - at;
        skipped = skipped < 0 ? 0 : skipped;
        p->wanted = p->tokens > skipped ? p->tokens - skipped : 0;
        return;
    }
    for (p->wanted = 0; p->first + p->wanted < what->num_logits; p->wanted++)
        if (p->paging->spans->rows[p->first + p->wanted] >= at + p->tokens)
            break;
    lay_batch(p->paging, at, p->tokens);
    p->failed = plan_batch(p->paging, (int)p->team->size);
}

/* Wanted token i of the batch. */
static int64_t wanted_token(const pass *p, int64_t i)
{
    return p->paging ? p->paging->spans->rows[p->first + i] - p->at : p->tokens - p->wanted + i;
}

#endif
