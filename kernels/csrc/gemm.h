/* Products with packed matrices: what every instruction set level offers, and the table that finds a level.
   Layout and arithmetic: docs/spec/kernels-gemm.md. */
#ifndef EDGEKERNELS_GEMM_H
#define EDGEKERNELS_GEMM_H

#include <stdint.h>

#define EK_BLOCK 16  /* rows which lie interleaved, one lane each */
#define EK_UNIT 32   /* columns whose codes share a run of planes */
#define EK_NOT_BENT (-1)
#define EK_PLANE 64  /* bytes of a plane: 16 rows x 4 columns */

/* A matrix (rows, columns) of codes: value = code * scale + offset, or (code - 2^(bits - 1)) * scale without offset, or
   where it is bent (1 - a) u + a u^3 times scale, u = (2 code + 1) / 2^bits - 1, a = bend / 16. Arrays hold whole blocks of rows; scale and offset are (blocks, groups, 16) and of one type. */
typedef struct {
    int64_t rows;
    int64_t columns;     /* a multiple of group */
    int32_t bits;        /* 1 .. 8 */
    int32_t group;       /* columns which share a scale: 16, 32, 64, 128 or 256; all, a multiple of 32, where bent */
    int32_t bend;        /* EK_NOT_BENT, or 0 .. 15: float activations only, and no offset */
    int32_t half_scales; /* scale and offset are float16 instead of float32 */
    const uint8_t *data; /* ek_data_bytes of them, aligned to 64 bytes */
    const void *scale;
    const void *offset; /* NULL: symmetric */
} ek_packed;

/* Activations of one or more tokens in int8, token after token: activation = code * scale. */
typedef struct {
    int8_t *codes; /* (tokens, columns), -127 .. 127 */
    float *scale;  /* (tokens, groups) */
    float *sum;    /* (tokens, groups): sum of the codes, an integer */
} ek_tokens;

typedef struct {
    const char *name;
    /* Quantise the activations x (columns) of one token, group by group; columns is a multiple of group. */
    void (*quantise)(const float *x, int64_t columns, int32_t group, int8_t *codes, float *scale, float *sum);
    /* Write sum(x) of every group of one token, which `floats` wants. */
    void (*sum_groups)(const float *x, int64_t columns, int32_t group, float *sum);
    /* y[t * stride + r] = matrix row r . token t (+ bias[r] unless NULL) for rows from .. to - 1 and count tokens.
       from is a multiple of 16, and so is to unless it is the number of rows; multiples of 64 are fastest. Any number
       of threads may work on different rows. The result is the same to the bit on every level, however rows and tokens
       are cut. */
    void (*quantised)(const ek_packed *matrix, const ek_tokens *tokens, int64_t count, int64_t from, int64_t to,
                      const float *bias, float *y, int64_t stride);
    /* The same with float activations x (count, columns) and their sums (count, groups). */
    void (*floats)(const ek_packed *matrix, const float *x, const float *sum, int64_t count, int64_t from, int64_t to,
                   const float *bias, float *y, int64_t stride);
} ek_gemm;

extern const ek_gemm ek_gemm_base;
#if defined(__x86_64__)
extern const ek_gemm ek_gemm_avx2;
extern const ek_gemm ek_gemm_avx512;
extern const ek_gemm ek_gemm_avx512_vnni;
#if defined(__has_include)
#if __has_include(<amxint8intrin.h>) /* the compiler is new enough to know tiles */
#define EK_HAS_AMX 1
extern const ek_gemm ek_gemm_amx;
#endif
#endif
#endif
#if defined(__aarch64__)
extern const ek_gemm ek_gemm_neon_dot;
#endif

/* The best kernels at or below the level of that name, as ek_pick finds them. */
const ek_gemm *ek_find_gemm(const char *name);
/* Whether there are kernels for a level which this processor has. */
int ek_offers_gemm(int level);

/* Bytes of a matrix's data. */
int64_t ek_data_bytes(int64_t rows, int64_t columns, int32_t bits);
/* Write the data of blocks from .. to - 1 from codes (rows, columns); returns all codes or-ed together. */
int ek_pack_blocks(const uint8_t *codes, int64_t rows, int64_t columns, int32_t bits, int64_t from, int64_t to,
                   uint8_t *data);
/* Write the codes (columns) of one row. */
void ek_row_codes(const ek_packed *matrix, int64_t row, uint8_t *codes);
/* Write the values (columns) of one row: a float32 product and a float32 sum, each rounded. */
void ek_row_values(const ek_packed *matrix, int64_t row, float *values);
/* Write the values (up to 16 rows, columns) of one block of rows; the same, and faster. */
void ek_block_values(const ek_packed *matrix, int64_t block, float *values);

#endif
