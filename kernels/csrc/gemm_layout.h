/* Where the bits of a code lie within the planes of its unit.

   A unit is 32 columns of 16 rows: 8 steps of 64 codes, in `bits` planes of 64 bytes; byte i of every plane belongs to
   row i / 4 and column i % 4 of each step. A byte holds as many whole codes as fit, the first at its low end. Its
   spare bits, plane after plane, low end first, make up the codes that remain. So most codes cost a shift and a
   mask. */
#ifndef EDGEKERNELS_GEMM_LAYOUT_H
#define EDGEKERNELS_GEMM_LAYOUT_H

#define EK_STEPS 8
#define EK_MAX_GROUP 256

/* A piece of a code: bits at .. at + size - 1 of the bytes of a plane. */
typedef struct {
    int plane;
    int at;
    int size;
} ek_piece;

/* The piece which continues the code of a step of which `done` low bits are known. */
static inline __attribute__((always_inline)) ek_piece ek_piece_of(const int bits, const int step, const int done)
{
    const int whole = 8 / bits, spare = 8 % bits;
    if (step < whole * bits)
        return (ek_piece){step / whole, step % whole * bits, bits};
    const int first = (step - whole * bits) * bits + done; /* in the string of spare bits */
    const int left = spare - first % spare;
    return (ek_piece){first / spare, whole * bits + first % spare, left < bits - done ? left : bits - done};
}

#endif
