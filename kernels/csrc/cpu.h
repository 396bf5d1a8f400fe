/* What this processor can do, and which kernels of a family a level's name asks for. */
#ifndef EDGEKERNELS_CPU_H
#define EDGEKERNELS_CPU_H

#include <stdint.h>

/* Levels, each of which implies those before it on the same architecture: see ek_level_name for their names. */
typedef enum {
    EK_BASE,        /* SSE2 on x86-64, NEON on aarch64 */
    EK_NEON_DOT,    /* aarch64: dot products of bytes (not on Cortex-A53 and A72) */
    EK_AVX2,        /* x86-64: AVX2, FMA, F16C and BMI2 */
    EK_AVX512,      /* AVX-512 F, BW, DQ, VL */
    EK_AVX512_VNNI, /* VNNI, VBMI and GFNI as well (Ice Lake, Zen 4) */
    EK_AVX512_BF16, /* dot products of bfloat16 as well (Zen 4, Sapphire Rapids) */
    EK_AMX,         /* tiles of int8 and bf16 as well (Sapphire Rapids), if the kernel lends them to us */
    EK_NUM_LEVELS
} ek_level_id;

/* Whether this processor has that level; a level of another architecture is not had. */
int ek_has_level(int level);
/* The name of a level, or NULL behind the last one. */
const char *ek_level_name(int level);
/* The best of a family's kernels at or below the level of that name ("" = the best level there is), from a table
   with NULL where the family has none of its own; NULL if the name is unknown or this processor lacks the level. */
const void *ek_pick(const void *const table[EK_NUM_LEVELS], const char *name);
/* Whether a family has kernels of its own for a level which this processor has. */
int ek_offers(const void *const table[EK_NUM_LEVELS], int level);
/* Bytes of an output from which on it is written past the caches: the size of the last cache, or a guess; out of
   reach where there is no such way of writing. */
int64_t ek_cache_bytes(void);

#endif
