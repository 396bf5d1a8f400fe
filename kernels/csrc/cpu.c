/* Choice of the instruction set level at run time, shared by all kernels. */
#include "cpu.h"

#include <string.h>

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

ek_level_id ek_level_named(const char *name)
{
    int any = name[0] == '\0';
#if defined(__x86_64__)
    __builtin_cpu_init();
    if ((any || !strcmp(name, "avx512")) && has_avx512())
        return EK_AVX512;
    if ((any || !strcmp(name, "avx2")) && has_avx2())
        return EK_AVX2;
#endif
    return any || !strcmp(name, "base") ? EK_BASE : EK_NO_LEVEL;
}

int ek_has_vbmi(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512vbmi") != 0;
#else
    return 0;
#endif
}
