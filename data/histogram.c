/* See histogram.h. */
#include "data/histogram.h"
#include "base/error.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void histogram_add(Histogram *h, int64_t value) {
    check(value >= 0);
    int bucket = value ? 64 - __builtin_clzll((unsigned long long)value) : 0;
    if (!h->count || value < h->least) h->least = value;
    if (!h->count || value > h->most) h->most = value;
    h->count++;
    h->sum += value;
    h->buckets[bucket]++;
}

json_t *histogram_json(const Histogram *h) {
    json_t *buckets = json_array();
    for (int i = 0; i < HISTOGRAM_BUCKETS; i++) {
        if (!h->buckets[i]) continue;
        json_int_t first = i ? INT64_C(1) << (i - 1) : 0, last = i ? (INT64_C(1) << (i - 1)) * 2 - 1 : 0;
        json_array_append_new(buckets, json_pack("[I,I,I]", first, last, (json_int_t)h->buckets[i]));
    }
    double mean = h->count ? (double)h->sum / (double)h->count : 0;
    return json_pack("{s:I,s:I,s:I,s:f,s:o}", "count", (json_int_t)h->count, "least", (json_int_t)h->least, "most",
                     (json_int_t)h->most, "mean", mean, "buckets", buckets);
}

int64_t counts_add(Counts *c, const char *name) {
    int i = 0;
    while (i < c->used && strcmp(c->items[i].name, name) != 0) i++;
    if (i == c->used) {
        check(c->used < COUNTS_MOST && strlen(name) < COUNTS_NAME);
        memcpy(c->items[c->used++].name, name, strlen(name) + 1);
    }
    return ++c->items[i].count;
}

int64_t counts_total(const Counts *c) {
    int64_t total = 0;
    for (int i = 0; i < c->used; i++) total += c->items[i].count;
    return total;
}

json_t *counts_json(const Counts *c) {
    json_t *object = json_object();
    for (const char *last = "";;) { // by name, so that the order of arrival does not show
        int next = -1;
        for (int i = 0; i < c->used; i++)
            if (strcmp(c->items[i].name, last) > 0 && (next < 0 || strcmp(c->items[i].name, c->items[next].name) < 0))
                next = i;
        if (next < 0) return object;
        last = c->items[next].name;
        json_object_set_new(object, last, json_integer(c->items[next].count));
    }
}
