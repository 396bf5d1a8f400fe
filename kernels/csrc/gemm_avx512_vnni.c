/* Kernels of packed matrices for x86-64 with AVX-512 (F, BW, DQ, VL), VBMI and VNNI; empty elsewhere. */
#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c,bmi2,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#pragma GCC target("avx512vbmi,avx512vnni")
#define EK_LEVEL avx512_vnni
#define EK_VNNI 1
#include "gemm.inc.c"
#else
typedef int ek_nothing_here;
#endif
