/* A Llama-family decoder: what every instruction set level offers, and the forward pass of a batch. */
#ifndef EDGEKERNELS_DECODE_H
#define EDGEKERNELS_DECODE_H

#include <stdint.h>

#include "attend.h"
#include "gemm.h"

#define EK_TILE 16 /* positions whose keys lie beside each other, and what heads of values are padded to */

/* Keys and values of one sequence. Keys: [layer][kv_head][position / 16][head_dim][16]; values:
   [layer][kv_head][position][padded_dim]; uint16_t (half precision) if `half`, else float. */
typedef struct {
    void *keys;
    void *values;
    int64_t capacity;   /* positions, a multiple of EK_TILE */
    int64_t padded_dim; /* head_dim, rounded up to EK_TILE */
    int half;
} ek_cache;

/* Up to EK_QUERIES query vectors which look at the same head of keys and values. */
#define EK_QUERIES 4
typedef struct {
    const float *query[EK_QUERIES];
    float *mixed[EK_QUERIES];     /* head_dim floats each */
    int64_t visible[EK_QUERIES];  /* positions each may look at, 1 or more */
    int count;
    const void *keys;   /* of this layer and head */
    const void *values;
    float scale;
    float *scores; /* EK_QUERIES * capacity */
    float *sums;   /* EK_QUERIES * padded_dim */
} ek_attention;

typedef struct {
    const char *name;
    /* out = x / rms(x) * weight, over n values; out may be x. */
    void (*norm)(const float *x, const float *weight, int64_t n, float epsilon, float *out);
    /* Turn the pairs (i, i + half) of a head. */
    void (*rotate)(float *head, int64_t half, const float *cosine, const float *sine);
    /* x += y. */
    void (*add)(float *x, const float *y, int64_t n);
    /* gate = gate / (1 + exp(-gate)) * up. */
    void (*gate)(float *gate, const float *up, int64_t n);
    /* Write a key and a value (head_dim floats) of a layer and head at a position. */
    void (*store)(const ek_cache *cache, int64_t head_dim, void *keys, void *values, int64_t position,
                  const float *key, const float *value);
    void (*attend)(const ek_cache *cache, int64_t head_dim, const ek_attention *what);
    /* out[i][row] = matrix[row] . x[i] for rows from .. to - 1 and m vectors. */
    void (*multiply)(const float *matrix, int64_t columns, int64_t from, int64_t to, const float *x, int64_t m,
                     float *out, int64_t stride);
} ek_decode;

extern const ek_decode ek_decode_base;
#if defined(__x86_64__)
extern const ek_decode ek_decode_avx2;
extern const ek_decode ek_decode_avx512;
#endif

/* A linear map: packed codes, or floats (rows, columns) where `values` is set. */
typedef struct {
    ek_packed packed;
    const float *values;
    const float *bias; /* NULL: none */
    int64_t rows;
    int64_t columns;
} ek_linear;

typedef struct {
    const float *attention_norm;
    const float *query_norm; /* NULL: heads are not normed */
    const float *key_norm;
    const float *ffn_norm;
    ek_linear query, key, value, output, gate, up, down;
} ek_layer;

typedef struct {
    int64_t hidden, ffn, heads, kv_heads, head_dim, vocab, num_layers;
    int64_t turning; /* pairs of a head which turn */
    float epsilon;
    int floats; /* activations stay float */
    const float *frequencies;
    const float *norm;
    const ek_layer *layers;
    ek_linear head;
} ek_model;

typedef struct {
    const ek_decode *steps;
    const ek_gemm *gemm;
    const ek_attend *attend; /* of pages */
} ek_kernels;

/* Keys and values of many sequences in pages: float32 [layer][page][kv_head][slot][head_dim]. */
typedef struct {
    float *keys;
    float *values;
    int64_t pages;
    int64_t page_tokens;
} ek_pages;

/* Tokens of many sequences in one call; the arrays are those of ek_paged, checked by the caller. */
typedef struct {
    const int32_t *page_table;
    const int64_t *page_starts;
    const int64_t *token_starts;
    const int64_t *past;
    int64_t spans;
    const int64_t *rows; /* tokens whose logits are wanted, rising */
    int64_t num_rows;
} ek_spans;

/* Bytes of working memory, aligned to 64, which a forward pass with so many threads needs. */
int64_t ek_workspace_bytes(const ek_model *model, const ek_cache *cache, int threads);
/* Take in `count` embedded tokens (count, hidden) behind the `past` ones which the cache has, and write the logits of
   the last num_logits (num_logits, vocab). The cache has room for them. */
void ek_forward(const ek_kernels *kernels, const ek_model *model, const ek_cache *cache, int64_t past,
                const float *embedded, int64_t count, int64_t num_logits, float *logits, int threads,
                void *workspace);

/* Bytes of working memory which a forward pass over pages needs. */
int64_t ek_paged_workspace_bytes(const ek_model *model, int threads);
/* Take in `count` embedded tokens (count, hidden) of the spans, into their pages, and write the logits (num_rows, vocab)
   of the rows; 0, or -1 without memory. */
int ek_forward_paged(const ek_kernels *kernels, const ek_model *model, const ek_pages *pages, const ek_spans *spans,
                     const float *embedded, int64_t count, float *logits, int threads, void *workspace);

/* The best kernels at or below the level of that name, as ek_pick finds them. */
const ek_decode *ek_find_decode(const char *name);
/* Whether there are kernels for a level which this processor has. */
int ek_offers_decode(int level);

#endif
