/* The table which finds the kernels of paged attention of a level. */
#include <stddef.h>

#include "attend.h"
#include "cpu.h"

static const void *const levels[EK_NUM_LEVELS] = {
    [EK_BASE] = &ek_attend_base,
#if defined(__x86_64__)
    [EK_AVX2] = &ek_attend_avx2,
    [EK_AVX512] = &ek_attend_avx512,
    [EK_AVX512_BF16] = &ek_attend_avx512_bf16,
#endif
};

const ek_attend *ek_find_attend(const char *name)
{
    return ek_pick(levels, name);
}

int ek_offers_attend(int level)
{
    return ek_offers(levels, level);
}
