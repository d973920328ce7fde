/* See backend.h. */
#include "kernels/backend.h"
#include "base/error.h"
#include <stdlib.h>
#include <string.h>

void backend_free(Backend *b) {
    if (b) b->destroy(b);
}

void backend_range_push(Backend *b, const char *name) {
    if (b->range_push) b->range_push(b, name);
}

void backend_range_pop(Backend *b) {
    if (b->range_pop) b->range_pop(b);
}

void *backend_allocate_host(Backend *b, size_t bytes) {
    if (b->allocate_host) return b->allocate_host(b, bytes);
    void *memory = b->allocate(b, bytes);
    if (memory) b->zero(b, memory, bytes);
    return memory;
}

void backend_release_host(Backend *b, void *memory, size_t bytes) {
    if (b->allocate_host)
        b->release_host(b, memory, bytes);
    else
        b->release(b, memory, bytes);
}

void backend_sequence_begin(Backend *b, const char *name) {
    if (b->sequence_begin) b->sequence_begin(b, name);
}

void backend_sequence_end(Backend *b) {
    if (b->sequence_end) b->sequence_end(b);
}

void backend_lanes_meet(Backend *b) {
    if (b->lanes_meet) b->lanes_meet(b);
}

// ---- reads of a backend that computes at once ----

struct BackendRead {
    size_t bytes;
    char data[];
};

BackendRead *backend_read_start(Backend *b, const void *device, size_t bytes) {
    if (b->read_start) return b->read_start(b, device, bytes);
    BackendRead *read = malloc(sizeof *read + bytes);
    check(read);
    read->bytes = bytes;
    b->download(b, read->data, device, bytes);
    return read;
}

void backend_read_finish(Backend *b, BackendRead *read, void *host) {
    if (b->read_finish) {
        b->read_finish(b, read, host);
        return;
    }
    if (read && host) memcpy(host, read->data, read->bytes);
    free(read);
}
