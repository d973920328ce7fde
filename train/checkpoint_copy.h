/* A copy in host memory of the tensors that a rank writes, taken from the ranks that hold them. What this rank holds
 * itself is copied by any thread, at any time before the next update. */
#pragma once
#include "train/checkpoint_layout.h"

typedef struct CheckpointCopy {
    Backend *backend;
    const Parameters *parameters;
    const CheckpointLayout *layout;
    const StateRange *ranges; // (range_count) what this rank holds
    int range_count, rank;
    char *memory; // of the copies; kept from one checkpoint to the next
    int64_t bytes;
    float **to;       // (layout->count) where each tensor's copy begins; NULL: another rank's
    int64_t *arrived; // (layout->count) elements of the copy under way
} CheckpointCopy;

// Everything is borrowed.
void checkpoint_copy_init(CheckpointCopy *, Backend *, const Parameters *, const CheckpointLayout *,
                          const StateRange *ranges, int range_count, int rank, Arena *);
// Makes room for a copy; false where there is none.
bool checkpoint_copy_begin(CheckpointCopy *, Error *);
void checkpoint_copy_own(CheckpointCopy *);       // what this rank holds itself
void checkpoint_copy_end(const CheckpointCopy *); // every element has come, once
void checkpoint_copy_free(CheckpointCopy *);
