/* A file in memory with a path, for parsers that take paths. */
#pragma once
#include "base/error.h"
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

// Returns a descriptor to close; `path` names the file until then.
static inline int memory_file(const uint8_t *data, size_t size, char path[32]) {
    int descriptor = memfd_create("fuzz", MFD_CLOEXEC);
    check(descriptor >= 0 && write(descriptor, data, size) == (ssize_t)size);
    snprintf(path, 32, "/proc/self/fd/%d", descriptor);
    return descriptor;
}
