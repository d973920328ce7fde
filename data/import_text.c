/* Plain text. "whole": a file is one document, cut at line ends into pieces of at most 64 KiB whose concatenation is
 * the file byte for byte; its tail can be held out, counted in characters as nanoGPT does. "lines": a line a sample.
 * "blank": blank lines part the samples. */
#include "base/files.h"
#include "data/importer.h"
#include "data/lines.h"
#include "data/utf8.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { PIECE = 64 << 10 };

static bool takes(const char *path, const BuildOptions *o) {
    const char *extension = path_extension(path);
    if (!file_exists(path)) return false;
    if (strcmp(extension, "txt") == 0 || strcmp(extension, "text") == 0 || strcmp(extension, "md") == 0) return true;
    return o->documents != DOCUMENTS_NONE && strcmp(extension, "jsonl") != 0 && strcmp(extension, "json") != 0;
}

static bool count(const Builder *b, const char *path, int64_t *rows, Error *error) {
    if (b->options->documents == DOCUMENTS_LINES || b->options->documents == DOCUMENTS_BLANK)
        return lines_count(path, rows, error);
    int64_t size = file_size(path);
    *rows = (size + PIECE - 1) / PIECE;
    return size >= 0 || error_set(error, ERROR_FAILED, "%s: cannot read", path);
}

// Bytes of the first `wanted` characters in text (n bytes), which begins in front of character 0. *seen: characters.
static size_t skip_characters(const char *text, size_t n, int64_t wanted, int64_t *seen) {
    size_t i = 0;
    for (; i < n; i++) {
        bool begins = ((uint8_t)text[i] & 0xC0) != 0x80;
        if (begins && *seen == wanted) break;
        *seen += begins;
    }
    return i;
}

// Bytes in front of character `wanted` (from 0), or of the end; *characters: how many these are.
static bool locate(const char *path, int64_t wanted, int64_t *offset, int64_t *characters, Error *error) {
    FILE *file = fopen(path, "re");
    char *text = malloc(PIECE);
    size_t n, taken;
    check(text);
    *offset = *characters = 0;
    if (!file) {
        free(text);
        return error_set_errno(error, ERROR_FAILED, "%s: cannot open", path);
    }
    do {
        n = fread(text, 1, PIECE, file);
        taken = skip_characters(text, n, wanted, characters);
        *offset += (int64_t)taken;
    } while (n && taken == n);
    bool ok = !ferror(file) || error_set_errno(error, ERROR_FAILED, "%s: cannot read", path);
    fclose(file);
    free(text);
    return ok;
}

// Where the held-out tail begins: character int(n * (1 - fraction)) of n.
static bool tail_offset(const Builder *b, const char *path, int64_t *offset, Error *error) {
    int64_t total;
    if (!locate(path, INT64_MAX, offset, &total, error)) return false;
    if (!b->validation) return true;
    int64_t wanted = (int64_t)((double)total * (1.0 - b->options->validation_fraction));
    return locate(path, wanted, offset, &total, error);
}

// How many of the first `n` bytes make a piece: up to the last line end, else up to a character's end.
static size_t cut(const char *text, size_t n) {
    const char *end = memrchr(text, '\n', n);
    if (end) return (size_t)(end - text) + 1;
    size_t back = n;
    while (back > n - 3 && ((uint8_t)text[back] & 0xC0) == 0x80) back--;
    return ((uint8_t)text[back] & 0xC0) == 0x80 ? n : back;
}

static bool add_piece(Builder *b, const char *path, int64_t offset, const char *text, size_t size, bool held_out,
                      Error *error) {
    Buffer piece = {.data = (char *)text, .size = size};
    if (utf8_valid(text, size)) return builder_document(b, &piece, held_out, error);
    buffer_clear(&b->place);
    buffer_printf(&b->place, "%s: byte %lld", path_base(path), (long long)offset);
    builder_drop(b, "text_not_utf8", "a piece of a text file");
    return true;
}

// Pieces of [begin, end) of the file.
static bool add_range(Builder *b, FILE *file, const char *path, int64_t begin, int64_t end, bool held_out,
                      Error *error) {
    char *text = malloc(PIECE + 1);
    size_t held = 0;
    bool ok = true;
    check(text);
    for (int64_t at = begin; ok && !builder_full(b);) { // text[0, held) are the bytes at `at`
        int64_t left = end - at - (int64_t)held, room = PIECE + 1 - (int64_t)held;
        held += fread(text + held, 1, (size_t)(left < room ? left : room), file);
        if (ferror(file)) ok = error_set_errno(error, ERROR_FAILED, "%s: cannot read", path);
        if (!ok || !held) break;
        bool last = at + (int64_t)held >= end && held <= PIECE;
        size_t n = last || held <= PIECE ? held : cut(text, PIECE);
        ok = add_piece(b, path, at, text, n, held_out, error);
        memmove(text, text + n, held - n);
        held -= n;
        at += (int64_t)n;
    }
    free(text);
    return ok;
}

static bool run_whole(Builder *b, const char *path, Error *error) {
    int64_t tail, size = file_size(path);
    if (!tail_offset(b, path, &tail, error)) return false;
    FILE *file = fopen(path, "re");
    if (!file) return error_set_errno(error, ERROR_FAILED, "%s: cannot open", path);
    bool ok = add_range(b, file, path, 0, tail, false, error) &&
              (tail >= size || add_range(b, file, path, tail, size, true, error));
    fclose(file);
    return ok;
}

static bool end_document(Builder *b, const char *path, int64_t line, Buffer *text, bool too_long, Error *error) {
    builder_place(b, path, line);
    const char *why = too_long ? "caption_too_long" : text_judge(text, &b->row.detail);
    bool ok = true;
    if (!why)
        ok = builder_document(b, text, builder_held_out(b, text->data, text->size), error);
    else if (strcmp(why, "caption_blank") != 0)
        builder_drop(b, why, too_long ? "over 1 MiB" : b->row.detail.data);
    buffer_clear(text); // blank lines between documents are no rows
    return ok;
}

static bool run_lines(Builder *b, const char *path, Error *error) {
    bool by_line = b->options->documents == DOCUMENTS_LINES, found = true, long_line, too_long = false, ok = true;
    Buffer line = {0}, text = {0};
    Lines *lines = lines_open(path, CAPTION_MOST + 2, error);
    if (!lines) return false;
    int64_t first = 1; // line of the document at hand
    while (ok && found && !builder_full(b)) {
        ok = lines_next(lines, &line, &found, &long_line, error);
        if (!ok) break;
        const char *bytes = line.data ? line.data : "";
        bool blank = !long_line && utf8_valid(bytes, line.size) && utf8_blank(bytes, line.size);
        if (text.size == 0) first = lines_number(lines);
        too_long |= long_line || text.size > CAPTION_MOST;
        if (found && (by_line || !blank) && !too_long) buffer_append(&text, bytes, line.size);
        if (by_line || blank || !found) {
            ok = end_document(b, path, first, &text, too_long, error);
            too_long = false;
        }
    }
    buffer_free(&line);
    buffer_free(&text);
    lines_close(lines);
    return ok;
}

static bool run(Builder *b, const char *path, Error *error) {
    bool whole = b->options->documents == DOCUMENTS_NONE || b->options->documents == DOCUMENTS_WHOLE;
    return whole ? run_whole(b, path, error) : run_lines(b, path, error);
}

const Importer import_text = {"text", takes, count, run};
