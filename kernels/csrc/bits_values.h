/* Values of codes, which are bytes here: spans of a matrix in which every `group` codes share a scale and an offset. */
#include "bits_lanes.h"

#define TABLE_RUN 64 /* codes from which on a table of all values is worth having */

typedef struct {
    const float *scale, *offset; /* of every group of the matrix */
    int64_t group;
    int bits;
} value_plan;

static inline __attribute__((always_inline)) void values_run(const uint8_t *codes, int64_t n, int bits, float scale,
                                                             float offset, ek_format format, int by_table, char *to)
{
    const int size = format == EK_FLOAT32 ? 4 : 2;
    const lanes wide = all_lanes(scale), low = all_lanes(offset);
    value_table table;
    if (by_table)
        table = make_table(bits, wide, low);
#define SOME(i) put(by_table ? look_up(&table, bits, codes + (i)) : floats_of(codes + (i)) * wide + low, format, to + (i)*size)
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        SOME(i);
    if (i < n && n >= LANES)
        SOME(n - LANES); /* some are done twice rather than one by one */
    else
        for (; i < n; i++)
            put_one((float)codes[i] * scale + offset, format, to + i * size);
#undef SOME
}

/* Write the values of the n codes which stand at `first` in the matrix. */
static inline __attribute__((always_inline)) void values_span(const value_plan *plan, const uint8_t *codes, int64_t first,
                                                              int64_t n, ek_format format, int bits, int by_table,
                                                              char *to)
{
    const int size = format == EK_FLOAT32 ? 4 : 2;
    const int64_t group = plan->group;
    int64_t g = first / group, left = group - first % group;
    for (int64_t i = 0; i < n; g++, left = group) {
        int64_t run = left < n - i ? left : n - i;
        values_run(codes + i, run, bits, plan->scale[g], plan->offset[g], format, by_table, to + i * size);
        i += run;
    }
}

typedef void (*span_of_values)(const value_plan *, const uint8_t *, int64_t, int64_t, char *);

#define SPAN_OF(name, format, bits, by_table)                                                                          \
    static void name(const value_plan *plan, const uint8_t *codes, int64_t first, int64_t n, char *to)                 \
    {                                                                                                                  \
        values_span(plan, codes, first, n, format, bits, by_table, to);                                                \
    }
SPAN_OF(float32_span, EK_FLOAT32, 8, 0)
SPAN_OF(float16_span, EK_FLOAT16, 8, 0)
SPAN_OF(bfloat16_span, EK_BFLOAT16, 8, 0)
#if TABLE_BITS
SPAN_OF(float32_table, EK_FLOAT32, TABLE_BITS < 4 ? TABLE_BITS : 4, 1)
SPAN_OF(float16_table, EK_FLOAT16, TABLE_BITS < 4 ? TABLE_BITS : 4, 1)
SPAN_OF(bfloat16_table, EK_BFLOAT16, TABLE_BITS < 4 ? TABLE_BITS : 4, 1)
#endif
#if TABLE_BITS == 5
SPAN_OF(float32_table_of_two, EK_FLOAT32, 5, 1)
SPAN_OF(float16_table_of_two, EK_FLOAT16, 5, 1)
SPAN_OF(bfloat16_table_of_two, EK_BFLOAT16, 5, 1)
#endif

static span_of_values find_span(ek_format format, const value_plan *plan)
{
    static const span_of_values computed[] = {float32_span, float16_span, bfloat16_span};
#if TABLE_BITS
    static const span_of_values tables[] = {float32_table, float16_table, bfloat16_table};
    int in_table = plan->group >= TABLE_RUN && plan->bits <= TABLE_BITS;
#if TABLE_BITS == 5
    static const span_of_values tables_of_two[] = {float32_table_of_two, float16_table_of_two, bfloat16_table_of_two};
    if (in_table && plan->bits == 5)
        return tables_of_two[format];
#endif
    if (in_table)
        return tables[format];
#else
    (void)plan;
#endif
    return computed[format];
}
