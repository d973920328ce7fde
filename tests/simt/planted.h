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
void planted_votes(unsigned *out); // (4, 32): ballot of odd lanes, any, all, and match of lane / 4
void planted_reuse(float *out, const float *x, int rounds, bool without_barrier); // shared memory used again
#ifdef __cplusplus
}
#endif
