/* See buffers.h. */
#include "kernels/nn/buffers.h"
#include "base/error.h"
#include <stdlib.h>

typedef struct Item {
    void *data;
    size_t bytes;
    bool out, adopted;
} Item;

struct Buffers {
    Backend *backend;
    Item *items;
    int count, capacity;
    size_t bytes;
};

Buffers *buffers_new(Backend *backend) {
    Buffers *b = calloc(1, sizeof *b);
    check(b);
    b->backend = backend;
    return b;
}

void buffers_free(Buffers *b) {
    if (!b) return;
    for (int i = 0; i < b->count; i++) {
        const Item *item = &b->items[i];
        if (!item->adopted) b->backend->release(b->backend, item->data, item->bytes);
    }
    free(b->items);
    free(b);
}

static void add(Buffers *b, Item item) {
    if (b->count == b->capacity) {
        b->capacity = b->capacity ? 2 * b->capacity : 16;
        b->items = realloc(b->items, (size_t)b->capacity * sizeof *b->items);
        check(b->items);
    }
    b->items[b->count++] = item;
}

// The smallest that fits and is not much larger, so that a large one stays free for what needs it.
void *buffers_take(Buffers *b, size_t bytes) {
    Item *best = NULL;
    if (!bytes) return NULL;
    for (int i = 0; i < b->count; i++) {
        Item *item = &b->items[i];
        if (item->out || item->bytes < bytes || item->bytes / 2 > bytes) continue;
        if (!best || item->bytes < best->bytes) best = item;
    }
    if (!best) {
        void *data = b->backend->allocate(b->backend, bytes);
        check(data && "memory for a bucket");
        add(b, (Item){.data = data, .bytes = bytes});
        b->bytes += bytes;
        best = &b->items[b->count - 1];
    }
    best->out = true;
    return best->data;
}

void buffers_give(Buffers *b, void *data) {
    if (!data) return;
    for (int i = 0; i < b->count; i++) {
        if (b->items[i].data != data) continue;
        check(b->items[i].out);
        b->items[i].out = false;
        return;
    }
    check_failed("a buffer of this pool", __FILE__, __LINE__);
}

void buffers_adopt(Buffers *b, void *data, size_t bytes) {
    if (bytes) add(b, (Item){.data = data, .bytes = bytes, .out = true, .adopted = true});
}

size_t buffers_bytes(const Buffers *b) { return b->bytes; }
