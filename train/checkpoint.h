/* Checkpoints of a run: RUN/checkpoints/step-00001000/ holds what model_save writes (weights, config, tokenizer),
 * optimizer.safetensors and state.json. Each is written into a folder aside, synced and renamed: one that can be seen
 * is complete. */
#pragma once
#include "fusion/model_files.h"
#include "train/optimizer.h"

typedef struct TrainState {
    int64_t step; // updates done
    int64_t seed;
    char roots[MOST_SOURCES][80]; // Merkle roots of the datasets trained on, in the order of `data`
    int root_count;
} TrainState;

bool checkpoint_save(const char *run, const TrainState *, const Joint *, const Tokenizer *, const Optimizer *, Error *);
// Reads weights and moments of the checkpoint folder into the model and the optimizer, checksums verified.
bool checkpoint_load(const char *folder, TrainState *, Joint *, Optimizer *, Error *);
// Removes all but the newest `keep`, and folders that an interrupted save left aside.
bool checkpoint_prune(const char *run, int64_t keep, Error *);
