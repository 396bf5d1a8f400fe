/* The table which finds the kernels of low-bit codes of a level. */
#include <stddef.h>

#include "bits.h"
#include "cpu.h"

const ek_bits *ek_find_bits(const char *name, int allow_vbmi)
{
    static const ek_bits *const levels[EK_NUM_LEVELS] = {
        [EK_BASE] = &ek_bits_base,
#if defined(__x86_64__)
        [EK_AVX2] = &ek_bits_avx2,
        [EK_AVX512] = &ek_bits_avx512,
#endif
    };
    ek_level_id id = ek_level_named(name);
#if defined(__x86_64__)
    if (id == EK_AVX512 && allow_vbmi && ek_has_vbmi())
        return &ek_bits_avx512_vbmi;
#else
    (void)allow_vbmi;
#endif
    return id == EK_NO_LEVEL ? NULL : levels[id];
}
