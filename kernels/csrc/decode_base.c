/* Steps of a decoder for any processor (SSE2 or NEON where there is one). */
#define EK_LEVEL base
#include "decode.inc.c"
