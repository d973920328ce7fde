/* See checkpoint_copy.h. */
#include "train/checkpoint_copy.h"
#include <string.h>
#include <sys/mman.h>

enum { ALIGN = 64, PAGE = 4096 }; // bytes

void checkpoint_copy_init(CheckpointCopy *c, Backend *backend, Parameters *parameters, const CheckpointLayout *layout,
                          const Mesh *mesh, Arena *memory) {
    *c = (CheckpointCopy){.backend = backend, .parameters = parameters, .layout = layout, .mesh = mesh};
    c->rank = mesh ? comm_rank(mesh->world) : 0;
    c->to = arena_array(memory, float *, layout->count + 1);
    c->arrived = arena_array(memory, int64_t, layout->count + 1);
    for (int i = 0; i < layout->count; i++)
        if (layout->writer[i] == c->rank) c->bytes += (layout->tensors[i].bytes + ALIGN - 1) / ALIGN * ALIGN;
}

void checkpoint_copy_free(CheckpointCopy *c) {
    if (c->memory) munmap(c->memory, (size_t)c->bytes);
}

// Large pages where there are any: a copy of gigabytes then takes a few hundred page faults instead of a million.
bool checkpoint_copy_reserve(CheckpointCopy *c, Error *error) {
    if (c->memory || !c->bytes) return true;
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

void checkpoint_copy_touch(const CheckpointCopy *c) {
    for (int64_t at = 0; at < c->bytes; at += PAGE) ((volatile char *)c->memory)[at] = 0;
}

void checkpoint_copy_begin(CheckpointCopy *c, const StateRange *ranges, int count) {
    c->ranges = ranges;
    c->range_count = count;
    memset(c->arrived, 0, (size_t)c->layout->count * sizeof *c->arrived);
}

int checkpoint_copy_tensor(const CheckpointCopy *c, const StateRange *r) {
    return c->layout->number[r->kind][r->parameter];
}

// What every data rank of a stage holds goes to writers of the same data place, what every tensor rank holds to those
// of the same tensor place; so each writer gets everything once: from its neighbours, or from their like on another
// stage.
int checkpoint_copy_writer(const CheckpointCopy *c, const StateRange *r) {
    int writer = c->layout->writer[checkpoint_copy_tensor(c, r)], place[MESH_AXES];
    const Parameter *p = parameters_at(c->parameters, r->parameter);
    if (p->is_replica) return -1;
    if (!c->mesh || writer == c->rank) return writer;
    const Mesh *m = c->mesh;
    mesh_place(m->size, writer, place);
    bool whole = !p->split.segments;
    if (r->everywhere && place[MESH_DATA] != m->place[MESH_DATA]) return -1;
    if (whole && place[MESH_TENSOR] != m->place[MESH_TENSOR]) return -1;
    return writer;
}

void checkpoint_copy_run(const CheckpointCopy *c, const StateRange *r, int64_t done, int64_t *first, int64_t *count) {
    const Parameter *p = parameters_at(c->parameters, r->parameter);
    parameter_run(p, parameters_parallel(c->parameters), r->first + done, first, count);
    if (*count > r->count - done) *count = r->count - done;
}

void checkpoint_copy_own(CheckpointCopy *c) {
    for (int i = 0; i < c->range_count; i++) {
        const StateRange *r = &c->ranges[i];
        int tensor = checkpoint_copy_tensor(c, r);
        if (checkpoint_copy_writer(c, r) != c->rank) continue;
        for (int64_t done = 0, first, run; done < r->count; done += run) {
            checkpoint_copy_run(c, r, done, &first, &run);
            c->backend->download(c->backend, c->to[tensor] + first, r->data + done, (size_t)run * sizeof(float));
        }
        c->arrived[tensor] += r->count;
    }
}

void checkpoint_copy_end(const CheckpointCopy *c) {
    for (int i = 0; i < c->layout->count; i++)
        check(c->layout->writer[i] != c->rank || c->arrived[i] * (int64_t)sizeof(float) == c->layout->tensors[i].bytes);
}
