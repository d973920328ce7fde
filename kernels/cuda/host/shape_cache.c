/* See shape_cache.h. */
#include "kernels/cuda/host/shape_cache.h"
#include "base/error.h"
#include <stdlib.h>
#include <string.h>

enum { FIRST_SLOTS = 64 }; // a power of two

struct ShapeCache {
    size_t key_bytes, value_bytes, slots;
    int64_t count;
    unsigned char *used, *keys, *values; // (slots), (slots, key_bytes), (slots, value_bytes)
};

static void take_slots(ShapeCache *c, size_t slots) {
    c->slots = slots;
    c->used = calloc(slots, 1);
    c->keys = calloc(slots, c->key_bytes);
    c->values = calloc(slots, c->value_bytes);
    check(c->used && c->keys && c->values);
}

ShapeCache *shape_cache_new(size_t key_bytes, size_t value_bytes) {
    ShapeCache *c = calloc(1, sizeof *c);
    check(c && key_bytes && value_bytes);
    c->key_bytes = key_bytes;
    c->value_bytes = value_bytes;
    take_slots(c, FIRST_SLOTS);
    return c;
}

static void free_slots(ShapeCache *c) {
    free(c->used);
    free(c->keys);
    free(c->values);
}

void shape_cache_free(ShapeCache *c, void (*drop)(void *value)) {
    if (!c) return;
    for (size_t i = 0; drop && i < c->slots; i++)
        if (c->used[i]) drop(c->values + i * c->value_bytes);
    free_slots(c);
    free(c);
}

static uint64_t hash(const unsigned char *key, size_t bytes) { // FNV-1a
    uint64_t h = 14695981039346656037u;
    for (size_t i = 0; i < bytes; i++) h = (h ^ key[i]) * 1099511628211u;
    return h ^ h >> 32;
}

// The slot that holds the key, or the free one where it belongs.
static size_t slot_of(const ShapeCache *c, const void *key) {
    size_t at = (size_t)hash(key, c->key_bytes) & (c->slots - 1);
    while (c->used[at] && memcmp(c->keys + at * c->key_bytes, key, c->key_bytes) != 0) at = (at + 1) & (c->slots - 1);
    return at;
}

static void grow(ShapeCache *c) {
    ShapeCache old = *c;
    take_slots(c, 2 * old.slots);
    for (size_t i = 0; i < old.slots; i++) {
        if (!old.used[i]) continue;
        size_t at = slot_of(c, old.keys + i * c->key_bytes);
        c->used[at] = 1;
        memcpy(c->keys + at * c->key_bytes, old.keys + i * c->key_bytes, c->key_bytes);
        memcpy(c->values + at * c->value_bytes, old.values + i * c->value_bytes, c->value_bytes);
    }
    free_slots(&old);
}

void *shape_cache_get(ShapeCache *c, const void *key, bool *found) {
    size_t at = slot_of(c, key);
    *found = c->used[at];
    if (!*found) {
        if (2 * (size_t)(c->count + 1) > c->slots) {
            grow(c);
            at = slot_of(c, key);
        }
        c->used[at] = 1;
        memcpy(c->keys + at * c->key_bytes, key, c->key_bytes);
        c->count++;
    }
    return c->values + at * c->value_bytes;
}

int64_t shape_cache_count(const ShapeCache *c) { return c->count; }
