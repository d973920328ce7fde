/* Work for the device as bytes: what a call starts and with which arguments, so that a run of calls can be written down,
 * recognised when it comes again, and started as one CUDA graph. Every piece of device work (kernels, libraries, copies)
 * of a path that runs in a step goes through here. */
#pragma once
#include "kernels/cuda/cuda_state.h"

// Calls start(arguments, stream) now or later, perhaps several times, and perhaps while a graph is being captured. The
// arguments are copied; equal bytes must mean equal work: they hold device addresses, sizes, handles of libraries and
// plans that live as long as the backend, no padding that is not zero, and nothing that differs from step to step (that
// is what messages and uploads are for). `start` may only enqueue on the stream it is given: it neither waits, nor
// allocates, nor uses other streams. Errors: cuda_must, with the state among the arguments.
void cuda_list_call(CudaState *, CudaStart *start, const void *arguments, size_t bytes);
