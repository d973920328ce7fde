/* See checkpoint_copy.h. */
#include "train/checkpoint_copy.h"
#include <string.h>
#include <sys/mman.h>

enum { ALIGN = 64 }; // bytes

void checkpoint_copy_init(CheckpointCopy *c, Backend *backend, const Parameters *parameters,
                          const CheckpointLayout *layout, const StateRange *ranges, int range_count, int rank,
                          Arena *memory) {
    *c = (CheckpointCopy){.backend = backend,
                          .parameters = parameters,
                          .layout = layout,
                          .ranges = ranges,
                          .range_count = range_count,
                          .rank = rank};
    c->to = arena_array(memory, float *, layout->count + 1);
    c->arrived = arena_array(memory, int64_t, layout->count + 1);
    for (int i = 0; i < layout->count; i++)
        if (layout->writer[i] == rank) c->bytes += (layout->tensors[i].bytes + ALIGN - 1) / ALIGN * ALIGN;
}

// Large pages where there are any: a copy of gigabytes then takes a few hundred page faults instead of a million.
static bool reserve(CheckpointCopy *c, Error *error) {
    void *memory = mmap(NULL, (size_t)c->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return error_set_errno(error, ERROR_FAILED,
                               "no memory for the copy that is written while training goes on (%.2f GiB)",
                               (double)c->bytes / 0x1p30);
    madvise(memory, (size_t)c->bytes, MADV_HUGEPAGE);
    c->memory = memory;
    int64_t at = 0;
    for (int i = 0; i < c->layout->count; i++) {
        if (c->layout->writer[i] != c->rank) continue;
        c->to[i] = (float *)(void *)(c->memory + at);
        at += (c->layout->tensors[i].bytes + ALIGN - 1) / ALIGN * ALIGN;
    }
    return true;
}

bool checkpoint_copy_begin(CheckpointCopy *c, Error *error) {
    if (c->bytes && !c->memory && !reserve(c, error)) return false;
    memset(c->arrived, 0, (size_t)c->layout->count * sizeof *c->arrived);
    return true;
}

void checkpoint_copy_own(CheckpointCopy *c) {
    const Parallel *parallel = parameters_parallel(c->parameters);
    for (int i = 0; i < c->range_count; i++) {
        const StateRange *r = &c->ranges[i];
        int tensor = c->layout->number[r->kind][r->parameter];
        if (c->layout->writer[tensor] != c->rank) continue;
        const Parameter *p = parameters_at((Parameters *)(uintptr_t)c->parameters, r->parameter);
        for (int64_t done = 0, global, run; done < r->count; done += run) {
            parameter_run(p, parallel, r->first + done, &global, &run);
            if (run > r->count - done) run = r->count - done;
            c->backend->download(c->backend, c->to[tensor] + global, r->data + done, (size_t)run * sizeof(float));
        }
        c->arrived[tensor] += r->count;
    }
}

void checkpoint_copy_end(const CheckpointCopy *c) {
    for (int i = 0; i < c->layout->count; i++)
        check(c->layout->writer[i] != c->rank || c->arrived[i] * (int64_t)sizeof(float) == c->layout->tensors[i].bytes);
}

void checkpoint_copy_free(CheckpointCopy *c) {
    if (c->memory) munmap(c->memory, (size_t)c->bytes);
}
