/* See checkpoint_state.h. */
#include "train/checkpoint_state.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/philox.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { PATH_BYTES = 4096 };

static const char STATE_FILE[] = "state.json";

// The XXH3-64 of a state without its seal: it holds whole numbers and strings alone, so that its text is always the
// same.
static void make_seal(const json_t *state, char seal[17]) {
    char *text = json_dumps(state, JSON_COMPACT | JSON_SORT_KEYS);
    check(text);
    snprintf(seal, 17, "%016" PRIx64, hash_u64(text, strlen(text)));
    free(text);
}

bool checkpoint_file_look(CheckpointFile *f, const char *folder, Error *error) {
    char path[PATH_BYTES];
    snprintf(path, sizeof path, "%s/%s", folder, f->name);
    f->bytes = file_size(path);
    if (strcmp(path_extension(f->name), "safetensors") != 0) return safetensors_hash_file(path, f->hash, error);
    SafeTensors file;
    if (!safetensors_open(&file, path, error)) return false;
    const char *hash = safetensors_metadata(&file, "xxh3");
    snprintf(f->hash, sizeof f->hash, "%s", hash ? hash : "none");
    safetensors_close(&file);
    return true;
}

bool checkpoint_state_write(const char *folder, const TrainState *s, const CheckpointFile *files, int count,
                            Error *error) {
    char path[PATH_BYTES], date[32], seal[17];
    clock_date(date);
    snprintf(path, sizeof path, "%s/%s", folder, STATE_FILE);
    json_t *roots = json_array(), *list = json_object();
    for (int i = 0; i < s->root_count; i++) json_array_append_new(roots, json_string(s->roots[i]));
    for (int i = 0; i < count; i++) json_object_set_new(list, files[i].name, json_string(files[i].hash));
    json_t *state =
        json_pack("{s:I, s:I, s:o, s:s, s:s, s:o}", "step", (json_int_t)s->step, "seed", (json_int_t)s->seed,
                  "dataset_roots", roots, "written", date, "version", BIFOCAL_VERSION, "files", list);
    make_seal(state, seal);
    json_object_set_new(state, "seal", json_string(seal));
    bool ok = json_write_file(path, state, error);
    json_decref(state);
    return ok;
}

static bool check_files(const char *folder, json_t *list, int64_t step, Error *error) {
    const char *name;
    json_t *hash;
    if (!json_is_object(list))
        return error_set(error, ERROR_FAILED, "%s/%s: names no files; it was written by another version", folder,
                         STATE_FILE);
    json_object_foreach(list, name, hash) {
        CheckpointFile file = {0};
        snprintf(file.name, sizeof file.name, "%s", name);
        if (!checkpoint_file_look(&file, folder, error))
            return error_prefix(error, "the checkpoint of step %lld is not whole; take another", (long long)step);
        if (json_is_string(hash) && !strcmp(json_string_value(hash), file.hash)) continue;
        return error_set(error, ERROR_FAILED,
                         "%s/%s: damaged, or not of the checkpoint of step %lld; restore it from a copy, or take "
                         "another checkpoint",
                         folder, name, (long long)step);
    }
    return true;
}

static void take(const json_t *state, TrainState *s) {
    size_t i;
    json_t *root;
    *s = (TrainState){.step = json_get_int(state, "step", -1), .seed = json_get_int(state, "seed", 0)};
    json_array_foreach(json_object_get(state, "dataset_roots"), i, root) {
        if (i >= sizeof s->roots / sizeof *s->roots) break;
        snprintf(s->roots[s->root_count++], sizeof *s->roots, "%s",
                 json_is_string(root) ? json_string_value(root) : "");
    }
}

bool checkpoint_state_read(const char *folder, TrainState *s, Error *error) {
    char path[PATH_BYTES], stated[17], seal[17];
    snprintf(path, sizeof path, "%s/%s", folder, STATE_FILE);
    json_t *state = json_read_file(path, error);
    if (!state) return false;
    snprintf(stated, sizeof stated, "%s", json_get_string(state, "seal", ""));
    json_object_del(state, "seal");
    make_seal(state, seal);
    take(state, s);
    bool ok =
        (!strcmp(seal, stated) && s->step >= 0) ||
        error_set(error, ERROR_FAILED, "%s: damaged: it does not match its seal; take an earlier checkpoint", path);
    ok = ok && check_files(folder, json_object_get(state, "files"), s->step, error);
    json_decref(state);
    return ok;
}
