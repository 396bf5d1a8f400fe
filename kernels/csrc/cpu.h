/* What this processor can do, and which instruction set level a name asks for. */
#ifndef EDGEKERNELS_CPU_H
#define EDGEKERNELS_CPU_H

typedef enum { EK_NO_LEVEL = -1, EK_BASE, EK_AVX2, EK_AVX512, EK_NUM_LEVELS } ek_level_id;

/* The level of that name, or EK_NO_LEVEL when it is unknown or this processor lacks it; "" = the best one. */
ek_level_id ek_level_named(const char *name);
/* Whether bytes can be permuted in 512 bits (AVX-512 VBMI), which the level avx512 does not imply. */
int ek_has_vbmi(void);

#endif
