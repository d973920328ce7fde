/* The inside of a tape, shared by the files that make it up: tape.c records, tape_backward.c runs backwards,
 * recompute.c replays, tape_memory.c is what they take memory from. */
#pragma once
#include "kernels/pool.h"
#include "kernels/recompute.h"

enum { KEPT_BELOW = 4096 }; // bytes: smaller outputs (losses, counts) stay readable after the backward pass

// A recomputed function: what is known from its first run, and what its second one left.
typedef struct Replay {
    RecomputeFunction function;
    const void *closure;
    Tensor *x;
    Node **calls; // (count) of the first run, in order
    bool *again;  // (count) whether the call's forward is needed for the gradients
    int64_t count;
    int64_t at;     // in the second run: number of the next call
    Node **nodes;   // (node_count) recorded in the second run; NULL before it
    Tensor **owned; // (owned_count) whose memory the second run took
    int64_t node_count, owned_count;
} Replay;

// A gradient that several tensors have.
typedef struct SharedGradient {
    int holders;
    LaneMark touched; // in place of theirs
} SharedGradient;

struct Tape {
    Backend *backend;
    int lane; // of what is called
    unsigned lanes; // bits of those beyond the first that were used since they met
    bool record, check_finite;
    bool sums_apart;
    TapeMemory *memory; // device: activations, gradients, work space
    bool owns_memory;
    Arena *host;  // tensors, nodes, messages
    Tensor *made; // the last of the tensors made since the reset, chained by `before`
    TapeHooks hooks;
    Node **nodes;
    int64_t count, capacity;
    Node *last; // the call made last
    const char *error;
    char not_finite[256];       // the first that was found; "" for none
    const char *last_parameter; // name of the parameter used last, to say where in the model something happened
    Cost cost, replayed;
    // While a recomputed function runs:
    bool transient; // for the first time: its calls are listed, not recorded
    Replay *replay; // again; NULL elsewhere
    bool skipping;  // the call's forward is left out: its output gets no memory
    Node **calls;   // of the first run
    int64_t call_count, call_capacity;
    Tensor **owned; // whose memory was taken since it began
    int64_t owned_count, owned_capacity;
};

Backend *tape_memory_backend(const TapeMemory *);
void *tape_memory_take(TapeMemory *, int lane, size_t bytes);             // never NULL
void tape_memory_give(TapeMemory *, int lane, void *block, size_t bytes); // lane and bytes as they were asked for
void *tape_memory_scratch(TapeMemory *, int lane, size_t bytes);          // until the end of the lane's scratch
void tape_memory_end_scratch(TapeMemory *, int lane);

// What happens next in the tape's lane comes behind what others did with memory of this mark, which becomes its own.
void tape_touch(Tape *, LaneMark *);
LaneMark *tape_gradient_mark(Tensor *); // of its gradient
void tape_enter(Tape *, const Node *);  // before n runs forward: what it reads
// The same before it runs backward, and its outputs' gradients; what it writes comes through grad_of.
void tape_enter_backward(Tape *, const Node *);
// Before a block goes back to `owner`, the lane that took it: whatever that puts there comes behind this mark.
void tape_leave(Tape *, int owner, LaneMark);

void tape_remember(Tape *, Node *);                 // records it
void tape_announce_use(const Tape *, const Node *); // tells the hooks that a node's functions read parameters now
// Keeps the first number of `data` that is not finite: of `what` of n, with the count of `like`.
void tape_complain(Tape *, const Node *, const void *data, const Tensor *like, Dtype, const char *what);
const char *tape_place(const Tape *, const Node *); // where in the model a node stands
// Ends the process where the device did something wrong, with the operator, its shapes and its place in the model.
void tape_look_for_faults(const Tape *, const Node *, const char *pass);
void tape_count_writers(const Node *, int by);   // 1: it is to write gradients of parameters; -1: no longer
void tape_settle(Tape *, Node *, unsigned done); // these inputs' gradients need no more work of it
void tape_give_back(Tape *, Tensor *);           // its memory, where it is its own
void tape_give_gradient(Tape *, Tensor *);       // of an activation, where it has one
void tape_move_gradient(Tensor *to, Tensor *from); // `to` had none; `from` has none then
void tape_backward_node(Tape *, Node *, Halves); // one node's part of a backward pass
void recompute_own(Tape *, Tensor *);            // notes memory that was taken
void recompute_list(Tape *, Node *);             // notes a call of the first run
bool recompute_skips(Tape *, const Operator *);  // moves to the next call; whether its forward is left out
// Of a node that holds a function:
bool recompute_waits(const Node *);              // it has run again: the gradient of its output is further inside
void recompute_backward(Tape *, Node *, Halves); // runs it again, where it did not yet, and backwards
void recompute_abandon(Tape *, Node *);          // its calls will get no gradient
void recompute_forget(const Node *);             // its calls write no gradients any more: the tape is reset
