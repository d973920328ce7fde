/* See command_list.h. */
#include "kernels/cuda/host/command_list.h"
#include "base/error.h"
#include <stdlib.h>
#include <string.h>

enum { UNIT = 16, FIRST_SIZE = 64 << 10 }; // bytes

static size_t rounded(size_t bytes) { return (bytes + UNIT - 1) / UNIT * UNIT; }

static void make_room(CommandList *l, size_t more) {
    if (more <= l->size - l->used) return;
    while (more > l->size - l->used) l->size = l->size ? 2 * l->size : FIRST_SIZE;
    l->bytes = realloc(l->bytes, l->size);
    check(l->bytes);
}

void command_list_add(CommandList *l, Command c, const void *arguments) {
    size_t room = rounded(c.bytes);
    make_room(l, sizeof c + room);
    memcpy(l->bytes + l->used, &c, sizeof c);
    char *to = l->bytes + l->used + sizeof c;
    if (c.bytes) memcpy(to, arguments, c.bytes);
    memset(to + c.bytes, 0, room - c.bytes);
    l->used += sizeof c + room;
    l->count++;
}

const Command *command_list_next(const CommandList *l, size_t *at) {
    if (*at >= l->used) return NULL;
    const Command *c = (const Command *)(const void *)(l->bytes + *at);
    *at += sizeof *c + rounded(c->bytes);
    return c;
}

const void *command_arguments(const Command *c) { return c + 1; }

void command_list_clear(CommandList *l) { l->used = 0, l->count = 0; }

void command_list_free(CommandList *l) {
    free(l->bytes);
    *l = (CommandList){0};
}

// ---- those that came before ----

struct KnownLists {
    KnownList *items; // (most)
    int count, most;
    uint64_t clock; // counts uses
    void (*drop)(void *graph);
};

KnownLists *known_lists_new(int most, void (*drop)(void *graph)) {
    KnownLists *k = calloc(1, sizeof *k);
    check(k && most > 0);
    *k = (KnownLists){.items = calloc((size_t)most, sizeof *k->items), .most = most, .drop = drop};
    check(k->items);
    return k;
}

static void drop_graph(const KnownLists *k, KnownList *item) {
    if (item->graph) k->drop(item->graph);
    item->graph = NULL;
}

void known_lists_drop_graphs(KnownLists *k) {
    for (int i = 0; i < k->count; i++) drop_graph(k, &k->items[i]);
}

void known_lists_free(KnownLists *k) {
    if (!k) return;
    known_lists_drop_graphs(k);
    for (int i = 0; i < k->count; i++) command_list_free(&k->items[i].list);
    free(k->items);
    free(k);
}

// Lengths differ far more often than bytes: comparing them first takes the place of a hash.
static bool same(const CommandList *a, const CommandList *b) {
    return a->used == b->used && a->count == b->count && !memcmp(a->bytes, b->bytes, a->used);
}

static KnownList *place_for_new(KnownLists *k) {
    if (k->count < k->most) return &k->items[k->count++];
    KnownList *oldest = &k->items[0];
    for (int i = 1; i < k->count; i++)
        if (k->items[i].last_use < oldest->last_use) oldest = &k->items[i];
    drop_graph(k, oldest);
    command_list_free(&oldest->list);
    return oldest;
}

KnownList *known_lists_find(KnownLists *k, const CommandList *list, bool *found) {
    KnownList *item = NULL;
    for (int i = 0; i < k->count && !item; i++)
        if (same(&k->items[i].list, list)) item = &k->items[i];
    *found = item != NULL;
    if (!item) {
        char *bytes = malloc(list->used ? list->used : 1);
        check(bytes);
        if (list->used) memcpy(bytes, list->bytes, list->used);
        item = place_for_new(k);
        *item = (KnownList){.list = {bytes, list->used, list->used, list->count}};
    }
    item->last_use = ++k->clock;
    return item;
}

int known_lists_count(const KnownLists *k) { return k->count; }
