/* What the parts of the shim tell each other: where execution is, and faults. One thread of the process runs launches.
 */
#pragma once
#include "tests/simt/shim/simt.h"

struct Position {                  // where a thread of a kernel is
    bool inside;                   // a kernel runs
    uint32_t launch_first;         // epoch in which this launch began
    uint32_t block_first;          // epoch in which this block began
    uint32_t epoch;                // counts blocks and block barriers of all launches
    uint16_t thread;               // in the block
    uint16_t warp_epoch;           // counts whole-warp barriers of this warp since the last block barrier
    const char *stack, *stack_end; // of this thread
    const char *parameters, *parameters_end;
};
extern Position position;

// Names kernel, block and thread, and the text; does not return.
[[noreturn]] void simt_fault(const char *format, ...) __attribute__((format(printf, 1, 2)));
const char *simt_thread_name(int thread); // "(x, y, z)"; the last two calls' texts live

// Whether memory may be touched, and notes it. kind: what the access is.
enum AccessKind { ACCESS_READ, ACCESS_WRITE, ACCESS_ATOMIC };
void memory_access(const void *at, size_t bytes, AccessKind kind);
void memory_begin_block(size_t dynamic_bytes); // forgets the block's shared arrays
bool memory_is_shared(const void *at);

// Asynchronous copies: those of a thread that ends must have been waited for.
void async_end_thread();
void async_begin_launch(); // forgets what a fault left
