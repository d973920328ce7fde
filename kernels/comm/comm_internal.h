/* The inside of kernels/comm. Three layers: a transport moves single messages between two ranks without blocking; a
 * call (all-reduce, ...) is a row of rounds, each some messages and some arithmetic beside them; the engine of a
 * process moves the calls of all its groups on, so that a group that waits for its peers holds up no other.
 *
 * p: ranks of a group; r: this one. */
#pragma once
#include "kernels/comm/comm.h"
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

typedef struct Engine Engine;

// ---- transports ----

enum { MESSAGE_BYTES = 1 << 20 };   // of a message at the most, so that no single one holds up the others
enum { USER_TAGS = (1 << 12) - 1 }; // send and receive take tags in [0, USER_TAGS); collectives use the one behind

typedef struct Message {
    bool send;
    int rank, peer; // in the world: whose it is, and the other side
    int tag;        // of the group and the purpose; messages of one tag between two ranks keep their order
    void *data;     // of a send: only read
    int64_t bytes;  // in [1, MESSAGE_BYTES]
    union {
        void *pointer;
        int number;
    } handle;                // the transport's
    bool complete;           // the transport's too
    const CommRequest *call; // what it is for
} Message;

typedef struct Transport {
    bool wakes; // calls engine_wake when a message of the rank has become complete: there is no need to look often
    void (*post)(void *state, Message *);
    bool (*test)(void *state, Message *); // whether it is complete; not called again after that
    // What a program without an engine would call to sum; NULL where there is no such thing. Nothing else is under way.
    void (*bare_all_reduce)(void *state, float *data, int64_t n);
    int tag_limit;    // greatest tag
    bool one_machine; // no message crosses a network
    void (*close)(void *state);
} Transport;

// " of 4 bytes from rank 0, for receive 1 of group world (little),": for the last words where it fails.
void message_describe(const Message *, char *out, size_t size);

// ---- calls ----

struct CommRequest {
    Comm *comm;
    const char *call, *what; // "all-reduce", "gradients"
    int64_t number;          // in its group
    bool in_turn;            // begins when the one before it in its group has ended; not so send and receive

    char *out;      // all-reduce, broadcast, receive: the data
    const char *in; // all-reduce: the same
    int64_t rows, row_bytes;
    CommType type;
    CommReduction reduction;
    int peer, tag;      // root, sender or receiver, in the group
    int64_t *at;        // (p + 1) where each rank's part of `in` begins, bytes; all-to-all: then (p + 1) for `out`
    int64_t chunk;      // bytes of each part that a round moves
    int64_t chunks;     // of the longest part
    int64_t work_bytes; // wanted from the group's work space
    void (*round)(CommRequest *, int64_t round);   // adds the messages of a round; those before are complete
    void (*compute)(CommRequest *, int64_t round); // beside them: on what earlier rounds brought; may be NULL
    int64_t rounds;

    Message *messages; // of the round under way
    int count, capacity, complete;
    int64_t at_round; // -1: not begun
    double since, trace_begin;
    _Atomic bool done;
    CommRequest *next;            // in the engine's or the group's list
    struct DeviceRequest *device; // on a device's memory (comm_device.c), which says all but whose it is; else NULL
};

struct Comm {
    Engine *engine; // NULL: a group of one
    char *name;
    int rank, size, id;
    int *world;                      // (size) ranks in the world
    int64_t collectives, messages;   // that were started
    int64_t unfinished;              // calls started and not done
    CommRequest *running;            // the collective under way
    CommRequest *queue, **queue_end; // those that wait for it
    char *work;                      // work space of collectives
    int64_t work_bytes;
    bool owns_engine;
    struct DeviceGroup *device; // how it moves a device's memory (comm_device.c); NULL: it does not
};

static inline bool comm_alone(const Comm *comm) { return comm_size(comm) == 1; }
static inline bool comm_is_dry(const Comm *comm) { return comm && !comm->engine && comm->size > 1; }

// The ends of calls on a device's memory.
void device_request_wait(CommRequest *);
bool device_request_done(const CommRequest *);

// Adds a message to the round; nothing where bytes is 0. peer: in the group.
void call_send(CommRequest *, int peer, const void *data, int64_t bytes);
void call_receive(CommRequest *, int peer, void *data, int64_t bytes);
// Once `chunk` is set: at[q] = where rank q's share of the rows begins; `chunks`.
void call_share_out(CommRequest *);
// Makes the group's work space as large as the call needs it; nothing else of the group is under way.
void call_take_work(const CommRequest *);

static inline void copy_bytes(void *out, const void *in, int64_t bytes) { // may overlap; NULL where there are none
    if (out != in && bytes > 0) memmove(out, in, (size_t)bytes);
}
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
// Chunk `chunk` of part q, whose bytes are [at[q], at[q + 1]).
static inline int64_t chunk_begin(const CommRequest *c, int q, int64_t chunk) { return c->at[q] + chunk * c->chunk; }
static inline int64_t chunk_bytes(const CommRequest *c, int q, int64_t chunk) {
    int64_t left = c->at[q + 1] - chunk_begin(c, q, chunk);
    return left < 0 ? 0 : least(left, c->chunk);
}

// What a call does, by its arguments: sets round, compute, rounds, chunk, work_bytes.
void plan_all_reduce(CommRequest *, CommOrder);
void plan_reduce_scatter(CommRequest *, CommOrder);
void plan_all_gather(CommRequest *);
void plan_all_to_all(CommRequest *);
void plan_broadcast(CommRequest *);
void plan_barrier(CommRequest *);
void plan_message(CommRequest *, bool send);

// Messages of a ring that hands every rank's part of call->out on, in round `round` of p - 1 for each chunk.
void ring_gather_round(CommRequest *, int64_t round);

// ---- arithmetic ----

// out = the parts combined along the binary tree over [0, count); out may be one of them. bf16 sums in f32. A NaN in
// any part gives NaN.
void combine_tree(void *out, const void *const *parts, int count, int64_t n, CommType, CommReduction);

// ---- the engine ----

// Owns the transport's state. Starts the communication thread.
Engine *engine_new(const Transport *, void *state);
void engine_free(Engine *);
void engine_start(Engine *, CommRequest *, bool wake); // wake false: the caller waits for it at once
void engine_wait(Engine *, CommRequest *);
void engine_wake(Engine *); // something may be complete; any thread
CommStatus engine_status(Engine *, Buffer *members);
void engine_set_trace(Engine *, struct Trace *);
double engine_waited(Engine *);
int64_t engine_bytes(const Engine *);
int engine_next_group(Engine *, int least_number); // raises the next group's number to that; returns it
const Transport *engine_transport(const Engine *);
bool engine_bare_all_reduce(Engine *, float *data, int64_t n); // false where the transport has none
// The links between devices of this process's groups: for the watchdog.
struct DeviceLink;
void engine_add_link(Engine *, struct DeviceLink *, const Comm *);
void engine_remove_link(Engine *, struct DeviceLink *);
bool engine_link_fault(Engine *, char *why, size_t size);
void engine_abort_links(Engine *);
// Before this thread waits for a call of the host: what others wait for must not lie here, only written down. NULL: no
// more, as it is when the last link is gone.
void engine_before_waits(Engine *, void (*function)(void *context), void *context);

// The group of all ranks of an engine, which the group owns.
Comm *comm_world_of(Engine *, int rank, int size, const char *name);
// The processes that MPI connects; `expected` were started together.
Comm *comm_mpi_new(int expected, Log *, Error *);
// The processes that meet as `rendezvous` says.
struct Rendezvous;
Comm *comm_tcp_new(const struct Rendezvous *, Log *, Error *);
