/* See attention_cases.h. B batch, T queries, S keys, H heads, K key-value heads, D head size. */
#include "tests/gpu/attention_cases.h"
#include "base/error.h"
#include "base/philox.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum Mask { FULL, CAUSAL, PREFIX, DOCUMENTS, CACHE } Mask; // CACHE: one query, the cache not quite full

typedef struct Case {
    const char *name;
    int64_t batch, queries, keys;
    int heads, kv_heads, size;
    Mask mask;
} Case;

static const Case CASES[] = {
    {"gpt2", 8, 1024, 1024, 12, 12, 64, CAUSAL},        {"grouped", 4, 1024, 1024, 16, 4, 128, CAUSAL},
    {"vit_l", 32, 197, 197, 16, 16, 64, FULL},          {"mae", 64, 50, 50, 16, 16, 64, FULL},
    {"prefix", 8, 512, 512, 12, 12, 64, PREFIX},        {"documents", 8, 1024, 1024, 12, 12, 64, DOCUMENTS},
    {"decode", 64, 1, 1024, 12, 12, 64, CACHE},         {"decode_one", 1, 1, 1024, 25, 25, 64, CACHE},
    {"decode_grouped", 16, 1, 2048, 32, 8, 128, CACHE},
};
enum { CASE_COUNT = sizeof CASES / sizeof *CASES, PREFIX_KEYS = 197, DOCUMENT = 170 };

static bool has_ranges(const Case *c) { return c->mask >= PREFIX; }
static bool has_backward(const Case *c) { return c->mask != CACHE; }

// The keys [*first, *end) that a query sees.
static void keys_of(const Case *c, int64_t query, int32_t *first, int32_t *end) {
    int32_t own = (int32_t)query + 1;
    *first = 0, *end = (int32_t)c->keys;
    if (c->mask == CAUSAL) *end = own;
    if (c->mask == PREFIX) *end = own > PREFIX_KEYS ? own : PREFIX_KEYS;
    if (c->mask == DOCUMENTS) *first = (int32_t)query / DOCUMENT * DOCUMENT, *end = own;
    if (c->mask == CACHE) *end = (int32_t)c->keys - 24;
}

static double pairs_of(const Case *c) { // of a query and a key it sees, of one head
    double pairs = 0;
    for (int64_t i = 0; i < c->queries; i++) {
        int32_t first, end;
        keys_of(c, i, &first, &end);
        pairs += end - first;
    }
    return pairs;
}

// ---- a case in a backend's memory ----

typedef struct Layer { // self-attention: q, k and v are parts of one row
    Backend *backend;
    AttentionShape shape;
    Dtype t;
    int64_t rows, key_rows, k_at, v_at; // elements into q's rows, or into the cache's where that is apart
    char *q, *kv, *o, *d_o, *dq;        // (B, T, width), kv the same or (B, S, 2 K D)
    float *lse;                         // (B, H, T)
    int32_t *range;
} Layer;

static size_t bytes_of(const Layer *l, int64_t rows, int64_t width) {
    return (size_t)(rows * width) * dtype_size(l->t);
}

static void *device(Backend *b, const void *host, size_t bytes) { // host NULL: anything
    void *memory = b->allocate(b, bytes);
    check(memory);
    if (host) b->upload(b, memory, host, bytes);
    return memory;
}

// Normal numbers that bf16 holds.
static void *draw(const Layer *l, int64_t count, uint64_t number) {
    Rng rng = rng_for(7, PURPOSE_TEST, number);
    size_t size = dtype_size(l->t);
    char *host = malloc((size_t)count * size);
    check(host);
    for (int64_t i = 0; i < count; i++) {
        uint16_t x = f32_to_bf16((float)rng_normal(&rng));
        float wide = bf16_to_f32(x);
        memcpy(host + (size_t)i * size, l->t == BF16 ? (void *)&x : (void *)&wide, size);
    }
    void *memory = device(l->backend, host, (size_t)count * size);
    free(host);
    return memory;
}

static int32_t *ranges(Backend *b, const Case *c) {
    size_t bytes = (size_t)(c->batch * c->queries * 2) * sizeof(int32_t);
    int32_t *host = malloc(bytes);
    check(host);
    for (int64_t i = 0; i < c->batch * c->queries; i++) keys_of(c, i % c->queries, &host[2 * i], &host[2 * i + 1]);
    int32_t *memory = device(b, host, bytes);
    free(host);
    return memory;
}

static Layer layer_new(Backend *b, const Case *c, Dtype t) {
    bool packed = has_backward(c);
    int64_t width = (int64_t)c->heads * c->size, kv_width = (int64_t)c->kv_heads * c->size;
    int64_t q_width = packed ? width + 2 * kv_width : width, stride = packed ? q_width : 2 * kv_width;
    Layer l = {.backend = b, .t = t, .rows = c->batch * c->queries, .key_rows = c->batch * c->keys};
    l.shape = (AttentionShape){.batch = c->batch,
                               .queries = c->queries,
                               .keys = c->keys,
                               .heads = c->heads,
                               .kv_heads = c->kv_heads,
                               .head_size = c->size,
                               .q_stride = q_width,
                               .k_stride = stride,
                               .v_stride = stride,
                               .o_stride = width,
                               .causal = c->mask == CAUSAL};
    l.k_at = packed ? width : 0, l.v_at = l.k_at + kv_width;
    l.q = draw(&l, l.rows * q_width, 0);
    l.kv = packed ? l.q : draw(&l, l.key_rows * stride, 1);
    l.d_o = draw(&l, l.rows * width, 2);
    l.o = device(b, NULL, bytes_of(&l, l.rows, width));
    l.dq = device(b, NULL, bytes_of(&l, l.rows, q_width));
    l.lse = device(b, NULL, (size_t)(l.rows * c->heads) * sizeof(float));
    if (has_ranges(c)) l.shape.range = l.range = ranges(b, c);
    return l;
}

static void layer_free(Layer *l) {
    Backend *b = l->backend;
    const AttentionShape *s = &l->shape;
    b->wait(b);
    b->release(b, l->q, bytes_of(l, l->rows, s->q_stride));
    if (l->kv != l->q) b->release(b, l->kv, bytes_of(l, l->key_rows, s->k_stride));
    b->release(b, l->d_o, bytes_of(l, l->rows, s->o_stride));
    b->release(b, l->o, bytes_of(l, l->rows, s->o_stride));
    b->release(b, l->dq, bytes_of(l, l->rows, s->q_stride));
    b->release(b, l->lse, (size_t)(l->rows * s->heads) * sizeof(float));
    if (l->range) b->release(b, l->range, (size_t)(l->rows * 2) * sizeof(int32_t));
}

static void forward(void *context) {
    Layer *l = context;
    size_t size = dtype_size(l->t);
    l->backend->attention_forward(l->backend, l->o, l->lse, l->q, l->kv + (size_t)l->k_at * size,
                                  l->kv + (size_t)l->v_at * size, &l->shape, l->t);
}
static void backward(void *context) {
    Layer *l = context;
    size_t k = (size_t)l->k_at * dtype_size(l->t), v = (size_t)l->v_at * dtype_size(l->t);
    l->backend->attention_backward(l->backend, l->dq, l->dq + k, l->dq + v, l->d_o, l->o, l->lse, l->q, l->kv + k,
                                   l->kv + v, &l->shape, l->t, false);
}

// ---- the check ----

typedef struct Numbers {
    float *at; // o, then the gradients
    int64_t count;
} Numbers;

static Numbers numbers_of(Backend *b, const Case *c, Dtype t) {
    Layer l = layer_new(b, c, t);
    size_t size = dtype_size(t);
    int64_t outputs = l.rows * l.shape.o_stride, gradients = has_backward(c) ? l.rows * l.shape.q_stride : 0;
    Numbers n = {calloc((size_t)(outputs + gradients), sizeof(float)), outputs + gradients};
    char *raw = calloc((size_t)n.count, size);
    check(n.at && raw);
    forward(&l);
    b->download(b, raw, l.o, (size_t)outputs * size);
    if (gradients) {
        backward(&l);
        b->download(b, raw + (size_t)outputs * size, l.dq, (size_t)gradients * size);
    }
    for (int64_t i = 0; i < n.count; i++) {
        uint16_t half;
        memcpy(&half, raw + (size_t)i * size, sizeof half);
        if (t == BF16)
            n.at[i] = bf16_to_f32(half);
        else
            memcpy(&n.at[i], raw + (size_t)i * size, sizeof n.at[i]);
    }
    free(raw);
    layer_free(&l);
    return n;
}

// The root mean square of the difference by that of `truth`, over [first, end).
static double error_of(Numbers n, Numbers truth, int64_t first, int64_t end) {
    double square = 0, difference = 0;
    for (int64_t i = first; i < end; i++) {
        double x = (double)n.at[i], y = (double)truth.at[i];
        square += y * y, difference += (x - y) * (x - y);
    }
    return sqrt(difference / square);
}

static bool case_holds(Backend *cpu, Backend *gpu, Case c) {
    int group = c.heads / c.kv_heads;
    c.batch = 1, c.kv_heads = c.kv_heads > 2 ? 2 : c.kv_heads, c.heads = c.kv_heads * group;
    Numbers truth = numbers_of(cpu, &c, F32), yardstick = numbers_of(cpu, &c, BF16), got = numbers_of(gpu, &c, BF16);
    int64_t outputs = c.queries * c.heads * c.size;
    bool ok = error_of(got, truth, 0, outputs) <= 2 * error_of(yardstick, truth, 0, outputs);
    if (has_backward(&c))
        ok = ok && error_of(got, truth, outputs, got.count) <= 2 * error_of(yardstick, truth, outputs, got.count);
    for (int run = 1; run < 3 && ok; run++) {
        Numbers again = numbers_of(gpu, &c, BF16);
        ok = !memcmp(again.at, got.at, (size_t)got.count * sizeof(float));
        free(again.at);
    }
    free(truth.at);
    free(yardstick.at);
    free(got.at);
    return ok;
}

int attention_cases(void) { return CASE_COUNT; }
const char *attention_case_name(int which) { return CASES[which].name; }
bool attention_case_holds(Backend *cpu, Backend *gpu, int which) { return case_holds(cpu, gpu, CASES[which]); }

// ---- figures ----

static void bench_case(Backend *b, const BenchOps *o, const Case *c) {
    Layer l = layer_new(b, c, BF16);
    const AttentionShape *s = &l.shape;
    double product = 2 * (double)c->batch * c->heads * c->size * pairs_of(c); // of q k^T, or p v
    double keys = c->mask == CACHE ? (double)c->keys - 24 : (double)c->keys, size = (double)dtype_size(BF16);
    double q = size * (double)(l.rows * s->o_stride), kv = size * (double)(c->batch * c->kv_heads * c->size) * 2 * keys;
    BenchRow row = {.pass = "forward", .dtype = BF16, .flop = 2 * product, .bytes = 2 * q + kv};
    snprintf(row.name, sizeof row.name, "attention/%s", c->name);
    bench_measure(b, o, &row, forward, &l);
    o->row(o->context, &row);
    if (has_backward(c)) {
        row.pass = "backward", row.flop = 5 * product, row.bytes = 4 * q + 2 * kv;
        bench_measure(b, o, &row, backward, &l);
        o->row(o->context, &row);
    }
    layer_free(&l);
}

void attention_bench(Backend *b, const BenchOps *o) {
    for (int i = 0; i < CASE_COUNT; i++) bench_case(b, o, &CASES[i]);
}
