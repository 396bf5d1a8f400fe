/* Values of codes: spans of a matrix in which every `group` codes share a scale and an offset. */
#include "bits_lanes.h"

#define INLINE static inline __attribute__((always_inline))

typedef struct {
    const float *scale, *offset; /* of every group of the matrix */
    int64_t group;
} value_plan;

INLINE void values_run(const uint8_t *codes, int64_t n, float scale, float offset, ek_format format, char *to)
{
    const int size = format == EK_FLOAT32 ? 4 : 2;
    const lanes wide = all_lanes(scale), low = all_lanes(offset);
    int64_t i = 0;
#pragma GCC unroll 4
    for (; i + LANES <= n; i += LANES)
        put(floats_of(codes + i) * wide + low, format, 0, to + i * size);
    if (i < n && n >= LANES) /* some are done twice rather than one by one */
        put(floats_of(codes + n - LANES) * wide + low, format, 0, to + (n - LANES) * size);
    else
        for (; i < n; i++)
            put_one((float)codes[i] * scale + offset, format, to + i * size);
}

/* The same for whole blocks of codes, of groups which have whole blocks: `left` codes of the first one are to come. */
INLINE void values_of_blocks(const value_plan *plan, const uint8_t *codes, int64_t g, int64_t left, int64_t n,
                             ek_format format, int past, char *to)
{
    const int size = format == EK_FLOAT32 ? 4 : 2;
    const float *scale = plan->scale + g, *offset = plan->offset + g;
    const int64_t group = plan->group;
    for (int64_t i = 0; i < n; i += BLOCK, left -= BLOCK) {
        if (left == 0)
            scale++, offset++, left = group;
        if (past)
            __builtin_prefetch(codes + i + 2048); /* of 8 bits: the stream itself */
        const lanes wide = all_lanes(*scale), low = all_lanes(*offset);
#pragma GCC unroll 16
        for (int k = 0; k < BLOCK; k += LANES)
            put(floats_of(codes + i + k) * wide + low, format, past, to + (i + k) * size);
    }
}

/* Write the values of the n codes which stand at `first` in the matrix. */
INLINE void values_span(const value_plan *plan, const uint8_t *codes, int64_t first, int64_t n, ek_format format,
                        int past, char *to)
{
    const int size = format == EK_FLOAT32 ? 4 : 2;
    const int64_t group = plan->group;
    int64_t g = first / group, left = group - first % group, i = 0;
    if (group % BLOCK == 0 && first % BLOCK == 0) {
        i = n / BLOCK * BLOCK;
        values_of_blocks(plan, codes, g, left, i, format, past, to);
        g = (first + i) / group;
        left = group - (first + i) % group;
    }
    for (; i < n; g++, left = group) {
        int64_t run = least_of(left, n - i);
        values_run(codes + i, run, plan->scale[g], plan->offset[g], format, to + i * size);
        i += run;
    }
}

/* Past the caches only whole blocks of groups of whole blocks, to where a cache line begins. */
static void span_of_values(const value_plan *plan, const uint8_t *codes, int64_t first, int64_t n, ek_format format,
                           int past, char *to)
{
    if (format == EK_FLOAT32 && past)
        values_span(plan, codes, first, n, EK_FLOAT32, 1, to);
    else if (format == EK_FLOAT32)
        values_span(plan, codes, first, n, EK_FLOAT32, 0, to);
    else if (format == EK_FLOAT16 && past)
        values_span(plan, codes, first, n, EK_FLOAT16, 1, to);
    else if (format == EK_FLOAT16)
        values_span(plan, codes, first, n, EK_FLOAT16, 0, to);
    else if (past)
        values_span(plan, codes, first, n, EK_BFLOAT16, 1, to);
    else
        values_span(plan, codes, first, n, EK_BFLOAT16, 0, to);
}

#if defined(__AVX512VBMI__)
#include "bits_tables.h"
#else
typedef int table_plan; /* levels without tables */

static table_plan make_table_plan(int bits, ek_format format)
{
    return (void)format, bits;
}

static int64_t values_by_tables(const value_plan *groups, const table_plan *plan, const uint8_t *from,
                                const uint8_t *end, int64_t first, int64_t n, int past, char *to)
{
    (void)groups, (void)plan, (void)from, (void)end, (void)first, (void)n, (void)past, (void)to;
    return 0;
}
#endif
