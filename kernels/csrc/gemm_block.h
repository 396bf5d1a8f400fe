/* Where a pass over vectors of rows finds codes and factors, and how codes get into registers: shared by the kernels of
   all levels, and compiled for each of them. */
#include "gemm.h"
#include "gemm_layout.h"
#include "gemm_ops.h"

#define EK_JOIN(a, b) a##b
#define EK_NAME(a, b) EK_JOIN(a, b)
#define EK_QUOTE(a) #a
#define EK_STRING(a) EK_QUOTE(a)

#define MOST_VECTORS 8 /* of rows, in one pass */
#define UNROLL _Pragma("GCC unroll 8")

/* The codes of one step from its unit's planes, which begin at the wanted part of the rows. With `apart` whole codes
   stay in their place within the byte, times 2^(bits * number of the code in the byte). */
INLINE vwords codes_of(const uint8_t *planes, const int bits, const int step, const int apart)
{
    vwords codes = {0};
    int done = 0;
#pragma GCC unroll 8
    for (int n = 0; n < 8; n++) {
        if (done == bits)
            continue;
        const ek_piece p = ek_piece_of(bits, step, done);
        vwords v = load_words(planes + p.plane * EK_PLANE);
        IN_REGISTER(v);
        if (apart && p.size == bits)
            return bits == 8 ? v : v & every_byte(((1 << bits) - 1) << p.at);
        if (p.at > done)
            v >>= p.at - done; /* in 16 bits; the mask drops what came from the neighbour */
        else if (p.at < done)
            v <<= done - p.at;
        if (p.size < 8)
            v &= every_byte(((1 << p.size) - 1) << done);
        codes |= v;
        done += p.size;
    }
    return codes;
}

/* Where a pass over `vectors` vectors of rows, or a part of it, finds the codes and factors of its vector v. */
typedef struct {
    const uint8_t *planes; /* of the first vector */
    int64_t unit_bytes, block_bytes, groups, first;
} place;

INLINE place place_of(const ek_packed *matrix, int64_t first, const int bits)
{
    place at;
    at.unit_bytes = (int64_t)bits * EK_PLANE;
    at.block_bytes = (matrix->columns + EK_UNIT - 1) / EK_UNIT * at.unit_bytes;
    at.groups = matrix->columns / matrix->group;
    at.first = first;
    at.planes = matrix->data + first / PARTS * at.block_bytes + first % PARTS * VECTOR_BYTES;
    return at;
}

INLINE const uint8_t *unit_of(const place *at, int64_t column, const int v)
{
    return at->planes + v / PARTS * at->block_bytes + v % PARTS * VECTOR_BYTES + column / EK_UNIT * at->unit_bytes;
}

INLINE int64_t factor_of(const place *at, int64_t group, const int v)
{
    return ((at->first / PARTS + v / PARTS) * at->groups + group) * EK_BLOCK +
           (at->first % PARTS + v % PARTS) * FLOATS;
}

/* The scales or offsets of one group for each vector. */
INLINE void load_factors(const void *factors, const place *at, int64_t group, const int vectors, int half, vfloat *to)
{
    if (half)
        UNROLL for (int v = 0; v < vectors; v++)
            to[v] = load_halves((const uint16_t *)factors + factor_of(at, group, v));
    else
        UNROLL for (int v = 0; v < vectors; v++)
            to[v] = load_floats((const float *)factors + factor_of(at, group, v));
}
