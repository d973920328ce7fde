/* A .jsonl file, one object a line, with its pictures beside it: paths are relative to the file's folder. */
#include "base/files.h"
#include "data/importer.h"
#include "data/lines.h"
#include <string.h>

static bool takes(const char *path, const BuildOptions *o) {
    (void)o;
    const char *extension = path_extension(path);
    return file_exists(path) && (strcmp(extension, "jsonl") == 0 || strcmp(extension, "ndjson") == 0);
}

static bool count(const Builder *b, const char *path, int64_t *rows, Error *error) {
    (void)b;
    return lines_count(path, rows, error);
}

// A byte order mark in front of the first line, and white space around any.
static void trim(Buffer *line, bool first, const char **text, size_t *size) {
    const char *p = line->data ? line->data : "";
    size_t n = line->size;
    if (first && n >= 3 && memcmp(p, "\xEF\xBB\xBF", 3) == 0) p += 3, n -= 3;
    while (n && strchr(" \t\r\n", p[n - 1]) && p[n - 1]) n--;
    while (n && (*p == ' ' || *p == '\t')) p++, n--;
    *text = p;
    *size = n;
}

static bool run(Builder *b, const char *path, Error *error) {
    Lines *lines = lines_open(path, ROW_MOST, error);
    if (!lines) return false;
    Buffer folder = {0}, line = {0};
    bool found = true, too_long, ok = true;
    source_folder(path, &folder);
    while (ok && !builder_full(b)) {
        const char *text;
        size_t size;
        ok = lines_next(lines, &line, &found, &too_long, error);
        if (!ok || !found) break;
        trim(&line, lines_number(lines) == 1, &text, &size);
        if (!size) continue; // an empty line is no row
        builder_place(b, path, lines_number(lines));
        if (too_long) {
            builder_drop(b, "row_too_long", "over 16 MiB");
            continue;
        }
        const char *why = row_parse(&b->rules, text, size, &b->row);
        if (!rules_given(&b->rules))
            ok = rules_missing(path, b->row.json, error);
        else
            ok = builder_row(b, why, folder.data, text, size, error);
    }
    buffer_free(&folder);
    buffer_free(&line);
    lines_close(lines);
    return ok;
}

const Importer import_jsonl = {"jsonl", takes, count, run};
