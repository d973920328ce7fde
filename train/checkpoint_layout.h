/* What a checkpoint consists of: whole tensors under their global names (masters, then the moments "m/NAME" and
 * "v/NAME"), each written by one rank, about as many bytes by each. A pure function of the parameters and of the number
 * of ranks: every rank knows all of it, and nothing of it depends on how the ranks share the model. */
#pragma once
#include "base/safetensors_set.h"
#include "train/optimizer.h"

typedef enum CheckpointPart { PART_MODEL, PART_OPTIMIZER, CHECKPOINT_PARTS } CheckpointPart;
extern const char *const checkpoint_part_names[CHECKPOINT_PARTS]; // "model", "optimizer": of the files

typedef struct CheckpointLayout {
    int writers;
    int count, first[CHECKPOINT_PARTS + 1]; // tensors; those of a part are [first[part], first[part + 1])
    SafeTensor *tensors;                    // (count) without data
    int *writer;                            // (count)
    int *number[STATE_KINDS]; // (parameters) of a parameter's tensor of each kind, or -1; a replica's is its original's
    Buffer index[CHECKPOINT_PARTS]; // text; empty for a single writer
} CheckpointLayout;

// Lives in the arena, but for the indexes.
CheckpointLayout *checkpoint_layout_new(Parameters *, int writers, Arena *);
void checkpoint_layout_free(CheckpointLayout *); // NULL is allowed
int64_t checkpoint_layout_bytes(const CheckpointLayout *, int writer);
