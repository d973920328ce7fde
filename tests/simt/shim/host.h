/* The side of the shim that tests see: device memory, the order of execution, and faults. */
#pragma once
#include <cstddef>
#include <cstdint>

// Memory that kernels may touch, and not a byte beside it. It begins as NaN (all bits set), 256-byte aligned.
void *simt_allocate(size_t bytes);
void simt_release(void *memory); // NULL is allowed

// The order of blocks and threads in the launches that follow.
enum SimtOrder { SIMT_FORWARD, SIMT_REVERSE, SIMT_SHUFFLED };
void simt_set_order(SimtOrder order, uint64_t seed); // seed: of SIMT_SHUFFLED

// Runs `body` and returns what a kernel in it did wrong, or "" (the text lives until the next call). The launch stops
// at its first fault, the launches after it do nothing. Outside of this a fault is printed and aborts.
const char *simt_faults(void (*body)(void *context), void *context);

uint64_t simt_accesses(); // loads and stores checked so far
