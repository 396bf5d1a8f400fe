/* The table which finds the kernels of low-bit codes of a level. */
#include <stddef.h>

#include "bits.h"
#include "cpu.h"

static const void *const levels[EK_NUM_LEVELS] = {
    [EK_BASE] = &ek_bits_base,
#if defined(__x86_64__)
    [EK_AVX2] = &ek_bits_avx2,
    [EK_AVX512] = &ek_bits_avx512,
    [EK_AVX512_VNNI] = &ek_bits_avx512_vnni,
#endif
};

const ek_bits *ek_find_bits(const char *name)
{
    return ek_pick(levels, name);
}

int ek_offers_bits(int level)
{
    return ek_offers(levels, level);
}
