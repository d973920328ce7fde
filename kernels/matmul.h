/* A matrix product: C[m, n] = sum over k of A[m, k] B[k, n] (+ bias[n]) (+ C), batched, with any of A and B transposed.
 * Strides are in elements. A[m, k] lies at a + m * a_row + k * a_column: one of the two is 1 (likewise B[k, n] at
 * b + k * b_row + n * b_column; C has column stride 1). The result's bits do not depend on the number of threads. */
#pragma once
#include "kernels/tensor.h"

typedef struct Matmul {
    int64_t     m, n, k, batch;  // batch >= 1
    const void *a, *b;
    void       *c;
    const float *bias;           // (n) or NULL
    int64_t     a_row, a_column, b_row, b_column, c_row;
    int64_t     a_batch, b_batch, c_batch; // from one product of the batch to the next
    Dtype       in, out;         // A and B: F32 or BF16; C: F32 or BF16 (F32 in with BF16 out is not needed)
    bool        add;             // C += instead of C =
} Matmul;
