/* Paged attention, compiled once per instruction set level with EK_LEVEL as the suffix (and EK_PAIRS where it has dot
   products of pairs of bfloat16). Specification: docs/spec/kernels-attention.md.

   All rows of a block go over its positions together, a tile of EK_KEYS at a time: its keys are turned so that a lane
   is a key, then few rows at a time get their scores, soften them and add their share of the values. A score is one
   chain of sums over the dimensions and a weighted sum one chain over the positions, whatever stands beside them: an
   answer depends on its own row alone, not on other rows, on the pages, or on the number of threads. */
#include "attend.h"
#include "attend_ops.h"

/* Rows and vectors whose sums are kept in registers. */
#if defined(__AVX512F__) || defined(__aarch64__)
#define ROWS 6
#define WIDTH 4
#elif defined(__AVX2__)
#define ROWS 6
#define WIDTH 2
#else
#define ROWS 4
#define WIDTH 2
#endif
#define VECTORS (EK_KEYS / FLOATS) /* of the scores of a row in a tile */
#define STATE_ROWS(rows) (((rows) + 15) / 16 * 16)

enum { PLAIN, WIDENED, PAIRED }; /* float32, bfloat16 made float32, pairs of bfloat16 as they are */

/* What is known of the positions of a segment: their largest score, the sum of the weights, and weighted values. */
typedef struct {
    float *sums;  /* (rows, padded) */
    float *norms; /* (rows, FLOATS): a sum in each lane */
    float *tops;  /* (rows,) */
} state;

/* A block of rows on its way through the positions, with the scratch memory of its thread. */
typedef struct {
    const ek_paged *what;
    int64_t item; /* bytes of an element */
    int64_t group;
    int64_t past;
    int64_t first;
    int64_t rows;
    int64_t units;  /* four-byte parts of a row of a key: numbers, or pairs */
    int64_t padded; /* dimensions filled up to whole vectors */
    float factor;   /* of a score, so that it is an exponent of 2 */
    float inner;    /* of a score within tanh */
    const char *key_at[EK_KEYS]; /* of the tile's positions */
    const char *value_at[EK_KEYS];
    const char *next_key_at[EK_KEYS]; /* of the next tile's */
    const char *next_value_at[EK_KEYS];
    int64_t located; /* positions of the next tile, 0 = none */
    float *query; /* (rows, units) */
    float *turned; /* (units, EK_KEYS) */
    float *copied; /* (EK_KEYS, padded): values, or (EK_KEYS / 2, padded) pairs of them */
    float *scores; /* (ROWS, EK_KEYS), then the weights */
    float *nothing; /* a key of zeros */
    state total;
    state own;
} block;

ALWAYS int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

ALWAYS int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

ALWAYS int64_t whole_vectors(int64_t n)
{
    return (n + FLOATS - 1) / FLOATS * FLOATS;
}

/* Where the tiles of a part begin, and where its positions end. */
ALWAYS int64_t first_of(const ek_paged *what, const ek_part *part)
{
    int64_t end = what->past[part->span] + part->first / (what->heads / what->kv_heads) + 1;
    int64_t begin = what->window ? larger(0, end - what->window) : 0;
    return larger(part->segment * EK_SEGMENT, begin / EK_KEYS * EK_KEYS);
}

ALWAYS int64_t last_of(const ek_paged *what, const ek_part *part)
{
    int64_t end = what->past[part->span] + (part->first + part->rows - 1) / (what->heads / what->kv_heads) + 1;
    return smaller(end, (part->segment + part->segments) * EK_SEGMENT);
}

/* Positions which a row sees: from `begin` to before `end`. */
ALWAYS int64_t end_of(const block *b, int64_t row)
{
    return b->past + (b->first + row) / b->group + 1;
}

ALWAYS int64_t begin_of(const block *b, int64_t row)
{
    return b->what->window ? larger(0, end_of(b, row) - b->what->window) : 0;
}

static int64_t state_floats(const ek_paged *what, int64_t rows)
{
    return rows * (whole_vectors(what->dim) + FLOATS) / 16 * 16 + 16 + STATE_ROWS(rows);
}

static state state_at(const block *b, float *memory)
{
    state s = {memory, memory + b->rows * b->padded, memory + b->rows * (b->padded + FLOATS)};
    return s;
}

static int64_t scratch_floats(const ek_paged *what)
{
    int64_t padded = whole_vectors(what->dim), dim = (what->dim + 15) / 16 * 16;
    return EK_ROWS * dim + EK_KEYS * dim + EK_KEYS * padded + ROWS * EK_KEYS + dim + 2 * state_floats(what, EK_ROWS);
}

#include "attend_tiles.inc.c"
#include "attend_rows.inc.c"

ALWAYS void place(block *b, const ek_paged *what, const ek_part *part, float *memory, int kind)
{
    int64_t dim = (what->dim + 15) / 16 * 16;
    b->what = what;
    b->item = what->bfloat16 ? 2 : 4;
    b->group = what->heads / what->kv_heads;
    b->past = what->past[part->span];
    b->first = part->first;
    b->rows = part->rows;
    b->units = kind == PAIRED ? (what->dim + 1) / 2 : what->dim;
    b->padded = whole_vectors(what->dim);
    b->inner = what->softcap > 0 ? what->scale / what->softcap : 0;
    b->factor = (what->softcap > 0 ? what->softcap : what->scale) * 1.44269504f;
    b->query = memory;
    b->turned = b->query + EK_ROWS * dim;
    b->copied = b->turned + EK_KEYS * dim;
    b->scores = b->copied + EK_KEYS * b->padded;
    b->nothing = b->scores + ROWS * EK_KEYS;
    memset(b->nothing, 0, (size_t)dim * sizeof(float));
    b->total = state_at(b, b->nothing + dim);
    b->own = state_at(b, b->nothing + dim + state_floats(what, EK_ROWS));
}

ALWAYS void attend_as(const ek_paged *what, const ek_part *part, const ek_part *after, float *memory, int kind)
{
    block b;
    place(&b, what, part, memory, kind);
    load_queries(&b, part, kind);
    int64_t start = first_of(what, part), last = last_of(what, part);
    locate(&b, part, start);
    for (int64_t n = 0; n < part->segments; n++) {
        state *s = n == 0 ? &b.total : &b.own, apart;
        if (part->states) {
            apart = state_at(&b, part->states + n * state_floats(what, b.rows));
            s = &apart;
        }
        clear(&b, s);
        int64_t to = smaller(last, (part->segment + n + 1) * EK_SEGMENT);
        for (; start < to; start += EK_KEYS)
            attend_tile(&b, part, after, s, start, kind);
        if (!part->states && n > 0)
            add_state(&b, &b.total, s);
    }
    if (!part->states)
        answer(&b, part, &b.total);
}

static void attend(const ek_paged *what, const ek_part *part, const ek_part *after, float *memory)
{
    if (!what->bfloat16)
        attend_as(what, part, after, memory, PLAIN);
#if defined(EK_PAIRS)
    else
        attend_as(what, part, after, memory, PAIRED);
#else
    else
        attend_as(what, part, after, memory, WIDENED);
#endif
}

static void join(const ek_paged *what, const ek_part *part, float *memory)
{
    block b;
    place(&b, what, part, memory, PLAIN);
    state first = state_at(&b, part->states);
    for (int64_t n = 1; n < part->segments; n++) {
        state next = state_at(&b, part->states + n * state_floats(what, b.rows));
        add_state(&b, &first, &next);
    }
    answer(&b, part, &first);
}

#define EK_PASTE(a, b) a##b
#define EK_NAME(a, b) EK_PASTE(a, b)
#define EK_QUOTE(a) #a
#define EK_STRING(a) EK_QUOTE(a)
const ek_attend EK_NAME(ek_attend_, EK_LEVEL) = {EK_STRING(EK_LEVEL), state_floats, scratch_floats, attend, join};
