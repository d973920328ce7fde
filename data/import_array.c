/* A .json file that is one array of rows: objects, or arrays whose columns --columns names. */
#include "base/files.h"
#include "base/json.h"
#include "data/importer.h"
#include <stdlib.h>
#include <string.h>

enum { COLUMNS_MOST = 32 };
static const int64_t file_most = INT64_C(2) << 30;

static bool takes(const char *path, const BuildOptions *o) {
    (void)o;
    return file_exists(path) && strcmp(path_extension(path), "json") == 0;
}

static json_t *read_rows(const char *path, Error *error) {
    Buffer text = {0};
    json_t *rows = NULL;
    if (file_read_limited(path, file_most, &text, error)) rows = json_parse(text.data, text.size, path, error);
    buffer_free(&text);
    if (rows && !json_is_array(rows)) {
        error_set(error, ERROR_FAILED, "%s: not an array of rows; one object a line belongs in a .jsonl file", path);
        json_decref(rows);
        return NULL;
    }
    return rows;
}

static bool count(const Builder *b, const char *path, int64_t *rows, Error *error) {
    (void)b;
    json_t *array = read_rows(path, error);
    *rows = (int64_t)json_array_size(array);
    bool ok = array != NULL;
    json_decref(array);
    return ok;
}

// "question,answer,image" -> names in `out`, which point into `text`. -1 where there are too many or one is empty.
static int split_columns(char *text, const char *out[COLUMNS_MOST]) {
    int n = 0;
    for (char *p = text; p; n++) {
        char *comma = strchr(p, ',');
        if (comma) *comma = 0;
        if (n == COLUMNS_MOST || !*p) return -1;
        out[n] = p;
        p = comma ? comma + 1 : NULL;
    }
    return n;
}

// An object of a row that is an array; NULL where it does not have one value a column.
static json_t *name_columns(const json_t *row, const char *const *columns, int n) {
    if ((int)json_array_size(row) != n) return NULL;
    json_t *object = json_object();
    for (int i = 0; i < n; i++) json_object_set(object, columns[i], json_array_get(row, (size_t)i));
    return object;
}

static bool add_row(Builder *b, const char *path, const char *folder, const json_t *row, const char *const *columns,
                    int n, Error *error) {
    json_t *object = json_is_array(row) ? name_columns(row, columns, n) : json_incref((json_t *)row);
    if (!object) {
        builder_drop(b, "row_wrong_columns",
                     n ? "not one value a column" : "an array, and no --columns to name its values");
        return true;
    }
    const char *why = row_read(&b->rules, object, &b->row);
    char *text = json_dumps(object, JSON_COMPACT | JSON_ENCODE_ANY);
    check(text);
    bool ok = rules_given(&b->rules) ? builder_row(b, why, folder, text, strlen(text), error)
                                     : rules_missing(path, object, error);
    free(text);
    json_decref(object);
    return ok;
}

static bool run(Builder *b, const char *path, Error *error) {
    const char *columns[COLUMNS_MOST];
    Buffer names = {0}, folder = {0};
    bool ok = false;
    json_t *rows = NULL;
    buffer_text(&names, b->options->columns ? b->options->columns : "");
    int n = b->options->columns ? split_columns(names.data, columns) : 0;
    if (n < 0) {
        error_set(error, ERROR_USAGE, "--columns %s: at most %d names with commas between, none empty",
                  b->options->columns, COLUMNS_MOST);
        goto done;
    }
    rows = read_rows(path, error);
    if (!rows) goto done;
    source_folder(path, &folder);
    ok = true;
    for (size_t i = 0; ok && i < json_array_size(rows) && !builder_full(b); i++) {
        buffer_clear(&b->place);
        buffer_printf(&b->place, "%s: row %zu", path_base(path), i);
        ok = add_row(b, path, folder.data, json_array_get(rows, i), columns, n, error);
    }
done:
    buffer_free(&names);
    buffer_free(&folder);
    json_decref(rows);
    return ok;
}

const Importer import_array = {"array", takes, count, run};
