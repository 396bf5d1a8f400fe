/* Writing past the caches: values are gathered in a few lines of L1 and leave it in whole cache lines, so that memory
   is not read before it is written, and the caches keep what others need. */
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define LINE 64
#define STAGE 4096 /* bytes */

typedef struct {
    uint8_t lines[STAGE + LINE] __attribute__((aligned(LINE)));
    int64_t filled; /* bytes of lines, from the beginning of the line into which `to` points */
    int64_t skip;   /* of them, bytes which lie before `to` */
    uint8_t *to;
} sink;

static void open_sink(sink *out, void *to)
{
    out->filled = out->skip = (int64_t)((uintptr_t)to % LINE);
    out->to = to;
}

/* Room for up to STAGE bytes, which the caller fills and then passes to `flush`. */
static inline void *room(sink *out)
{
    return out->lines + out->filled;
}

static inline void copy_lines(uint8_t *to, const uint8_t *from, int64_t bytes)
{
#if defined(__AVX512F__)
    for (int64_t i = 0; i < bytes; i += 64)
        _mm512_stream_si512((__m512i *)(to + i), _mm512_load_si512(from + i));
#elif defined(__AVX2__)
    for (int64_t i = 0; i < bytes; i += 32)
        _mm256_stream_si256((__m256i *)(to + i), _mm256_load_si256((const __m256i *)(from + i)));
#elif defined(__x86_64__)
    for (int64_t i = 0; i < bytes; i += 16)
        _mm_stream_si128((__m128i *)(to + i), _mm_load_si128((const __m128i *)(from + i)));
#else
    memcpy(to, from, (size_t)bytes); /* never asked for: see ek_cache_bytes */
#endif
}

static inline void flush(sink *out, int64_t added)
{
    int64_t whole, first = 0;
    out->filled += added;
    whole = out->filled / LINE * LINE;
    if (whole && out->skip) { /* the first line is not all ours */
        first = LINE;
        memcpy(out->to, out->lines + out->skip, (size_t)(LINE - out->skip));
        out->to += LINE - out->skip;
        out->skip = 0;
    }
    if (whole > first) {
        copy_lines(out->to, out->lines + first, whole - first);
        out->to += whole - first;
    }
    out->filled -= whole;
    if (whole)
        memcpy(out->lines, out->lines + whole, (size_t)out->filled);
}

/* Let what was written past the caches be seen by others before what is written next. */
static void written_past_caches(void)
{
#if defined(__x86_64__)
    _mm_sfence();
#endif
}

static void close_sink(sink *out)
{
    memcpy(out->to, out->lines + out->skip, (size_t)(out->filled - out->skip));
    written_past_caches();
}
