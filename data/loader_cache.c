/* See loader_cache.h. Samples are found by number in an array of atomic pointers, pictures by key in a hash table. */
#include "data/loader_cache.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

typedef struct Entry {
    uint64_t key;
    Picture *picture; // NULL: free
} Entry;

struct Cache {
    pthread_mutex_t mutex;
    int64_t samples, left;         // bytes that may still be kept
    _Atomic(Prepared *) *prepared; // (samples)
    Entry *table;                  // (capacity), a power of two; linear probing
    size_t capacity, used;
};

Cache *cache_new(int64_t samples, int64_t most_bytes) {
    Cache *c = calloc(1, sizeof *c);
    check(c && !pthread_mutex_init(&c->mutex, NULL));
    c->samples = samples;
    c->left = most_bytes;
    c->capacity = 64;
    c->prepared = calloc((size_t)samples + 1, sizeof *c->prepared);
    c->table = calloc(c->capacity, sizeof *c->table);
    check(c->prepared && c->table);
    return c;
}

void cache_free(Cache *c) {
    if (!c) return;
    for (int64_t i = 0; i < c->samples; i++) free(atomic_load_explicit(&c->prepared[i], memory_order_relaxed));
    for (size_t i = 0; i < c->capacity; i++) free(c->table[i].picture);
    free(c->prepared);
    free(c->table);
    pthread_mutex_destroy(&c->mutex);
    free(c);
}

const Prepared *cache_find(Cache *c, uint64_t sample) {
    return atomic_load_explicit(&c->prepared[sample], memory_order_acquire);
}

static bool take_bytes(Cache *c, size_t bytes) {
    pthread_mutex_lock(&c->mutex);
    bool room = (int64_t)bytes <= c->left;
    if (room) c->left -= (int64_t)bytes;
    pthread_mutex_unlock(&c->mutex);
    return room;
}

static Text copy_text(Text text, char **at) {
    if (!text.text) return text;
    Text copy = {*at, text.size};
    memcpy(*at, text.text, text.size);
    (*at)[text.size] = 0;
    *at += text.size + 1;
    return copy;
}

bool cache_keep(Cache *c, uint64_t sample, const Prepared *p) {
    size_t bytes = sizeof *p + p->key.size + 1 + (p->json.text ? p->json.size + 1 : 0);
    for (int i = 0; i < p->texts; i++) bytes += p->text[i].size + 1;
    if (!take_bytes(c, bytes)) return false;
    Prepared *kept = malloc(bytes), *none = NULL;
    check(kept);
    *kept = *p;
    char *at = (char *)(kept + 1);
    for (int i = 0; i < p->texts; i++) kept->text[i] = copy_text(p->text[i], &at);
    kept->json = copy_text(p->json, &at);
    kept->key = copy_text(p->key, &at);
    if (!atomic_compare_exchange_strong(&c->prepared[sample], &none, kept)) free(kept); // another worker was first
    return true;
}

// The entry of the key, or the free one where it would go.
static Entry *find_entry(Cache *c, uint64_t key) {
    size_t at = (size_t)key & (c->capacity - 1);
    while (c->table[at].picture && c->table[at].key != key) at = (at + 1) & (c->capacity - 1);
    return &c->table[at];
}

static void grow_table(Cache *c) {
    Entry *old = c->table;
    size_t capacity = c->capacity;
    c->capacity *= 2;
    c->table = calloc(c->capacity, sizeof *c->table);
    check(c->table);
    for (size_t i = 0; i < capacity; i++)
        if (old[i].picture) *find_entry(c, old[i].key) = old[i];
    free(old);
}

const Picture *cache_find_picture(Cache *c, uint64_t key) {
    pthread_mutex_lock(&c->mutex);
    const Picture *picture = find_entry(c, key)->picture;
    pthread_mutex_unlock(&c->mutex);
    return picture;
}

const Picture *cache_keep_picture(Cache *c, uint64_t key, Picture *picture) {
    int64_t bytes = (int64_t)sizeof *picture + (int64_t)picture->width * picture->height * 3;
    const Picture *kept = NULL;
    pthread_mutex_lock(&c->mutex);
    Entry *entry = find_entry(c, key);
    if (entry->picture) { // another worker was first
        free(picture);
        kept = entry->picture;
    } else if (bytes <= c->left) {
        c->left -= bytes;
        *entry = (Entry){key, picture};
        kept = picture;
        if (++c->used * 2 > c->capacity) grow_table(c);
    }
    pthread_mutex_unlock(&c->mutex);
    return kept;
}
