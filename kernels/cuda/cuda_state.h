/* What the files of the CUDA backend share: its state, memory, the stream everything is ordered on, and what becomes of
 * an error of the device. Files that call CUDA's runtime include its header themselves. */
#pragma once
#include "kernels/cuda.h"
#include "kernels/cuda/host/gpu_facts.h"
#include "kernels/cuda/host/regions.h"
#include "kernels/cuda/kernels.h"

typedef struct CudaMemory CudaMemory;     // cuda_memory.c
typedef struct CudaStaging CudaStaging;   // cuda_copy.c
typedef struct CudaLists CudaLists;       // cuda_list.c
typedef struct CudaSlabs CudaSlabs;       // cuda_slab.c
typedef struct CudaReads CudaReads;       // cuda_read.c
typedef struct CudaProducts CudaProducts; // cuda_products.c
typedef struct CudaSdpa CudaSdpa;         // cuda_sdpa.c
struct CudaNccl;                          // cuda_nccl.c

typedef struct CudaWatch CudaWatch; // cuda_cupti.c

typedef struct CudaState {
    GpuFacts gpu;
    char architecture[16]; // "sm_90"
    int multiprocessors;
    CudaStream stream;
    bool synchronous; // wait behind every call
    Log *log;         // borrowed, may be NULL
    char fault[256];  // the first error of the device; "" for none
    CudaMemory *memory;
    CudaStaging *staging;
    CudaLists *lists;
    CudaSlabs *slabs;
    CudaReads *reads;
    CudaProducts *products;
    CudaSdpa *sdpa;        // attention by cuDNN; NULL: by our own kernels
    struct CudaNccl *nccl; // NULL: not looked for yet
    CudaWatch *watch;      // of the GPU's own work; NULL: it cannot be
} CudaState;

static inline CudaState *cuda_state(const Backend *b) { return (CudaState *)b->state; }

// ---- faults (cuda_fault.c) ----

// Behind every call that starts work: keeps the first error, with the name of what was started, which lives as long as
// the program.
void cuda_after(CudaState *, const char *what);
void cuda_look(CudaState *, const char *what); // the same for work that has been started, not written down
// Ends the process with what happened and where: what the device did wrong leaves nothing to go on with.
__attribute__((noreturn)) void cuda_fail(const CudaState *, const char *what, const char *reason);
// status: a cudaError_t. cuda_fail where it is an error or one was kept; but while a graph is captured the capture
// fails.
void cuda_must(CudaState *, int status, const char *what);
const char *cuda_fault(Backend *); // Backend.fault

// ---- memory (cuda_memory.c) ----

bool cuda_memory_open(CudaState *, Error *);
void cuda_memory_close(CudaState *);
void cuda_memory_install(Backend *);
// Work space of the present lane, 256-byte aligned, on top of what calls further out hold; what is in it stays where it
// is. A call of the backend takes a mark first and goes back to it when all it does has been started: the next one may
// have the same memory, since calls of a lane run in order.
void *cuda_scratch(CudaState *, size_t bytes);
size_t cuda_scratch_mark(const CudaState *);
void cuda_scratch_rewind(CudaState *, size_t mark);
void cuda_memory_reach_lane(CudaState *, int lane); // it has work space
CudaQueue cuda_queue(CudaState *); // where our own kernels go, with this work space

typedef struct CudaBlock { // memory that grows where it stands; {0} is empty
    char *memory;
    size_t size; // bytes
} CudaBlock;
void cuda_block_reach(CudaState *, CudaBlock *, size_t bytes); // at least so many; what it held stays

// ---- copies (cuda_copy.c) ----

bool cuda_staging_open(CudaState *, Error *);
void cuda_staging_close(CudaState *);
void cuda_copy_install(Backend *);
void cuda_upload(CudaState *, void *device, const void *host, size_t bytes); // at once
void cuda_put_copy(CudaState *, void *to, const void *from, size_t bytes);   // Backend.copy
void *cuda_pinned(CudaState *, size_t bytes);                                // host memory that copies run from
void *cuda_pinned_for_kernels(CudaState *, size_t bytes);                    // the same, which kernels reach too
void cuda_pinned_free(void *);                                               // NULL is allowed

// ---- lists of commands (cuda_list.c), what the host sends along (cuda_slab.c), what it reads (cuda_read.c) ----

bool cuda_lists_open(CudaState *, Error *);
void cuda_lists_close(CudaState *);
void cuda_lists_install(Backend *);
bool cuda_slabs_open(CudaState *, Error *);
void cuda_slabs_close(CudaState *);
// Copies host bytes along with the list that is being written; returns where on the device its commands find them.
const void *cuda_slab_put(CudaState *, const void *host, size_t bytes, size_t alignment);
void cuda_slab_send(CudaState *); // ahead of the list
bool cuda_reads_open(CudaState *, Error *);
void cuda_reads_close(CudaState *);
void cuda_reads_install(Backend *);
void cuda_reads_send(CudaState *); // behind the list

// ---- products (cuda_products.c) ----

bool cuda_products_open(CudaState *, Error *);
void cuda_products_close(CudaState *);
void cuda_products_install(Backend *);
void cuda_products_reach_lane(CudaState *, int lane); // it has work space for them

// ---- our own kernels (cuda_calls.c, cuda_cross_entropy.c) ----

void cuda_calls_install(Backend *);
void cuda_cross_entropy_install(Backend *);
void cuda_fp8_install(Backend *); // cuda_fp8.c
void cuda_attention_install(Backend *);
void cuda_offload_install(Backend *); // cuda_offload.c
void cuda_attention_close(CudaState *);

// ---- links between GPUs (cuda_nccl.c) ----

void cuda_nccl_install(Backend *);
void cuda_nccl_close(CudaState *);
void cuda_nccl_describe(char *text, size_t size); // its version and CUDA, or why there is none
