/* Operations on AMX tiles, or with EK_EMULATE_TILES the same in plain C, so that the kernels can be tested on any
   processor (tests/edgekernels/test_gemm_amx.py). The instructions are written out, because the intrinsics of some
   compilers do not say that they read memory. */
#include <stdint.h>
#include <string.h>

/* Shapes of the eight tiles (Intel SDM vol. 1, 18.2: palette 1). */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_shapes;

#if !defined(EK_EMULATE_TILES)

#define TILE_CONFIG(shapes) __asm__ volatile("ldtilecfg %0" ::"m"(*(shapes)))
#define TILE_RELEASE() __asm__ volatile("tilerelease")
#define TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile ::)
#define TILE_LOAD(tile, from, stride)                                                                                  \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(from), "r"((int64_t)(stride)) : "memory")
#define TILE_STORE(tile, to, stride)                                                                                   \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(to), "r"((int64_t)(stride)) : "memory")
/* sums += a . b for signed bytes in a, unsigned ones in b */
#define TILE_DOT(sums, a, b) __asm__ volatile("tdpbsud %%tmm" #b ", %%tmm" #a ", %%tmm" #sums ::)

#else

static _Thread_local tile_shapes shapes_now;
static _Thread_local uint8_t tiles_now[8][16][64];

static void load_tile(int tile, const uint8_t *from, int64_t stride)
{
    memset(tiles_now[tile], 0, sizeof tiles_now[tile]);
    for (int r = 0; r < shapes_now.rows[tile]; r++)
        memcpy(tiles_now[tile][r], from + r * stride, shapes_now.row_bytes[tile]);
}

static void store_tile(int tile, uint8_t *to, int64_t stride)
{
    for (int r = 0; r < shapes_now.rows[tile]; r++)
        memcpy(to + r * stride, tiles_now[tile][r], shapes_now.row_bytes[tile]);
}

static void dot_tiles(int sums, int a, int b)
{
    for (int m = 0; m < shapes_now.rows[sums]; m++)
        for (int k = 0; k < shapes_now.row_bytes[a] / 4; k++)
            for (int n = 0; n < shapes_now.row_bytes[sums] / 4; n++) {
                int32_t sum;
                memcpy(&sum, tiles_now[sums][m] + n * 4, 4);
                for (int i = 0; i < 4; i++)
                    sum += (int8_t)tiles_now[a][m][k * 4 + i] * tiles_now[b][k][n * 4 + i];
                memcpy(tiles_now[sums][m] + n * 4, &sum, 4);
            }
}

#define TILE_CONFIG(shapes) (shapes_now = *(shapes))
#define TILE_RELEASE() memset(&shapes_now, 0, sizeof shapes_now)
#define TILE_ZERO(tile) memset(tiles_now[tile], 0, sizeof tiles_now[tile])
#define TILE_LOAD(tile, from, stride) load_tile(tile, (const uint8_t *)(from), stride)
#define TILE_STORE(tile, to, stride) store_tile(tile, (uint8_t *)(to), stride)
#define TILE_DOT(sums, a, b) dot_tiles(sums, a, b)

#endif
