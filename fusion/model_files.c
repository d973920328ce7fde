/* See model_files.h. model.json holds every key of the model's config, by its dotted name: it is read back through the
 * config's own table, so a file with an unknown key or a value out of range is refused. */
#include "fusion/model_files.h"
#include "base/json.h"
#include "base/safetensors_set.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FORMAT = 1, PATH_MOST = 1024 };

static const char STEP_PREFIX[] = "step-";   // of the name of a checkpoint's folder
static const char ASIDE_PREFIX[] = ".step-"; // while it is written

static bool join_path(char out[PATH_MOST], const char *folder, const char *name, Error *error) {
    if (snprintf(out, PATH_MOST, "%s/%s", folder, name) < PATH_MOST) return true;
    return error_set(error, ERROR_FAILED, "%s/%s: the path is longer than %d bytes", folder, name, PATH_MOST - 1);
}

// ---- writing ----

static json_t *strings_to_json(const StringList *list) {
    json_t *array = json_array();
    for (int i = 0; i < list->count; i++) json_array_append_new(array, json_string(list->items[i]));
    return array;
}

// Choice `index` of "one|two|three"
static json_t *choice_to_json(const char *choices, int index) {
    const char *word = choices;
    for (; index > 0; index--) {
        word = strchr(word, '|');
        check(word);
        word++;
    }
    return json_stringn(word, strcspn(word, "|"));
}

static json_t *value_to_json(const ConfigKey *key, const void *config) {
    const void *at = (const char *)config + key->offset;
    switch (key->type) {
    case CONFIG_BOOL:
        return json_boolean(*(const bool *)at);
    case CONFIG_INT:
        return json_integer(*(const int64_t *)at);
    case CONFIG_FLOAT:
        return json_real(*(const double *)at);
    case CONFIG_STRING:
        return json_string(*(const char *const *)at);
    case CONFIG_CHOICE:
        return choice_to_json(key->choices, *(const int *)at);
    case CONFIG_STRINGS:
        return strings_to_json(at);
    default:
        check_failed("a type of key that models have", __FILE__, __LINE__);
    }
}

void model_describe(const Joint *joint, const Tokenizer *tokenizer, Buffer *out) {
    json_t *config = json_object(), *object = json_object();
    for (int i = 0; i < joint_schema.count; i++)
        json_object_set_new(config, joint_schema.keys[i].name,
                            value_to_json(&joint_schema.keys[i], joint_config(joint)));
    json_object_set_new(object, "format", json_integer(FORMAT));
    json_object_set_new(object, "version", json_string(BIFOCAL_VERSION));
    if (tokenizer) {
        char hash[17];
        snprintf(hash, sizeof hash, "%016" PRIx64, tokenizer_hash(tokenizer));
        json_object_set_new(object, "tokenizer", json_string(hash));
    }
    json_object_set_new(object, "config", config);
    check(json_text(object, out));
    json_decref(object);
}

bool model_save_description(const char *folder, const Buffer *description, const Tokenizer *tokenizer, Error *error) {
    char config[PATH_MOST], words[PATH_MOST];
    size_t size;
    if (!join_path(config, folder, MODEL_DESCRIPTION, error) || !join_path(words, folder, "tokenizer.model", error) ||
        !file_write(config, description->data, description->size, error))
        return false;
    if (!tokenizer) return true;
    const void *bytes = tokenizer_bytes(tokenizer, &size);
    return file_write(words, bytes, size, error);
}

bool model_save(const char *folder, const Joint *joint, const Tokenizer *tokenizer, Error *error) {
    char weights[PATH_MOST], hash[SAFETENSORS_HASH];
    SafeTensor *tensors;
    if (!join_path(weights, folder, "model.safetensors", error)) return false;
    Buffer description = {0};
    Arena *memory = arena_new(1 << 20);
    model_describe(joint, tokenizer, &description);
    safetensors_hash_text(description.data, description.size, hash);
    int count = parameters_export(joint_parameters(joint), memory, &tensors);
    bool ok = model_save_description(folder, &description, tokenizer, error) &&
              safetensors_write(weights, tensors, count, (const char *const[]){MODEL_DESCRIPTION, hash}, 1, error);
    arena_free(memory);
    buffer_free(&description);
    return ok;
}

// ---- finding ----

static bool is_model(const char *folder) {
    char path[PATH_MOST];
    Error ignored = {0};
    return join_path(path, folder, MODEL_DESCRIPTION, &ignored) && file_exists(path) &&
           safetensors_set_exists(folder, "model");
}

bool model_find_checkpoint(const char *run, char *out, Log *log, Error *error) {
    char folder[PATH_MOST], candidate[PATH_MOST];
    char **names = NULL;
    int count = 0;
    bool found = false;
    if (!join_path(folder, run, "checkpoints", error)) return false;
    if (!folder_exists(folder))
        return error_set(error, ERROR_FAILED, "%s: neither a model (model.json) nor a run (checkpoints/)", run);
    if (!folder_list(folder, &names, &count, error)) return false;
    for (int i = count - 1; i >= 0 && !found; i--) { // sorted, and steps have leading zeros: the newest is last
        bool aside = !strncmp(names[i], ASIDE_PREFIX, strlen(ASIDE_PREFIX));
        if (!aside && strncmp(names[i], STEP_PREFIX, strlen(STEP_PREFIX))) continue;
        if (!join_path(candidate, folder, names[i], error)) break;
        found = !aside && is_model(candidate);
        if (!found) log_warning(log, "%s is not a complete checkpoint: ignored", candidate);
    }
    names_free(names, count);
    if (!found)
        return error_set(error, ERROR_FAILED, "%s: no complete checkpoint yet; train until one is written", folder);
    memcpy(out, candidate, sizeof candidate);
    return true;
}

// Step of ".../step-00001000", or 0.
static int64_t step_of(const char *path) {
    const char *name = path_base(path);
    return strncmp(name, STEP_PREFIX, strlen(STEP_PREFIX)) ? 0 : strtoll(name + strlen(STEP_PREFIX), NULL, 10);
}

// ---- reading ----

// "key=value" as the config's table reads it, or NULL where no key has such a value.
static const char *override_of(const char *key, const json_t *value, Arena *memory) {
    if (json_is_boolean(value)) return arena_printf(memory, "%s=%s", key, json_is_true(value) ? "true" : "false");
    if (json_is_integer(value)) return arena_printf(memory, "%s=%" JSON_INTEGER_FORMAT, key, json_integer_value(value));
    if (json_is_real(value)) return arena_printf(memory, "%s=%.17g", key, json_real_value(value));
    if (json_is_string(value)) return arena_printf(memory, "%s=%s", key, json_string_value(value));
    if (!json_is_array(value)) return NULL;
    const char *text = arena_printf(memory, "%s=", key);
    for (size_t i = 0; i < json_array_size(value); i++) {
        const char *item = json_string_value(json_array_get(value, i));
        if (!item) return NULL;
        text = arena_printf(memory, "%s%s%s", text, i ? "," : "", item);
    }
    return text;
}

static bool read_config(const char *path, const json_t *object, JointConfig *config, Arena *memory, Error *error) {
    json_t *keys = json_object_get(object, "config"), *value;
    const char *key;
    int count = 0;
    if (!json_is_object(keys) || json_get_int(object, "format", 0) != FORMAT)
        return error_set(error, ERROR_FAILED, "%s: not a model of format %d; it was written by another version", path,
                         FORMAT);
    const char **overrides = arena_array(memory, const char *, json_object_size(keys) + 1);
    json_object_foreach(keys, key, value) {
        overrides[count] = override_of(key, value, memory);
        if (!overrides[count++])
            return error_set(error, ERROR_FAILED, "%s: %s has a value that is no number, word or list of words", path,
                             key);
    }
    if (config_read(&joint_schema, NULL, overrides, count, config, memory, error)) return true;
    error->kind = ERROR_FAILED; // a damaged file, not the user's configuration
    return error_prefix(error, "%s", path);
}

// name: of the tokenizer, for messages.
static bool same_tokenizer(const Tokenizer *tokenizer, const char *name, const json_t *object, Error *error) {
    char hash[17];
    const char *expected = json_get_string(object, "tokenizer", NULL);
    snprintf(hash, sizeof hash, "%016" PRIx64, tokenizer_hash(tokenizer));
    if (!expected || !strcmp(hash, expected)) return true;
    return error_set(error, ERROR_FAILED, "%s: not the tokenizer the model was trained with (%s, not %s)", name, hash,
                     expected);
}

static bool read_tokenizer(LoadedModel *m, const json_t *object, Error *error) {
    char path[PATH_MOST];
    if (!json_get_string(object, "tokenizer", NULL)) return true; // a model without words
    return join_path(path, m->path, "tokenizer.model", error) && (m->tokenizer = tokenizer_load(path, error)) &&
           same_tokenizer(m->tokenizer, path, object, error);
}

bool model_check_tokenizer(const char *folder, const Tokenizer *tokenizer, const char *name, Error *error) {
    char path[PATH_MOST];
    json_t *object = NULL;
    bool ok = join_path(path, folder, MODEL_DESCRIPTION, error) && (object = json_read_file(path, error)) &&
              same_tokenizer(tokenizer, name, object, error);
    json_decref(object);
    return ok;
}

// Before anything is allocated for a model, the files must be able to hold it: a weight is two bytes at the least.
static bool check_size(const LoadedModel *m, const SafeTensorsSet *files, Error *error) {
    double least = 2 * joint_weights(&m->config), bytes = 0;
    for (int i = 0; i < files->count; i++) bytes += (double)files->files[i].file.size;
    if (least <= bytes) return true;
    return error_set(error, ERROR_FAILED,
                     "%s: has %.0f bytes, but the model beside it (model.json) needs %.0f at the least",
                     safetensors_set_path(files), bytes, least);
}

static bool read_weights(LoadedModel *m, Backend *backend, Dtype compute, Error *error) {
    char config[PATH_MOST];
    SafeTensorsSet files = {0};
    bool ok = join_path(config, m->path, MODEL_DESCRIPTION, error) &&
              safetensors_set_open(&files, m->path, "model", error) && safetensors_set_verify(&files, 0, 1, error) &&
              check_size(m, &files, error) && (m->joint = joint_new(backend, &m->config, NULL, compute, 0, error)) &&
              parameters_import(joint_parameters(m->joint), &files.all, safetensors_set_path(&files), error) &&
              safetensors_set_check_file(&files, config, error);
    safetensors_set_close(&files);
    return ok;
}

bool model_load(LoadedModel *m, Backend *backend, const char *path, Dtype compute, Log *log, Error *error) {
    char config[PATH_MOST];
    *m = (LoadedModel){.memory = arena_new(64 << 10)};
    json_t *object = NULL;
    bool ok = is_model(path) ? snprintf(m->path, sizeof m->path, "%s", path) < (int)sizeof m->path
                             : model_find_checkpoint(path, m->path, log, error);
    if (!ok || !(ok = join_path(config, m->path, MODEL_DESCRIPTION, error))) goto done;
    ok = (object = json_read_file(config, error)) && read_config(config, object, &m->config, m->memory, error) &&
         read_tokenizer(m, object, error) && read_weights(m, backend, compute, error);
    m->step = step_of(m->path);
done:
    json_decref(object);
    if (!ok) model_unload(m);
    return ok;
}

void model_unload(LoadedModel *m) {
    joint_free(m->joint);
    tokenizer_free(m->tokenizer);
    arena_free(m->memory);
    *m = (LoadedModel){0};
}
