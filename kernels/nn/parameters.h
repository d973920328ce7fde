/* The parameters of a model in flat buffers: f32 masters, f32 gradients, and in bf16 a shadow copy that the operators
 * read (matrices only: vectors stay f32). A shard of a model is a range of these buffers. */
#pragma once
#include "base/log.h"
#include "base/safetensors.h"
#include "kernels/nn/parallel.h"
#include "kernels/tape.h"

typedef struct Parameters Parameters;

typedef enum { INIT_ZERO, INIT_ONE, INIT_NORMAL, INIT_UNIFORM, INIT_CONSTANT, INIT_GIVEN } InitKind;
typedef struct Init {
    InitKind kind;
    double value;       // deviation, half-width or constant
    const float *given; // INIT_GIVEN: the whole tensor, copied by parameters_add
} Init;

typedef struct Parameter {
    Tensor tensor; // what operators take; data: masters (f32) or shadows (bf16 matrices). Its shape is this rank's
    int64_t global_shape[MAX_RANK]; // over the tensor group
    Split split;
    bool partial; // whole on every tensor rank, but each one's gradient is a part of the sum
    Init init;
    bool decay;     // weight decay applies (matrices; not vectors, embeddings of positions, ...)
    bool frozen;    // no gradient, no optimizer state
    int64_t offset; // of its first element in the flat buffers
    float *master;  // (count)
} Parameter;

Parameters *parameters_new(Backend *,
                           const Parallel *); // NULL: alone; copied. The backend and the groups are not owned
const Parallel *parameters_parallel(const Parameters *);
void parameters_free(Parameters *);
// Declares one; the pointer stays valid and its tensor is filled by parameters_finish. Names are unique; rank-1 tensors
// stay f32 in every precision.
Tensor *parameters_add(Parameters *, const char *name, int rank, const int64_t *shape, Init, bool decay);
// The same with its global shape and its split over the tensor group.
Tensor *parameters_add_split(Parameters *, const char *name, int rank, const int64_t *shape, Init, bool decay, Split);
// Its gradient on each tensor rank is a part of the sum over all of them: it is used where rows are shared out.
void parameters_set_partial(Parameters *, const Tensor *);
// Local elements [local, local + *count) lie together in the whole tensor, from element *global on.
void parameter_run(const Parameter *, const Parallel *, int64_t local, int64_t *global, int64_t *count);
// Freezes `prefix` and all that is under it ("text" freezes "text.tokens"); returns how many. Before finish.
int parameters_freeze(Parameters *, const char *prefix);
// Allocates and draws: element i of a parameter depends on (seed, name, i) alone. compute: F32 or BF16.
bool parameters_finish(Parameters *, Dtype compute, uint64_t seed, Error *);
int parameters_count(const Parameters *);
Parameter *parameters_at(Parameters *, int index);
Parameter *parameters_find(Parameters *, const char *name); // NULL where absent
int64_t parameters_elements(const Parameters *, bool trainable_only);
void parameters_begin_step(Parameters *);   // gradients hold nothing yet: the first writer overwrites
void parameters_end_backward(Parameters *); // zeroes the gradients nobody wrote
void parameters_refresh(Parameters *);      // shadows from masters, after masters were set by hand

// Safetensors entries of all masters (host copies in `memory`), and back. Loading checks names and shapes: missing,
// unexpected and mismatched ones are listed in the error, and then nothing is taken.
int parameters_export(const Parameters *, Arena *memory, SafeTensor **out);
bool parameters_import(Parameters *, const SafeTensors *, const char *path, Error *);
