/* A copy in host memory of the tensors that a rank writes, taken from the ranks that hold them. What this rank holds
 * itself is copied by any thread, at any time before the next update. */
#pragma once
#include "train/checkpoint_layout.h"
#include "train/mesh.h"

typedef struct CheckpointCopy {
    Backend *backend;
    Parameters *parameters;
    const CheckpointLayout *layout;
    const Mesh *mesh;         // NULL: alone
    const StateRange *ranges; // (range_count) what this rank holds
    int range_count, rank;
    char *memory; // of the copies; kept from one checkpoint to the next
    int64_t bytes;
    float **to;       // (layout->count) where each tensor's copy begins; NULL: another rank's
    int64_t *arrived; // (layout->count) elements of the copy under way
} CheckpointCopy;

// Everything is borrowed; mesh NULL: alone.
void checkpoint_copy_init(CheckpointCopy *, Backend *, Parameters *, const CheckpointLayout *, const Mesh *, Arena *);
void checkpoint_copy_free(CheckpointCopy *);
// Makes room for a copy; false where there is none.
bool checkpoint_copy_reserve(CheckpointCopy *, Error *);
void checkpoint_copy_touch(const CheckpointCopy *); // the system's part of the work, ahead of the first copy

// A copy: begin, then in any thread what ranks send each other (collective), what this rank holds itself, and the end:
// every element has come, once. ranges: what this rank holds, borrowed until then.
void checkpoint_copy_begin(CheckpointCopy *, const StateRange *ranges, int count);
void checkpoint_copy_exchange(CheckpointCopy *, Comm *); // checkpoint_exchange.c
void checkpoint_copy_own(CheckpointCopy *);
void checkpoint_copy_end(const CheckpointCopy *);

// For the exchange. The rank that this rank sends a range to; -1: others who hold it too do that, or nobody, as a copy
// of it is sent.
int checkpoint_copy_writer(const CheckpointCopy *, const StateRange *);
int checkpoint_copy_tensor(const CheckpointCopy *, const StateRange *);
// Elements [done, done + *count) of the range lie together in the whole tensor, from *first on.
void checkpoint_copy_run(const CheckpointCopy *, const StateRange *, int64_t done, int64_t *first, int64_t *count);
