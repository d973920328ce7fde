/* The innermost step of a matrix product: a tile of C, MATMUL_ROWS x MATMUL_PANEL at most, held in registers while the
 * inner dimension runs by. That dimension is counted in units of 32 bits: one f32, or a pair of bf16 where the machine
 * multiplies such pairs (elsewhere bf16 is converted to f32 on the way). */
#pragma once
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/sizes.h"

// A tile of MATMUL_ROWS x MATMUL_PANEL, two vectors wide; MATMUL_STAGE: rows of a copied panel of A, with padding.
#if defined(__AVX512F__)
enum { MATMUL_PANEL = 32, MATMUL_ROWS = 14, MATMUL_STAGE = 16 }; // 28 sums, 2 of B, 1 of A: 31 of 32 registers
#elif defined(__AVX2__)
enum { MATMUL_PANEL = 16, MATMUL_ROWS = 6, MATMUL_STAGE = 8 }; // 12 + 2 + 1 of 16
#else
enum { MATMUL_PANEL = 8, MATMUL_ROWS = 4, MATMUL_STAGE = 4 }; // 8 + 2 + 1 of 16
#endif

typedef enum MatmulUnit { UNIT_F32, UNIT_PAIR } MatmulUnit;

typedef struct Tile {
    const char *a;  // A[0, unit 0]
    int64_t a_row;  // bytes from a row to the next
    int64_t a_unit; // bytes from a unit to the next; one of the two is 4
    const float *b; // (units, MATMUL_PANEL); pairs lie as their 32 bits
    int64_t b_unit; // floats from a unit to the next
    int64_t units;
    int rows, columns; // of C; at most MATMUL_ROWS, MATMUL_PANEL
    // to = sums (+ bias) (+ from)
    const float *bias; // (columns) or NULL
    const void *from;  // or NULL
    void *to;
    int64_t from_row, to_row; // elements
    Dtype from_type, to_type;
} Tile;

void SIMD_NAME(matmul_tile)(const Tile *, MatmulUnit);
