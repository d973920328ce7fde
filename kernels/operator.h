/* An operator: one row of the table, one file under ops/. Everything that must know all operators reads this list: the
 * gradient check, the determinism check, the speed table.
 *
 * To add one: a line in OPERATORS, a file ops/NAME.c (shape rule, forward, backward, cost, example), its prototype with
 * the formula in ops.h, the kernels in backend.h and cpu/. Tests find it through the list. */
#pragma once
#include "kernels/backend.h"
#include "kernels/comm/comm.h"
#include "kernels/tensor.h"
#include "base/arena.h"
#include "base/philox.h"

enum { MAX_INPUTS = 5, MAX_SAVED = 3, READS_OUTPUT = 1 << MAX_INPUTS };

typedef struct Node Node; // one call of an operator on a tape
typedef struct Tape Tape;

typedef struct Cost {
    double flop;  // of forward; multiply and add counted as two
    double bytes; // of forward; read and written at least once
    double backward_flop, backward_bytes; // of all gradients together
} Cost;

typedef struct Attributes { // what an operator is told beside its inputs; each operator names its places
    int64_t  i[6];
    double   f[3];
    uint64_t key[2];
    Comm    *comm; // of collectives: the group; NULL: alone
} Attributes;

typedef struct Example Example; // a random valid case for tests and benches: see kernels/example.h

typedef struct Operator {
    const char *name, *formula;
    // Checks shapes, sets out (tape_output) and saved; returns NULL, or what is wrong ("linear: x (N, C) and ...").
    const char *(*infer)(Node *);
    void (*forward)(Node *);
    // Gradients of the inputs whose bit is set in `wanted`, from out->grad (and second->grad; of two outputs one may have
    // none: NULL). The tape asks for activations in order and may ask for parameters any time later (zero-bubble
    // schedules); with both in one call work can be shared. Each input's gradient is written through grad_of(), which
    // says whether to overwrite or to add; out->grad may be another tensor's too, and is changed through grad_of_output().
    void (*backward)(Node *, unsigned wanted);
    Cost (*cost)(const Node *);
    // Whose data backward reads for the node's pending gradients: bit i for in[i], READS_OUTPUT for out. NULL: all. What
    // nobody reads is not computed again where activations are recomputed.
    unsigned (*reads)(const Node *); // never the second output
    void (*example)(Example *); // draws inputs and attributes, odd sizes included, and calls the operator on a tape
} Operator;

struct Node {
    const Operator *op;
    Tape           *tape;
    Tensor         *in[MAX_INPUTS]; // NULL where an optional input is absent
    Tensor         *out, *second; // second: of an operator with two outputs; else NULL
    Tensor         *saved[MAX_SAVED]; // what forward keeps for backward; allocated by infer (tape_keep)
    Attributes      attributes;
    unsigned        pending; // inputs whose gradient is still to be computed
    int             lane;    // in which it runs, both ways
    unsigned        held;    // while its weight half waits: what it will read, as Operator.reads says it; else 0
    Tensor        **early;   // (MAX_INPUTS) gradients of parameters that its input half formed beside; NULL: none
    struct Replay  *replay;  // of a recomputed function (recompute.h); else NULL
};

#define WANTS(wanted, input) (((wanted) >> (input)) & 1u)

#define OPERATORS(X)        \
    X(linear)               \
    X(mlp)                  \
    X(batched_matmul)       \
    X(embedding)            \
    X(layernorm)            \
    X(rmsnorm)              \
    X(add_norm)             \
    X(gelu)                 \
    X(silu)                 \
    X(swiglu)               \
    X(rope)                 \
    X(attention)            \
    X(pixels)               \
    X(patch_embedding)      \
    X(add)                  \
    X(mul)                  \
    X(scale)                \
    X(dropout)              \
    X(concat_rows)          \
    X(slice_rows)           \
    X(gather_rows)          \
    X(scatter_rows)         \
    X(mean_rows)            \
    X(l2_normalize)         \
    X(sum)                  \
    X(linear_cross_entropy) \
    X(cross_entropy_sum)    \
    X(tensor_copy)          \
    X(tensor_reduce)        \
    X(sequence_split)       \
    X(sequence_collect)     \
    X(sequence_gather)      \
    X(sequence_scatter)     \
    X(clip_loss)            \
    X(siglip_loss)          \
    X(masked_patch_mse)

// For Operator.reads:
unsigned reads_nothing(const Node *); // gradients come from the output's gradient alone, and what was saved
unsigned reads_inputs(const Node *);  // all of them, but not the output

#define DECLARE_OPERATOR(name) extern const Operator op_##name;
OPERATORS(DECLARE_OPERATOR)
#undef DECLARE_OPERATOR

extern const Operator *const operator_list[]; // all of them, NULL at the end
