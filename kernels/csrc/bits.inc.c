/* Bitstreams of low-bit codes and quantising to them, compiled once per instruction set level with EK_LEVEL as the
   suffix. Specification: docs/spec/kernels.md and edgekernels/_bits_reference.py.

   Codes pass through a chunk that stays in L1, one byte each, so rows may begin anywhere in the stream: what knows
   of the stream knows nothing of rows, and what knows of rows sees bytes. */
#include <math.h>

#include "bits.h"
#include "bits_blocks.h"
#include "bits_stream.h"
#include "cpu.h"

#define CHUNK 4096 /* codes; a multiple of BLOCK */
#define FEW 16     /* values of a vector, or of a few vectors */

static inline int64_t least_of(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

#include "bits_values.h"

/* Write the n codes from a byte on. Nothing is read from `end` on. `to` needs room for whole blocks, unless these
   codes are the last before `end`: then the SPAN bytes which are there for a block hold all of its codes. */
static void unpack_codes(const block_plan *shared, const uint8_t *from, const uint8_t *end, int64_t n, uint8_t *to)
{
    const block_plan own = *shared, *plan = &own; /* in registers, since no write can change it */
    const int block_bytes = BLOCK / 8 * plan->bits;
    int64_t i = 0;
    for (; i < n && end - from >= SPAN; i += BLOCK, from += block_bytes)
        unpack_block(plan, from, to + i);
    for (; i < n; i += BLOCK, from += block_bytes) {
        uint8_t bytes[SPAN] = {0}, codes[BLOCK];
        memcpy(bytes, from, (size_t)least_of(end - from, SPAN));
        unpack_block(plan, bytes, codes);
        memcpy(to + i, codes, (size_t)least_of(n - i, BLOCK));
    }
}

/* Write the bytes of n codes. What follows them before `end` may be overwritten. */
static void pack_codes(const block_plan *shared, const uint8_t *codes, int64_t n, uint8_t *to, const uint8_t *end)
{
    const block_plan own = *shared, *plan = &own;
    const int block_bytes = BLOCK / 8 * plan->bits;
    int64_t i = 0;
    for (; i + BLOCK <= n && end - to >= SPAN; i += BLOCK, to += block_bytes)
        pack_block(plan, codes + i, to);
    for (; i < n; i += BLOCK, to += block_bytes) {
        uint8_t padded[BLOCK] = {0}, bytes[SPAN];
        int64_t left = least_of(n - i, BLOCK);
        memcpy(padded, codes + i, (size_t)left);
        pack_block(plan, padded, bytes);
        memcpy(to, bytes, (size_t)((left * plan->bits + 7) / 8));
    }
}

static int pack(const uint8_t *codes, int64_t n, int bits, uint8_t *packed)
{
    const block_plan plan = make_block_plan(bits);
    const uint8_t *end = packed + (n * bits + 7) / 8;
    uint8_t seen = 0;
    for (int64_t first = 0; first < n; first += CHUNK) {
        int64_t count = least_of(n - first, CHUNK);
        for (int64_t i = 0; i < count; i++)
            seen |= codes[first + i];
        if (bits == 8)
            memcpy(packed + first, codes + first, (size_t)count);
        else
            pack_codes(&plan, codes + first, count, packed + first / 8 * bits, end);
    }
    return seen;
}

static void unpack(const uint8_t *packed, int64_t n, int bits, uint8_t *codes)
{
    const block_plan plan = make_block_plan(bits);
    if (bits == 8)
        memcpy(codes, packed, (size_t)n);
    else
        unpack_codes(&plan, packed, packed + (n * bits + 7) / 8, n, codes);
}

/* Codes of some values of one row. Clipping to integers before rounding is the same as after it, and lets the
   rounding be a sum: what is added moves the integer into the low bits, halves going to even. */
static inline void quantise_some(const float *restrict values, int count, float scale, float offset, float top,
                                 uint8_t *restrict codes)
{
#pragma GCC unroll 1 /* single values would not become vectors again */
    for (int i = 0; i < count; i++) {
        float steps = (values[i] - offset) / scale;
        steps = steps > 0 ? steps : 0; /* NaN goes here, too */
        steps = (steps < top ? steps : top) + 0x1.8p23f;
        int32_t word;
        memcpy(&word, &steps, sizeof word);
        codes[i] = (uint8_t)word;
    }
}

/* Do all of 0 .. n - 1 by calls of `some(first, count)` with constant counts, which compilers turn into vectors
   without a loop around single values; the last ones are done twice rather than one by one. */
#define IN_VECTORS(n, some)                                                                                            \
    do {                                                                                                               \
        int64_t done = 0;                                                                                              \
        for (; done + BLOCK <= (n); done += BLOCK)                                                                     \
            some(done, BLOCK);                                                                                         \
        for (; done + FEW <= (n); done += FEW)                                                                         \
            some(done, FEW);                                                                                           \
        if (done < (n) && (n) >= FEW)                                                                                  \
            some((n) - FEW, FEW);                                                                                      \
        else                                                                                                           \
            for (; done < (n); done++)                                                                                 \
                some(done, 1);                                                                                         \
    } while (0)

static void quantise_run(const float *values, int64_t n, float scale, float offset, float top, uint8_t *codes)
{
#define SOME(first, count) quantise_some(values + (first), count, scale, offset, top, codes + (first))
    if (scale == 0)
        memset(codes, 0, (size_t)n);
    else
        IN_VECTORS(n, SOME);
#undef SOME
}

/* How many codes share one bitstream: all, or those of a row if rows are aligned and would not be anyway. */
static int64_t stream_length(const ek_matrix *shape)
{
    int aligned_anyway = shape->columns * shape->bits % 8 == 0;
    return shape->align_rows && !aligned_anyway ? shape->columns : shape->rows * shape->columns;
}

static void quantise(const float *values, const ek_matrix *shape, const float *scale, const float *offset,
                     uint8_t *packed)
{
    const block_plan plan = make_block_plan(shape->bits);
    const float top = (float)((1 << shape->bits) - 1);
    const int64_t total = shape->rows * shape->columns, stream = stream_length(shape), group = shape->group;
    const int64_t stream_bytes = (stream * shape->bits + 7) / 8;
    const uint8_t *end = packed + (stream ? total / stream * stream_bytes : 0);
    int64_t g = 0, left = group; /* the group at hand, and how much of it is to come */
    for (int64_t from = 0; from < total; from += stream, packed += stream_bytes)
        for (int64_t first = 0; first < stream; first += CHUNK) {
            uint8_t chunk[CHUNK], *to = packed + first / 8 * shape->bits;
            uint8_t *codes = shape->bits == 8 ? to : chunk;
            int64_t count = least_of(stream - first, CHUNK);
            for (int64_t i = 0, n; i < count; i += n) {
                n = least_of(left, count - i);
                quantise_run(values + from + first + i, n, scale[g], offset[g], top, codes + i);
                left -= n;
                if (left == 0)
                    g++, left = group;
            }
            if (codes == chunk)
                pack_codes(&plan, codes, count, to, end);
        }
}

/* Write the values of n codes whose bytes begin at `from`, which are those from `first` on in the matrix. */
static void values_of(const value_plan *groups, const block_plan *plan, const table_plan *tables, const uint8_t *from,
                      const uint8_t *end, int64_t first, int64_t n, ek_format format, int past, char *to)
{
    uint8_t chunk[STAGE / 2];
    const int64_t done = values_by_tables(groups, tables, from, end, first, n, past, to);
    if (done == n)
        return;
    from += done / 8 * plan->bits, first += done, n -= done, to += done * (format == EK_FLOAT32 ? 4 : 2);
    const int64_t num_bytes = n * plan->bits / 8;
    for (int64_t i = 0; past && plan->bits != 8 && i < num_bytes; i += LINE)
        __builtin_prefetch(from + num_bytes + i); /* of the next part, while stores wait for memory */
    if (plan->bits != 8)
        unpack_codes(plan, from, end, n, chunk);
    span_of_values(groups, plan->bits == 8 ? from : chunk, first, n, format, past, to);
}

static void dequantise(const uint8_t *packed, const ek_matrix *shape, const float *scale, const float *offset,
                       ek_format format, void *values)
{
    const block_plan plan = make_block_plan(shape->bits);
    const table_plan tables = make_table_plan(shape->bits, format);
    const value_plan groups = {scale, offset, shape->group};
    const int64_t size = format == EK_FLOAT32 ? 4 : 2, part = STAGE / size; /* codes at a time */
    const int64_t total = shape->rows * shape->columns, stream = stream_length(shape);
    const int64_t stream_bytes = (stream * shape->bits + 7) / 8;
    const uint8_t *end = packed + (stream ? total / stream * stream_bytes : 0);
    const int past_caches = total * size > ek_cache_bytes();
    const int direct = past_caches && shape->group % BLOCK == 0 && (uintptr_t)values % LINE == 0;
    const int gathered = past_caches && !direct; /* what is not made in whole lines anyway */
    char *to = values;
    sink out;
    if (gathered)
        open_sink(&out, values);
    for (int64_t from = 0; from < total; from += stream, packed += stream_bytes)
        for (int64_t i = 0; i < stream; i += part) {
            const int64_t n = least_of(stream - i, part), first = from + i;
            const uint8_t *bytes = packed + i / 8 * shape->bits;
            values_of(&groups, &plan, &tables, bytes, end, first, n, format, direct,
                      gathered ? room(&out) : to + first * size);
            if (gathered)
                flush(&out, n * size);
        }
    if (gathered)
        close_sink(&out);
    if (direct)
        written_past_caches();
}

#include "bits_planes.h"

#include "bits_planes.inc.c"

#include "bits_fit.inc.c"

#define EK_PASTE(a, b) a##b
#define EK_NAME(a, b) EK_PASTE(a, b)
#define EK_QUOTE(a) #a
#define EK_STRING(a) EK_QUOTE(a)
const ek_bits EK_NAME(ek_bits_, EK_LEVEL) = {
    EK_STRING(EK_LEVEL), pack, unpack, quantise, dequantise, split, merge, fit,
};
