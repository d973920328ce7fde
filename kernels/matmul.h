/* A matrix product: C[m, n] = sum over k of A[m, k] B[k, n] (+ bias[n]) (+ C), batched, with any of A and B transposed.
 * Strides are in elements. A[m, k] lies at a + m * a_row + k * a_column: one of the two is 1 (likewise B[k, n] at
 * b + k * b_row + n * b_column; C has column stride 1). The result's bits do not depend on the number of threads. */
#pragma once
#include "kernels/tensor.h"

// What becomes of z = A B + bias before it is stored; gelu: the form with tanh.
typedef enum Epilogue {
    EPILOGUE_NONE,
    EPILOGUE_GELU,          // aux = z, C = gelu(z)
    EPILOGUE_GELU_BACKWARD, // C = z gelu'(aux)
} Epilogue;

typedef struct Matmul {
    int64_t     m, n, k, batch;  // batch >= 1
    const void *a, *b;
    void       *c;
    const float *bias;           // (n) or NULL
    int64_t     a_row, a_column, b_row, b_column, c_row;
    int64_t     a_batch, b_batch, c_batch; // from one product of the batch to the next
    Dtype       in, out;         // A and B: F32 or BF16; C: F32 or BF16 (F32 in with BF16 out is not needed)
    bool        add;             // C += instead of C =
    // Only where Backend.matmul_wins said so; one product, C not added to:
    Epilogue    epilogue;
    void       *aux;             // (m, n) of type `out`, rows c_row apart, or NULL: of the epilogue
    const float *a_factor, *b_factor; // device: what A and B of E4M3 or E5M2 are multiplied by; else NULL
    float      *sums;            // (m) or NULL: sum over k of A[m, k] beside the product
    bool        add_sums;        // sums += instead of sums =
} Matmul;
