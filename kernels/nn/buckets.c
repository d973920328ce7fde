/* See buckets.h. In the flat buffers stand the trained buckets first, then the frozen ones, each kind chunk by chunk
 * and in the order in which its first parameter was declared; gradients cover the first kind alone. */
#include "kernels/comm/comm_device.h"
#include "kernels/nn/parameters_state.h"
#include <string.h>

enum { DEFAULT_BUCKET = 32 << 20 }; // bytes of gradients

// Rows in memory where `rows` are used.
static int64_t rows_in_memory(const Parameters *p, const Parameter *item, int64_t rows) {
    int64_t unit = item->words && p->backend->words_unit > 0 ? p->backend->words_unit : 1;
    return (rows + unit - 1) / unit * unit;
}

// As many as the tensor rank with the largest piece needs: buckets must be the same on all of them, for what they sum
// together and so that sums over data ranks have the same bits.
static int64_t blocks_of(const Parameters *p, const Parameter *item) {
    const Tensor *t = &item->tensor;
    int64_t count = 1;
    for (int d = 0; d < t->rank; d++) {
        bool cut = item->split.segments && d == item->split.dimension;
        int64_t size = cut ? split_largest(&item->split, p->parallel.tensor) : t->shape[d];
        count *= d == 0 ? rows_in_memory(p, item, size) : size;
    }
    return (count + PARAMETER_BLOCK - 1) / PARAMETER_BLOCK;
}

// ---- cutting ----

// Gives each parameter of a chunk and kind the number of its bucket; returns the number behind the last.
static int cut(Parameters *p, int chunk, bool frozen, Dtype type, int next) {
    int64_t bytes = p->parallel.bucket_bytes > 0 ? p->parallel.bucket_bytes : DEFAULT_BUCKET;
    int64_t room = bytes / (int64_t)bucket_bytes(1, F32), filled = 0;
    int current = -1;
    for (int i = 0; i < p->count; i++) {
        Parameter *item = p->items[i];
        if (item->chunk != chunk || item->frozen != frozen || item->tensor.dtype != type) continue;
        if (current < 0 || item->replica || filled + blocks_of(p, item) > room) current = next++, filled = 0;
        filled += blocks_of(p, item);
        item->bucket = current;
        if (item->replica) current = -1;
    }
    return next;
}

// All of them, and what operators know of the parameters; returns how many there are.
static int cut_all(Parameters *p, Dtype compute) {
    int count = 0, chunks = 0;
    for (int i = 0; i < p->count; i++) {
        Parameter *item = p->items[i];
        item->tensor.dtype = item->tensor.rank > 1 ? compute : F32;
        item->tensor.needs_grad = !item->frozen && item->chunk >= 0;
        item->tensor.spare_rows = rows_in_memory(p, item, item->tensor.shape[0]) - item->tensor.shape[0];
        item->bucket = -1;
        if (item->chunk >= chunks) chunks = item->chunk + 1;
    }
    for (int frozen = 0; frozen < 2; frozen++) {
        for (int chunk = 0; chunk < chunks; chunk++) {
            count = cut(p, chunk, frozen, F32, count);
            count = cut(p, chunk, frozen, BF16, count);
        }
    }
    return count;
}

// The parameters of a bucket, from block `block` on.
static void fill(Parameters *p, Bucket *b, int number, int64_t block) {
    int count = 0;
    for (int i = 0; i < p->count; i++) count += p->items[i]->bucket == number;
    b->items = arena_array(p->memory, Parameter *, count);
    b->block = block;
    for (int partial = 1; partial >= 0; partial--) {
        for (int i = 0; i < p->count; i++) {
            Parameter *item = p->items[i];
            if (item->bucket != number || item->partial != partial) continue;
            item->offset = (block + b->blocks) * PARAMETER_BLOCK;
            b->items[b->count++] = item;
            b->blocks += blocks_of(p, item);
            if (partial) b->partial_blocks += blocks_of(p, item);
        }
    }
    b->chunk = b->items[0]->chunk;
    b->frozen = b->items[0]->frozen;
    b->dtype = b->items[0]->tensor.dtype;
}

// ---- sharing out ----

static void share_out(Parameters *p, Bucket *b) {
    int rank = comm_rank(p->parallel.data), size = comm_size(p->parallel.data);
    b->own = p->stage ? comm_share(b->blocks, rank, size) : 0;
    b->owned = (p->stage ? comm_share(b->blocks, rank + 1, size) : b->blocks) - b->own;
    b->first_range = p->owned_count;
    int64_t begin = (b->block + b->own) * PARAMETER_BLOCK, end = begin + b->owned * PARAMETER_BLOCK;
    for (int i = 0; i < b->count; i++) {
        Parameter *item = b->items[i];
        int64_t first = item->offset > begin ? item->offset : begin, last = item->offset + tensor_count(&item->tensor);
        if (last > end) last = end;
        if (first >= last) continue;
        OwnedRange *range = &p->owned[p->owned_count++];
        *range = (OwnedRange){.parameter = item, .first = first - item->offset, .count = last - first};
        if (!b->frozen) range->state = p->states + first - begin;
        b->ranges++;
    }
    if (!b->frozen) p->states += b->owned * PARAMETER_BLOCK;
}

void parameters_lay_out(Parameters *p, Dtype compute) {
    int count = cut_all(p, compute);
    p->stage = comm_size(p->parallel.data) > 1 ? p->parallel.zero : 0;
    p->buckets = arena_array(p->memory, Bucket, count);
    p->owned = arena_array(p->memory, OwnedRange, p->count);
    p->bucket_count = count;
    for (int i = 0; i < count; i++) {
        fill(p, &p->buckets[i], i, p->blocks);
        share_out(p, &p->buckets[i]);
        p->blocks += p->buckets[i].blocks;
    }
}

// ---- memory ----

static bool reserve(Parameters *p, Memory *m, size_t bytes) {
    Backend *b = p->backend;
    if (!bytes) return true;
    m->data = b->allocate(b, bytes);
    if (!m->data) return false;
    m->bytes = bytes;
    b->zero(b, m->data, bytes);
    return true;
}

// Where nothing but the update reads them.
static bool reserve_masters(Parameters *p, size_t bytes) {
    if (!p->parallel.offload) return reserve(p, &p->masters, bytes);
    if (!bytes) return true;
    p->masters.data = backend_allocate_host(p->backend, bytes);
    if (p->masters.data) p->masters.bytes = bytes;
    return p->masters.data != NULL;
}

static void *take(const Memory *m, size_t *used, size_t bytes) {
    void *start = (char *)m->data + *used;
    *used += bytes;
    check(*used <= m->bytes);
    return bytes ? start : NULL;
}

static int64_t kept_blocks(const Parameters *p, const Bucket *b, int sharded_from) {
    return p->stage >= sharded_from ? b->owned : b->blocks;
}

// Where the parts of a bucket lie in the flat buffers.
static void place(Parameters *p, Bucket *b, size_t used[4]) {
    size_t before = bucket_bytes(b->own, b->dtype);
    char *values = take(&p->values, &used[0], bucket_bytes(kept_blocks(p, b, 3), b->dtype));
    b->own_values = p->stage == 3 ? values : values + before;
    b->masters = b->dtype == F32 ? b->own_values : take(&p->masters, &used[1], bucket_bytes(b->owned, F32));
    const char *master = (const char *)b->masters, *shadow = b->own_values;
    for (int i = b->first_range; i < b->first_range + b->ranges; i++) {
        OwnedRange *range = &p->owned[i];
        int64_t at = range->parameter->offset + range->first - (b->block + b->own) * PARAMETER_BLOCK;
        range->master = (float *)master + at;
        range->shadow = b->dtype == BF16 ? (uint16_t *)shadow + at : NULL;
    }
    for (int i = 0; i < b->count && !p->stage; i++)
        b->items[i]->master = b->masters + b->items[i]->offset - b->block * PARAMETER_BLOCK;
    bucket_set_values(b, p->stage == 3 ? NULL : values);
    if (b->frozen) return;
    if (p->stage < 2) bucket_set_gradients(b, take(&p->gradients, &used[2], bucket_bytes(b->blocks, F32)));
    b->clean = p->stage < 2; // reserved memory is zeroed
    bucket_set_sums(p, b,
                    p->stage < 2 ? b->gradients + b->own * PARAMETER_BLOCK
                                 : take(&p->sums, &used[3], bucket_bytes(b->owned, F32)));
}

bool parameters_allocate(Parameters *p, Error *error) {
    size_t values = 0, masters = 0, gradients = 0, sums = 0, used[4] = {0};
    for (int i = 0; i < p->bucket_count; i++) {
        const Bucket *b = &p->buckets[i];
        values += bucket_bytes(kept_blocks(p, b, 3), b->dtype);
        if (b->dtype == BF16) masters += bucket_bytes(b->owned, F32);
        if (!b->frozen && p->stage < 2) gradients += bucket_bytes(b->blocks, F32);
        if (!b->frozen && p->stage >= 2) sums += bucket_bytes(b->owned, F32);
    }
    if (!reserve(p, &p->values, values) || !reserve_masters(p, masters) || !reserve(p, &p->gradients, gradients) ||
        !reserve(p, &p->sums, sums))
        return error_set(error, ERROR_FAILED,
                         "no memory for the model: parameters and gradients need %.2f GiB; make the model smaller, or "
                         "share it out over more ranks",
                         (double)(values + masters + gradients + sums) / (double)(1 << 30));
    for (int i = 0; i < p->bucket_count; i++) place(p, &p->buckets[i], used);
    return true;
}

void parameters_release(Parameters *p) {
    const Memory *all[] = {&p->values, &p->gradients, &p->sums, &p->most}, *masters = &p->masters;
    for (int i = 0; i < 4; i++)
        if (all[i]->data) p->backend->release(p->backend, all[i]->data, all[i]->bytes);
    if (!masters->data) return;
    if (p->parallel.offload)
        backend_release_host(p->backend, masters->data, masters->bytes);
    else
        p->backend->release(p->backend, masters->data, masters->bytes);
}

// ---- for those who move buckets ----

int parameters_stage(const Parameters *p) { return p->stage; }
Backend *parameters_backend(const Parameters *p) { return p->backend; }
int buckets_count(const Parameters *p) { return p->bucket_count; }

Bucket *bucket_at(Parameters *p, int index) {
    check(index >= 0 && index < p->bucket_count);
    return &p->buckets[index];
}

void bucket_set_values(Bucket *b, void *values) {
    b->values = values;
    for (int i = 0; i < b->count; i++) {
        size_t before = (size_t)(b->items[i]->offset - b->block * PARAMETER_BLOCK) * dtype_size(b->dtype);
        b->items[i]->tensor.data = values ? (char *)values + before : NULL;
    }
}

void bucket_set_gradients(Bucket *b, float *gradients) {
    b->gradients = gradients;
    b->clean = false; // others may have had that memory
    for (int i = 0; i < b->count; i++)
        b->items[i]->tensor.grad = gradients ? gradients + b->items[i]->offset - b->block * PARAMETER_BLOCK : NULL;
}

void bucket_set_sums(Parameters *p, Bucket *b, float *sums) {
    b->sums = sums;
    for (int i = b->first_range; i < b->first_range + b->ranges; i++) {
        OwnedRange *range = &p->owned[i];
        range->gradient = sums + range->parameter->offset + range->first - (b->block + b->own) * PARAMETER_BLOCK;
    }
}

void bucket_begin_backward(Bucket *b) {
    for (int i = 0; i < b->count; i++) b->items[i]->tensor.grad_written = false;
}

// Products may write the spare rows of a table of words.
void bucket_end_backward(const Parameters *p, const Bucket *b) {
    for (int i = 0; i < b->count; i++) {
        Tensor *t = &b->items[i]->tensor;
        int64_t written = t->grad_written ? tensor_count(t) : 0;
        size_t rest = bucket_bytes(blocks_of(p, b->items[i]), F32) - (size_t)written * sizeof(float);
        if (rest && !(b->clean && written && !t->spare_rows))
            p->backend->zero(p->backend, (float *)t->grad + written, rest);
        t->grad_written = true;
    }
}

void bucket_start_gather(const Parameters *p, Bucket *b) {
    if (p->stage != 1 && p->stage != 2) return;
    bucket_settle(b);
    b->gathering = comm_device_start_all_gather(p->backend, p->sharing, b->values, b->own_values, b->blocks,
                                                (int64_t)bucket_bytes(1, b->dtype), "parameters");
}

void bucket_settle(Bucket *b) {
    comm_wait(b->gathering);
    b->gathering = NULL;
}
