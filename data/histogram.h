/* Counts for dataset.json: how a number is spread, in buckets of powers of two, and how often each word came. */
#pragma once
#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

enum { HISTOGRAM_BUCKETS = 64, COUNTS_MOST = 48, COUNTS_NAME = 40 };

typedef struct Histogram { // zero-initialise it
    int64_t count, sum, least, most;
    int64_t buckets[HISTOGRAM_BUCKETS]; // [0] the zeros, [i] values in [2^(i-1), 2^i)
} Histogram;

void histogram_add(Histogram *, int64_t value); // value >= 0
json_t *histogram_json(const Histogram *); // {"count", "least", "most", "mean", "buckets": [[first, last, count], ...]}

typedef struct Counts { // zero-initialise it
    struct {
        char name[COUNTS_NAME];
        int64_t count;
    } items[COUNTS_MOST]; // in order of first arrival
    int used;
} Counts;

int64_t counts_add(Counts *, const char *name); // returns how often it came, this time counted
int64_t counts_total(const Counts *);
json_t *counts_json(const Counts *); // {name: count}, by name
