/* Communication between the processes of a run: groups of ranks, and collectives among them on raw memory, blocking or
 * started and waited for. Filled by self (a group of one), threads (ranks that are threads of one process, for tests),
 * MPI and TCP; later NCCL.
 *
 * What is started runs in the order in which it was started in its group, beside the caller's arithmetic; all ranks of
 * a group must start the same calls in the same order. There is no error return: a rank that is gone ends the process
 * with a message (see watch.h), since nothing else could be done. Memory given to a call stays untouched until it is
 * waited for. Threads of a process may use different groups at the same time; a group is used by one at a time, and
 * groups are split by one at a time. `what` says in the trace and to the watchdog what a call is for ("gradients",
 * "tokens"); it lives as long as the program.
 *
 * Rows that are shared out: rank r of n holds rows [comm_share(rows, r, n), comm_share(rows, r + 1, n)), which need not
 * be equally many. */
#pragma once
#include "base/buffer.h"
#include "base/error.h"
#include "base/log.h"
#include <stdint.h>

typedef struct Comm Comm;               // a group, seen from one of its ranks
typedef struct CommRequest CommRequest; // a call that was started

typedef enum CommType { COMM_U8, COMM_I32, COMM_I64, COMM_F32, COMM_F64, COMM_BF16 } CommType;
typedef enum CommReduction { COMM_SUM, COMM_MAX, COMM_MIN } CommReduction;
// ORDERED: contributions combine along a binary tree over the ranks, [0, n) into [0, n/2) and [n/2, n) and so on, lower
// half first: the same bits on every transport, and where each of 2^k ranks brings the sum of a subtree, the same bits
// as one rank that holds them all. FAST: as the transport likes. bf16 sums are formed in f32 and rounded once.
typedef enum CommOrder { COMM_FAST, COMM_ORDERED } CommOrder;

// A group of one; never fails.
Comm *comm_self_new(void);
// A group of `size` ranks as the last of them sees it, whose calls end at once and move nothing: for a rehearsal on a
// backend that computes nothing (kernels/dry.h).
Comm *comm_dry_new(int size);
// All processes of the run: MPI where mpirun or srun started several and tell it how to find them, TCP where variables
// alone say who belongs together (Slurm's, or BIFOCAL_RANKS), else a group of one. Call once; a refusal (NULL) says how
// to start. The log is borrowed for the life of the group: for the last words where a connection fails.
Comm *comm_world_new(Log *, Error *);
// `size` groups' ends for as many threads of this process: ends[r] is used by one thread.
void comm_threads_new(int size, Comm **ends);
// Every rank of the group, once its calls were waited for; sub-groups before the group they came from. NULL is allowed.
void comm_free(Comm *);
// Ranks with the same colour form a group, ordered by (key, rank); colour < 0: none, NULL. Collective over `parent`.
// name: of the group, for the trace and the watchdog ("data", "tensor"); copied.
Comm *comm_split(Comm *parent, int colour, int key, const char *name);

int comm_rank(const Comm *);                 // 0 for NULL
int comm_size(const Comm *);                 // 1 for NULL: code may hold NULL for "alone"
int comm_world_rank(const Comm *, int rank); // of a rank of this group
const char *comm_name(const Comm *);
static inline size_t comm_type_size(CommType t) {
    return t == COMM_U8 ? 1 : t == COMM_BF16 ? 2 : t == COMM_I32 || t == COMM_F32 ? 4 : 8;
}
static inline int64_t comm_share(int64_t rows, int rank, int size) {
    return rows / size * rank + rows % size * rank / size;
}

// ---- started calls: comm_wait ends and frees them ----

CommRequest *comm_start_all_reduce(Comm *, void *data, int64_t n, CommType, CommReduction, CommOrder, const char *what);
// in: (rows, width) on every rank; out: this rank's share of the rows, summed; out may be that part of `in`
CommRequest *comm_start_reduce_scatter(Comm *, void *out, const void *in, int64_t rows, int64_t width, CommType,
                                       CommOrder, const char *what);
// in: this rank's share of the rows; out: all `rows` of row_bytes each; in may be its part of `out`
CommRequest *comm_start_all_gather(Comm *, void *out, const void *in, int64_t rows, int64_t row_bytes,
                                   const char *what);
// Pieces lie one behind the other in rank order: in_bytes[r] go to rank r, out_bytes[r] come from it
CommRequest *comm_start_all_to_all(Comm *, void *out, const int64_t *out_bytes, const void *in, const int64_t *in_bytes,
                                   const char *what);
CommRequest *comm_start_broadcast(Comm *, void *data, int64_t bytes, int root, const char *what);
CommRequest *comm_start_send(Comm *, const void *data, int64_t bytes, int to, int tag, const char *what);
CommRequest *comm_start_receive(Comm *, void *data, int64_t bytes, int from, int tag, const char *what);
void comm_wait(CommRequest *);       // NULL is allowed
bool comm_done(const CommRequest *); // whether comm_wait would return at once; true for NULL

// ---- blocking calls; on a NULL group or one of a single rank they only copy ----

void comm_all_reduce(Comm *, void *data, int64_t n, CommType, CommReduction, CommOrder, const char *what);
void comm_reduce_scatter(Comm *, void *out, const void *in, int64_t rows, int64_t width, CommType, CommOrder,
                         const char *what);
void comm_all_gather(Comm *, void *out, const void *in, int64_t rows, int64_t row_bytes, const char *what);
void comm_all_to_all(Comm *, void *out, const int64_t *out_bytes, const void *in, const int64_t *in_bytes,
                     const char *what);
void comm_broadcast(Comm *, void *data, int64_t bytes, int root, const char *what);
void comm_send(Comm *, const void *data, int64_t bytes, int to, int tag, const char *what);
void comm_receive(Comm *, void *data, int64_t bytes, int from, int tag, const char *what);
void comm_barrier(Comm *, const char *what);

// ---- for the watchdog and the trace ----

typedef struct CommStatus {  // of the call that has waited longest for other ranks, in any group of this process
    int64_t number;          // of calls started in that group, this one included: the same on all of its ranks
    char group[32];          // its name, cut off where it is longer
    const char *call, *what; // "all-reduce", "gradients"; call NULL: nothing is under way
    double since;            // clock_seconds() when it began to run, or was first seen to
    bool device;             // it is the device's: it runs there, whatever the host does
    int peer;                // then: the other rank in the world; -1: all of the group
} CommStatus;
// Any thread, one at a time where devices are linked. members: becomes the world ranks of that group, int32_t each;
// NULL: they are not wanted.
CommStatus comm_status(const Comm *world, Buffer *members);
double comm_waited(const Comm *world);      // seconds that threads of this process have spent in comm_wait
int64_t comm_sent_bytes(const Comm *world); // by this process
struct Trace;
void comm_set_trace(Comm *world, struct Trace *); // every call of every group becomes a slice of track "communication"
