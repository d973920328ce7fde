/* Parameters to and from safetensors files: see parameters.h. */
#include "base/buffer.h"
#include "kernels/nn/parameters_state.h"
#include <stdlib.h>
#include <string.h>

enum { NAMED_MOST = 5 }; // names listed in an error of each kind

int parameters_export(const Parameters *p, Arena *memory, SafeTensor **out) {
    int count = 0;
    *out = arena_array(memory, SafeTensor, p->count);
    for (int i = 0; i < p->count; i++) {
        const Parameter *item = p->items[i];
        if (item->is_replica || item->scaling) continue;
        int64_t bytes = tensor_count(&item->tensor) * (int64_t)sizeof(float);
        void *host = arena_allocate(memory, (size_t)bytes);
        check(item->master && (!item->split.segments || comm_size(p->parallel.tensor) == 1));
        p->backend->download(p->backend, host, item->master, (size_t)bytes);
        SafeTensor *entry = *out + count++;
        *entry = (SafeTensor){item->tensor.name, "F32", item->tensor.rank, {0}, host, bytes};
        for (int d = 0; d < item->tensor.rank; d++) entry->shape[d] = item->tensor.shape[d];
    }
    return count;
}

// What an import finds wrong: a count and the first few names for each kind.
typedef struct Complaint {
    Buffer names;
    int count;
} Complaint;

static void complain(Complaint *c, const char *name) {
    if (c->count++ < NAMED_MOST) buffer_printf(&c->names, "%s%s", c->names.size ? ", " : "", name);
}

static void tell(Buffer *out, Complaint *c, const char *what) {
    if (c->count) {
        buffer_printf(out, "%s%d %s (%s%s)", out->size ? "; " : "", c->count, what, c->names.data,
                      c->count > NAMED_MOST ? ", ..." : "");
    }
    buffer_free(&c->names);
}

static bool fits(const Parameter *item, const SafeTensor *entry) {
    int rank = item->tensor.rank;
    if (entry->rank != rank || (strcmp(entry->dtype, "F32") && strcmp(entry->dtype, "BF16"))) return false;
    for (int d = 0; d < rank; d++)
        if (entry->shape[d] != item->global_shape[d]) return false;
    return true;
}

static bool is_scaling(const char *name) {
    static const char ending[] = ".scaling";
    size_t length = strlen(name);
    return length >= sizeof ending && !strcmp(name + length - (sizeof ending - 1), ending);
}

static bool compare(Parameters *p, const SafeTensors *file, const char *path, Error *error) {
    Complaint missing = {0}, mismatched = {0}, unexpected = {0};
    for (int i = 0; i < p->count; i++) {
        const Tensor *t = &p->items[i]->tensor;
        if (p->items[i]->is_replica) continue;
        const SafeTensor *entry = safetensors_find(file, t->name);
        if (!entry && !p->items[i]->scaling) // where a file has none they begin anew
            complain(&missing, t->name);
        else if (!entry)
            continue;
        else if (!fits(p->items[i], entry))
            complain(&mismatched, t->name);
    }
    for (int i = 0; i < file->count; i++) {
        const Parameter *item = parameters_find(p, file->tensors[i].name);
        if (!item && is_scaling(file->tensors[i].name)) continue; // of a run in fp8; not needed here
        if (!item || item->is_replica) complain(&unexpected, file->tensors[i].name);
    }
    Buffer text = {0};
    tell(&text, &missing, "missing");
    tell(&text, &mismatched, "of another shape or type");
    tell(&text, &unexpected, "unexpected");
    bool ok = text.size == 0;
    if (!ok)
        error_set(error, ERROR_FAILED, "%s: its tensors are not those of this model: %s; use the model's own config",
                  path, text.data);
    buffer_free(&text);
    return ok;
}

// Elements [first, first + count) of a file's tensor, which lie anywhere in memory.
static void decode(float *out, const SafeTensor *entry, int64_t first, int64_t count) {
    if (!strcmp(entry->dtype, "F32")) {
        memcpy(out, (const char *)entry->data + 4 * first, (size_t)count * sizeof *out);
        return;
    }
    for (int64_t i = 0; i < count; i++) {
        uint16_t h;
        memcpy(&h, (const char *)entry->data + 2 * (first + i), sizeof h);
        out[i] = bf16_to_f32(h);
    }
}

static void take(Parameters *p, const OwnedRange *range, const SafeTensor *entry) {
    float *host = malloc((size_t)range->count * sizeof *host);
    check(host);
    for (int64_t done = 0; done < range->count;) {
        int64_t global, run;
        parameter_run(range->parameter, &p->parallel, range->first + done, &global, &run);
        if (run > range->count - done) run = range->count - done;
        decode(host + done, entry, global, run);
        done += run;
    }
    p->backend->upload(p->backend, range->master, host, (size_t)range->count * sizeof *host);
    free(host);
}

bool parameters_import(Parameters *p, const SafeTensors *file, const char *path, Error *error) {
    check(p->finished);
    if (!compare(p, file, path, error)) return false;
    for (int i = 0; i < p->owned_count; i++) {
        const Parameter *item = p->owned[i].parameter;
        const char *name = item->is_replica ? item->replica->tensor.name : item->tensor.name;
        const SafeTensor *entry = safetensors_find(file, name);
        if (entry) take(p, &p->owned[i], entry);
    }
    parameters_refresh(p);
    return true;
}
