/* The parameters of a model in flat buffers: f32 masters, f32 gradients, and in bf16 a shadow copy that the operators
 * read (matrices only: vectors stay f32). Parameters stand in blocks of 1024 elements, padded with zeros; consecutive
 * ones form buckets (buckets.h). With data ranks and Parallel.zero above 0 each bucket's blocks are shared out among
 * them: a rank owns ranges of parameters, whose masters, moments and summed gradients it alone holds. */
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
    int64_t offset; // of its first element in the flat buffers; a multiple of PARAMETER_BLOCK
    int number;     // of parameters_at
    int chunk;      // the part of the model it belongs to, among those on this rank; -1: elsewhere, no memory here
    struct Parameter *replica; // a second copy of it, NULL: none; and of a replica, what it is one of
    bool is_replica;
    bool scaling;  // of fp8 (parameters_scale_products): no parameter of the model in counts and imported files
    struct Parameter *scaled_by; // of a weight whose products are in fp8: its scaling; else NULL
    bool words;    // rows are words: padded with zero rows in memory as the backend likes it (Backend.words_unit)
    int stage;     // rank of Parallel.pipeline that holds it
    int bucket;    // which one it belongs to; -1: elsewhere
    float *master; // (count); NULL where ranks share them out, or it is elsewhere
} Parameter;

enum { PARAMETER_BLOCK = 1024 }; // elements

// A part of a parameter that this data rank owns: alone, or with Parallel.zero 0, all of every parameter.
typedef struct OwnedRange {
    Parameter *parameter;
    int64_t first, count; // of the parameter's local elements
    int64_t state;        // trained: place of its first element in buffers of parameters_states() elements (moments)
    float *master;        // (count)
    uint16_t *shadow;     // (count), in bf16 matrices; else NULL
    float *gradient;      // (count), trained: summed over pieces and ranks once the norm is formed
} OwnedRange;

// parallel NULL: alone; copied. The backend and the groups are not owned.
Parameters *parameters_new(Backend *, const Parallel *);
const Parallel *parameters_parallel(const Parameters *);
void parameters_free(Parameters *);
// Declares one; the pointer stays valid and its tensor is filled by parameters_finish. Names are unique; rank-1 tensors
// stay f32 in every precision.
Tensor *parameters_add(Parameters *, const char *name, int rank, const int64_t *shape, Init, bool decay);
// The same with its global shape and its split over the tensor group.
Tensor *parameters_add_split(Parameters *, const char *name, int rank, const int64_t *shape, Init, bool decay, Split);
// A second copy of `of` (output words tied to embedded ones, in another part of the model), declared behind it. Its
// initial values are those of `of`, and it stays equal to it: both get the sum of their gradients, first `of`'s, then
// the replica's (gradients_norm). It is no parameter of its own in counts, norms and files.
Tensor *parameters_add_replica(Parameters *, const char *name, const Tensor *of);
// Before finish: the part that a parameter belongs to (0 where nobody says), or -1: it is on another pipeline rank.
// Buckets hold parameters of one part; one that has a replica, and a replica, are alone in theirs.
void parameters_place(Parameters *, int index, int chunk);
// Products of weights that are then marked so are in fp8 where the backend can (Backend.matmul_fp8): before any is declared.
void parameters_use_fp8(Parameters *);
// Marks a weight that was just declared. Its scaling (Fp8Scaling of input, weight and gradient) is declared behind it, as
// NAME.scaling: frozen, in checkpoints. Nothing where fp8 is not used.
void parameters_scale_products(Parameters *, const Tensor *weight);
// Behind an update: the scales that the step's numbers ask for, the same on all data and tensor ranks, which all call it.
void parameters_advance_scaling(Parameters *);
// Its rows are words, before finish: in memory there may be spare ones, which are in no count, norm or file.
void parameters_set_words(Parameters *, const Tensor *);
// Its gradient on each tensor rank is a part of the sum over all of them: it is used where rows are shared out.
void parameters_set_partial(Parameters *, const Tensor *);
// Local elements [local, local + *count) lie together in the whole tensor, from element *global on.
void parameter_run(const Parameter *, const Parallel *, int64_t local, int64_t *global, int64_t *count);
// Freezes `prefix` and all that is under it ("text" freezes "text.tokens"); returns how many. Before finish.
int parameters_freeze(Parameters *, const char *prefix);
// Allocates and draws: element i of a parameter depends on (seed, name, i) alone. compute: F32 or BF16. All data and
// pipeline ranks call it.
bool parameters_finish(Parameters *, Dtype compute, uint64_t seed, Error *);
int parameters_count(const Parameters *); // declared: those elsewhere and replicas too
Parameter *parameters_at(Parameters *, int index);
Parameter *parameters_find(Parameters *, const char *name);           // NULL where absent
int64_t parameters_elements(const Parameters *, bool trainable_only); // that this rank holds, of replicas too
// Of the model: over all tensor and pipeline ranks, replicas not counted.
int64_t parameters_whole_elements(const Parameters *, bool trainable_only);
void parameters_begin_step(Parameters *);   // gradients hold nothing yet: the first writer overwrites
void parameters_end_backward(Parameters *); // zeroes the gradients nobody wrote

// What this rank owns, in the order of the flat buffers. Device memory; masters and moments may be set by hand, then
// parameters_refresh makes what operators read of them, on all data ranks: all of them must call it.
const OwnedRange *parameters_owned(const Parameters *, int *count);
int64_t parameters_states(const Parameters *); // elements of a buffer that holds a moment of all that is owned
void parameters_refresh(Parameters *);
// With Parallel.zero above 0 values come from their owners as they are used. A tape without gradients_new (inference)
// must be followed, so that it waits for them. At stage 3 gathering takes all data ranks: before these wait for one
// another in any other way, all of them must have done all that uses parameters up to there: they meet. After that, at
// stages 1 and 2, all values are here.
void parameters_follow(Parameters *, Tape *);
void parameters_meet(Parameters *);
// Bytes of parameters (what operators read, and masters), gradients and moments on this rank.
typedef struct ParameterMemory {
    double parameters, gradients, states;
    double buckets; // beside these, at the most: gathered, or not yet reduced
} ParameterMemory;
ParameterMemory parameters_memory(const Parameters *); // really allocated; no moments, which the optimizer holds
// By the formula of Rajbhandari et al.: per parameter in f32 16, 8 + 8/N, 4 + 12/N, 16/N at the stages 0 to 3 over N
// ranks, in bf16 18, 6 + 12/N, 2 + 16/N, 18/N; `elements` of which `trained` have gradients and moments.
ParameterMemory parameters_formula(double elements, double trained, Dtype compute, int stage, int ranks);

// Safetensors entries of all masters (host copies in `memory`; all of them must be here, and not shared out), and back.
// Loading checks names and shapes: missing, unexpected and mismatched ones are listed in the error, and then nothing is
// taken. A file holds whole tensors; each rank takes what it owns, and all data ranks must load it.
int parameters_export(const Parameters *, Arena *memory, SafeTensor **out);
bool parameters_import(Parameters *, const SafeTensors *, const char *path, Error *);
