/* Blocks of 64 codes to and from 8 * bits bytes of a bitstream, for widths of 1 to 7; one way per instruction set.
   A block may read or write SPAN bytes of the stream, more than are its own. */
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the bitstream is read in words, which needs a little-endian processor; numpy serves elsewhere"
#endif

#define BLOCK 64
#define SPAN 64

#if defined(__AVX512BW__)
#include "bits_blocks_avx512.h"
#elif defined(__AVX2__)
#include "bits_blocks_avx2.h"
#elif defined(__aarch64__)
#include "bits_blocks_neon.h"
#else
#include "bits_blocks_words.h"
#endif
