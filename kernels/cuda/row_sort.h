/* Row numbers sorted, with the places they came from in order (a stable radix sort). */
#pragma once
#include "kernels/cuda/kernels.h"

typedef struct SortedRows {
    const int32_t *keys;   // (m), device: ascending; negative rows count as `count`, behind all others
    const int32_t *places; // (m), device: where each stood, ascending within equal keys
} SortedRows;

size_t row_sort_bytes(int64_t m); // of scratch memory, from a multiple of 16 on
// A row beyond `count` is a device fault.
SortedRows row_sort(const CudaQueue *, void *scratch, const int32_t *rows, int64_t m, int64_t count);
