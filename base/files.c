/* See files.h: whole reads, folders, names and maps. Writing aside is in atomic_file.c. */
#include "base/files.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { READ_PIECE = 1 << 16, OPEN_FOLDERS = 16 };

// Reads to the end, whatever the size was said to be: pipes and growing files too.
static bool read_all(int descriptor, const char *path, int64_t most, Buffer *out, Error *error) {
    for (;;) {
        if (out->size == out->capacity) buffer_reserve(out, out->size + READ_PIECE);
        ssize_t n = read(descriptor, out->data + out->size, out->capacity - out->size);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return error_set_errno(error, ERROR_FAILED, "%s: cannot read at byte %zu", path, out->size);
        out->size += (size_t)n;
        out->data[out->size] = 0;
        if (n == 0) return true;
        if ((int64_t)out->size > most)
            return error_set(error, ERROR_FAILED, "%s: longer than the %lld bytes allowed here", path, (long long)most);
    }
}

bool file_read_limited(const char *path, int64_t most, Buffer *out, Error *error) {
    struct stat status;
    bool ok = false;
    buffer_clear(out);
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0 || fstat(descriptor, &status) != 0) {
        error_set_errno(error, ERROR_FAILED, "%s: cannot open", path);
        goto done;
    }
    if (S_ISDIR(status.st_mode)) {
        error_set(error, ERROR_FAILED, "%s: is a folder, a file was expected", path);
        goto done;
    }
    if (status.st_size > most) {
        error_set(error, ERROR_FAILED, "%s: has %lld bytes, at most %lld are allowed here", path,
                  (long long)status.st_size, (long long)most);
        goto done;
    }
    buffer_reserve(out, (size_t)status.st_size + 1); // one more, so that the end is seen without growing
    ok = read_all(descriptor, path, most, out, error);
done:
    if (descriptor >= 0) close(descriptor);
    return ok;
}

bool file_read(const char *path, Buffer *out, Error *error) {
    return file_read_limited(path, INT64_MAX / 4, out, error);
}

static mode_t path_mode(const char *path) { // 0 where there is nothing
    struct stat status;
    return stat(path, &status) == 0 ? status.st_mode : 0;
}

bool file_exists(const char *path) { return path_mode(path) && !S_ISDIR(path_mode(path)); }
bool file_is_regular(const char *path) { return S_ISREG(path_mode(path)); }
bool folder_exists(const char *path) { return S_ISDIR(path_mode(path)); }

int64_t file_size(const char *path) {
    struct stat status;
    return stat(path, &status) == 0 && !S_ISDIR(status.st_mode) ? (int64_t)status.st_size : -1;
}

bool folder_create(const char *path, Error *error) {
    char *part = strdup(path);
    check(part);
    for (char *at = part + 1; *part && at[-1]; at++) { // each prefix that ends before a slash, then the whole
        if (*at && *at != '/') continue;
        char end = *at;
        *at = 0;
        bool ok = mkdir(part, 0777) == 0 || folder_exists(part);
        if (!ok) error_set_errno(error, ERROR_FAILED, "%s: cannot create the folder", part);
        *at = end;
        if (!ok) {
            free(part);
            return false;
        }
        if (!end) break;
    }
    free(part);
    return true;
}

static int remove_entry(const char *path, const struct stat *status, int kind, struct FTW *place) {
    (void)status;
    (void)kind;
    (void)place;
    return remove(path) == 0 || errno == ENOENT ? 0 : -1; // another process may be removing the same folder
}

bool folder_remove(const char *path, Error *error) {
    if (nftw(path, remove_entry, OPEN_FOLDERS, FTW_DEPTH | FTW_PHYS) == 0 || errno == ENOENT) return true;
    return error_set_errno(error, ERROR_FAILED, "%s: cannot remove the folder", path);
}

bool folder_sync(const char *path, Error *error) {
    int descriptor = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0) return error_set_errno(error, ERROR_FAILED, "%s: cannot open the folder", path);
    bool ok = fsync(descriptor) == 0 || errno == EINVAL; // EINVAL: a file system that has no such thing
    if (!ok) error_set_errno(error, ERROR_FAILED, "%s: cannot sync the folder", path);
    close(descriptor);
    return ok;
}

bool path_rename(const char *from, const char *to, Error *error) {
    if (rename(from, to) != 0) return error_set_errno(error, ERROR_FAILED, "%s: cannot rename to %s", from, to);
    size_t length = (size_t)(path_base(to) - to);
    char *folder = length ? strndup(to, length) : strdup(".");
    check(folder);
    bool ok = folder_sync(folder, error);
    free(folder);
    return ok;
}

static int compare_names(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

bool folder_list(const char *path, char ***names, int *count, Error *error) {
    *names = NULL;
    *count = 0;
    DIR *folder = opendir(path);
    if (!folder) return error_set_errno(error, ERROR_FAILED, "%s: cannot list the folder", path);
    Buffer list = {0};
    struct dirent *entry;
    while (errno = 0, (entry = readdir(folder))) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        char *name = strdup(entry->d_name);
        check(name && *count < INT32_MAX);
        buffer_append(&list, &name, sizeof name);
        ++*count;
    }
    bool ok = errno == 0;
    if (!ok) error_set_errno(error, ERROR_FAILED, "%s: cannot list the folder", path);
    closedir(folder);
    *names = (char **)(void *)list.data;
    if (*count) qsort(*names, (size_t)*count, sizeof **names, compare_names);
    if (!ok) {
        names_free(*names, *count);
        *names = NULL;
        *count = 0;
    }
    return ok;
}

void names_free(char **names, int count) {
    for (int i = 0; i < count; i++) free(names[i]);
    free(names);
}

const char *path_base(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

const char *path_extension(const char *path) {
    const char *base = path_base(path), *dot = strrchr(base, '.');
    return dot && dot != base ? dot + 1 : "";
}

bool mapped_open(MappedFile *file, const char *path, Error *error) {
    struct stat status;
    *file = (MappedFile){.descriptor = -1};
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); // a named pipe is refused, not waited for
    if (descriptor < 0) return error_set_errno(error, ERROR_FAILED, "%s: cannot open", path);
    if (fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode)) {
        close(descriptor);
        return error_set(error, ERROR_FAILED, "%s: is not a regular file", path);
    }
    if (status.st_size > 0) {
        void *data = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_SHARED, descriptor, 0);
        if (data == MAP_FAILED) {
            error_set_errno(error, ERROR_FAILED, "%s: cannot map %lld bytes", path, (long long)status.st_size);
            close(descriptor);
            return false;
        }
        file->data = data;
    }
    file->size = status.st_size;
    file->descriptor = descriptor;
    return true;
}

bool mapped_check(const MappedFile *file, const char *path, Error *error) {
    struct stat status;
    if (fstat(file->descriptor, &status) != 0) return error_set_errno(error, ERROR_FAILED, "%s: cannot look at", path);
    if (status.st_size >= file->size) return true;
    return error_set(error, ERROR_FAILED, "%s: shrank from %lld to %lld bytes while in use; restore it and start again",
                     path, (long long)file->size, (long long)status.st_size);
}

void mapped_close(MappedFile *file) {
    if (file->data) munmap((void *)file->data, (size_t)file->size);
    if (file->data || file->descriptor > 0) close(file->descriptor);
    *file = (MappedFile){.descriptor = -1};
}
