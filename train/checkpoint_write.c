/* See checkpoint_write.h. */
#include "train/checkpoint_write.h"
#include "base/json.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PAIRS = 3 }; // of metadata at the most

static const char INDEX_SUFFIX[] = ".safetensors.index.json";

void checkpoint_job_begin(CheckpointJob *j, const TrainState *state) {
    const char *run = j->options->run;
    long long step = (long long)state->step;
    j->state = *state;
    memset(j->own, 0, sizeof j->own);
    snprintf(j->folder, sizeof j->folder, "%s/checkpoints/step-%08lld", run, step);
    snprintf(j->aside, sizeof j->aside, "%s/checkpoints/.step-%08lld.tmp", run, step);
}

static void index_name(char out[SAFETENSORS_FILE_NAME], CheckpointPart part) {
    snprintf(out, SAFETENSORS_FILE_NAME, "%s%s", checkpoint_part_names[part], INDEX_SUFFIX);
}

// ---- a rank's own files ----

// What a file says of the others: the step, the description of the model, and the index.
static int metadata_of(const CheckpointJob *j, CheckpointPart part, Arena *memory, const char **out) {
    int n = 0;
    char *hash;
    out[n++] = SAFETENSORS_STEP;
    out[n++] = arena_printf(memory, "%lld", (long long)j->state.step);
    if (part == PART_MODEL) {
        hash = arena_allocate(memory, SAFETENSORS_HASH);
        safetensors_hash_text(j->description.data, j->description.size, hash);
        out[n++] = MODEL_DESCRIPTION;
        out[n++] = hash;
    }
    const Buffer *index = &j->layout->index[part];
    if (index->size) {
        char *name = arena_allocate(memory, SAFETENSORS_FILE_NAME);
        index_name(name, part);
        hash = arena_allocate(memory, SAFETENSORS_HASH);
        safetensors_hash_text(index->data, index->size, hash);
        out[n++] = name;
        out[n++] = hash;
    }
    return n / 2;
}

static bool write_part(CheckpointJob *j, CheckpointPart part, Error *error) {
    const CheckpointLayout *l = j->layout;
    CheckpointFile *file = &j->own[part];
    const char *metadata[2 * PAIRS];
    char name[SAFETENSORS_FILE_NAME];
    int count = 0;
    Arena *memory = arena_new(1 << 12);
    SafeTensor *tensors = arena_array(memory, SafeTensor, l->count + 1);
    for (int i = l->first[part]; i < l->first[part + 1]; i++) {
        if (l->writer[i] != j->rank) continue;
        tensors[count] = l->tensors[i];
        tensors[count++].data = j->copy.to[i];
    }
    bool ok = true;
    if (count || l->writers == 1) {
        safetensors_file_name(name, checkpoint_part_names[part], j->rank, l->writers);
        snprintf(file->name, sizeof file->name, "%s", name);
        const char *path = arena_printf(memory, "%s/%s", j->aside, name);
        int pairs = metadata_of(j, part, memory, metadata);
        ok = safetensors_write(path, tensors, count, metadata, pairs, error) &&
             checkpoint_file_look(file, j->aside, error);
    }
    arena_free(memory);
    return ok;
}

static bool write_index(const CheckpointJob *j, CheckpointPart part, Error *error) {
    char name[SAFETENSORS_FILE_NAME], path[2 * CHECKPOINT_PATH];
    const Buffer *text = &j->layout->index[part];
    index_name(name, part);
    snprintf(path, sizeof path, "%s/%s", j->aside, name);
    return !text->size || file_write(path, text->data, text->size, error);
}

bool checkpoint_job_write(CheckpointJob *j, Error *error) {
    return write_part(j, PART_MODEL, error) && write_part(j, PART_OPTIMIZER, error) &&
           (j->rank != 0 || (write_index(j, PART_MODEL, error) && write_index(j, PART_OPTIMIZER, error) &&
                             model_save_description(j->aside, &j->description, j->options->tokenizer, error)));
}

// ---- sealing ----

// Ranks on other machines wrote files too: all of them must be here.
static bool all_here(const CheckpointJob *j, const CheckpointFile *files, int count, Error *error) {
    char path[2 * CHECKPOINT_PATH];
    for (int i = 0; i < count; i++) {
        snprintf(path, sizeof path, "%s/%s", j->aside, files[i].name);
        if (!*files[i].name || file_size(path) == files[i].bytes) continue;
        return error_set(error, ERROR_FAILED,
                         "%s: written by rank %d, but rank 0 does not see it as it was written; put the run folder "
                         "on a file system that all ranks share",
                         path, i / CHECKPOINT_PARTS);
    }
    return true;
}

// Files that are there once.
static bool look_at_others(const CheckpointJob *j, CheckpointFile *list, int *count, Error *error) {
    static const char *const names[] = {"model.json", "tokenizer.model", "model.safetensors.index.json",
                                        "optimizer.safetensors.index.json"};
    const bool there[] = {true, j->options->tokenizer != NULL, j->layout->writers > 1, j->layout->writers > 1};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (!there[i]) continue;
        snprintf(list[*count].name, sizeof list->name, "%s", names[i]);
        if (!checkpoint_file_look(&list[(*count)++], j->aside, error)) return false;
    }
    return true;
}

bool checkpoint_job_seal(CheckpointJob *j, const CheckpointFile *files, int count, Error *error) {
    const CheckpointOptions *o = j->options;
    CheckpointFile *list = calloc((size_t)count + 4, sizeof *list);
    int listed = 0;
    check(list);
    bool ok = all_here(j, files, count, error) && look_at_others(j, list, &listed, error);
    for (int i = 0; i < count; i++)
        if (*files[i].name) list[listed++] = files[i];
    ok = ok && checkpoint_state_write(j->aside, &j->state, list, listed, error) && folder_sync(j->aside, error) &&
         folder_remove(j->folder, error) && path_rename(j->aside, j->folder, error);
    free(list);
    Error kept = {0};
    if (ok && !checkpoint_prune(o->run, o->keep, o->keep_every, &kept)) // the new one is there all the same
        log_warning(o->log, "older checkpoints stay: %s", kept.message);
    return ok;
}

void checkpoint_job_drop(const CheckpointJob *j) {
    Error ignored;
    folder_remove(j->aside, &ignored);
}

// ---- pruning ----

static int64_t step_of(const char *name) { return strtoll(name + sizeof "step-" - 1, NULL, 10); }

bool checkpoint_prune(const char *run, int64_t keep, int64_t keep_every, Error *error) {
    char folder[CHECKPOINT_PATH], path[2 * CHECKPOINT_PATH];
    char **names;
    int count, newer = 0;
    snprintf(folder, sizeof folder, "%s/checkpoints", run);
    if (!folder_list(folder, &names, &count, error)) return false;
    bool ok = true;
    for (int i = count - 1; i >= 0 && ok; i--) { // sorted: the newest come first
        bool whole = strncmp(names[i], "step-", 5) == 0, aside = strncmp(names[i], ".step-", 6) == 0;
        bool stays = whole && (newer++ < keep || (keep_every > 0 && step_of(names[i]) % keep_every == 0));
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        if (aside || (whole && !stays)) ok = folder_remove(path, error);
    }
    names_free(names, count);
    return ok;
}
