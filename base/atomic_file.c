/* See files.h: files written aside as NAME.tmp, synced, renamed over NAME, and their folder synced. A process that dies
 * at any moment leaves the old file or the new one under NAME, whole.
 *
 * A large file goes to the disk in blocks from memory of our own (O_DIRECT), where the file system can do that: the
 * system then copies nothing and its cache keeps what it held, so that those who compute beside it are not held up. */
#include "base/files.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BLOCK = 4 << 20, PAGE = 4096 }; // bytes; what direct writes are aligned to

struct AtomicFile {
    char *path, *aside;
    int descriptor;
    int64_t position; // bytes written one behind the other
    bool direct;      // the descriptor writes past the system's cache: whole pages alone
    char *block;      // of a large file: (BLOCK) bytes that are not written yet, `filled` of them; else NULL
    size_t filled;
};

static void end_direct(AtomicFile *file) {
    int flags = fcntl(file->descriptor, F_GETFL);
    if (file->direct && flags >= 0) fcntl(file->descriptor, F_SETFL, flags & ~O_DIRECT);
    file->direct = false;
}

static bool write_failed(const AtomicFile *file, int64_t offset, Error *error) {
    bool full = errno == ENOSPC || errno == EDQUOT || errno == EFBIG;
    error_set_errno(error, ERROR_FAILED, "%s: cannot write at byte %lld", file->aside, (long long)offset);
    if (!full) return false;
    Error cause = *error;
    return error_set(error, ERROR_FAILED, "%s; free some space or write elsewhere", cause.message);
}

AtomicFile *atomic_open(const char *path, Error *error) {
    AtomicFile *file = calloc(1, sizeof *file);
    check(file);
    file->path = strdup(path);
    check(file->path && asprintf(&file->aside, "%s.tmp", path) > 0);
    file->descriptor = open(file->aside, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (file->descriptor >= 0) return file;
    error_set_errno(error, ERROR_FAILED, "%s: cannot create", file->aside);
    free(file->path);
    free(file->aside);
    free(file);
    return NULL;
}

AtomicFile *atomic_open_large(const char *path, Error *error) {
    AtomicFile *file = atomic_open(path, error);
    if (!file) return NULL;
    file->block = aligned_alloc(PAGE, BLOCK);
    check(file->block);
    int flags = fcntl(file->descriptor, F_GETFL);
    file->direct = flags >= 0 && fcntl(file->descriptor, F_SETFL, flags | O_DIRECT) == 0;
    return file;
}

static bool write_at(AtomicFile *file, int64_t offset, const char *at, size_t count, Error *error) {
    while (count > 0) {
        ssize_t n = pwrite(file->descriptor, at, count, offset);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EINVAL && file->direct) { // the file system cannot, or not from here on
            end_direct(file);
            continue;
        }
        if (n == 0) errno = ENOSPC; // a short write with no reason given
        if (n <= 0) return write_failed(file, offset, error);
        at += n;
        offset += n;
        count -= (size_t)n;
    }
    return true;
}

bool atomic_write_at(AtomicFile *file, int64_t offset, const void *bytes, size_t count, Error *error) {
    check(!file->block);
    return write_at(file, offset, bytes, count, error);
}

static bool flush(AtomicFile *file, Error *error) {
    if (file->filled % PAGE) end_direct(file); // the end of the file
    if (!write_at(file, file->position, file->block, file->filled, error)) return false;
    file->position += (int64_t)file->filled;
    file->filled = 0;
    return true;
}

bool atomic_write(AtomicFile *file, const void *bytes, size_t count, Error *error) {
    if (!file->block) {
        if (!write_at(file, file->position, bytes, count, error)) return false;
        file->position += (int64_t)count;
        return true;
    }
    for (const char *from = bytes; count > 0;) {
        size_t n = BLOCK - file->filled < count ? BLOCK - file->filled : count;
        memcpy(file->block + file->filled, from, n);
        file->filled += n;
        from += n;
        count -= n;
        if (file->filled == BLOCK && !flush(file, error)) return false;
    }
    return true;
}

// Closes and frees. The aside file is removed unless it was renamed.
static void discard(AtomicFile *file, bool renamed) {
    if (file->descriptor >= 0) close(file->descriptor);
    if (!renamed) unlink(file->aside);
    free(file->block);
    free(file->path);
    free(file->aside);
    free(file);
}

bool atomic_commit(AtomicFile *file, Error *error) {
    bool renamed = false, ok = false;
    if (file->filled && !flush(file, error)) goto done;
    if (fsync(file->descriptor) != 0) {
        error_set_errno(error, ERROR_FAILED, "%s: cannot sync (the disk may be failing: write elsewhere)", file->aside);
        goto done;
    }
    int closed = close(file->descriptor);
    file->descriptor = -1;
    if (closed != 0) {
        error_set_errno(error, ERROR_FAILED, "%s: cannot close", file->aside);
        goto done;
    }
    ok = path_rename(file->aside, file->path, error);
    renamed = ok || access(file->aside, F_OK) != 0;
done:
    discard(file, renamed);
    return ok;
}

void atomic_abandon(AtomicFile *file) {
    if (file) discard(file, false);
}

bool file_write(const char *path, const void *bytes, size_t count, Error *error) {
    AtomicFile *file = atomic_open(path, error);
    if (!file) return false;
    if (atomic_write(file, bytes, count, error)) return atomic_commit(file, error);
    atomic_abandon(file);
    return false;
}
