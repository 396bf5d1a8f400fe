/* Kernels of packed matrices for aarch64 with dot products of bytes; empty elsewhere. */
#if defined(__aarch64__)
#pragma GCC target("arch=armv8.2-a+dotprod")
#define EK_LEVEL neon_dot
#define EK_NEON_DOTS 1
#include "gemm.inc.c"
#else
typedef int ek_nothing_here;
#endif
