/* Decides many random batches with the base kernels and prints a hash of all answers, which must be the same on every
   architecture. Built and run by test_portable.py. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "accept.h"

static uint64_t state = 88172645463325252u;

static uint32_t number(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 11);
}

static float between(float low, float high)
{
    return low + (float)(number() % 1000001) / 1e6f * (high - low);
}

/* Logits of one of three dtypes, some of them special, and q. */
static void fill(int64_t n, int64_t vocab, int dtype, float *logits, uint16_t *narrow, float *q)
{
    const float scale[] = {0, 0.01f, 3, 30}, special[] = {INFINITY, -INFINITY, NAN};
    float by = scale[number() % 4];
    int spoilt = number() % 7 == 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        logits[i] = between(-by, by) + (number() % 97 == 0 ? 8 : 0);
        if (spoilt && number() % 50 == 0)
            logits[i] = special[number() % 3];
        memcpy(&bits, logits + i, sizeof bits);
        narrow[i] = (uint16_t)(dtype == EK_BFLOAT16 ? bits >> 16 : number() & (number() % 50 ? 0xBFFF : 0xFFFF));
        q[i] = between(0, 2) / (float)vocab;
    }
}

int main(void)
{
    const int vocabs[] = {1, 5, 63, 64, 65, 200, 1000, 5000, 40000};
    const double temperatures[] = {0, 0.3, 1, 50}, top_ps[] = {1, 0.9, 0.5};
    const int64_t top_ks[] = {0, 3, 50};
    uint64_t hash = 14695981039346656037u;
    ek_prepare();
    for (int round = 0; round < 700; round++) {
        int64_t vocab = vocabs[number() % 9], rows = 1 + number() % 4, size = vocab * rows;
        int dtype = (int)(number() % 3);
        float *logits = malloc((size_t)size * 4), *q = malloc((size_t)size * 4);
        uint16_t *narrow = malloc((size_t)size * 2);
        int32_t drafts[4], history[4], next_token;
        fill(size, vocab, dtype, logits, narrow, q);
        for (int i = 0; i < 4; i++) {
            drafts[i] = (int32_t)(number() % vocab);
            history[i] = (int32_t)(number() % vocab);
        }
        ek_rule rule = {.temperature = temperatures[number() % 4], .top_p = top_ps[number() % 3]};
        rule.log_min_p = number() % 2 ? -INFINITY : -3;
        rule.top_k = top_ks[number() % 3];
        rule.seed = number();
        rule.position = number();
        rule.repetition = number() % 2 ? 1 : 1.3f;
        rule.frequency = 0.1f * (float)(number() % 2);
        rule.presence = 0.5f * (float)(number() % 2);
        const int64_t row_starts[] = {0, rows}, history_starts[] = {0, 4}, num_prompt = 1;
        ek_batch batch = {.logits = dtype == EK_FLOAT32 ? (const void *)logits : narrow, .vocab = vocab, .dtype = dtype};
        batch.kind = number() % 2 ? EK_REJECTION : EK_COUPLED;
        batch.row_starts = row_starts;
        batch.drafts = drafts;
        batch.rules = &rule;
        batch.history = history;
        batch.history_starts = history_starts;
        batch.num_prompt = &num_prompt;
        batch.dense_q = number() % 2 ? q : NULL;
        int32_t accepted = ek_level_base.decide(&batch, 0, 1, &next_token);
        hash = (hash ^ (uint32_t)accepted) * 1099511628211u;
        hash = (hash ^ (uint32_t)next_token) * 1099511628211u;
        free(logits);
        free(narrow);
        free(q);
    }
    printf("%016llx\n", (unsigned long long)hash);
    return 0;
}
