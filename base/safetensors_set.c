/* See safetensors_set.h. */
#include "base/safetensors_set.h"
#include "base/json.h"
#include <stdlib.h>
#include <string.h>

enum { MOST_FILES = 100000 };

static char *join(const char *folder, const char *name, const char *suffix) {
    char *path = NULL;
    check(asprintf(&path, "%s/%s%s", folder, name, suffix) > 0);
    return path;
}

// ---- names and index ----

void safetensors_file_name(char out[SAFETENSORS_FILE_NAME], const char *name, int file, int files) {
    int n = files == 1 ? snprintf(out, SAFETENSORS_FILE_NAME, "%s.safetensors", name)
                       : snprintf(out, SAFETENSORS_FILE_NAME, "%s-%05d-of-%05d.safetensors", name, file + 1, files);
    check(n > 0 && n < SAFETENSORS_FILE_NAME);
}

void safetensors_index(Buffer *out, const char *name, const SafeTensor *tensors, const int *file, int count,
                       int files) {
    char path[SAFETENSORS_FILE_NAME];
    int64_t bytes = 0;
    json_t *map = json_object();
    for (int i = 0; i < count; i++) {
        safetensors_file_name(path, name, file[i], files);
        json_object_set_new(map, tensors[i].name, json_string(path));
        bytes += tensors[i].bytes;
    }
    json_t *index = json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)bytes, "weight_map", map);
    check(index && json_text(index, out));
    json_decref(index);
}

// ---- opening ----

bool safetensors_set_exists(const char *folder, const char *name) {
    char *single = join(folder, name, ".safetensors"), *index = join(folder, name, ".safetensors.index.json");
    bool exists = file_exists(single) || file_exists(index);
    free(single);
    free(index);
    return exists;
}

static int file_of(const SafeTensorsSet *set, const char *name) {
    for (int i = 0; i < set->count; i++)
        if (!strcmp(path_base(set->paths[i]), name)) return i;
    return -1;
}

static bool open_file(SafeTensorsSet *set, char *path, Error *error) {
    set->files = realloc(set->files, (size_t)(set->count + 1) * sizeof *set->files);
    set->paths = realloc(set->paths, (size_t)(set->count + 1) * sizeof *set->paths);
    check(set->files && set->paths);
    set->paths[set->count] = path;
    bool ok = safetensors_open(&set->files[set->count++], path, error);
    if (ok || !set->index || file_exists(path)) return ok;
    return error_set(error, ERROR_FAILED,
                     "%s: no such file, but %s names it; restore it from a copy, or take an earlier checkpoint", path,
                     path_base(set->index));
}

// The index's entries name plain files beside it; each is opened once.
static bool open_files(SafeTensorsSet *set, const char *folder, json_t *map, Error *error) {
    const char *key;
    json_t *value;
    json_object_foreach(map, key, value) {
        const char *name = json_string_value(value);
        if (!name || strchr(name, '/') || strcmp(path_extension(name), "safetensors") != 0)
            return error_set(error, ERROR_FAILED, "%s: weight_map: '%.200s' must lie in a .safetensors file beside it",
                             set->index, key);
        if (file_of(set, name) >= 0) continue;
        if (set->count == MOST_FILES)
            return error_set(error, ERROR_FAILED, "%s: weight_map names more than %d files", set->index, MOST_FILES);
        if (!open_file(set, join(folder, name, ""), error)) return false;
    }
    return true;
}

// Each tensor lies where the index says, and no file holds another one.
static bool check_map(const SafeTensorsSet *set, json_t *map, Error *error) {
    for (int i = 0; i < set->count; i++) {
        for (int k = 0; k < set->files[i].count; k++) {
            const char *name = set->files[i].tensors[k].name, *said = json_get_string(map, name, NULL);
            if (said && !strcmp(said, path_base(set->paths[i]))) continue;
            return error_set(error, ERROR_FAILED, "%s: holds '%.200s', which %s puts into %s", set->paths[i], name,
                             set->index, said ? said : "no file");
        }
    }
    if ((size_t)set->all.count == json_object_size(map)) return true;
    const char *key;
    json_t *value;
    json_object_foreach(map, key, value) {
        if (!safetensors_find(&set->all, key))
            return error_set(error, ERROR_FAILED, "%s: '%.200s' is not in %s", set->index, key,
                             json_string_value(value));
    }
    check_failed("as many tensors as entries", __FILE__, __LINE__);
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const SafeTensor *)a)->name, ((const SafeTensor *)b)->name);
}

static void merge(SafeTensorsSet *set) {
    SafeTensors *all = &set->all;
    for (int i = 0; i < set->count; i++) all->count += set->files[i].count;
    all->memory = arena_new(1 << 12);
    all->tensors = arena_array(all->memory, SafeTensor, all->count + 1);
    SafeTensor *to = all->tensors;
    for (int i = 0; i < set->count; to += set->files[i++].count)
        if (set->files[i].count) memcpy(to, set->files[i].tensors, (size_t)set->files[i].count * sizeof *to);
    qsort(all->tensors, (size_t)all->count, sizeof *to, by_name);
    if (set->count) all->metadata = set->files[0].metadata, all->metadata_count = set->files[0].metadata_count;
}

static bool same_step(const SafeTensorsSet *set, Error *error) {
    for (int i = 1; i < set->count; i++) {
        const char *first = safetensors_metadata(&set->files[0], SAFETENSORS_STEP);
        const char *own = safetensors_metadata(&set->files[i], SAFETENSORS_STEP);
        if (!first == !own && (!first || !strcmp(first, own))) continue;
        return error_set(error, ERROR_FAILED,
                         "%s: is of step %s, %s of step %s; restore the files of one checkpoint, or take another",
                         set->paths[i], own ? own : "(none)", path_base(set->paths[0]), first ? first : "(none)");
    }
    return true;
}

static bool open_index(SafeTensorsSet *set, const char *folder, Error *error) {
    json_t *index = json_read_file(set->index, error);
    json_t *map = json_object_get(index, "weight_map");
    bool ok = index != NULL;
    if (ok && !json_is_object(map))
        ok = error_set(error, ERROR_FAILED, "%s: no object weight_map; it is not an index of safetensors files",
                       set->index);
    if (ok) ok = open_files(set, folder, map, error);
    if (ok) {
        merge(set);
        ok = check_map(set, map, error) && same_step(set, error);
    }
    json_decref(index);
    return ok;
}

bool safetensors_set_open(SafeTensorsSet *set, const char *folder, const char *name, Error *error) {
    *set = (SafeTensorsSet){.all.file.descriptor = -1};
    char *single = join(folder, name, ".safetensors"), *index = join(folder, name, ".safetensors.index.json");
    bool ok;
    if (file_exists(index) && !file_exists(single)) {
        free(single);
        set->index = index;
        ok = open_index(set, folder, error);
    } else {
        free(index);
        ok = open_file(set, single, error);
        if (ok) merge(set);
    }
    if (!ok) safetensors_set_close(set);
    return ok;
}

void safetensors_set_close(SafeTensorsSet *set) {
    for (int i = 0; i < set->count; i++) {
        safetensors_close(&set->files[i]);
        free(set->paths[i]);
    }
    arena_free(set->all.memory);
    free(set->files);
    free(set->paths);
    free(set->index);
    *set = (SafeTensorsSet){.all.file.descriptor = -1};
}

// ---- checking ----

const char *safetensors_set_path(const SafeTensorsSet *set) { return set->index ? set->index : set->paths[0]; }

bool safetensors_set_verify(const SafeTensorsSet *set, int part, int parts, Error *error) {
    if (set->index && !safetensors_set_check_file(set, set->index, error)) return false;
    for (int i = part; i < set->count; i += parts)
        if (!safetensors_verify(&set->files[i], set->paths[i], error)) return false;
    return true;
}

bool safetensors_set_check_file(const SafeTensorsSet *set, const char *path, Error *error) {
    for (int i = 0; i < set->count; i++)
        if (!safetensors_check_file(&set->files[i], path, error)) return false;
    return true;
}
