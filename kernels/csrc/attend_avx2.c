/* Paged attention for x86-64 with AVX2 and FMA; empty elsewhere. */
#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c,bmi2")
#define EK_LEVEL avx2
#include "attend.inc.c"
#else
typedef int ek_nothing_here;
#endif
