/* Fuzzes the configuration: the first line is an override, the rest the file. What is read is written and must read
 * back to the same text. */
#include "base/config.h"
#include "tests/fuzz/memory_file.h"
#include <stddef.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
const char *__lsan_default_suppressions(void);

// libfyaml 0.7 loses a buffer on some syntax errors; a leak of ours is still found.
const char *__lsan_default_suppressions(void) { return "leak:libfyaml\n"; }

typedef struct Source {
    const char *path;
    double weight;
    unsigned objectives;
} Source;

typedef struct Settings {
    int64_t steps;
    double rate;
    bool save;
    const char *name;
    int style;
    StringList prompts;
    ConfigList data;
} Settings;

static const ConfigKey source_keys[] = {
    {"path", CONFIG_STRING, offsetof(Source, path), NULL, 0, 0, NULL, NULL, "", ""},
    {"weight", CONFIG_FLOAT, offsetof(Source, weight), "1", 0, 10, NULL, NULL, "", ""},
    {"objectives", CONFIG_CHOICES, offsetof(Source, objectives), "lm", 0, 0, "lm|caption|mae", NULL, "", ""},
};
static const ConfigSchema source_schema = {source_keys, 3, sizeof(Source)};
static const ConfigKey keys[] = {
    {"train.steps", CONFIG_INT, offsetof(Settings, steps), "100", 1, 1000000, NULL, NULL, "", ""},
    {"train.rate", CONFIG_FLOAT, offsetof(Settings, rate), "1e-3", 0, 0, NULL, NULL, "", ""},
    {"train.save", CONFIG_BOOL, offsetof(Settings, save), "true", 0, 0, NULL, NULL, "", ""},
    {"name", CONFIG_STRING, offsetof(Settings, name), "x", 0, 0, NULL, NULL, "", ""},
    {"style", CONFIG_CHOICE, offsetof(Settings, style), "gpt2", 0, 0, "gpt2|llama", NULL, "", ""},
    {"prompts", CONFIG_STRINGS, offsetof(Settings, prompts), "", 0, 0, NULL, NULL, "", ""},
    {"data", CONFIG_LIST, offsetof(Settings, data), "", 0, 0, NULL, &source_schema, "", ""},
};
static const ConfigSchema schema = {keys, sizeof keys / sizeof *keys, sizeof(Settings)};

static bool read_bytes(const uint8_t *data, size_t size, const char *override, Settings *out, Arena *arena,
                       Error *error) {
    char path[32];
    int descriptor = memory_file(data, size, path);
    bool ok = config_read(&schema, path, &override, override != NULL, out, arena, error);
    close(descriptor);
    return ok;
}

static void reads_back(const Settings *settings, Arena *arena) {
    Error error = {0};
    Settings again;
    Buffer first = {0}, second = {0};
    config_write(&schema, settings, &first);
    check(read_bytes((const uint8_t *)first.data, first.size, NULL, &again, arena, &error));
    config_write(&schema, &again, &second);
    check(first.size == second.size && !memcmp(first.data, second.data, first.size));
    buffer_free(&first);
    buffer_free(&second);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char override[256] = {0};
    Error error = {0};
    Settings settings;
    Arena *arena = arena_new(0);
    const uint8_t *end = size ? memchr(data, '\n', size) : NULL;
    size_t first = end ? (size_t)(end - data) : 0;
    if (first < sizeof override) memcpy(override, data, first);
    if (end) data += first + 1, size -= first + 1;
    if (read_bytes(data, size, *override ? override : NULL, &settings, arena, &error))
        reads_back(&settings, arena);
    else
        check(error.kind == ERROR_USAGE && error.message[0]);
    arena_free(arena);
    return 0;
}
