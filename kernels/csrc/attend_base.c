/* Paged attention for every processor of the architecture (x86-64: SSE2, aarch64: NEON). */
#define EK_LEVEL base
#include "attend.inc.c"
