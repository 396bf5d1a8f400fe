/* Products with matrices of floats, some rows and tokens at a time. A product is one chain of sums in each lane over
   the columns, and the lanes are added up in one order, so that it is the same whatever stands beside it. */
#define PRODUCT_ROWS 4
#if defined(__AVX512F__) || defined(__aarch64__)
#define PRODUCT_TOKENS 6 /* 24 sums of 32 registers */
#else
#define PRODUCT_TOKENS 2 /* 8 sums of 16 registers */
#endif
#define NEAR_ROWS 32 /* which stay in the cache while all tokens are multiplied with them */

/* The sum of the lanes of each of four vectors. */
ALWAYS void sum_four(const vfloat *v, float sums[4])
{
#if defined(__AVX512F__)
    __m512 a = (__m512)v[0], b = (__m512)v[1], c = (__m512)v[2], d = (__m512)v[3];
    __m512 ab = _mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b);
    __m512 cd = _mm512_unpacklo_ps(c, d) + _mm512_unpackhi_ps(c, d);
    __m512 all = _mm512_shuffle_ps(ab, cd, 0x44) + _mm512_shuffle_ps(ab, cd, 0xEE);
    __m256 half = _mm512_castps512_ps256(all) + _mm512_extractf32x8_ps(all, 1);
    _mm_storeu_ps(sums, _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1));
#elif defined(__AVX2__)
    __m256 a = (__m256)v[0], b = (__m256)v[1], c = (__m256)v[2], d = (__m256)v[3];
    __m256 ab = _mm256_unpacklo_ps(a, b) + _mm256_unpackhi_ps(a, b);
    __m256 cd = _mm256_unpacklo_ps(c, d) + _mm256_unpackhi_ps(c, d);
    __m256 all = _mm256_shuffle_ps(ab, cd, 0x44) + _mm256_shuffle_ps(ab, cd, 0xEE);
    _mm_storeu_ps(sums, _mm256_castps256_ps128(all) + _mm256_extractf128_ps(all, 1));
#else
    for (int i = 0; i < 4; i++)
        sums[i] = sum_float_lanes(v[i]);
#endif
}

/* The first n numbers, and zeros. */
ALWAYS vfloat load_some(const float *from, int64_t n)
{
    float some[FLOATS] = {0};
    memcpy(some, from, (size_t)n * sizeof *from);
    return load_floats(some);
}

/* Of four rows, of which the last ones may be one and the same, and `tokens` tokens; sums[t] has those of token t. */
ALWAYS void multiply_tile(const float *const rows[PRODUCT_ROWS], int64_t columns, const float *x, int tokens,
                          float sums[][PRODUCT_ROWS])
{
    vfloat sum[PRODUCT_TOKENS][PRODUCT_ROWS], w[PRODUCT_ROWS];
    for (int t = 0; t < tokens; t++)
        for (int r = 0; r < PRODUCT_ROWS; r++)
            sum[t][r] = (vfloat){0};
    int64_t i = 0;
    for (; i + FLOATS <= columns; i += FLOATS) {
        for (int r = 0; r < PRODUCT_ROWS; r++)
            w[r] = load_floats(rows[r] + i);
        for (int t = 0; t < tokens; t++) {
            vfloat v = load_floats(x + t * columns + i);
            for (int r = 0; r < PRODUCT_ROWS; r++)
                sum[t][r] = multiply_add(v, w[r], sum[t][r]);
        }
    }
    if (i < columns) {
        for (int r = 0; r < PRODUCT_ROWS; r++)
            w[r] = load_some(rows[r] + i, columns - i);
        for (int t = 0; t < tokens; t++)
            for (int r = 0; r < PRODUCT_ROWS; r++)
                sum[t][r] = multiply_add(load_some(x + t * columns + i, columns - i), w[r], sum[t][r]);
    }
    for (int t = 0; t < tokens; t++)
        sum_four(sum[t], sums[t]);
}

typedef void product(const float *const *, int64_t, const float *, float[][PRODUCT_ROWS]);
#define PRODUCT(N) \
    static __attribute__((noinline)) void product_##N(const float *const *rows, int64_t columns, const float *x, \
                                                      float sums[][PRODUCT_ROWS]) \
    { \
        multiply_tile(rows, columns, x, N, sums); \
    }
PRODUCT(1)
PRODUCT(2)
#if PRODUCT_TOKENS == 6
PRODUCT(3)
PRODUCT(4)
PRODUCT(5)
PRODUCT(6)
static product *const products[PRODUCT_TOKENS] = {product_1, product_2, product_3, product_4, product_5, product_6};
#else
static product *const products[PRODUCT_TOKENS] = {product_1, product_2};
#endif

static void multiply(const float *matrix, int64_t columns, int64_t from, int64_t to, const float *x, int64_t m,
                     float *out, int64_t stride)
{
    for (int64_t near = from, end; near < to; near = end) {
        end = near + NEAR_ROWS < to ? near + NEAR_ROWS : to;
        for (int64_t t = 0; t < m; t += PRODUCT_TOKENS) {
            int tokens = m - t < PRODUCT_TOKENS ? (int)(m - t) : PRODUCT_TOKENS;
            for (int64_t row = near; row < end; row += PRODUCT_ROWS) {
                int64_t count = end - row < PRODUCT_ROWS ? end - row : PRODUCT_ROWS;
                const float *rows[PRODUCT_ROWS];
                float sums[PRODUCT_TOKENS][PRODUCT_ROWS];
                for (int64_t r = 0; r < PRODUCT_ROWS; r++)
                    rows[r] = matrix + (row + (r < count ? r : count - 1)) * columns;
                products[tokens - 1](rows, columns, x + t * columns, sums);
                for (int n = 0; n < tokens; n++)
                    memcpy(out + (t + n) * stride + row, sums[n], (size_t)count * sizeof(float));
            }
        }
    }
}
