/* Bitstreams to planes and back, through a chunk of codes in L1. */

static void split(const uint8_t *packed, int64_t n, int bits, uint8_t *planes)
{
    const block_plan plan = make_block_plan(bits);
    const uint8_t *end = packed + (n * bits + 7) / 8;
    const int64_t stride = (n + 7) / 8;
    for (int64_t first = 0; first < n; first += CHUNK) {
        uint8_t chunk[CHUNK];
        const uint8_t *bytes = packed + first / 8 * bits, *codes = bits == 8 ? bytes : chunk;
        const int64_t count = least_of(n - first, CHUNK);
        uint8_t *to = planes + first / 8;
        int64_t i = 0;
        if (codes == chunk)
            unpack_codes(&plan, bytes, end, count, chunk);
#if defined(MANY)
        for (; i + MANY <= count; i += MANY)
            split_many(codes + i, bits, to + i / 8, stride);
#endif
        for (; i + BLOCK <= count; i += BLOCK)
            split_block(codes + i, bits, to + i / 8, stride);
        if (i < count) {
            uint8_t padded[BLOCK] = {0}, last[8 * 8];
            memcpy(padded, codes + i, (size_t)(count - i));
            split_block(padded, bits, last, 8);
            for (int k = 0; k < bits; k++)
                memcpy(to + i / 8 + k * stride, last + 8 * k, (size_t)((count - i + 7) / 8));
        }
    }
}

static void merge(const uint8_t *planes, int64_t n, int bits, uint8_t *packed)
{
    const block_plan plan = make_block_plan(bits);
    const uint8_t *end = packed + (n * bits + 7) / 8;
    const int64_t stride = (n + 7) / 8;
    for (int64_t first = 0; first < n; first += CHUNK) {
        uint8_t chunk[CHUNK], *to = packed + first / 8 * bits, *codes = bits == 8 ? to : chunk;
        const uint8_t *from = planes + first / 8;
        const int64_t count = least_of(n - first, CHUNK);
        int64_t i = 0;
#if defined(MANY)
        for (; i + MANY <= count; i += MANY)
            merge_many(from + i / 8, stride, bits, codes + i);
#endif
        for (; i + BLOCK <= count; i += BLOCK)
            merge_block(from + i / 8, stride, bits, codes + i);
        if (i < count) {
            uint8_t padded[BLOCK], last[8 * 8] = {0};
            for (int k = 0; k < bits; k++)
                memcpy(last + 8 * k, from + i / 8 + k * stride, (size_t)((count - i + 7) / 8));
            merge_block(last, 8, bits, padded); /* codes behind the last one are not packed: see pack_codes */
            memcpy(codes + i, padded, (size_t)(count - i));
        }
        if (codes == chunk)
            pack_codes(&plan, codes, count, to, end);
    }
}
