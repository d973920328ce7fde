/* The side of the shim that tests see: device memory, the order of execution, and faults. */
#pragma once
#include <cstddef>
#include <cstdint>

// Memory that kernels may touch, and not a byte beside it. It begins as NaN (all bits set), 256-byte aligned.
void *simt_allocate(size_t bytes);
void simt_release(void *memory); // NULL is allowed

bool simt_holds(const void *memory, size_t bytes); // whether all of it lies in one allocation

// Memory of the host that kernels may touch too.
void simt_share(void *memory, size_t bytes);
void simt_unshare(void *memory); // what is not shared is left

// Addresses without memory, which is put behind their front (or behind what is there) and taken back from there to the
// end; simt_release gives them back. NULL: there are none left.
void *simt_reserve(size_t bytes);
void simt_back(void *address, size_t bytes);
void simt_unback(void *address, size_t bytes);

// The order of blocks and threads in the launches that follow.
enum SimtOrder { SIMT_FORWARD, SIMT_REVERSE, SIMT_SHUFFLED };
void simt_set_order(SimtOrder order, uint64_t seed); // seed: of SIMT_SHUFFLED

// Runs `body` and returns what a kernel in it did wrong, or "" (the text lives until the next call). The launch stops
// at its first fault, the launches after it do nothing. Outside of this a fault is printed and aborts.
const char *simt_faults(void (*body)(void *context), void *context);

// Where launches into a stream go, which is run later; without one they run at once.
struct CUstream_st;
struct SimtCall;
void simt_set_queue(void (*later)(CUstream_st *stream, const SimtCall &));

uint64_t simt_accesses(); // loads and stores checked so far
