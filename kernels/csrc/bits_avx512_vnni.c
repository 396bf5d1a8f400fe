/* Kernels of low-bit codes for x86-64 with AVX-512 (F, BW, DQ, VL), VBMI and GFNI; empty elsewhere. */
#if defined(__x86_64__)
#pragma GCC target("avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,gfni,prefer-vector-width=512")
#define EK_LEVEL avx512_vnni
#include "bits.inc.c"
#else
typedef int ek_nothing_here;
#endif
