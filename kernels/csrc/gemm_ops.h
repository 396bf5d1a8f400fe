/* The few operations of packed products which differ between instruction sets: dot products of unsigned codes and
   signed activations, four columns into one 32-bit lane. All sums are exact integers. */
#include "vectors.h"

#define INLINE static inline __attribute__((always_inline))
#define PARTS (EK_PLANE / VECTOR_BYTES) /* vectors of a plane */

typedef uint16_t vwords __attribute__((vector_size(VECTOR_BYTES)));
typedef uint8_t vbytes __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t vuint32 __attribute__((vector_size(VECTOR_BYTES)));

INLINE vwords load_words(const uint8_t *from)
{
    vwords v;
    memcpy(&v, from, sizeof v);
    return v;
}

/* Keep the compiler from reading a value again for each of several uses, and from adding up in another order: it
   would run out of registers. */
#if defined(__x86_64__)
#define IN_REGISTER(v) __asm__("" : "+v"(v))
#elif defined(__aarch64__)
#define IN_REGISTER(v) __asm__("" : "+w"(v))
#else
#define IN_REGISTER(v) (void)(v)
#endif

INLINE vwords every_byte(const int byte)
{
    return (vwords)((vbytes){0} + (uint8_t)byte);
}

INLINE int32_t load_four(const int8_t *from)
{
    int32_t four;
    memcpy(&four, from, 4);
    return four;
}

#if defined(EK_VNNI)

/* One lane for each row. Codes which were taken from different places of a byte are summed up apart, so that they need
   no shift; the sums are shifted in the end. */
typedef struct {
    vint32 at[4];
} dots;
typedef __m512i spread;

INLINE spread spread_of(const int8_t *four)
{
    return _mm512_set1_epi32(load_four(four));
}

INLINE dots start_dots(const int bits, int32_t start, float sum)
{
    (void)bits, (void)sum;
    return (dots){{(vint32){0} + start}};
}

INLINE dots add_step(dots d, vwords codes, spread x, const int bits, const int step, const int apart)
{
    const int whole = 8 / bits, i = apart && step < whole * bits ? step % whole : 0;
    d.at[i] = (vint32)_mm512_dpbusd_epi32((__m512i)d.at[i], (__m512i)codes, x);
    return d;
}

INLINE vint32 finish_dots(dots d, const int bits, const int apart)
{
    for (int i = 1; apart && i < 8 / bits; i++)
        d.at[0] += d.at[i] >> (i * bits);
    return d.at[0];
}

#elif defined(__AVX2__)

/* Products of two neighbours are added up in 16 bits, for as many steps as cannot overflow, then widened. Codes of 8
   bits are two of 4 bits, the higher one apart. */
typedef struct {
    vint32 sum;
    vwords partial, high;
} dots;

#if defined(__AVX512F__)
typedef __m512i spread;
#define SET1_32 _mm512_set1_epi32
#define MADDUBS _mm512_maddubs_epi16
#define MADD(a, b) (vint32) _mm512_madd_epi16((__m512i)(a), (__m512i)(b))
#else
typedef __m256i spread;
#define SET1_32 _mm256_set1_epi32
#define MADDUBS _mm256_maddubs_epi16
#define MADD(a, b) (vint32) _mm256_madd_epi16((__m256i)(a), (__m256i)(b))
#endif

INLINE spread spread_of(const int8_t *four)
{
    return SET1_32(load_four(four));
}

INLINE dots start_dots(const int bits, int32_t start, float sum)
{
    (void)bits, (void)sum;
    return (dots){(vint32){0} + start, {0}, {0}};
}

INLINE dots widen(dots d, const int bits)
{
    d.sum += MADD(d.partial, (vwords){0} + 1);
    if (bits == 8)
        d.sum += MADD(d.high, (vwords){0} + 16);
    d.partial = d.high = (vwords){0};
    return d;
}

INLINE vwords add_products(vwords partial, vwords codes, spread x)
{
    partial += (vwords)MADDUBS((spread)codes, x);
    IN_REGISTER(partial);
    return partial;
}

INLINE dots add_step(dots d, vwords codes, spread x, const int bits, const int step, const int apart)
{
    const int fit = bits <= 4 || bits == 8 ? 8 : bits == 5 ? 4 : bits == 6 ? 2 : 1; /* 127 * 2 * code * fit < 2^15 */
    (void)apart;
    if (bits == 8) {
        d.high = add_products(d.high, (codes >> 4) & every_byte(15), x);
        codes &= every_byte(15);
    }
    d.partial = add_products(d.partial, codes, x);
    if ((step + 1) % fit == 0)
        d = widen(d, bits);
    return d;
}

INLINE vint32 finish_dots(dots d, const int bits, const int apart)
{
    (void)apart;
    return widen(d, bits).sum; /* 4 steps may be left; else the partial sums are 0, and the compiler knows it */
}

#elif defined(__x86_64__)

typedef vint32 dots;
typedef struct {
    __m128i even, odd; /* columns 0, 2 and 1, 3 in 16 bits */
} spread;

INLINE spread spread_of(const int8_t *four)
{
    const __m128i x = _mm_set1_epi32(load_four(four));
    return (spread){_mm_srai_epi16(_mm_slli_epi16(x, 8), 8), _mm_srai_epi16(x, 8)};
}

INLINE dots start_dots(const int bits, int32_t start, float sum)
{
    (void)bits, (void)sum;
    return (dots){0} + start;
}

INLINE dots add_step(dots d, vwords codes, spread x, const int bits, const int step, const int apart)
{
    (void)bits, (void)step, (void)apart;
    d += (vint32)_mm_madd_epi16((__m128i)(codes & 0xFF), x.even);
    IN_REGISTER(d);
    d += (vint32)_mm_madd_epi16((__m128i)(codes >> 8), x.odd);
    IN_REGISTER(d);
    return d;
}

INLINE vint32 finish_dots(dots d, const int bits, const int apart)
{
    (void)bits, (void)apart;
    return d;
}

#elif defined(__aarch64__)

typedef vint32 dots;
typedef int8x16_t spread;

INLINE spread spread_of(const int8_t *four)
{
    return vreinterpretq_s8_s32(vdupq_n_s32(load_four(four)));
}

/* Codes of 8 bits are taken as signed, code - 128: what that leaves out is put in at the start. */
INLINE dots start_dots(const int bits, int32_t start, float sum)
{
    return (dots){0} + (bits == 8 ? start + 128 * (int32_t)sum : start);
}

INLINE dots add_step(dots d, vwords codes, spread x, const int bits, const int step, const int apart)
{
    const int8x16_t c = (int8x16_t)(bits == 8 ? codes ^ every_byte(0x80) : codes);
    (void)step, (void)apart;
#if defined(EK_NEON_DOTS)
    return (dots)vdotq_s32((int32x4_t)d, c, x);
#else
    const int16x8_t low = vmull_s8(vget_low_s8(c), vget_low_s8(x)), high = vmull_high_s8(c, x);
    d = (dots)vpadalq_s16((int32x4_t)d, vpaddq_s16(low, high)); /* 128 * 127 * 2 fits */
    IN_REGISTER(d);
    return d;
#endif
}

INLINE vint32 finish_dots(dots d, const int bits, const int apart)
{
    (void)bits, (void)apart;
    return d;
}

#else

typedef vint32 dots;
typedef const int8_t *spread;

INLINE spread spread_of(const int8_t *four)
{
    return four;
}

INLINE dots start_dots(const int bits, int32_t start, float sum)
{
    (void)bits, (void)sum;
    return (dots){0} + start;
}

INLINE dots add_step(dots d, vwords codes, spread x, const int bits, const int step, const int apart)
{
    const vbytes c = (vbytes)codes;
    (void)bits, (void)step, (void)apart;
    for (int i = 0; i < VECTOR_BYTES; i++)
        d[i / 4] += c[i] * x[i % 4];
    return d;
}

INLINE vint32 finish_dots(dots d, const int bits, const int apart)
{
    (void)bits, (void)apart;
    return d;
}

#endif

/* Largest and sum of the lanes. */
INLINE int32_t largest_lane(vint32 v)
{
#if defined(__AVX512F__)
    return _mm512_reduce_max_epi32((__m512i)v);
#else
    int32_t most = v[0];
    for (int i = 1; i < FLOATS; i++)
        most = v[i] > most ? v[i] : most;
    return most;
#endif
}

INLINE int32_t sum_of_lanes(vint32 v)
{
#if defined(__AVX512F__)
    return _mm512_reduce_add_epi32((__m512i)v);
#else
    int32_t sum = 0;
    for (int i = 0; i < FLOATS; i++)
        sum += v[i];
    return sum;
#endif
}

/* 16-bit floats, finite, as float32. */
INLINE vfloat load_halves(const uint16_t *from)
{
#if defined(__AVX512F__)
    return (vfloat)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
#elif defined(__AVX2__)
    return (vfloat)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from));
#elif defined(__aarch64__)
    return (vfloat)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from)));
#else
    uint16_t halves __attribute__((vector_size(VECTOR_BYTES / 2)));
    memcpy(&halves, from, sizeof halves);
    const vuint32 h = __builtin_convertvector(halves, vuint32);
    const vfloat size = (vfloat)((h & 0x7FFF) << 13) * 0x1p112f; /* exact, subnormal halves included */
    return (vfloat)((vuint32)size | (h & 0x8000) << 16);
#endif
}

INLINE vfloat spread_float(float x)
{
    return x - (vfloat){0}; /* unlike 0 + x the very same number, so nothing is subtracted */
}

/* Code j (column 0 .. 3 of a step) of each row as a float. */
INLINE vfloat floats_of(vwords codes, const int bits, const int j)
{
    const vint32 c = (vint32)codes;
#if defined(__AVX512F__)
    if (bits <= 4) { /* the low 4 bits of a lane choose from a register */
        const __m512 table = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        return (vfloat)_mm512_permutexvar_ps((__m512i)(c >> 8 * j), table);
    }
#endif
    (void)bits;
    return __builtin_convertvector((c >> 8 * j) & 255, vfloat);
}

/* What bends an evenly spaced code: u = code * step + first, and u (u^2 bend + straight), of which all but the last
   product is exact. Few codes are looked up in a register. */
typedef struct {
    vfloat step, first, bend, straight, table;
} curve;

INLINE vfloat bent(const curve *k, vfloat code)
{
    const vfloat u = multiply_add(code, k->step, k->first);
    return u * multiply_add(u * u, k->bend, k->straight);
}

INLINE curve curve_of(int32_t sixteenths, const int bits)
{
    const float step = 2.0f / (float)(1 << bits), bend = (float)sixteenths / 16;
    curve k = {spread_float(step), spread_float(step / 2 - 1), spread_float(bend), spread_float(1 - bend), {0}};
    for (int i = 0; i < FLOATS; i++)
        k.table[i] = (float)i;
    k.table = bent(&k, k.table);
    return k;
}

/* Code j of each row, bent. */
INLINE vfloat bent_floats_of(const curve *k, vwords codes, const int bits, const int j)
{
#if defined(__AVX512F__)
    if (bits <= 4)
        return (vfloat)_mm512_permutexvar_ps((__m512i)((vint32)codes >> 8 * j), (__m512)k->table);
#elif defined(__AVX2__)
    if (bits <= 3) /* the low 3 bits of a lane choose */
        return (vfloat)_mm256_permutevar8x32_ps((__m256)k->table, (__m256i)((vint32)codes >> 8 * j));
#endif
    return bent(k, floats_of(codes, bits, j));
}
