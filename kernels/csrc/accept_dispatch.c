/* The table which finds the acceptance kernels of a level, and the one which all levels share. */
#include <math.h>
#include <stddef.h>

#include "accept.h"
#include "cpu.h"

uint32_t ek_word_floor[EK_FLOOR_SIZE];

void ek_prepare(void)
{
    for (int i = 0; i < EK_FLOOR_SIZE; i++) {
        double gumbel = EK_FLOOR_FROM + i * EK_FLOOR_STEP;
        double word = floor(ldexp(exp(-exp(-gumbel)), 32)) - 2; /* 2: more than the error of exp and of u */
        ek_word_floor[i] = word > 0 ? (uint32_t)word : 0;
    }
}

static const void *const levels[EK_NUM_LEVELS] = {
    [EK_BASE] = &ek_level_base,
#if defined(__x86_64__)
    [EK_AVX2] = &ek_level_avx2,
    [EK_AVX512] = &ek_level_avx512,
#endif
};

const ek_level *ek_find_level(const char *name)
{
    return ek_pick(levels, name);
}

int ek_offers_level(int level)
{
    return ek_offers(levels, level);
}
