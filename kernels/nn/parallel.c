/* See parallel.h. */
#include "kernels/nn/parallel.h"
#include "base/error.h"

int64_t split_local(const Split *s, const Comm *tensor) {
    int rank = comm_rank(tensor), size = comm_size(tensor);
    int64_t local = 0;
    for (int i = 0; i < s->segments; i++)
        local += comm_share(s->size[i], rank + 1, size) - comm_share(s->size[i], rank, size);
    return local;
}

int64_t split_largest(const Split *s, const Comm *tensor) {
    int size = comm_size(tensor);
    int64_t largest = 0; // of every segment: shares differ by one at the most
    for (int i = 0; i < s->segments; i++) largest += (s->size[i] + size - 1) / size;
    return largest;
}

void split_run(const Split *s, const Comm *tensor, int64_t index, int64_t *global, int64_t *count) {
    int rank = comm_rank(tensor), size = comm_size(tensor);
    int64_t before = 0; // of the whole
    for (int i = 0; i < s->segments; before += s->size[i++]) {
        int64_t first = comm_share(s->size[i], rank, size), own = comm_share(s->size[i], rank + 1, size) - first;
        if (index < own) {
            *global = before + first + index;
            *count = own - index;
            return;
        }
        index -= own;
    }
    check_failed("an index of this rank's piece", __FILE__, __LINE__);
}
