/* Fuzzes the reader of tar archives: whatever the bytes, it ends, and every member it names lies inside them. */
#include "data/tar.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Buffer bytes = {.data = (char *)data, .size = size};
    TarReader reader = tar_reader(tar_source_memory(&bytes, "fuzz"));
    TarEntry entry;
    Error error = {0};
    bool end = false;
    int64_t before = 0;
    while (tar_next(&reader, &entry, &end, &error) && !end) {
        check(entry.data_offset > before && entry.size >= 0 && entry.data_offset + entry.size <= (int64_t)size);
        before = entry.data_offset;
    }
    check(end || error.message[0]);
    return 0;
}
