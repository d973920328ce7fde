/* A folder of pictures, each with its caption in a .txt of the same stem; sub-folders too. Names are taken in order of
 * their bytes. */
#include "base/files.h"
#include "data/importer.h"
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { DEEPEST = 16 };

static bool takes(const char *path, const BuildOptions *o) {
    (void)o;
    return folder_exists(path);
}

static bool is_picture(const char *name) {
    const char *extension = path_extension(name);
    return strcasecmp(extension, "jpg") == 0 || strcasecmp(extension, "jpeg") == 0 || strcasecmp(extension, "png") == 0;
}

// Paths of all pictures below `path`, zero-terminated, one behind the other.
static bool collect(const char *path, int depth, Buffer *out, Error *error) {
    char **names = NULL;
    int n = 0;
    bool ok = true;
    if (depth > DEEPEST) return error_set(error, ERROR_FAILED, "%s: more than %d folders deep", path, DEEPEST);
    if (!folder_list(path, &names, &n, error)) return false;
    for (int i = 0; ok && i < n; i++) {
        Buffer below = {0};
        buffer_printf(&below, "%s/%s", path, names[i]);
        if (folder_exists(below.data))
            ok = collect(below.data, depth + 1, out, error);
        else if (is_picture(names[i]))
            buffer_append(out, below.data, below.size + 1);
        buffer_free(&below);
    }
    names_free(names, n);
    return ok;
}

static bool count(const Builder *b, const char *path, int64_t *rows, Error *error) {
    (void)b;
    Buffer all = {0};
    bool ok = collect(path, 0, &all, error);
    *rows = 0;
    for (size_t at = 0; at < all.size; at += strlen(all.data + at) + 1) ++*rows;
    buffer_free(&all);
    return ok;
}

// The caption of picture `path`, judged, into builder->row.texts[0]. NULL or the cause.
static const char *read_caption(Builder *b, const char *path) {
    Row *row = &b->row;
    Error error = {0};
    Buffer text = {0};
    size_t stem = strlen(path) - strlen(path_extension(path));
    const char *why = NULL;
    buffer_clear(&row->detail);
    buffer_printf(&text, "%.*stxt", (int)stem, path);
    if (!file_is_regular(text.data)) {
        why = "caption_missing";
        buffer_printf(&row->detail, "no %s", path_base(text.data));
    } else if (file_size(text.data) > CAPTION_MOST) {
        why = "caption_too_long";
        buffer_printf(&row->detail, "%lld bytes, at most %d", (long long)file_size(text.data), CAPTION_MOST);
    } else if (!file_read_limited(text.data, CAPTION_MOST, &row->texts[0], &error)) {
        why = "caption_unreadable";
        buffer_text(&row->detail, error.message);
    } else {
        why = text_judge(&row->texts[0], &row->detail);
    }
    buffer_free(&text);
    return why;
}

// The record of a folder: the hash over the pictures' names, below the folder, and sizes.
static void note_source(Builder *b, const char *path, const Buffer *all) {
    Digest *digest = digest_new();
    uint8_t hash[SHA256_SIZE];
    int64_t bytes = 0;
    Buffer line = {0};
    for (size_t at = 0; at < all->size; at += strlen(all->data + at) + 1) {
        int64_t size = file_size(all->data + at);
        buffer_clear(&line);
        buffer_printf(&line, "%s %lld\n", all->data + at + strlen(path) + 1, (long long)size);
        digest_update(digest, line.data, line.size);
        bytes += size;
    }
    digest_sha256(digest, hash);
    buffer_clear(&line);
    source_name(path, &line);
    dataset_add_source(b->train, line.data, bytes, hash);
    if (b->validation) dataset_add_source(b->validation, line.data, bytes, hash);
    buffer_free(&line);
    digest_free(digest);
}

static bool run(Builder *b, const char *path, Error *error) {
    Buffer all = {0};
    bool ok = collect(path, 0, &all, error);
    for (size_t at = 0; ok && at < all.size && !builder_full(b); at += strlen(all.data + at) + 1) {
        const char *picture = all.data + at, *why;
        buffer_clear(&b->place);
        buffer_text(&b->place, picture + strlen(path) + 1);
        if ((why = read_caption(b, picture)))
            builder_drop(b, why, b->row.detail.data ? b->row.detail.data : "");
        else
            ok = builder_picture(b, picture, error);
    }
    if (ok) note_source(b, path, &all);
    buffer_free(&all);
    return ok;
}

const Importer import_folder = {"folder", takes, count, run};
