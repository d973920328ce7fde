/* A CUDA runtime without a GPU, for the CUDA backend's own files: streams are queues that run late, when somebody
 * waits, and in an order that tests choose. What tests see of it; the calls themselves are CUDA's. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef enum RuntimeOrder {
    RUNTIME_LATE,         // only what is waited for runs
    RUNTIME_OTHERS_FIRST, // all else that can runs first, the newest stream in front
    RUNTIME_RANDOM,       // some at every call, streams in turns drawn from the seed
    RUNTIME_ORDERS
} RuntimeOrder;
// Nodes of a graph that do not depend on one another follow the same spirit.
void runtime_set_order(RuntimeOrder, uint64_t seed);

typedef enum RuntimeCall { RUNTIME_INSTANTIATE, RUNTIME_GRAPH_LAUNCH, RUNTIME_MALLOC, RUNTIME_CALLS } RuntimeCall;
void runtime_fail(RuntimeCall, int times); // that call answers with an error so often
int64_t runtime_calls(RuntimeCall);        // how often it was called so far
void runtime_occupy(size_t bytes); // of the device's 1 GiB: by CUDA itself and other processes; 0 at first
void runtime_capability(int major, int minor); // of the device from now on; 9.0 at first

// Runs `body` and returns the first thing that work under way did wrong (memory that is gone, or not what it must be),
// or "". Outside of this it is printed and aborts. Faults of kernels: simt_faults.
const char *runtime_faults(void (*body)(void *context), void *context);

// Tells of each piece of work in a stream (those of graphs one by one) when it ran, in seconds of the host; NULL: nobody.
void runtime_watch(void (*ran)(void *context, int stream, double begin, double end), void *context);

// Work of a stream that may have to wait for other ranks: asked again and again, beside other streams, until it says
// that it is done. In a graph it runs anew with each launch.
struct CUstream_st;
void runtime_put(struct CUstream_st *, bool (*work)(void *context), void *context);

void runtime_go_on(void);      // a piece of work, where any can run: a device works while its host waits for something
void runtime_finish(void);     // all work in all streams
int64_t runtime_waiting(void); // pieces of work not done yet
// The clock that events read: a kernel takes RUNTIME_KERNEL seconds, other work what it says here as it runs.
#define RUNTIME_KERNEL 1e-6
void runtime_spend(double seconds);

#ifdef __cplusplus
}
#endif
