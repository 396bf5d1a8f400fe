/* Steps of a decoder for x86-64 with AVX2, FMA and F16C; empty elsewhere. */
#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")
#define EK_LEVEL avx2
#include "decode.inc.c"
#else
typedef int ek_nothing_here;
#endif
