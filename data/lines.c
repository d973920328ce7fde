/* See lines.h. */
#include "data/lines.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PIECE = 1 << 16 };

struct Lines {
    int descriptor;
    char *path;
    size_t most, at, filled; // of `piece`
    int64_t number;
    char piece[PIECE];
};

Lines *lines_open(const char *path, size_t most, Error *error) {
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) {
        error_set_errno(error, ERROR_FAILED, "%s: cannot open", path);
        return NULL;
    }
    Lines *l = calloc(1, sizeof *l);
    check(l);
    l->descriptor = descriptor;
    l->path = strdup(path);
    check(l->path);
    l->most = most;
    return l;
}

void lines_close(Lines *l) {
    if (!l) return;
    close(l->descriptor);
    free(l->path);
    free(l);
}

int64_t lines_number(const Lines *l) { return l->number; }

static bool fill(Lines *l, Error *error) {
    ssize_t n;
    do n = read(l->descriptor, l->piece, PIECE);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return error_set_errno(error, ERROR_FAILED, "%s: cannot read behind line %lld", l->path, (long long)l->number);
    l->at = 0;
    l->filled = (size_t)n;
    return true;
}

bool lines_next(Lines *l, Buffer *line, bool *found, bool *too_long, Error *error) {
    buffer_clear(line);
    *found = *too_long = false;
    for (bool ended = false; !ended;) {
        if (l->at == l->filled) {
            if (!fill(l, error)) return false;
            if (!l->filled) break;
        }
        const char *start = l->piece + l->at, *end = memchr(start, '\n', l->filled - l->at);
        size_t n = end ? (size_t)(end - start) + 1 : l->filled - l->at, room = l->most - line->size;
        buffer_append(line, start, n < room ? n : room);
        *too_long |= n > room;
        l->at += n;
        ended = end != NULL;
        *found = true;
    }
    l->number += *found;
    return true;
}

bool lines_count(const char *path, int64_t *count, Error *error) {
    Lines *l = lines_open(path, 0, error);
    if (!l) return false;
    Buffer none = {0};
    bool found = true, too_long, ok = true;
    *count = 0;
    while (ok && found) {
        ok = lines_next(l, &none, &found, &too_long, error);
        *count += found;
    }
    buffer_free(&none);
    lines_close(l);
    return ok;
}
