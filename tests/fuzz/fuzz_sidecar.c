/* Fuzzes the reader of sidecars. The checksums would stop nearly every mutation at the door, so they are made good
 * first: what is behind them is to be tested. */
#include "base/error.h"
#include "data/dataset.h"
#include "data/sidecar.h"
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

// Offsets of docs/formats.md: the section table at 48, 24 bytes each, the header's checksum at 124.
static void mend(Buffer *bytes) {
    if (bytes->size < 128) return;
    for (int i = 0; i < 3; i++) {
        uint64_t place[2];
        char *section = bytes->data + 48 + 24 * i;
        memcpy(place, section, sizeof place);
        if (place[0] > bytes->size || place[1] > bytes->size - place[0]) continue;
        uint32_t crc = crc32c(0, bytes->data + place[0], place[1]);
        memcpy(section + 16, &crc, 4);
    }
    uint32_t crc = crc32c(0, bytes->data, 124);
    memcpy(bytes->data + 124, &crc, 4);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Buffer bytes = {0};
    Sidecar s;
    Error error = {0};
    buffer_append(&bytes, data, size);
    mend(&bytes);
    if (!sidecar_decode(&s, &bytes, "fuzz", &error)) {
        check(error.message[0]);
        return 0;
    }
    for (uint32_t i = 0; i < s.member_count; i++) {
        check(s.members[i].offset + s.members[i].length <= s.tar_size && s.members[i].sample < s.sample_count);
        check(strlen(sidecar_name(&s, i)) > 0);
    }
    sidecar_free(&s);
    return 0;
}
