/* A model on disk: model.safetensors (or several such files with an index, as ranks write them), model.json (its
 * config) and tokenizer.model in one folder. A run holds such folders under checkpoints/; what evaluates and generates
 * reads them here. */
#pragma once
#include "base/log.h"
#include "fusion/joint.h"
#include "tokenizers/tokenizer.h"

#define MODEL_DESCRIPTION "model.json"

// Writes the three files into `folder` (which exists; renaming it into place is the caller's).
bool model_save(const char *folder, const Joint *, const Tokenizer *, Error *);
// Its parts: the text of model.json, which the weights name by its hash; and that with the tokenizer, written.
void model_describe(const Joint *, const Tokenizer *, Buffer *out);
bool model_save_description(const char *folder, const Buffer *description, const Tokenizer *, Error *);

typedef struct LoadedModel {
    Joint *joint;
    Tokenizer *tokenizer;
    JointConfig config;
    Arena *memory;
    char path[1024];
    int64_t step;
} LoadedModel;
// path: a checkpoint folder, or a run (its newest complete checkpoint).
bool model_load(LoadedModel *, Backend *, const char *path, Dtype compute, Log *, Error *);
// False where the model in `folder` was trained with another tokenizer. name: of this one, for the message.
bool model_check_tokenizer(const char *folder, const Tokenizer *, const char *name, Error *);
void model_unload(LoadedModel *);
// The newest complete checkpoint of a run into `out` (>= 1024 bytes); false with a message where there is none. Newer
// ones that are not complete are ignored, with a warning. log may be NULL.
bool model_find_checkpoint(const char *run, char *out, Log *, Error *);
