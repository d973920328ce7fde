/* Kernels with planted faults, and the same ones without: tests of the shim. */
#pragma once
#include "kernels/cuda/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif
// Each has 256 threads in a block. out, x: device, (n)
void planted_reverse(float *out, const float *x, int n, bool without_barrier); // each block reverses its 256 numbers
void planted_block_race(int *out, int blocks, bool atomic);                    // all blocks add to out[0]
void planted_copy(float *out, const float *x, int n, int excess);              // reads x[0, n + excess)
void planted_write(float *out, int n, int excess);                             // writes out[0, n + excess)
void planted_shared(float *out, int index);                                    // writes shared[index] of 64
void planted_unwritten(float *out);                                            // reads shared memory nobody wrote
void planted_divergent(float *out, bool early_exit);                           // a barrier half the threads reach
void planted_two_barriers(float *out);                                         // halves wait at different barriers
void planted_shuffle(float *out, unsigned mask, int lanes);                    // lanes below `lanes` shuffle with mask
void planted_warp(float *out, bool without_barrier); // lanes pass numbers through shared memory
void planted_misaligned(float *out, const float *x); // reads 16 bytes at x
void planted_trap(float *out);
// out (16, 16) = x (16, 16) times y (16, 16) or its transpose, in bf16 by tensor cores; one warp.
typedef enum { MATRICES_RIGHT, MATRICES_SWAPPED, MATRICES_MISALIGNED, MATRICES_GLOBAL } PlantedMatrices;
void planted_matrices(float *out, const uint16_t *x, const uint16_t *y, bool transposed, PlantedMatrices);
// Each block reverses its 1024 numbers, which come by asynchronous copies in two groups.
typedef enum { COPIES_RIGHT, COPIES_NO_BARRIER, COPIES_TOO_EARLY, COPIES_NOT_WAITED } PlantedCopies;
void planted_copies(float *out, const float *x, int n, PlantedCopies);
void planted_votes(unsigned *out); // (4, 32): ballot of odd lanes, any, all, and match of lane / 4
void planted_reuse(float *out, const float *x, int rounds, bool without_barrier); // shared memory used again
#ifdef __cplusplus
}
#endif
