/* Values of codes of up to 5 bits by tables, with AVX-512 VBMI: all values of a group stand in one or two registers,
   and a code is an index as soon as its bytes are in the right lane and shifted, without a chunk of codes between. */
#include <immintrin.h>

#define TABLE_BITS 5

/* Where the codes of a block are, for lanes of as many bytes as a value has. */
typedef struct {
    __m512i place, shifts, next;
    int bits;
    ek_format format;
} table_plan;

typedef struct {
    __m512i low, high; /* float32: the values of codes 0 .. 15 and 16 .. 31; otherwise all in `low` */
} value_table;

static table_plan make_table_plan(int bits, ek_format format)
{
    table_plan plan = {.bits = bits, .format = format};
    const int size = format == EK_FLOAT32 ? 4 : 2;
    uint8_t place[64] = {0}, shifts[64] = {0};
    for (int i = 0; i < 64 / size; i++) {
        place[size * i] = (uint8_t)(i * bits / 8);
        place[size * i + 1] = (uint8_t)(i * bits / 8 + 1);
        shifts[size * i] = (uint8_t)(i * bits % 8);
    }
    plan.place = _mm512_loadu_si512(place);
    plan.shifts = _mm512_loadu_si512(shifts);
    plan.next = _mm512_set1_epi8((char)(64 / size * bits / 8)); /* from one register of values to the next */
    return plan;
}

/* Bits above a code are not masked: an index takes 4 or 5 bits, and the values repeat. */
INLINE value_table make_table(const table_plan *plan, float scale, float offset)
{
    const __m512i counted = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i mask = _mm512_set1_epi32((1 << plan->bits) - 1);
    const __m512 wide = _mm512_set1_ps(scale), offsets = _mm512_set1_ps(offset);
    value_table table;
    __m512 value[2];
    for (int i = 0; i < 2; i++) {
        __m512i codes = _mm512_and_si512(_mm512_add_epi32(counted, _mm512_set1_epi32(16 * i)), mask);
        value[i] = _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(codes), wide), offsets);
    }
    if (plan->format == EK_FLOAT32) {
        table.low = _mm512_castps_si512(value[0]);
        table.high = _mm512_castps_si512(value[1]);
    } else {
        uint16_t halves[32];
        put((lanes)value[0], plan->format, 0, halves);
        put((lanes)value[1], plan->format, 0, halves + 16);
        table.low = table.high = _mm512_loadu_si512(halves);
    }
    return table;
}

INLINE void block_by_table(const table_plan *plan, const value_table *table, __m512i bytes, int five_bits, int size,
                           int past, char *to)
{
    __m512i place = plan->place;
#pragma GCC unroll 4
    for (int k = 0; k < size; k++, place = _mm512_add_epi8(place, plan->next)) {
        __m512i moved = _mm512_permutexvar_epi8(place, bytes), values;
        if (size == 2)
            values = _mm512_permutexvar_epi16(_mm512_srlv_epi16(moved, plan->shifts), table->low);
        else if (five_bits)
            values = _mm512_permutex2var_epi32(table->low, _mm512_srlv_epi32(moved, plan->shifts), table->high);
        else
            values = _mm512_permutexvar_epi32(_mm512_srlv_epi32(moved, plan->shifts), table->low);
        store_bytes(to + 64 * k, &values, sizeof values, past);
    }
}

INLINE int64_t blocks_by_tables(const value_plan *groups, const table_plan *shared, const uint8_t *from,
                                const uint8_t *end, int64_t first, int64_t blocks, int five_bits, int size, int past,
                                char *to)
{
    const table_plan own = *shared, *plan = &own; /* in registers, since no write can change it */
    const int64_t in_group = groups->group / BLOCK, block_bytes = BLOCK / 8 * plan->bits;
    int64_t g = first / groups->group, left = in_group - first % groups->group / BLOCK, done = 0;
    while (done < blocks) {
        const int64_t stop = done + least_of(left, blocks - done);
        const value_table table = make_table(plan, groups->scale[g], groups->offset[g]);
        for (; done < stop && end - from >= SPAN; done++, from += block_bytes) {
            __builtin_prefetch(from + 1536); /* may lie beyond the end: nothing is read */
            block_by_table(plan, &table, _mm512_loadu_si512(from), five_bits, size, past, to + done * BLOCK * size);
        }
        if (done < stop)
            break;
        g++, left = in_group;
    }
    return done;
}

/* Write the values of as many of the n codes as can be done so, and return how many these are. */
static int64_t values_by_tables(const value_plan *groups, const table_plan *plan, const uint8_t *from,
                                const uint8_t *end, int64_t first, int64_t n, int past, char *to)
{
#define DONE(five_bits, size, past)                                                                                    \
    BLOCK *blocks_by_tables(groups, plan, from, end, first, n / BLOCK, five_bits, size, past, to)
    if (plan->bits > TABLE_BITS || groups->group % BLOCK || first % BLOCK)
        return 0;
    if (plan->format != EK_FLOAT32)
        return past ? DONE(0, 2, 1) : DONE(0, 2, 0);
    if (plan->bits == 5)
        return past ? DONE(1, 4, 1) : DONE(1, 4, 0);
    return past ? DONE(0, 4, 1) : DONE(0, 4, 0);
#undef DONE
}
