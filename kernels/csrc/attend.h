/* Paged attention: what every instruction set level offers, the table that finds a level, and the run over threads.
   Specification: docs/spec/kernels-attention.md and edgekernels/_attention_reference.py. */
#ifndef EDGEKERNELS_ATTEND_H
#define EDGEKERNELS_ATTEND_H

#include <stdint.h>

#define EK_KEYS 64     /* positions of a tile: their scores are made, softened and used before the next ones */
#define EK_SEGMENT 256 /* positions whose weighted sums are made from nothing; then they join those before them */
#define EK_ROWS 96     /* rows of a block at most: (token, query head) of one span which share a key-value head */

/* One call. Of span s: pages page_table[page_starts[s]] .. page_table[page_starts[s + 1]], new tokens
   token_starts[s] .. token_starts[s + 1], which stand at its positions from past[s] on. Checked by the caller. */
typedef struct {
    const void *query;  /* (tokens, heads, dim) */
    const void *keys;   /* (pages, kv_heads, page_tokens, dim), pages key_stride elements apart */
    const void *values; /* the same, value_stride elements apart */
    void *out;          /* (tokens, heads, dim) */
    const int32_t *page_table;
    const int64_t *page_starts;
    const int64_t *token_starts;
    const int64_t *past;
    int64_t spans;
    int64_t heads;
    int64_t kv_heads;
    int64_t page_tokens;
    int64_t dim;
    int64_t key_stride;
    int64_t value_stride;
    int64_t window;   /* positions a row sees at most, 0 = all */
    float scale;      /* of a dot product, > 0 */
    float softcap;    /* 0 = none */
    int32_t bfloat16; /* elements are bfloat16, otherwise float32 */
} ek_paged;

/* Rows of one span and key-value head, and the segments of their positions which one thread goes through. */
typedef struct {
    int64_t span;
    int64_t head;
    int64_t first; /* row: token of the span times the group of query heads, plus the head within the group */
    int64_t rows;
    int64_t segment;
    int64_t segments;
    float *states; /* room for what each segment gives, or NULL: put them together and write the answer */
} ek_part;

typedef struct {
    const char *name;
    /* Floats which a state of so many rows, and the scratch memory of a thread, take; multiples of 16. */
    int64_t (*state_floats)(const ek_paged *what, int64_t rows);
    int64_t (*scratch_floats)(const ek_paged *what);
    /* Go through a part. `after` is one which this thread may do next, or NULL: its beginning is fetched. */
    void (*attend)(const ek_paged *what, const ek_part *part, const ek_part *after, float *scratch);
    /* Put all states of a block together, in order, and write its answer. */
    void (*join)(const ek_paged *what, const ek_part *part, float *scratch);
} ek_attend;

extern const ek_attend ek_attend_base;
#if defined(__x86_64__)
extern const ek_attend ek_attend_avx2;
extern const ek_attend ek_attend_avx512;
extern const ek_attend ek_attend_avx512_bf16;
#endif

/* What is wrong with the numbers in the arrays of a call, if anything. */
typedef enum { EK_SOUND, EK_UNSOUND } ek_soundness;
ek_soundness ek_check_paged(const ek_paged *what, int64_t tokens, int64_t pages, int64_t table);
/* Attend on this many threads at most; 0, or -1 without memory. */
int ek_attend_all(const ek_attend *level, const ek_paged *what, int threads);
/* The best kernels at or below the level of that name, as ek_pick finds them. */
const ek_attend *ek_find_attend(const char *name);
/* Whether there are kernels for a level which this processor has. */
int ek_offers_attend(int level);

#endif
