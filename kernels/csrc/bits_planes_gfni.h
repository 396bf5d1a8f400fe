/* Bit planes of 512 codes with GFNI: an affine map over bits, whose matrix is 8 codes and whose argument is a unit
   matrix, transposes 8 x 8 bits; bytes are transposed by a permutation, words of 8 bytes between registers. */
#include <immintrin.h>

#define MANY 512

/* Word j of register i becomes word i of register j. */
static inline __attribute__((always_inline)) void transpose_words(__m512i r[8])
{
    __m512i a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm512_unpacklo_epi64(r[i], r[i + 1]);     /* pairs of words 0, 2, 4, 6 */
        a[i + 1] = _mm512_unpackhi_epi64(r[i], r[i + 1]); /* 1, 3, 5, 7 */
    }
    for (int odd = 0; odd < 2; odd++)
        for (int half = 0; half < 2; half++) { /* of the registers: 0 .. 3, 4 .. 7 */
            b[4 * odd + 2 * half] = _mm512_shuffle_i64x2(a[4 * half + odd], a[4 * half + 2 + odd], 0x88);
            b[4 * odd + 2 * half + 1] = _mm512_shuffle_i64x2(a[4 * half + odd], a[4 * half + 2 + odd], 0xDD);
        }
    for (int odd = 0; odd < 2; odd++)
        for (int k = 0; k < 2; k++) {
            r[2 * k + odd] = _mm512_shuffle_i64x2(b[4 * odd + k], b[4 * odd + 2 + k], 0x88);
            r[2 * k + odd + 4] = _mm512_shuffle_i64x2(b[4 * odd + k], b[4 * odd + 2 + k], 0xDD);
        }
}

/* Byte j of word i becomes byte i of word j. */
static inline __m512i transpose_bytes(__m512i words)
{
    const __m512i from = _mm512_setr_epi64(0x3830282018100800, 0x3931292119110901, 0x3A322A221A120A02,
                                           0x3B332B231B130B03,
                                           0x3C342C241C140C04, 0x3D352D251D150D05, 0x3E362E261E160E06,
                                           0x3F372F271F170F07);
    return _mm512_permutexvar_epi8(from, words);
}

static inline void split_many(const uint8_t *codes, int bits, uint8_t *planes, int64_t stride)
{
    /* byte k of a word asks for bit bits - 1 - k */
    const __m512i units = _mm512_set1_epi64((int64_t)(0x0102040810204080u >> 8 * (8 - bits)));
    const __m512i backwards = _mm512_set_epi64(0x38393A3B3C3D3E3F, 0x3031323334353637, 0x28292A2B2C2D2E2F,
                                               0x2021222324252627, 0x18191A1B1C1D1E1F, 0x1011121314151617,
                                               0x08090A0B0C0D0E0F, 0x0001020304050607);
    __m512i r[8];
    for (int j = 0; j < 8; j++) { /* the first row of such a matrix is its last byte */
        __m512i eights = _mm512_permutexvar_epi8(backwards, _mm512_loadu_si512(codes + 64 * j));
        r[j] = transpose_bytes(_mm512_gf2p8affine_epi64_epi8(units, eights, 0));
    }
    transpose_words(r);
    for (int k = 0; k < bits; k++)
        _mm512_storeu_si512(planes + k * stride, r[k]);
}

static inline void merge_many(const uint8_t *planes, int64_t stride, int bits, uint8_t *codes)
{
    const __m512i units = _mm512_set1_epi64((int64_t)0x8040201008040201u);
    __m512i r[8];
    for (int k = 0; k < 8; k++) /* the last byte of a matrix gives bit 0 */
        r[k] = k < 8 - bits ? _mm512_setzero_si512() : _mm512_loadu_si512(planes + (k - (8 - bits)) * stride);
    transpose_words(r);
    for (int j = 0; j < 8; j++)
        _mm512_storeu_si512(codes + 64 * j, _mm512_gf2p8affine_epi64_epi8(units, transpose_bytes(r[j]), 0));
}
