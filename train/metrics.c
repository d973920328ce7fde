/* See metrics.h. */
#include "train/metrics.h"
#include "base/files.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct Metrics {
    FILE *file;
    char path[4096];
};

// The records up to last_step. A last line without a newline was being written when the run died: it goes.
static bool keep_until(const char *path, int64_t last_step, Error *error) {
    Buffer text = {0}, kept = {0};
    bool ok = file_read(path, &text, error);
    for (char *line = text.data, *end; ok && line && (end = strchr(line, '\n')); line = end + 1) {
        json_t *record = json_parse(line, (size_t)(end - line), path, error);
        if (record && json_get_int(record, "step", INT64_MAX) <= last_step)
            buffer_append(&kept, line, (size_t)(end + 1 - line));
        json_decref(record);
    }
    ok = ok && file_write(path, kept.data ? kept.data : "", kept.size, error);
    buffer_free(&text);
    buffer_free(&kept);
    return ok;
}

Metrics *metrics_open(const char *run, int64_t last_step, Error *error) {
    Metrics *m = calloc(1, sizeof *m);
    check(m);
    snprintf(m->path, sizeof m->path, "%s/metrics.jsonl", run);
    if (file_exists(m->path) && !keep_until(m->path, last_step, error)) goto failed;
    m->file = fopen(m->path, "ae");
    if (m->file) return m;
    error_set_errno(error, ERROR_FAILED, "%s", m->path);
failed:
    free(m);
    return NULL;
}

bool metrics_write(Metrics *m, json_t *record, Error *error) {
    char *line = json_dumps(record, JSON_COMPACT | JSON_REAL_PRECISION(9));
    json_decref(record);
    check(line);
    bool ok = fprintf(m->file, "%s\n", line) > 0 && fflush(m->file) == 0;
    free(line);
    return ok || error_set_errno(error, ERROR_FAILED, "%s", m->path);
}

void metrics_close(Metrics *m) {
    if (!m) return;
    if (m->file) fclose(m->file);
    free(m);
}
