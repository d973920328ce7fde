/* Work for the device as bytes: what a call starts and with which arguments. Within a sequence (Backend.sequence_begin)
 * work is written down, and started where the host waits and at the end: command by command the first time, as a CUDA
 * graph from the second time on that the very same bytes come. Outside of sequences it starts at once. Every piece of
 * device work (kernels, libraries, copies) of a path that runs in a step goes through here.
 *
 * Lanes are streams. All is put into lane 0, or into that of Backend.lane, but for work that is meant to run beside it;
 * lanes are in step where a list begins and where it ends, and else only where marks say so. */
#pragma once
#include "kernels/cuda/cuda_state.h"

enum { CUDA_LANES = 8, CUDA_FIRST_LINK_LANE = 4 /* of those for links between GPUs (cuda_nccl.h) */ };

// Calls start(arguments, stream) now or later, perhaps several times, and perhaps while a graph is being captured. The
// arguments are copied; equal bytes must mean equal work: they hold device addresses, sizes, handles of libraries and
// plans that live as long as the backend, no padding that is not zero, and nothing that differs from step to step (that
// is what messages and uploads are for). `start` may only enqueue on the stream it is given: it neither waits, nor
// allocates, nor uses other streams. Errors: cuda_must, with the state among the arguments.
void cuda_list_call(CudaState *, CudaStart *start, const void *arguments, size_t bytes);
// The same in a given lane. Work space (cuda_scratch) is that of the present lane and may not be used in another.
void cuda_list_call_on(CudaState *, int lane, CudaStart *start, const void *arguments, size_t bytes);

LaneMark cuda_list_mark(CudaState *, int lane);             // behind what was put into the lane up to now
void cuda_list_wait(CudaState *, int lane, LaneMark until); // what follows in the lane comes behind it
// The lane that calls are put into, of those of Backend.lane.
int cuda_list_lane(const CudaState *);
// What follows in `lane`, another than those, comes behind all that was put into these up to now.
void cuda_list_follow_all(CudaState *, int lane);
void cuda_list_meet(CudaState *); // Backend.lanes_meet

// Whether work is being written down.
bool cuda_list_writing(const CudaState *);
// Starts what was written down so far. Who waits for the device, or frees what work may use, calls it first.
void cuda_list_flush(CudaState *);
void cuda_list_synchronize(CudaState *); // waits for all lanes
// No graph may outlive memory that it names.
void cuda_list_drop_graphs(CudaState *);
// Whether a graph is being captured; then the error makes the capture fail, and the list is started command by command.
bool cuda_list_capture_fails(CudaState *, int status);
// Keeps the operator's name for the commands written since the last one.
void cuda_list_note(CudaState *, const char *what);

typedef struct CudaListCounts {        // of lists started so far, each in one of three ways
    int64_t eager, captured, launched; // command by command; captured and launched; launched as a graph made before
    int64_t commands;                  // of them all
} CudaListCounts;
CudaListCounts cuda_list_counts(const CudaState *);
