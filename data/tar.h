/* Tar archives: POSIX ustar as the shards use it, and a strict reader that says what is wrong with others. Silent ends
 * are what other readers get wrong: here one flipped bit in a header, a cut at a member's boundary or a zeroed block is
 * an error with its offset. */
#pragma once
#include "base/buffer.h"
#include "base/error.h"
#include <stddef.h>
#include <stdint.h>

enum { TAR_BLOCK = 512, TAR_NAME_MOST = 1024 };

// What stands in front of a member's data: one block, or three where ustar cannot say the name or the size (a PAX
// header first). mode 0644, mtime, uid and gid 0: a pure function of name and size. Appends to `out`.
void tar_append_header(Buffer *out, const char *name, int64_t size);
static inline int64_t tar_padding(int64_t size) { return (TAR_BLOCK - size % TAR_BLOCK) % TAR_BLOCK; }

typedef struct TarSource {                                                         // where the reader's bytes come from
    bool (*read)(void *context, int64_t offset, void *out, size_t count, Error *); // exactly `count`
    void *context;
    int64_t size;     // bytes
    const char *name; // for messages
} TarSource;

typedef struct TarEntry {
    char name[TAR_NAME_MOST + 1];
    int64_t header_offset, data_offset, size; // bytes
    char type;                                // '0' for a regular file
    const char *refused; // NULL, or why a careful reader leaves this entry out: a link, an absolute path, no bytes, ...
} TarEntry;

typedef struct TarReader {
    TarSource source;
    int64_t at; // the next header
} TarReader;

TarReader tar_reader(TarSource);
// The next entry; *end is true (and the entry empty) behind the last. Folders are passed over. Errors are fatal for the
// archive: what follows cannot be trusted.
bool tar_next(TarReader *, TarEntry *, bool *end, Error *);
TarSource tar_source_memory(const Buffer *bytes, const char *name); // borrowed
TarSource tar_source_file(const int *descriptor, int64_t size, const char *name);
