/* In which order samples come: a keyed permutation, without state, over windows of samples that lie together in the
 * shards and then over the samples of each window. Any index of any epoch is found at once. */
#pragma once
#include "data/dataset.h"
#include <stdbool.h>

enum { ORDER_WINDOW = 16384 }; // samples that are mixed with each other; less than this is mixed whole

typedef struct Order {
    uint64_t count; // samples
    uint64_t seed;  // of this source
    bool mixed;     // false: 0, 1, 2, ...
} Order;

// index < count
uint64_t order_sample(const Order *, uint64_t epoch, uint64_t index);

// Samples by the value of a field: one of each value is taken a step.
typedef struct Groups {
    int count;       // values
    int64_t *first;  // (count + 1) into members
    int64_t *member; // (samples that have the field) sample numbers, in order within a value
    int64_t most;    // members of the largest
} Groups;

// Reads the field of every sample's json. Samples that cannot be read or lack it are left out.
bool groups_read(Groups *, const Dataset *, const char *field, Error *);
void groups_free(Groups *); // zeroed structs are allowed
// The sample that stands for value `group` in `step`, `attempt` places on in the order of its group; *epoch: how often
// the group was gone through before.
uint64_t groups_sample(const Groups *, int group, uint64_t step, uint64_t attempt, uint64_t seed, uint64_t *epoch);
