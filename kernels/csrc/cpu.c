/* Choice of the instruction set level at run time, shared by all kernels. */
#include "cpu.h"

#include <stddef.h>
#include <string.h>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#define HWCAP_DOT (1UL << 20) /* HWCAP_ASIMDDP */
#endif

static const char *const names[EK_NUM_LEVELS] = {"base", "neon_dot", "avx2", "avx512", "avx512_vnni", "avx512_bf16",
                                                  "amx"};

#if defined(__x86_64__)
static int has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
           __builtin_cpu_supports("bmi2");
}

static int has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

static int has_vnni(void)
{
    return has_avx512() && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi") &&
           __builtin_cpu_supports("gfni");
}

static int has_bf16(void)
{
    return has_vnni() && __builtin_cpu_supports("avx512bf16");
}

/* Linux lends the state of the tiles on request only (arch_prctl(2), ARCH_REQ_XCOMP_PERM), once per process. */
static int has_amx(void)
{
#if defined(__linux__) && defined(SYS_arch_prctl)
    return has_bf16() && __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-int8") &&
           __builtin_cpu_supports("amx-bf16") && syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
    return 0;
#endif
}
#endif

int ek_has_level(int level)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    switch (level) {
    case EK_BASE:
        return 1;
    case EK_AVX2:
        return has_avx2();
    case EK_AVX512:
        return has_avx512();
    case EK_AVX512_VNNI:
        return has_vnni();
    case EK_AVX512_BF16:
        return has_bf16();
    case EK_AMX:
        return has_amx();
    default:
        return 0;
    }
#elif defined(__aarch64__) && defined(__linux__)
    return level == EK_BASE || (level == EK_NEON_DOT && (getauxval(AT_HWCAP) & HWCAP_DOT) != 0);
#elif defined(__aarch64__) && defined(__APPLE__)
    return level == EK_BASE || level == EK_NEON_DOT;
#else
    return level == EK_BASE;
#endif
}

const char *ek_level_name(int level)
{
    return level >= 0 && level < EK_NUM_LEVELS ? names[level] : NULL;
}

const void *ek_pick(const void *const table[EK_NUM_LEVELS], const char *name)
{
    int level = EK_NUM_LEVELS - 1;
    while (level >= 0 && (name[0] ? strcmp(name, names[level]) != 0 : !ek_has_level(level)))
        level--;
    if (level < 0 || !ek_has_level(level))
        return NULL;
    while (level > EK_BASE && (table[level] == NULL || !ek_has_level(level)))
        level--;
    return table[level];
}

int ek_offers(const void *const table[EK_NUM_LEVELS], int level)
{
    return level >= 0 && level < EK_NUM_LEVELS && table[level] != NULL && ek_has_level(level);
}

int64_t ek_cache_bytes(void)
{
#if defined(__x86_64__)
    static int64_t known; /* threads may find it at once, and find the same */
    int64_t bytes = __atomic_load_n(&known, __ATOMIC_RELAXED);
    if (bytes == 0) {
#if defined(_SC_LEVEL3_CACHE_SIZE)
        bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
        if (bytes < 1 << 20)
            bytes = 16 << 20;
        if (bytes > 64 << 20) /* shared with others, or a virtual machine that counts all sockets */
            bytes = 64 << 20;
        __atomic_store_n(&known, bytes, __ATOMIC_RELAXED);
    }
    return bytes;
#else
    return INT64_MAX;
#endif
}
