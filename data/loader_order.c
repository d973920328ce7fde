/* See loader_order.h. */
#include "data/loader_order.h"
#include "base/json.h"
#include "base/philox.h"
#include <stdlib.h>
#include <string.h>

// What keys a permutation: an epoch, and a window or group of it (0: the order of the windows).
static uint64_t element_of(uint64_t epoch, uint64_t part) {
    const uint64_t words[2] = {epoch, part};
    return hash_u64(words, sizeof words);
}

// The windows are of one size but for a rest, which is put in at a drawn place, so that no table is needed.
uint64_t order_sample(const Order *order, uint64_t epoch, uint64_t index) {
    if (!order->mixed) return index;
    uint64_t full = order->count / ORDER_WINDOW, rest = order->count % ORDER_WINDOW;
    Rng rng = rng_for(order->seed, PURPOSE_ORDER, element_of(epoch, 0));
    uint64_t rest_at = rng_below(&rng, full + 1) * ORDER_WINDOW;
    uint64_t window = full, size = rest, within = index - rest_at; // as if in the rest
    if (index < rest_at || index >= rest_at + rest) {
        uint64_t packed = index < rest_at ? index : index - rest;
        window = permute_index(packed / ORDER_WINDOW, full, order->seed, PURPOSE_ORDER, element_of(epoch, 0));
        size = ORDER_WINDOW;
        within = packed % ORDER_WINDOW;
    }
    return window * ORDER_WINDOW +
           permute_index(within, size, order->seed, PURPOSE_ORDER, element_of(epoch, window + 1));
}

typedef struct Labelled {
    char *value;
    int64_t sample;
} Labelled;

static int compare_labelled(const void *a, const void *b) {
    const Labelled *x = a, *y = b;
    int order = strcmp(x->value, y->value);
    return order ? order : (x->sample > y->sample) - (x->sample < y->sample);
}

// The field as text; NULL where it is absent. The caller frees it.
static char *field_of(const Dataset *data, int64_t number, const char *field, Buffer *bytes) {
    Sample sample;
    Error error;
    const Member *member;
    char *value = NULL;
    if (!dataset_sample(data, number, &sample, bytes, &error)) return NULL;
    if (!(member = sample_member(&sample, MEMBER_JSON, 0))) return NULL;
    json_t *object = json_parse((const char *)member->bytes, (size_t)member->size, member->name, &error);
    json_t *found = json_object_get(object, field);
    if (found && !json_is_null(found)) value = json_dumps(found, JSON_ENCODE_ANY | JSON_SORT_KEYS);
    json_decref(object);
    return value;
}

static void groups_fill(Groups *groups, const Labelled *found, int64_t count) {
    groups->first = malloc(sizeof(int64_t) * (size_t)(count + 1));
    groups->member = malloc(sizeof(int64_t) * (size_t)(count ? count : 1));
    check(groups->first && groups->member);
    groups->count = 0;
    groups->first[0] = 0;
    for (int64_t i = 0; i < count; i++) {
        if (!i || strcmp(found[i].value, found[i - 1].value) != 0) groups->first[groups->count++] = i;
        groups->member[i] = found[i].sample;
    }
    groups->first[groups->count] = count;
    for (int g = 0; g < groups->count; g++) {
        int64_t members = groups->first[g + 1] - groups->first[g];
        if (members > groups->most) groups->most = members;
    }
}

bool groups_read(Groups *groups, const Dataset *data, const char *field, Error *error) {
    int64_t samples = dataset_samples(data), count = 0;
    Labelled *found = malloc(sizeof(Labelled) * (size_t)(samples ? samples : 1));
    Buffer bytes = {0};
    check(found);
    *groups = (Groups){0};
    for (int64_t i = 0; i < samples; i++) {
        char *value = field_of(data, i, field, &bytes);
        if (value) found[count++] = (Labelled){value, i};
    }
    qsort(found, (size_t)count, sizeof *found, compare_labelled);
    groups_fill(groups, found, count);
    for (int64_t i = 0; i < count; i++) free(found[i].value);
    free(found);
    buffer_free(&bytes);
    if (groups->count) return true;
    return error_set(error, ERROR_USAGE, "%s: no sample has the field \"%s\" (one_per)", dataset_path(data), field);
}

void groups_free(Groups *groups) {
    free(groups->first);
    free(groups->member);
    *groups = (Groups){0};
}

uint64_t groups_sample(const Groups *groups, int group, uint64_t step, uint64_t attempt, uint64_t seed,
                       uint64_t *epoch) {
    uint64_t members = (uint64_t)(groups->first[group + 1] - groups->first[group]);
    *epoch = step / members;
    uint64_t place = permute_index((step + attempt) % members, members, seed, PURPOSE_ORDER,
                                   element_of(*epoch, (uint64_t)group + 1));
    return (uint64_t)groups->member[groups->first[group] + (int64_t)place];
}
