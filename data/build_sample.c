/* From a row, a picture or a document to a sample of the dataset, or to a line of the ledger. See importer.h. */
#include "base/files.h"
#include "base/philox.h"
#include "data/image.h"
#include "data/importer.h"
#include <stdio.h>
#include <string.h>

enum { NAMED_A_CAUSE = 5 };                    // rows of each cause that are named in the log
static const int64_t picture_most = 256 << 20; // bytes of a file

bool rules_given(const RowRules *r) {
    return r->image_count || r->text_count || r->question_field || r->image_template;
}

// Names the fields of the first row, so that the user can choose.
bool rules_missing(const char *path, const json_t *row, Error *error) {
    Buffer names = {0};
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)row, name, value) buffer_printf(&names, "%s%s", names.size ? ", " : "", name);
    error_set(error, ERROR_USAGE,
              "%s: which fields? Give --image-field, --text-field, --question-field with --answer-field, or "
              "--image-template; there are: %s",
              path, names.size ? names.data : "(none in the first row)");
    buffer_free(&names);
    return false;
}

void source_folder(const char *path, Buffer *out) {
    size_t n = (size_t)(path_base(path) - path);
    if (n)
        buffer_append(out, path, n > 1 ? n - 1 : 1);
    else
        buffer_text(out, ".");
}

void source_name(const char *path, Buffer *out) {
    size_t end = strlen(path);
    while (end > 1 && path[end - 1] == '/') end--;
    size_t start = end;
    while (start && path[start - 1] != '/') start--;
    buffer_append(out, path + start, end - start);
}

bool builder_full(const Builder *b) {
    int64_t written = dataset_written(b->train) + (b->validation ? dataset_written(b->validation) : 0);
    return b->options->limit && written >= b->options->limit;
}

void builder_place(Builder *b, const char *source, int64_t line) {
    buffer_clear(&b->place);
    buffer_printf(&b->place, "%s:%lld", path_base(source), (long long)line);
}

void builder_drop(Builder *b, const char *cause, const char *detail) {
    const char *place = b->place.data ? b->place.data : "";
    int64_t n = dataset_drop(b->train, cause, place, detail);
    b->rows++;
    if (n <= NAMED_A_CAUSE) log_warning(b->log, "%s: left out: %s%s%s", place, cause, *detail ? ": " : "", detail);
    if (n == NAMED_A_CAUSE) log_warning(b->log, "further rows of this cause (%s) are only counted", cause);
}

bool builder_held_out(const Builder *b, const void *bytes, size_t size) {
    if (!b->validation) return false;
    Rng rng = rng_for(b->options->seed, PURPOSE_SPLIT, hash_u64(bytes, size));
    return rng_uniform(&rng) < b->options->validation_fraction;
}

static bool add(Builder *b, const NewSample *sample, bool held_out, Error *error) {
    char detail[96];
    if (!dataset_add(held_out ? b->validation : b->train, sample, error)) return false;
    b->rows++;
    if (b->rows % 64 == 0 && b->progress) {
        snprintf(detail, sizeof detail, "%lld samples", (long long)dataset_written(b->train));
        progress_update(b->progress, b->rows, detail);
    }
    return true;
}

// Reads a picture's bytes and looks at its header. NULL, or the cause why it cannot be used.
static const char *load_picture(const char *path, Buffer *bytes, ImageInfo *info, Buffer *detail) {
    Error error = {0};
    const char *cause = NULL;
    if (!file_exists(path)) {
        cause = "image_missing";
        error_set(&error, ERROR_FAILED, "%s", path);
    } else if (!file_is_regular(path)) {
        cause = "image_unreadable";
        error_set(&error, ERROR_FAILED, "%s: is not a regular file", path);
    } else if (!file_read_limited(path, picture_most, bytes, &error)) {
        cause = "image_unreadable";
    } else if (!bytes->size) {
        cause = "image_empty";
        error_set(&error, ERROR_FAILED, "%s", path);
    } else if (!image_probe(bytes->data, bytes->size, info, &error)) {
        cause = "image_not_decodable";
        error_prefix(&error, "%s", path);
    }
    if (cause) {
        buffer_clear(detail);
        buffer_text(detail, error.message);
    }
    return cause;
}

static const char *image_extension(const ImageInfo *info) { return strcmp(info->format, "jpeg") == 0 ? "jpg" : "png"; }

// "jpg", and "1.jpg", "2.jpg" for the further ones.
static void number_extension(char out[16], int index, const char *extension) {
    if (index)
        snprintf(out, 16, "%d.%s", index, extension);
    else
        snprintf(out, 16, "%s", extension);
}

static void add_member(NewSample *s, MemberKind kind, const char *extension, const void *bytes, size_t size) {
    s->members[s->member_count++] = (NewMember){kind, extension, bytes, size};
}

// What a sample is keyed by in the split: rows about one picture stay on one side, as do equal texts. A picture of a
// folder goes by its name in it, wherever the folder is.
static bool row_held_out(const Builder *b, const char *folder, const char *json, size_t size) {
    const Row *row = &b->row;
    if (!folder) return builder_held_out(b, b->place.data, b->place.size);
    if (row->image_count) return builder_held_out(b, row->images[0], strlen(row->images[0]));
    if (row->text_count) return builder_held_out(b, row->texts[0].data, row->texts[0].size);
    return builder_held_out(b, json, size);
}

bool builder_row(Builder *b, const char *why, const char *folder, const char *json, size_t size, Error *error) {
    Row *row = &b->row;
    NewSample s = {0};
    char extensions[2 * ROW_FIELDS][16];
    for (int i = 0; i < row->image_count && !why; i++) {
        ImageInfo info = {0};
        buffer_clear(&b->path);
        if (folder && row->images[i][0] != '/') buffer_printf(&b->path, "%s/", folder);
        buffer_text(&b->path, row->images[i]);
        why = load_picture(b->path.data, &b->images[i], &info, &row->detail);
        if (why) break;
        if (i == 0) s.width = info.width, s.height = info.height;
        number_extension(extensions[i], i, image_extension(&info));
        add_member(&s, MEMBER_IMAGE, extensions[i], b->images[i].data, b->images[i].size);
    }
    if (why) {
        builder_drop(b, why, row->detail.data ? row->detail.data : "");
        return true;
    }
    for (int i = 0; i < row->text_count; i++) {
        number_extension(extensions[ROW_FIELDS + i], i, "txt");
        add_member(&s, MEMBER_TEXT, extensions[ROW_FIELDS + i], row->texts[i].data, row->texts[i].size);
    }
    if (size) add_member(&s, MEMBER_JSON, "json", json, size);
    return add(b, &s, row_held_out(b, folder, json, size), error);
}

bool builder_picture(Builder *b, const char *path, Error *error) {
    b->row.images[0] = path;
    b->row.image_count = b->row.text_count = 1;
    return builder_row(b, NULL, NULL, NULL, 0, error);
}

bool builder_document(Builder *b, const Buffer *text, bool held_out, Error *error) {
    NewSample s = {0};
    add_member(&s, MEMBER_TEXT, "txt", text->data, text->size);
    return add(b, &s, held_out, error);
}
