/* See mask.h. */
#include "tests/support/mask.h"
#include "base/error.h"

static void set_range(int32_t *range, int64_t query, int64_t first, int64_t end) {
    range[2 * query] = (int32_t)first;
    range[2 * query + 1] = (int32_t)end;
}

void mask_causal(int32_t *range, int64_t batch, int64_t queries, int64_t keys) {
    check(keys >= queries);
    for (int64_t b = 0; b < batch; b++)
        for (int64_t t = 0; t < queries; t++) set_range(range, b * queries + t, 0, t + 1 + keys - queries);
}

void mask_full(int32_t *range, int64_t batch, int64_t queries, int64_t keys) {
    for (int64_t i = 0; i < batch * queries; i++) set_range(range, i, 0, keys);
}

void mask_prefix(int32_t *range, int64_t batch, int64_t length, const int32_t *prefix) {
    for (int64_t b = 0; b < batch; b++) {
        check(prefix[b] >= 0 && prefix[b] <= length);
        for (int64_t t = 0; t < length; t++) set_range(range, b * length + t, 0, t < prefix[b] ? prefix[b] : t + 1);
    }
}

void mask_lengths(int32_t *range, int64_t batch, int64_t queries, int64_t keys, const int32_t *lengths) {
    for (int64_t b = 0; b < batch; b++) {
        check(lengths[b] >= 0 && lengths[b] <= keys);
        for (int64_t t = 0; t < queries; t++) set_range(range, b * queries + t, 0, lengths[b]);
    }
}

void mask_documents(int32_t *range, int64_t batch, int64_t length, const int32_t *document) {
    for (int64_t b = 0; b < batch; b++) {
        const int32_t *number = document + b * length;
        int64_t first = 0;
        for (int64_t t = 0; t < length; t++) {
            if (t && number[t] != number[t - 1]) first = t;
            set_range(range, b * length + t, first, t + 1);
        }
    }
}
