/* Kernels of low-bit codes for x86-64 with AVX2; empty elsewhere. */
#if defined(__x86_64__)
#pragma GCC target("avx2,f16c")
#define EK_LEVEL avx2
#include "bits.inc.c"
#else
typedef int ek_nothing_here;
#endif
