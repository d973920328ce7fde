/* state.json of a checkpoint: where the run stood, and which files belong to it, each with its checksum; sealed with a
 * hash of its own. It is the last file of a checkpoint to be written. */
#pragma once
#include "base/buffer.h"
#include "base/error.h"
#include "base/safetensors_set.h"
#include "train/train_config.h"

typedef struct TrainState {
    int64_t step; // updates done
    int64_t seed;
    char roots[MOST_SOURCES][80]; // Merkle roots of the datasets trained on, in the order of `data`
    int root_count;
} TrainState;

typedef struct CheckpointFile {
    char name[SAFETENSORS_FILE_NAME + 16]; // in the checkpoint's folder
    char hash[SAFETENSORS_HASH]; // of a safetensors file: its header's, which covers its tensors'; else of the whole
    int64_t bytes;
} CheckpointFile;

// Fills hash and bytes of a file that has its name.
bool checkpoint_file_look(CheckpointFile *, const char *folder, Error *);
bool checkpoint_state_write(const char *folder, const TrainState *, const CheckpointFile *files, int count, Error *);
// Refuses a state that does not match its seal, and files that are missing or are not those of the state.
bool checkpoint_state_read(const char *folder, TrainState *, Error *);
