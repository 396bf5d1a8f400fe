/* Kernels of low-bit codes: what every instruction set level offers, and the table that finds a level. */
#ifndef EDGEKERNELS_BITS_H
#define EDGEKERNELS_BITS_H

#include <stdint.h>

/* A matrix of codes and its bitstream; values are checked by the caller (docs/spec/kernels.md). */
typedef struct {
    int64_t rows;
    int64_t columns; /* 1 or more */
    int64_t group;   /* columns that share a scale and an offset; divides columns */
    int bits;        /* 1 .. 8 */
    int align_rows;  /* every row begins with a byte of its own */
} ek_matrix;

/* What dequantised values are written as. */
typedef enum { EK_FLOAT32, EK_FLOAT16, EK_BFLOAT16 } ek_format;
/* Where the codes lie on the line of numbers. */
typedef enum { EK_ASYMMETRIC, EK_SYMMETRIC, EK_EVEN } ek_grid;

typedef struct {
    const char *name;
    /* Write the bitstream of n codes; returns all codes or-ed together. Too large codes give a useless stream. */
    int (*pack)(const uint8_t *codes, int64_t n, int bits, uint8_t *packed);
    /* Write the n codes with which a bitstream begins. */
    void (*unpack)(const uint8_t *packed, int64_t n, int bits, uint8_t *codes);
    /* Write the bitstream of the codes of values, with a scale and an offset for every group. */
    void (*quantise)(const float *values, const ek_matrix *shape, const float *scale, const float *offset,
                     uint8_t *packed);
    /* Write the values of a bitstream, past the caches if there are more than these hold. */
    void (*dequantise)(const uint8_t *packed, const ek_matrix *shape, const float *scale, const float *offset,
                       ek_format format, void *values);
    /* Write the bit planes of the n codes of a bitstream, the most significant one first, (n + 7) / 8 bytes each. */
    void (*split)(const uint8_t *packed, int64_t n, int bits, uint8_t *planes);
    /* Write the bitstream of the codes of `bits` planes. */
    void (*merge)(const uint8_t *planes, int64_t n, int bits, uint8_t *packed);
    /* Write the scale and the offset of groups of values, from their range or, with `search`, of the least squared
       error; returns the first group with a number that is not finite or too large, or -1. */
    int64_t (*fit)(const float *values, int64_t groups, int64_t group, int bits, ek_grid grid, int search, float *scale,
                   float *offset);
} ek_bits;

extern const ek_bits ek_bits_base;
#if defined(__x86_64__)
extern const ek_bits ek_bits_avx2;
extern const ek_bits ek_bits_avx512;
extern const ek_bits ek_bits_avx512_vnni;
#endif

/* The best kernels at or below the level of that name, as ek_pick finds them. */
const ek_bits *ek_find_bits(const char *name);
/* Whether there are kernels for a level which this processor has. */
int ek_offers_bits(int level);

#endif
