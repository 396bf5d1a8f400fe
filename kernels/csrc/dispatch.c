/* Choice of the instruction set level at run time, and the tables which all levels share. */
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "accept.h"

uint32_t ek_word_floor[EK_FLOOR_SIZE];

void ek_prepare(void)
{
    for (int i = 0; i < EK_FLOOR_SIZE; i++) {
        double gumbel = EK_FLOOR_FROM + i * EK_FLOOR_STEP;
        double word = floor(ldexp(exp(-exp(-gumbel)), 32)) - 2; /* 2: more than the error of exp and of u */
        ek_word_floor[i] = word > 0 ? (uint32_t)word : 0;
    }
}

#if defined(__x86_64__)
static int has_avx2(void)
{
    return __builtin_cpu_supports("avx2");
}

static int has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

const ek_level *ek_find_level(const char *name)
{
    int any = name[0] == '\0';
#if defined(__x86_64__)
    __builtin_cpu_init();
    if ((any || !strcmp(name, "avx512")) && has_avx512())
        return &ek_level_avx512;
    if ((any || !strcmp(name, "avx2")) && has_avx2())
        return &ek_level_avx2;
#endif
    return any || !strcmp(name, "base") ? &ek_level_base : NULL;
}
