/* Acceptance kernels: what every instruction set level offers, and the table that finds a level at run time. */
#ifndef EDGEKERNELS_ACCEPT_H
#define EDGEKERNELS_ACCEPT_H

#include <stdint.h>

/* How one sequence chooses its tokens; values are checked by the caller (docs/spec/kernels.md). */
typedef struct {
    double temperature; /* 0 = greedy, otherwise 1e-30 .. 1e30 */
    double top_p;       /* (0, 1], 1 = off */
    int64_t top_k;      /* 0 = off */
    uint64_t seed;
} ek_rule;

typedef struct {
    const char *name;
    /* Accepted drafts of one sequence of num_rows >= 1 rows and num_rows - 1 drafts, or -1 without memory. */
    int32_t (*accept)(const float *rows, int64_t num_rows, int64_t vocab, const int32_t *drafts,
                      const ek_rule *rule, uint64_t position, int32_t *next_token);
    /* Choice of one row, as a target id; token_ids NULL = a column is its own id. -1 without memory. */
    int32_t (*choose)(const float *row, int64_t vocab, const ek_rule *rule, uint64_t position,
                      const int32_t *token_ids);
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
