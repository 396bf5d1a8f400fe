/* Paged attention for x86-64 with AVX-512 (F, BW, DQ, VL); empty elsewhere. */
#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c,bmi2,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#define EK_LEVEL avx512
#include "attend.inc.c"
#else
typedef int ek_nothing_here;
#endif
