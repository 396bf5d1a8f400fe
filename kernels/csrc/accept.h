/* Acceptance kernels: what every instruction set level offers, and the table that finds a level at run time. */
#ifndef EDGEKERNELS_ACCEPT_H
#define EDGEKERNELS_ACCEPT_H

#include <stdint.h>

/* How one sequence chooses its tokens; values are checked by the caller (docs/spec/kernels.md). numpy builds arrays
   of it: edgekernels/_task.py names the same fields in the same order. */
typedef struct {
    double temperature; /* 0 = greedy, otherwise 1e-30 .. 1e30 */
    double top_p;       /* (0, 1], 1 = off */
    double log_min_p;   /* <= 0, -inf = off */
    int64_t top_k;      /* 0 = off */
    uint64_t seed;
    uint64_t position;  /* of the token which the first row decides */
    float repetition;   /* > 0, 1 = off */
    float frequency;    /* 0 = off */
    float presence;     /* 0 = off */
    float spare;
} ek_rule;

enum { EK_FLOAT32, EK_FLOAT16, EK_BFLOAT16 };
enum { EK_COUPLED, EK_REJECTION };

/* Words of a noise of the caller's own, and an acceptance test of the caller's own. */
typedef void (*ek_words_of)(uint64_t seed, uint64_t position, const int32_t *ids, int64_t num_ids, uint32_t *words);
typedef int32_t (*ek_accepts)(double p, double q, double u, double largest);

/* A batch of sequences; a pointer that is not needed is NULL. Ragged: those of b are starts[b] .. starts[b + 1]. */
typedef struct {
    const void *logits; /* (rows, vocab) */
    int64_t vocab;
    int32_t dtype;
    int32_t kind;
    const int64_t *row_starts; /* NULL = one row for each sequence */
    const int32_t *drafts;
    const ek_rule *rules;
    const int32_t *token_ids; /* (vocab,), NULL = a column is its own id */
    const int32_t *history;
    const int64_t *history_starts;
    const int64_t *num_prompt; /* of each history, those at its beginning */
    const int32_t *bias_ids;
    const float *bias;
    const int64_t *bias_starts;
    const float *dense_q; /* (drafts, vocab) */
    const int32_t *q_ids; /* sparse q of draft d: q_starts[d] .. q_starts[d + 1], ids rising */
    const float *q;
    const int64_t *q_starts;
    ek_words_of words_of;
    ek_accepts accepts;
} ek_batch;

typedef struct {
    const char *name;
    /* Accepted drafts of sequence b, or -1 without memory; its rows are split over so many threads. */
    int32_t (*decide)(const ek_batch *batch, int64_t b, int threads, int32_t *next_token);
    /* Noise words of num_ids tokens at one position. */
    void (*noise)(uint64_t seed, uint64_t position, const int32_t *ids, int64_t num_ids, uint32_t *words);
} ek_level;

extern const ek_level ek_level_base;
#if defined(__x86_64__)
extern const ek_level ek_level_avx2;
extern const ek_level ek_level_avx512;
#endif

/* Build the shared tables; call once before any kernel. */
void ek_prepare(void);
/* The best kernels at or below the level of that name, as ek_pick finds them. */
const ek_level *ek_find_level(const char *name);
/* Whether there are kernels for a level which this processor has. */
int ek_offers_level(int level);

/* Smallest noise word whose gumbel value may reach EK_FLOOR_FROM + i * EK_FLOOR_STEP (rounded down). */
#define EK_FLOOR_FROM (-4.0)
#define EK_FLOOR_STEP (1.0 / 16)
#define EK_FLOOR_SIZE 432
extern uint32_t ek_word_floor[EK_FLOOR_SIZE];

#endif
