/* See checkpoint.h. */
#include "train/checkpoint.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/philox.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PATH_BYTES = 4096 };

static bool save_optimizer(const char *folder, const Optimizer *optimizer, Error *error) {
    char path[PATH_BYTES];
    SafeTensor *entries;
    Arena *memory = arena_new(1 << 20);
    int count = optimizer_export(optimizer, memory, &entries);
    snprintf(path, sizeof path, "%s/optimizer.safetensors", folder);
    bool ok = safetensors_write(path, entries, count, NULL, 0, error);
    arena_free(memory);
    return ok;
}

// The XXH3-64 of a state without its seal: it holds whole numbers and strings alone, so that its text is always the
// same.
static void make_seal(const json_t *state, char seal[17]) {
    char *text = json_dumps(state, JSON_COMPACT | JSON_SORT_KEYS);
    check(text);
    snprintf(seal, 17, "%016" PRIx64, hash_u64(text, strlen(text)));
    free(text);
}

static bool save_state(const char *folder, const TrainState *s, Error *error) {
    char path[PATH_BYTES], date[32], seal[17];
    clock_date(date);
    snprintf(path, sizeof path, "%s/state.json", folder);
    json_t *roots = json_array();
    for (int i = 0; i < s->root_count; i++) json_array_append_new(roots, json_string(s->roots[i]));
    json_t *state = json_pack("{s:I, s:I, s:o, s:s, s:s}", "step", (json_int_t)s->step, "seed", (json_int_t)s->seed,
                              "dataset_roots", roots, "written", date, "version", BIFOCAL_VERSION);
    make_seal(state, seal);
    json_object_set_new(state, "seal", json_string(seal));
    bool ok = json_write_file(path, state, error);
    json_decref(state);
    return ok;
}

bool checkpoint_save(const char *run, const TrainState *s, const Joint *joint, const Tokenizer *tokenizer,
                     const Optimizer *optimizer, Error *error) {
    char aside[PATH_BYTES], folder[PATH_BYTES];
    snprintf(folder, sizeof folder, "%s/checkpoints/step-%08lld", run, (long long)s->step);
    snprintf(aside, sizeof aside, "%s/checkpoints/.step-%08lld.tmp", run, (long long)s->step);
    bool ok = folder_remove(aside, error) && folder_create(aside, error) &&
              model_save(aside, joint, tokenizer, error) && save_state(aside, s, error) &&
              save_optimizer(aside, optimizer, error) && folder_sync(aside, error) && folder_remove(folder, error) &&
              path_rename(aside, folder, error);
    if (ok) return true;
    Error ignored;
    folder_remove(aside, &ignored);
    return error_prefix(error, "checkpoint of step %lld not saved, earlier ones are intact", (long long)s->step);
}

static bool load_state(const char *folder, TrainState *s, Error *error) {
    char path[PATH_BYTES], stated[17], seal[17];
    snprintf(path, sizeof path, "%s/state.json", folder);
    json_t *state = json_read_file(path, error);
    if (!state) return false;
    snprintf(stated, sizeof stated, "%s", json_get_string(state, "seal", ""));
    json_object_del(state, "seal");
    make_seal(state, seal);
    *s = (TrainState){.step = json_get_int(state, "step", -1), .seed = json_get_int(state, "seed", 0)};
    size_t i;
    json_t *root;
    json_array_foreach(json_object_get(state, "dataset_roots"), i, root) {
        if (i >= sizeof s->roots / sizeof *s->roots) break;
        snprintf(s->roots[s->root_count++], sizeof *s->roots, "%s",
                 json_is_string(root) ? json_string_value(root) : "");
    }
    json_decref(state);
    if (!strcmp(seal, stated) && s->step >= 0) return true;
    return error_set(error, ERROR_FAILED, "%s: damaged: it does not match its seal; take an earlier checkpoint", path);
}

static bool load_file(const char *folder, const char *name, Joint *joint, Optimizer *optimizer, Error *error) {
    char path[PATH_BYTES], json[PATH_BYTES];
    SafeTensors file = {0};
    snprintf(path, sizeof path, "%s/%s", folder, name);
    snprintf(json, sizeof json, "%s/model.json", folder);
    bool ok = safetensors_open(&file, path, error) && safetensors_verify(&file, path, error) &&
              (!joint || safetensors_check_file(&file, json, error)) &&
              (joint ? parameters_import(joint_parameters(joint), &file, path, error)
                     : optimizer_import(optimizer, &file, path, error));
    safetensors_close(&file);
    return ok;
}

bool checkpoint_load(const char *folder, TrainState *s, Joint *joint, Optimizer *optimizer, Error *error) {
    return load_state(folder, s, error) && load_file(folder, "model.safetensors", joint, NULL, error) &&
           load_file(folder, "optimizer.safetensors", NULL, optimizer, error);
}

bool checkpoint_prune(const char *run, int64_t keep, Error *error) {
    char folder[PATH_BYTES], path[2 * PATH_BYTES];
    char **names;
    int count, complete = 0;
    snprintf(folder, sizeof folder, "%s/checkpoints", run);
    if (!folder_list(folder, &names, &count, error)) return false;
    for (int i = 0; i < count; i++) complete += strncmp(names[i], "step-", 5) == 0;
    bool ok = true;
    for (int i = 0; i < count && ok; i++) { // sorted: the oldest come first
        bool whole = strncmp(names[i], "step-", 5) == 0, aside = strncmp(names[i], ".step-", 6) == 0;
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        if (aside || (whole && complete > keep)) ok = folder_remove(path, error);
        if (whole && complete > keep) complete--;
    }
    names_free(names, count);
    return ok;
}
