/* How a model is spread over processes: what its layers and its parameters need to know. Tensor parallel: Shoeybi et
 * al. 2019 ("Megatron-LM"); sequence parallel: Korthikanti et al. 2022; ZeRO: Rajbhandari et al. 2020. */
#pragma once
#include "kernels/comm/comm.h"

typedef struct Parallel {
    Comm *tensor;         // splits the layers; NULL: nobody
    bool sequence;        // activations between the split layers are shared out by rows over `tensor`
    Comm *data;           // holds the shards of parameters, gradients and states; NULL: nobody
    int zero;             // 0 nothing, 1 states, 2 and gradients, 3 and parameters are sharded over `data`
    int64_t bucket_bytes; // of gradients that are reduced, and of parameters that are gathered, together
    bool ordered;         // sums over `data` in a fixed order: the same bits on any number of ranks
    Comm *pipeline;       // its ranks hold different parts of the model (Parameter.chunk); NULL: all of it is here
    bool offload;         // masters that operators do not read (bf16), and the optimizer's moments, lie on the host
} Parallel;
// Outside the stacks of blocks every tensor rank holds the same activations and the same, whole, gradients of them.

// The sizes of it alone, for estimates. NULL in their place: alone.
typedef struct ParallelSizes {
    int tensor, data; // ranks
    bool sequence;
    int zero;
} ParallelSizes;

// How a parameter is split over `tensor`: along `dimension`, which consists of segments (q | k | v, gate | up), each
// cut evenly; a rank holds its piece of every segment, one behind the other. segments 0: whole on every rank.
enum { SPLIT_SEGMENTS = 3 }; // at most
typedef struct Split {
    int dimension, segments;
    int64_t size[SPLIT_SEGMENTS]; // of each segment, over all ranks
} Split;
int64_t split_local(const Split *, const Comm *tensor);   // this rank's size along the dimension
int64_t split_largest(const Split *, const Comm *tensor); // the largest of any rank
// Local index [index, index + *count) along the dimension lie together in the whole, from *global on.
void split_run(const Split *, const Comm *tensor, int64_t index, int64_t *global, int64_t *count);
