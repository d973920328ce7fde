/* Files: whole reads, and writes that are never half there (written aside as NAME.tmp, synced, renamed, folder
 * synced). Paths in messages are as given. */
#pragma once
#include "buffer.h"
#include "error.h"
#include <stdint.h>
#include <stdio.h>

bool file_read(const char *path, Buffer *out, Error *);               // the whole file; out is cleared first
bool file_read_limited(const char *path, int64_t most, Buffer *out, Error *); // refuses more than `most` bytes
bool file_write(const char *path, const void *bytes, size_t count, Error *);  // atomic
bool file_exists(const char *path);
bool file_is_regular(const char *path);                               // no folder, pipe or device: reading it ends
bool folder_exists(const char *path);
int64_t file_size(const char *path);                                  // bytes, or -1
bool folder_create(const char *path, Error *);                        // with parents; existing is fine
bool folder_remove(const char *path, Error *);                        // with all in it; absent is fine
bool folder_sync(const char *path, Error *);
bool path_rename(const char *from, const char *to, Error *);          // and syncs the folder of `to`
// Names in a folder (no . and ..), sorted by bytes. Free with names_free.
bool folder_list(const char *path, char ***names, int *count, Error *);
void names_free(char **names, int count);
const char *path_extension(const char *path);                         // behind the last dot of the last part, or ""
const char *path_base(const char *path);                              // the last part

// A file being written aside. Every write is checked; commit syncs and renames, abandon removes.
typedef struct AtomicFile AtomicFile;
AtomicFile *atomic_open(const char *path, Error *);
AtomicFile *atomic_open_large(const char *path, Error *); // for gigabytes: past the system's cache; no atomic_write_at
bool atomic_write(AtomicFile *, const void *bytes, size_t count, Error *);
bool atomic_write_at(AtomicFile *, int64_t offset, const void *bytes, size_t count, Error *);
bool atomic_commit(AtomicFile *, Error *); // frees it, also where it fails (then the aside file is gone)
void atomic_abandon(AtomicFile *);         // frees it; NULL is allowed

// A file mapped for reading. Reading past a file that shrank is the caller's to avoid: see mapped_check.
typedef struct MappedFile { const uint8_t *data; int64_t size; int descriptor; } MappedFile;
bool mapped_open(MappedFile *, const char *path, Error *);
bool mapped_check(const MappedFile *, const char *path, Error *); // false where the file is shorter than it was
void mapped_close(MappedFile *);                                  // zeroed structs are allowed
