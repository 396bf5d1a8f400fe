/* The table which finds the kernels of packed matrices of a level. */
#include <stddef.h>

#include "cpu.h"
#include "gemm.h"

static const void *const levels[EK_NUM_LEVELS] = {
    [EK_BASE] = &ek_gemm_base,
#if defined(__aarch64__)
    [EK_NEON_DOT] = &ek_gemm_neon_dot,
#endif
#if defined(__x86_64__)
    [EK_AVX2] = &ek_gemm_avx2,
    [EK_AVX512] = &ek_gemm_avx512,
    [EK_AVX512_VNNI] = &ek_gemm_avx512_vnni,
#if defined(EK_HAS_AMX)
    [EK_AMX] = &ek_gemm_amx,
#endif
#endif
};

const ek_gemm *ek_find_gemm(const char *name)
{
    return ek_pick(levels, name);
}

int ek_offers_gemm(int level)
{
    return ek_offers(levels, level);
}
