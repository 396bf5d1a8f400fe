/* How fast a thread writes memory, with ordinary stores and past the caches: what bench/micro holds dequantising against. */
#include <stddef.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>

__attribute__((target("avx512f"))) static void lines_512(float *to, size_t n, int past)
{
    const __m512 v = _mm512_set1_ps(1);
    for (size_t i = 0; i < n; i += 64)
        for (int k = 0; k < 64; k += 16)
            if (past)
                _mm512_stream_ps(to + i + k, v);
            else
                _mm512_store_ps(to + i + k, v);
    _mm_sfence();
}

__attribute__((target("avx2"))) static void lines_256(float *to, size_t n, int past)
{
    const __m256 v = _mm256_set1_ps(1);
    for (size_t i = 0; i < n; i += 64)
        for (int k = 0; k < 64; k += 8)
            if (past)
                _mm256_stream_ps(to + i + k, v);
            else
                _mm256_store_ps(to + i + k, v);
    _mm_sfence();
}
#endif

/* Write n floats (a multiple of 64) from an address that begins a line. */
void ek_write_limit(float *to, size_t n, int past_caches)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f"))
        lines_512(to, n, past_caches);
    else if (__builtin_cpu_supports("avx2"))
        lines_256(to, n, past_caches);
    else
#endif
    {
        (void)past_caches;
        memset(to, 1, n * sizeof *to);
    }
}
