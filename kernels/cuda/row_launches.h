/* Work over the packs of rows (N numbers each), counted over all rows so that narrow rows fill their warps too. */
#pragma once
#include "kernels/cuda/language.h"

enum { ROW_THREADS = 256 };

struct RowPack {
    int64_t row, column;
};
// Pack `at`, counted from `first_row` on; per_row packs each.
template <int N> __device__ __forceinline__ RowPack row_pack(uint32_t at, int64_t first_row, Divider per_row) {
    uint32_t row = divide(at, per_row);
    return RowPack{first_row + row, (at - row * per_row.divisor) * static_cast<int64_t>(N)};
}

// Calls f(first row, packs, grid) for as many rows at a time as 32 bits count.
template <class F> static void in_row_launches(int64_t rows, int64_t per_row, F f) {
    constexpr int64_t MOST = static_cast<int64_t>(1) << 30;
    if (per_row <= 0) return;
    int64_t step = larger<int64_t>(MOST / per_row, 1);
    for (int64_t row = 0; row < rows; row += step) {
        uint32_t packs = static_cast<uint32_t>(smaller(step, rows - row) * per_row);
        f(row, packs, dim3(divide_up<uint32_t>(packs, ROW_THREADS)));
    }
}
