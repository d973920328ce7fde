/* A model on disk: model.safetensors, model.json (its config) and tokenizer.model in one folder. A run holds such
 * folders under checkpoints/; what evaluates and generates reads them here. */
#pragma once
#include "fusion/joint.h"
#include "tokenizers/tokenizer.h"

// Writes the three files into `folder` (which exists; renaming it into place is the caller's).
bool model_save(const char *folder, const Joint *, const Tokenizer *, Error *);
typedef struct LoadedModel {
    Joint *joint;
    Tokenizer *tokenizer;
    JointConfig config;
    Arena *memory;
    char path[1024];
    int64_t step;
} LoadedModel;
// path: a checkpoint folder, or a run (its newest complete checkpoint).
bool model_load(LoadedModel *, Backend *, const char *path, Dtype compute, Error *);
// False where the model in `folder` was trained with another tokenizer. name: of this one, for the message.
bool model_check_tokenizer(const char *folder, const Tokenizer *, const char *name, Error *);
void model_unload(LoadedModel *);
// The newest complete checkpoint of a run into `out` (>= 1024 bytes); false with a message where there is none.
bool model_find_checkpoint(const char *run, char *out, Error *);
