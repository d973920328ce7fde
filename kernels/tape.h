/* The tape: eager execution that remembers. Ordinary C decides what runs; each call of an operator computes at once
 * and, on a recording tape and where a gradient will be wanted, leaves a node.
 *
 * Memory: activations and their gradients come from a pool (pool.h). Gradients go back as soon as they are consumed, and
 * so do activations whose last use has passed: the peak of the backward pass stays near that of the forward pass. Same
 * shapes, same addresses; no allocation from the system in the second identical step. Outputs below 4 KiB (losses) stay
 * readable after a backward pass; larger ones do not. */
#pragma once
#include "kernels/operator.h"

// Which half of a backward pass: gradients of activations, of parameters, or both. (Gradients of vectors may be formed
// beside by the first half, from what need not be held then; they reach their parameters with the second.)
typedef enum { INPUT_GRADIENTS = 1, WEIGHT_GRADIENTS = 2, ALL_GRADIENTS = 3 } Halves;

Tape *tape_new(Backend *, bool record); // record false: inference. The backend is not owned and must outlive it
void  tape_free(Tape *);                // NULL is allowed
void  tape_reset(Tape *);               // forgets nodes, tensors and the error
bool  tape_recording(const Tape *);
void  tape_set_recording(Tape *, bool record); // between passes
Backend    *tape_backend(const Tape *);
const char *tape_error(const Tape *);   // NULL, or the first thing that went wrong: later calls return NULL and do nothing
size_t      tape_peak(const Tape *);    // of the memory it takes from: tape_memory_peak
int64_t     tape_system_allocations(const Tape *); // chunks ever asked of the system, those of its memory included
int64_t     tape_nodes(const Tape *);  // calls recorded since the reset
Node       *tape_last(const Tape *);   // the call made last, recorded or not, for tests and benches; NULL after a reset
Cost        tape_cost(const Tape *);    // of what was called since the reset, recomputed calls as often as they ran
Cost        tape_replayed(const Tape *); // the part of it that ran again for recomputation
// From here on every operator's output and gradients are checked for NaN and Inf, and the first bad one is kept; work
// goes on, so that ranks which share it stay together. Slow: for finding out what went wrong, not for every step.
void tape_check_finite(Tape *, bool on);
// Sums over rows (gradients of biases, of norms) are formed by calls of their own from here on, in one order wherever the
// model is cut and however its halves are run. At first whoever writes the rows may form them in an order of its own.
void tape_keep_sums_apart(Tape *, bool apart);
const char *tape_not_finite(const Tape *); // what was found since it was turned on, over resets; NULL: nothing

// What the tape tells whoever holds the parameters (their shards, their reduction). Any function may be NULL. A
// parameter's `writers` counts the calls that are still to write its gradient; a call that will only be recorded when a
// backward pass runs it again counts from the first time on.
typedef struct TapeHooks {
    void *context;
    void (*backward)(void *context);                    // a backward pass begins
    void (*use)(void *context, const Node *);           // before a call, or a backward, of a node with parameter inputs
    void (*gradient)(void *context, Tensor *parameter); // before a write into its gradient while grad_written is false
    void (*complete)(void *context, Tensor *parameter); // in a backward pass: no node left on the tape writes it
} TapeHooks;
void tape_set_hooks(Tape *, const TapeHooks *); // copied; NULL: none

// Runs the operators backwards from `loss` (one f32 number, whose gradient is set to 1). With INPUT_GRADIENTS alone the
// weight half stays on the tape until a call with WEIGHT_GRADIENTS, which may come any time before the reset.
void tape_backward(Tape *, Tensor *loss, Halves);
// The same from an output whose gradient the caller gives, in host memory, of the shape and dtype of `out`. A node is
// done once: a tape has one backward pass (or one of each half); several losses add up to one first.
void tape_backward_from(Tape *, Tensor *out, const void *gradient, Halves);

// ---- lanes: calls that need not wait for one another ----

// What is called from here on goes into this lane (below BACKEND_LANES) of a backend that has some, and so do the backward
// halves of these calls. Calls of one lane run in their order, those of several beside one another, but where one reads
// or changes what another touched: the tape sees that, and waits. So the same numbers come out as with one lane, and sums
// of several lanes in a gradient add up in the order of the calls. Each lane has memory of its own: blocks go back to
// where they came from, and are used again in the order of that lane; with one memory for all, what one lane freed would
// be handed to another, which then had to wait. It costs the peak of each lane instead of that of all together.
void tape_lane(Tape *, int lane);
// All lanes meet, and what follows goes into lane 0. At the end of a backward pass they have.
void tape_join(Tape *);

// ---- a model in parts: other tapes, here or on other ranks, run what comes before and behind ----

// Memory that several tapes take from and give back to: of one stage of a pipeline, say, which has a tape for each
// microbatch under way. Their peak is then that of what is really held at once. A tape gives back what its backward pass
// consumes, and the rest when it is reset: do that when its work is done, then the memory of a step begins where that of
// the step before began. The tapes of one memory work in turns, not at once. The backend is borrowed.
typedef struct TapeMemory TapeMemory;
TapeMemory *tape_memory_new(Backend *);
void tape_memory_free(TapeMemory *);         // after its tapes; NULL is allowed
size_t tape_memory_peak(const TapeMemory *); // bytes of chunks that were ever in use, each from its start to the
                                             // farthest block: what the process came to hold
size_t tape_memory_held(const TapeMemory *); // bytes that tapes hold now
int64_t tape_memory_system_allocations(const TapeMemory *);
Tape *tape_new_in(TapeMemory *, bool record); // borrowed

// A tensor that another tape made, filled from host memory (NULL: the caller fills it, by calls of the backend); where
// `wanted`, its gradient is formed here.
Tensor *tape_arrival(Tape *, Dtype, int rank, const int64_t *shape, const void *host, bool wanted);
// Gives `out` a gradient of its shape and dtype from host memory (NULL: 1, of one f32 number) before a backward pass.
// Whatever is added to it in that pass comes behind. Nothing happens where it wants none.
void tape_seed(Tape *, Tensor *out, const void *gradient);
// The same with a gradient that the caller puts there, by calls of the backend: where; NULL where it wants none.
void *tape_seed_place(Tape *, Tensor *out);
// Runs backwards from all that was seeded. After INPUT_GRADIENTS only what WEIGHT_GRADIENTS will read is still held, and
// gradients of arrivals, small outputs and what came from tape_tensor; after both, these.
void tape_backward_seeded(Tape *, Halves);
bool tape_has_gradient(const Tensor *arrival);
void tape_read_gradient(Tape *, Tensor *arrival, void *host); // once: its memory goes back; NULL: that alone

// A tensor in the step's memory, not zeroed; held until the reset.
Tensor *tape_tensor(Tape *, Dtype, int rank, const int64_t *shape);
// The same, filled from host memory.
Tensor *tape_constant(Tape *, Dtype, int rank, const int64_t *shape, const void *host);
// The same, filled from the backend's memory.
Tensor *tape_constant_from(Tape *, Dtype, int rank, const int64_t *shape, const void *device);
// The same data under another shape of equal count; gradients flow through. (An operator without work.)
Tensor *tape_reshape(Tape *, Tensor *, int rank, const int64_t *shape);
// Nobody reads x's elements any more, no gradient does either: its memory is used again at once. What it was made from
// still gets its gradient. For a large output whose only reader has run (a product before it is summed over ranks).
void    tape_drop(Tape *, Tensor *x); // NULL is allowed
void    tape_read(Tape *, const Tensor *, void *host); // waits for the device; copies tensor_bytes()

#define SHAPE(...) (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), ((int64_t[]){__VA_ARGS__})

// ---- for operator files ----
Tensor *tape_output(Node *, Dtype, int rank, const int64_t *shape); // sets and returns n->out
Tensor *tape_second_output(Node *, Dtype, int rank, const int64_t *shape); // the same of n->second
Tensor *tape_view(Node *, int rank, const int64_t *shape); // sets and returns n->out: in[0]'s data, without a copy
Tensor *tape_keep(Node *, int slot, Dtype, int rank, const int64_t *shape); // sets saved[slot]
// Runs one operator: infer, forward, record. inputs beyond those given are NULL. Returns the output, or NULL on error.
Tensor *tape_apply(Tape *, const Operator *, const Attributes *, int n_in, Tensor *const *in);
// The same of an operator with two outputs: its call, whose `out` and `second` they are.
const Node *tape_call(Tape *, const Operator *, const Attributes *, int n_in, Tensor *const *in);
void   *tape_scratch(Node *, size_t bytes); // valid until the running forward or backward returns
void    tape_end_scratch(Tape *); // frees it: for benches that call a node's functions themselves

typedef struct Destination { // where a gradient goes
    void *data;
    Dtype dtype;
    bool  add; // false: overwrite
} Destination;
// The place for the gradient of in[input]; marks it written. Call once for each input in a backward.
Destination grad_of(Node *, int input);
// Lets in[input] have out's gradient without a copy where it is the first writer: takes it over at its last use, else
// shares it, until somebody changes it. Otherwise adds or copies. The gradient must have the same dtype and count.
void grad_pass(Node *, int input, bool last_use);
// The place of out's own gradient, for an operator that changes it before it passes it on.
Destination grad_of_output(Node *);
bool tape_forms_sums(const Tape *); // whether an operator may form sums over rows beside what it writes
// Sums over the rows of a gradient, as biases want them, may be formed by whoever writes it. In infer: backward will ask.
void grad_sums_wanted(Node *);
// Memory for those of out's gradient, to be filled by whoever is changing it, where in[input] wants them and gets that
// gradient by grad_pass; else NULL. After grad_of_output.
float *grad_sums_place(Node *, int input);
// Brings the sums over the rows of out's gradient to the gradient of in[input]; false: nobody formed them.
bool grad_sums_pass(Node *, int input);
