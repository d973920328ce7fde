/* See checkpoint_layout.h. The largest tensor goes first, each to the rank that has the least so far (Graham 1969). */
#include "train/checkpoint_layout.h"
#include <stdlib.h>

const char *const checkpoint_part_names[CHECKPOINT_PARTS] = {"model", "optimizer"};

static void list_kind(CheckpointLayout *l, Parameters *parameters, StateKind kind, Arena *memory) {
    static const char *const prefixes[STATE_KINDS] = {"", "m/", "v/"};
    int parameter_count = parameters_count(parameters);
    l->number[kind] = arena_array(memory, int, parameter_count + 1);
    for (int i = 0; i < parameter_count; i++) {
        const Parameter *p = parameters_at(parameters, i);
        l->number[kind][i] = p->is_replica ? l->number[kind][p->replica->number] : -1; // declared behind it
        if (p->is_replica || (kind != STATE_MASTER && p->frozen)) continue;
        l->number[kind][i] = l->count;
        SafeTensor *t = &l->tensors[l->count++];
        t->name = arena_printf(memory, "%s%s", prefixes[kind], p->tensor.name);
        t->dtype = "F32";
        t->rank = p->tensor.rank;
        t->bytes = (int64_t)sizeof(float);
        for (int d = 0; d < t->rank; d++) t->bytes *= t->shape[d] = p->global_shape[d];
    }
}

typedef struct Weight {
    int64_t bytes;
    int tensor;
} Weight;

static int largest_first(const void *a, const void *b) {
    const Weight *x = a, *y = b;
    if (x->bytes != y->bytes) return x->bytes > y->bytes ? -1 : 1;
    return x->tensor - y->tensor;
}

// loads: (writers) bytes that each has already.
static void share_out(CheckpointLayout *l, CheckpointPart part, int64_t *loads) {
    int first = l->first[part], count = l->first[part + 1] - first;
    Weight *order = calloc((size_t)count + 1, sizeof *order);
    check(order);
    for (int i = 0; i < count; i++) order[i] = (Weight){l->tensors[first + i].bytes, first + i};
    qsort(order, (size_t)count, sizeof *order, largest_first);
    for (int i = 0; i < count; i++) {
        int least = 0;
        for (int w = 1; w < l->writers; w++)
            if (loads[w] < loads[least]) least = w;
        l->writer[order[i].tensor] = least;
        loads[least] += order[i].bytes;
    }
    free(order);
}

CheckpointLayout *checkpoint_layout_new(Parameters *parameters, int writers, Arena *memory) {
    CheckpointLayout *l = arena_zeroed(memory, sizeof *l);
    int most = STATE_KINDS * parameters_count(parameters) + 1;
    int64_t *loads = arena_array(memory, int64_t, writers);
    l->writers = writers;
    l->tensors = arena_array(memory, SafeTensor, most);
    l->writer = arena_array(memory, int, most);
    list_kind(l, parameters, STATE_MASTER, memory);
    l->first[PART_OPTIMIZER] = l->count;
    list_kind(l, parameters, STATE_M, memory);
    list_kind(l, parameters, STATE_V, memory);
    l->first[CHECKPOINT_PARTS] = l->count;
    for (int part = 0; part < CHECKPOINT_PARTS; part++) {
        int first = l->first[part];
        share_out(l, (CheckpointPart)part, loads);
        if (writers > 1)
            safetensors_index(&l->index[part], checkpoint_part_names[part], l->tensors + first, l->writer + first,
                              l->first[part + 1] - first, writers);
    }
    return l;
}

void checkpoint_layout_free(CheckpointLayout *l) {
    for (int part = 0; l && part < CHECKPOINT_PARTS; part++) buffer_free(&l->index[part]);
}

int64_t checkpoint_layout_bytes(const CheckpointLayout *l, int writer) {
    int64_t bytes = 0;
    for (int i = 0; i < l->count; i++) bytes += l->writer[i] == writer ? l->tensors[i].bytes : 0;
    return bytes;
}
