/* Fuzzes JSON, as one text and as lines. */
#include "base/json.h"
#include "tests/fuzz/memory_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_lines(const uint8_t *data, size_t size) {
    char path[32];
    Error error = {0};
    int descriptor = memory_file(data, size, path);
    JsonLines *lines = json_lines_open(path, &error);
    check(lines);
    for (;;) {
        json_t *value = NULL;
        bool ok = json_lines_next(lines, &value, &error);
        if (ok && !value) break;
        check(ok == (value != NULL));
        json_get_string(value, "image", "");
        json_decref(value);
    }
    json_lines_close(lines);
    close(descriptor);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Error error = {0};
    json_t *value = json_parse((const char *)data, size, "fuzz", &error);
    check(value || error.message[0]);
    json_decref(value);
    read_lines(data, size);
    return 0;
}
