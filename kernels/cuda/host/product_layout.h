/* A matrix product (matmul.h, row-major) in the terms of cuBLAS, which is column-major: the same memory holds the
 * transposes, so D^T (n x m) = B^T (n x k) A^T (k x m); "left" is B, "right" is A. */
#pragma once
#include "kernels/matmul.h"

typedef struct ProductSide {        // a column-major matrix as it is stored
    int64_t rows, columns, leading; // leading: elements from one column to the next, at least `rows`
    int64_t batch;                  // elements from one matrix of the batch to the next
    bool transposed;                // it enters the product transposed
} ProductSide;

typedef struct ProductLayout {
    ProductSide left, right, out;
} ProductLayout;

// False where neither stride of A or of B is 1, or rows overlap: matmul.h rules that out.
bool product_layout(const Matmul *, ProductLayout *);

// What a plan is remembered by: no pointers and no padding.
typedef struct ProductKey {
    int64_t m, n, k, batch;
    int64_t left_leading, right_leading, out_leading, left_batch, right_batch, out_batch;
    int64_t left_align, right_align, out_align; // bytes, powers of two up to 256
    int64_t bias_align, aux_align;              // likewise (of sums as of a bias); 0: there is none
    int64_t flags;                              // transposed left, right; add; types; epilogue; sums
} ProductKey;
ProductKey product_key(const Matmul *, const ProductLayout *);
int64_t pointer_alignment(const void *); // the largest power of two that divides it, at most 256
