/* The files of one save: what a rank writes into the folder aside, and how rank 0 makes a checkpoint of that folder. No
 * communication happens here: threads beside the training run it. */
#pragma once
#include "train/checkpoint.h"
#include "train/checkpoint_copy.h"

enum { CHECKPOINT_PATH = 4096 };

typedef struct CheckpointJob {
    const CheckpointOptions *options;
    const CheckpointLayout *layout;
    CheckpointCopy copy;
    Buffer description; // text of model.json
    int rank;
    TrainState state;
    char aside[CHECKPOINT_PATH], folder[CHECKPOINT_PATH]; // while it is written; when it is complete
    CheckpointFile own[CHECKPOINT_PARTS];                 // what this rank wrote; no name: nothing
} CheckpointJob;

void checkpoint_job_begin(CheckpointJob *, const TrainState *);
// Writes and syncs this rank's tensors, and as rank 0 what is there once: indexes, model.json and tokenizer.model.
bool checkpoint_job_write(CheckpointJob *, Error *);
// For rank 0, when all have written `files` (those without a name are left out): state.json, the rename, and then
// older checkpoints give way.
bool checkpoint_job_seal(CheckpointJob *, const CheckpointFile *files, int count, Error *);
void checkpoint_job_drop(const CheckpointJob *); // removes the folder aside
