/* What this machine can do at best: how fast memory is read. Built and called by bench/limits.py.
 *
 * Nothing else is done with what is read but to add it up in eight independent sums, so that neither latency nor
 * arithmetic bounds it. Vectors are GCC's and Clang's own, the compiler is asked for this machine (-march=native). */
#include <stddef.h>
#include <stdint.h>

typedef uint64_t vector __attribute__((vector_size(64)));
enum { SUMS = 8, STEP = SUMS * sizeof(vector) };

static uint64_t sum_of(const char *from, size_t bytes)
{
    vector sums[SUMS] = {{0}};
    for (size_t at = 0; at + STEP <= bytes; at += STEP)
        for (int i = 0; i < SUMS; i++)
            sums[i] += *(const vector *)(from + at + i * sizeof(vector));
    for (int i = 1; i < SUMS; i++)
        sums[0] += sums[i];
    uint64_t sum = 0;
    for (size_t i = 0; i < sizeof(vector) / sizeof(uint64_t); i++)
        sum += sums[0][i];
    return sum;
}

/* Reads bytes (64-byte aligned; each thread its own part, rounded down to STEP) `passes` times over; the sum keeps the
 * compiler from leaving it out. */
uint64_t limits_read(const char *from, size_t bytes, int passes, int threads)
{
    uint64_t total = 0;
    size_t part = bytes / threads / STEP * STEP;
#pragma omp parallel for num_threads(threads) schedule(static, 1) reduction(+ : total)
    for (int t = 0; t < threads; t++)
        for (int pass = 0; pass < passes; pass++) {
            total += sum_of(from + t * part, part);
            __asm__ volatile("" ::: "memory"); /* a second pass is a second reading */
        }
    return total;
}
