/* One row of logits as blocks of 64 floats: converted on the way, and changed where penalties and bias say so. */

#define BLOCK 64 /* tokens whose maximum is kept together; a multiple of what one philox() covers */
#define VECTORS (BLOCK / FLOATS)

/* What is known of a block that penalties or bias touch. */
typedef struct {
    float bias[BLOCK];
    float count[BLOCK]; /* generated tokens */
    int32_t seen[BLOCK];
    float changed[BLOCK]; /* the logits of the row at hand, after all changes */
} touched;

typedef struct {
    int32_t *place; /* of each block among `blocks`, or -1; NULL = no changes at all */
    touched *blocks;
    int32_t num_blocks;
} changes;

typedef struct {
    const char *logits;
    int64_t vocab, num_blocks;
    int dtype;
    const changes *changes;
    float *maxima; /* one per block */
    int threads;
    float top; /* the largest logit */
} row_view;

static inline vfloat load_as(int dtype, const void *from, int64_t i)
{
    return dtype == EK_FLOAT32   ? load_floats((const float *)from + i)
           : dtype == EK_FLOAT16 ? load_float16((const uint16_t *)from + i)
                                 : load_bfloat16((const uint16_t *)from + i);
}

/* The 64 floats of a block as they stand in memory, -inf behind the end of the row. */
static const float *plain_block(const row_view *row, int64_t block, float *buffer)
{
    int64_t first = block * BLOCK, n = row->vocab - first;
    int size = row->dtype == EK_FLOAT32 ? 4 : 2;
    const char *from = row->logits + first * size;
    float rest[BLOCK];
    if (n >= BLOCK && row->dtype == EK_FLOAT32)
        return (const float *)from;
    if (n < BLOCK) {
        memset(rest, 0, sizeof rest);
        memcpy(rest, from, (size_t)(n * size));
        from = (const char *)rest;
    }
    for (int i = 0; i < BLOCK; i += FLOATS) {
        vfloat v = load_as(row->dtype, from, i);
        memcpy(buffer + i, &v, sizeof v);
    }
    for (int64_t i = n; i < BLOCK; i++)
        buffer[i] = -INFINITY;
    return buffer;
}

/* Whether all blocks before `to` are whole, as they stand in memory, and need no conversion. */
static inline int is_plain(const row_view *row, int64_t to)
{
    return row->dtype == EK_FLOAT32 && !row->changes && to * BLOCK <= row->vocab;
}

static inline const float *block_at(const row_view *row, int64_t block, float *buffer)
{
    if (is_plain(row, block + 1))
        return (const float *)row->logits + block * BLOCK;
    if (row->changes && row->changes->place[block] >= 0)
        return row->changes->blocks[row->changes->place[block]].changed;
    return plain_block(row, block, buffer);
}

static inline float logit_at(const row_view *row, int64_t column)
{
    float buffer[BLOCK];
    return block_at(row, column / BLOCK, buffer)[column % BLOCK];
}

/* Maxima of whole blocks [from, to); NaN counts as -inf. Returns the largest. */
static inline __attribute__((always_inline)) float scan_as(int dtype, const void *logits, int64_t from, int64_t to,
                                                           float *maxima)
{
    vfloat most = (vfloat){0} - INFINITY;
    for (int64_t block = from; block < to; block++) {
        vfloat a = (vfloat){0} - INFINITY, b = a;
        for (int i = 0; i < BLOCK; i += 2 * FLOATS) {
            a = max_floats(load_as(dtype, logits, block * BLOCK + i), a);
            b = max_floats(load_as(dtype, logits, block * BLOCK + i + FLOATS), b);
        }
        a = max_floats(a, b);
        most = max_floats(a, most);
        maxima[block] = max_lane(a);
    }
    return max_lane(most);
}

/* The largest of whole blocks [from, to), their maxima unknown: less work where only the largest logit matters. */
static inline __attribute__((always_inline)) float largest_as(int dtype, const void *logits, int64_t from, int64_t to)
{
    vfloat most[4];
    for (int j = 0; j < 4; j++)
        most[j] = (vfloat){0} - INFINITY;
    for (int64_t i = from * BLOCK; i < to * BLOCK; i += 4 * FLOATS)
        for (int j = 0; j < 4; j++)
            most[j] = max_floats(load_as(dtype, logits, i + j * FLOATS), most[j]);
    return max_lane(max_floats(max_floats(most[0], most[1]), max_floats(most[2], most[3])));
}

static float largest(const row_view *row, int64_t from, int64_t to)
{
    return row->dtype == EK_FLOAT32   ? largest_as(EK_FLOAT32, row->logits, from, to)
           : row->dtype == EK_FLOAT16 ? largest_as(EK_FLOAT16, row->logits, from, to)
                                      : largest_as(EK_BFLOAT16, row->logits, from, to);
}

static float scan_blocks(row_view *row, int64_t from, int64_t to)
{
    return row->dtype == EK_FLOAT32   ? scan_as(EK_FLOAT32, row->logits, from, to, row->maxima)
           : row->dtype == EK_FLOAT16 ? scan_as(EK_FLOAT16, row->logits, from, to, row->maxima)
                                      : scan_as(EK_BFLOAT16, row->logits, from, to, row->maxima);
}

/* First and last part of a row's blocks for one of several threads. */
static void part_of(int64_t n, int thread, int threads, int64_t *from, int64_t *to)
{
    *from = n * thread / threads;
    *to = n * (thread + 1) / threads;
}

/* Read a row once from block `from` on: maxima of all these blocks, and the largest logit of the row. */
static void scan(row_view *row, int64_t from)
{
    int64_t whole = row->vocab / BLOCK;
    float buffer[BLOCK], top;
    if (row->threads == 1) {
        top = scan_blocks(row, from, whole);
        row->top = from && row->top > top ? row->top : top;
    } else {
#pragma omp parallel for num_threads(row->threads) schedule(static, 1)
        for (int t = 0; t < row->threads; t++) {
            int64_t first, end;
            part_of(whole - from, t, row->threads, &first, &end);
            scan_blocks(row, from + first, from + end);
        }
    }
    if (whole < row->num_blocks) {
        top = scan_as(EK_FLOAT32, plain_block(row, whole, buffer), 0, 1, row->maxima + whole);
        row->top = whole && row->top > top ? row->top : top;
    }
    if (row->threads > 1 || row->changes) {
        row->top = -INFINITY;
        for (int64_t block = 0; block < row->num_blocks; block++) {
            if (row->changes && row->changes->place[block] >= 0)
                scan_as(EK_FLOAT32, block_at(row, block, buffer), 0, 1, row->maxima + block);
            row->top = row->maxima[block] > row->top ? row->maxima[block] : row->top;
        }
    }
}
