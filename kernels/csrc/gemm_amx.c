/* Kernels of packed matrices for x86-64 with AMX tiles of int8; empty elsewhere. Sixteen tokens at a time go through
   tiles, fewer through the kernels of level avx512_vnni: on a Sapphire Rapids 8 tokens of 4096 x 4096 at 4 bits took
   860 us in tiles and 626 without, 16 tokens 1150 and 1223.

   The vector of codes of one step (16 rows x 4 columns) is what a row of a tile of the right factor looks like, so
   codes are unpacked into one and multiplied with a tile of up to 16 tokens. */
#include "gemm.h"

#if defined(EK_HAS_AMX)
#pragma GCC target("avx2,fma,f16c,bmi2,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#pragma GCC target("avx512vbmi,avx512vnni")
#define EK_VNNI 1
#include "gemm_block.h"
#include "gemm_tiles.h"

#define MOST_TOKENS 16
#if !defined(FEWEST_TOKENS)
#define FEWEST_TOKENS 16
#endif
#define BLOCKS 4     /* which share a tile of activations */
#define DEPTH_MOST 64 /* columns of a tile */

typedef float block_sums[BLOCKS][MOST_TOKENS][EK_BLOCK];

/* Write the codes of `depth` columns of a block as rows of a tile; a group of 16 columns may be the second half of a
   unit. */
INLINE void unpack(const uint8_t *planes, int64_t column, int depth, uint8_t *to, const int bits)
{
    for (int done = 0; done < depth; done += EK_UNIT, planes += bits * EK_PLANE) {
        const int second = column % EK_UNIT != 0;
        UNROLL for (int step = 0; step < EK_STEPS; step++)
        {
            const int at = done / 4 + step - (second ? EK_STEPS / 2 : 0);
            if (at >= 0 && at < depth / 4) {
                const vwords codes = codes_of(planes, bits, step, 0);
                memcpy(to + at * EK_PLANE, &codes, EK_PLANE);
            }
        }
    }
}

#define ADD_BLOCK(b, tile)                                                                                             \
    if (b < blocks) {                                                                                                  \
        const uint8_t *planes = unit_of(&at, column, b);                                                               \
        if (bits < 8) {                                                                                                \
            unpack(planes, column, depth, codes[b % 2], bits);                                                         \
            TILE_LOAD(tile, codes[b % 2], EK_PLANE);                                                                   \
        } else {                                                                                                       \
            TILE_LOAD(tile, planes + column % EK_UNIT / 4 * EK_PLANE, EK_PLANE);                                       \
        }                                                                                                              \
        TILE_DOT(b, 4, tile);                                                                                          \
    }

/* Sums of up to 4 blocks for count tokens; the tiles 0 .. 3 hold their dot products, 4 activations, 5 and 6 codes. */
INLINE void multiply_tiles(const ek_packed *matrix, const ek_tokens *tokens, int count, int64_t block, int blocks,
                           block_sums sums, const int bits)
{
    const int64_t columns = matrix->columns, group = matrix->group;
    const int depth = group < DEPTH_MOST ? (int)group : DEPTH_MOST;
    const float middle = (float)(1 << (bits - 1));
    const place at = place_of(matrix, block, bits);
    int32_t dots[MOST_TOKENS][EK_BLOCK] __attribute__((aligned(64)));
    uint8_t codes[2][DEPTH_MOST / 4 * EK_PLANE] __attribute__((aligned(64)));
    memset(sums, 0, sizeof(block_sums));
    for (int64_t g = 0; g < at.groups; g++) {
        TILE_ZERO(0);
        TILE_ZERO(1);
        TILE_ZERO(2);
        TILE_ZERO(3);
        for (int64_t column = g * group; column < (g + 1) * group; column += depth) {
            TILE_LOAD(4, tokens->codes + column, columns);
            ADD_BLOCK(0, 5)
            ADD_BLOCK(1, 6)
            ADD_BLOCK(2, 5)
            ADD_BLOCK(3, 6)
        }
        for (int b = 0; b < blocks; b++) {
            vfloat scale, offset = {0};
            switch (b) {
            case 0:
                TILE_STORE(0, dots, 4 * EK_BLOCK);
                break;
            case 1:
                TILE_STORE(1, dots, 4 * EK_BLOCK);
                break;
            case 2:
                TILE_STORE(2, dots, 4 * EK_BLOCK);
                break;
            default:
                TILE_STORE(3, dots, 4 * EK_BLOCK);
            }
            const place here = place_of(matrix, block + b, bits);
            load_factors(matrix->scale, &here, g, 1, matrix->half_scales, &scale);
            if (matrix->offset != NULL)
                load_factors(matrix->offset, &here, g, 1, matrix->half_scales, &offset);
            for (int t = 0; t < count; t++) {
                const float sum = tokens->sum[t * at.groups + g], token_scale = tokens->scale[t * at.groups + g];
                vint32 ints;
                memcpy(&ints, dots[t], sizeof ints);
                const vfloat dot = __builtin_convertvector(ints, vfloat);
                const vfloat more = matrix->offset != NULL ? (scale * dot + offset * sum) * token_scale
                                                           : scale * (dot - middle * sum) * token_scale;
                const vfloat total = load_floats(sums[b][t]) + more;
                memcpy(sums[b][t], &total, sizeof total);
            }
        }
    }
}

/* One function for each width. */
typedef void (*tiles_function)(const ek_packed *, const ek_tokens *, int, int64_t, int, block_sums);
#define TILES(bits)                                                                                                    \
    static void tiles_##bits(const ek_packed *matrix, const ek_tokens *tokens, int count, int64_t block, int blocks,   \
                             block_sums sums)                                                                          \
    {                                                                                                                  \
        multiply_tiles(matrix, tokens, count, block, blocks, sums, bits);                                              \
    }
TILES(1) TILES(2) TILES(3) TILES(4) TILES(5) TILES(6) TILES(7) TILES(8)
static const tiles_function functions[8] = {tiles_1, tiles_2, tiles_3, tiles_4, tiles_5, tiles_6, tiles_7, tiles_8};

/* Shapes for so many tokens: dot products (tokens, 16 int32), activations (tokens, depth), codes (depth / 4, 64). */
static void configure(int count, int depth)
{
    tile_shapes shapes = {.palette = 1};
    for (int tile = 0; tile < 7; tile++) {
        shapes.rows[tile] = (uint8_t)(tile < 5 ? count : depth / 4);
        shapes.row_bytes[tile] = (uint16_t)(tile == 4 ? depth : EK_PLANE);
    }
    TILE_CONFIG(&shapes);
}

static void multiply_quantised(const ek_packed *matrix, const ek_tokens *tokens, int64_t count, int64_t from,
                               int64_t to, const float *bias, float *y, int64_t stride)
{
    const int64_t groups = matrix->columns / matrix->group, last = (to + EK_BLOCK - 1) / EK_BLOCK;
    const int depth = matrix->group < DEPTH_MOST ? matrix->group : DEPTH_MOST;
    block_sums sums;
    int64_t t = 0;
    for (int n; count - t >= FEWEST_TOKENS; t += n) {
        n = count - t < MOST_TOKENS ? (int)(count - t) : MOST_TOKENS;
        const ek_tokens part = {tokens->codes + t * matrix->columns, tokens->scale + t * groups,
                                tokens->sum + t * groups};
        configure(n, depth);
        for (int64_t block = from / EK_BLOCK; block < last; block += BLOCKS) {
            const int blocks = last - block < BLOCKS ? (int)(last - block) : BLOCKS;
            functions[matrix->bits - 1](matrix, &part, n, block, blocks, sums);
            for (int i = 0; i < n; i++)
                for (int64_t r = 0; r < blocks * EK_BLOCK && block * EK_BLOCK + r < to; r++) {
                    const int64_t row = block * EK_BLOCK + r;
                    const float sum = sums[r / EK_BLOCK][i][r % EK_BLOCK];
                    y[(t + i) * stride + row] = bias == NULL ? sum : sum + bias[row];
                }
        }
        TILE_RELEASE();
    }
    if (t < count) {
        const ek_tokens rest = {tokens->codes + t * matrix->columns, tokens->scale + t * groups,
                                tokens->sum + t * groups};
        ek_gemm_avx512_vnni.quantised(matrix, &rest, count - t, from, to, bias, y + t * stride, stride);
    }
}

/* The rest is that of avx512_vnni. */
static void quantise(const float *x, int64_t columns, int32_t group, int8_t *codes, float *scale, float *sum)
{
    ek_gemm_avx512_vnni.quantise(x, columns, group, codes, scale, sum);
}

static void sum_groups(const float *x, int64_t columns, int32_t group, float *sum)
{
    ek_gemm_avx512_vnni.sum_groups(x, columns, group, sum);
}

static void multiply_floats(const ek_packed *matrix, const float *x, const float *sum, int64_t count, int64_t from,
                            int64_t to, const float *bias, float *y, int64_t stride)
{
    ek_gemm_avx512_vnni.floats(matrix, x, sum, count, from, to, bias, y, stride);
}

const ek_gemm ek_gemm_amx = {"amx", quantise, sum_groups, multiply_quantised, multiply_floats};
#else
typedef int ek_nothing_here;
#endif
