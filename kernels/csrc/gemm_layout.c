/* The layout of packed matrices: codes into planes and back. Plain C: it runs once when a matrix is loaded, and for
   single rows (embeddings). */
#include <stddef.h>
#include <string.h>

#include "gemm.h"
#include "gemm_layout.h"

int64_t ek_data_bytes(int64_t rows, int64_t columns, int32_t bits)
{
    return (rows + EK_BLOCK - 1) / EK_BLOCK * ((columns + EK_UNIT - 1) / EK_UNIT) * bits * EK_PLANE;
}

/* Or the codes of one step (4 columns of 16 rows) into the planes of its unit. */
static void put_step(const uint8_t codes[EK_PLANE], uint8_t *planes, int bits, int step)
{
    for (int done = 0; done < bits;) {
        const ek_piece p = ek_piece_of(bits, step, done);
        uint8_t *plane = planes + p.plane * EK_PLANE;
        const int mask = ((1 << p.size) - 1) << p.at;
        for (int i = 0; i < EK_PLANE; i++)
            plane[i] |= (uint8_t)(((codes[i] >> done) << p.at) & mask);
        done += p.size;
    }
}

int ek_pack_blocks(const uint8_t *codes, int64_t rows, int64_t columns, int32_t bits, int64_t from, int64_t to,
                   uint8_t *data)
{
    const int64_t units = (columns + EK_UNIT - 1) / EK_UNIT;
    uint8_t seen[EK_PLANE] = {0};
    int all = 0;
    for (int64_t block = from; block < to; block++)
        for (int64_t unit = 0; unit < units; unit++) {
            uint8_t *planes = data + (block * units + unit) * bits * EK_PLANE;
            memset(planes, 0, (size_t)bits * EK_PLANE);
            for (int step = 0; step < EK_STEPS; step++) {
                const int64_t column = unit * EK_UNIT + step * 4;
                uint8_t lanes[EK_PLANE] = {0};
                if (column >= columns) /* columns are a multiple of 16, so of 4 */
                    break;
                for (int r = 0; r < EK_BLOCK && block * EK_BLOCK + r < rows; r++)
                    memcpy(lanes + r * 4, codes + (block * EK_BLOCK + r) * columns + column, 4);
                for (int i = 0; i < EK_PLANE; i++)
                    seen[i] |= lanes[i];
                put_step(lanes, planes, bits, step);
            }
        }
    for (int i = 0; i < EK_PLANE; i++)
        all |= seen[i];
    return all;
}

/* Write the codes of columns from .. to - 1 of one row; both are multiples of 4. */
static void row_codes(const ek_packed *matrix, int64_t row, int64_t from, int64_t to, uint8_t *codes)
{
    const int bits = matrix->bits;
    const int64_t units = (matrix->columns + EK_UNIT - 1) / EK_UNIT;
    const uint8_t *planes = matrix->data + row / EK_BLOCK * units * bits * EK_PLANE + row % EK_BLOCK * 4;
    for (int64_t column = from; column < to; column += 4) {
        const uint8_t *unit = planes + column / EK_UNIT * bits * EK_PLANE;
        uint32_t four = 0;
        for (int done = 0; done < bits;) {
            const ek_piece p = ek_piece_of(bits, (int)(column % EK_UNIT / 4), done);
            uint32_t word;
            memcpy(&word, unit + p.plane * EK_PLANE, 4);
            four |= (word >> p.at & ((1u << p.size) - 1) * 0x01010101u) << done;
            done += p.size;
        }
        memcpy(codes + column - from, &four, 4);
    }
}

void ek_row_codes(const ek_packed *matrix, int64_t row, uint8_t *codes)
{
    row_codes(matrix, row, 0, matrix->columns, codes);
}

static float half_to_float(uint16_t half)
{
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7FFF;
    uint32_t bits = rest << 13;
    float value;
    memcpy(&value, &bits, 4);
    value *= 0x1p112f; /* exact, subnormal halves included */
    memcpy(&bits, &value, 4);
    bits |= sign;
    memcpy(&value, &bits, 4);
    return value;
}

static float factor(const void *factors, int64_t i, int half)
{
    return half ? half_to_float(((const uint16_t *)factors)[i]) : ((const float *)factors)[i];
}

/* Values of n codes of one group. All but the last product of a bent one is exact, fused or not. */
static void values_of(const ek_packed *matrix, float scale, float offset, const uint8_t *codes, int n, float *values)
{
    if (matrix->bend != EK_NOT_BENT) {
        const float bend = (float)matrix->bend / 16, straight = 1 - bend, step = 2.0f / (float)(1 << matrix->bits);
        for (int c = 0; c < n; c++) {
            const float u = (float)codes[c] * step + (step / 2 - 1), shape = u * (u * u * bend + straight);
            values[c] = shape * scale;
        }
    } else if (matrix->offset != NULL) {
        for (int c = 0; c < n; c++)
            values[c] = (float)codes[c] * scale + offset;
    } else {
        const float middle = (float)(1 << (matrix->bits - 1));
        for (int c = 0; c < n; c++)
            values[c] = ((float)codes[c] - middle) * scale;
    }
}

/* The codes of one unit: 16 rows of 32, of which columns behind the last one are 0. */
static void unit_codes(const uint8_t *planes, int bits, uint8_t codes[EK_BLOCK][EK_UNIT])
{
    for (int step = 0; step < EK_STEPS; step++) {
        uint8_t lanes[EK_PLANE] = {0};
        for (int done = 0; done < bits;) {
            const ek_piece p = ek_piece_of(bits, step, done);
            const uint8_t *plane = planes + p.plane * EK_PLANE, mask = (uint8_t)((1 << p.size) - 1);
            for (int i = 0; i < EK_PLANE; i++)
                lanes[i] |= (uint8_t)((plane[i] >> p.at & mask) << done);
            done += p.size;
        }
        for (int r = 0; r < EK_BLOCK; r++)
            memcpy(codes[r] + step * 4, lanes + r * 4, 4);
    }
}

void ek_row_values(const ek_packed *matrix, int64_t row, float *values)
{
    const int64_t groups = matrix->columns / matrix->group;
    uint8_t codes[EK_MAX_GROUP];
    for (int64_t g = 0; g < groups; g++) {
        const int64_t i = (row / EK_BLOCK * groups + g) * EK_BLOCK + row % EK_BLOCK, end = (g + 1) * matrix->group;
        const float scale = factor(matrix->scale, i, matrix->half_scales);
        const float offset = matrix->offset != NULL ? factor(matrix->offset, i, matrix->half_scales) : 0;
        for (int64_t c = g * matrix->group, n; c < end; c += n) {
            n = end - c < EK_MAX_GROUP ? end - c : EK_MAX_GROUP;
            row_codes(matrix, row, c, c + n, codes);
            values_of(matrix, scale, offset, codes, (int)n, values + c);
        }
    }
}

void ek_block_values(const ek_packed *matrix, int64_t block, float *values)
{
    const int64_t columns = matrix->columns, units = (columns + EK_UNIT - 1) / EK_UNIT, group = matrix->group;
    const int64_t groups = columns / group, left = matrix->rows - block * EK_BLOCK;
    const int64_t rows = left < EK_BLOCK ? left : EK_BLOCK;
    uint8_t codes[EK_BLOCK][EK_UNIT];
    for (int64_t first = 0; first < columns; first += EK_UNIT) {
        const int64_t end = first + EK_UNIT < columns ? first + EK_UNIT : columns;
        const int n = end - first < group ? (int)(end - first) : (int)(group < EK_UNIT ? group : EK_UNIT);
        unit_codes(matrix->data + (block * units + first / EK_UNIT) * matrix->bits * EK_PLANE, matrix->bits, codes);
        for (int64_t c = first; c < end; c += n)
            for (int64_t r = 0; r < rows; r++) {
                const int64_t i = (block * groups + c / group) * EK_BLOCK + r;
                const float scale = factor(matrix->scale, i, matrix->half_scales);
                const float offset = matrix->offset != NULL ? factor(matrix->offset, i, matrix->half_scales) : 0;
                values_of(matrix, scale, offset, codes[r] + (c - first), n, values + r * columns + c);
            }
    }
}
