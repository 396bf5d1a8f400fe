/* The table which finds the steps of a decoder of a level. */
#include <stddef.h>

#include "cpu.h"
#include "decode.h"

static const void *const levels[EK_NUM_LEVELS] = {
    [EK_BASE] = &ek_decode_base,
#if defined(__x86_64__)
    [EK_AVX2] = &ek_decode_avx2,
    [EK_AVX512] = &ek_decode_avx512,
#endif
};

const ek_decode *ek_find_decode(const char *name)
{
    return ek_pick(levels, name);
}

int ek_offers_decode(int level)
{
    return ek_offers(levels, level);
}
