/* Copies of parts of A and B in the order in which the tile kernel reads them: bf16 becomes pairs or f32, ends are
 * filled with zeros. */
#pragma once
#include "kernels/cpu/simd/matmul_kernel.h"

// A part of A or B as lines (rows of A, columns of B) of inner elements k.
typedef struct Lines {
    const void *data;   // line 0, k 0
    int64_t line, step; // elements from a line to the next and from a k to the next; one of the two is 1
    int64_t count, k;   // lines, inner elements
    Dtype type;
} Lines;

// out[u * width + i] = unit u of line i, zero for lines from `count` on. `width` >= count is MATMUL_STAGE or
// MATMUL_PANEL; out is aligned to that many floats. An odd last k is paired with zero.
void SIMD_NAME(matmul_pack)(float *out, int width, const Lines *, MatmulUnit);
