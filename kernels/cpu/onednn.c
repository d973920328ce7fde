/* See onednn.h. The C API of oneDNN 2.x; nothing else of the program knows it. */
#include "kernels/cpu/onednn.h"
#include "base/error.h"
#include <stdlib.h>
#include <string.h>

#if defined(BIFOCAL_ONEDNN)
#include <oneapi/dnnl/dnnl.h>
#include <stdio.h>

extern void omp_set_num_threads(int) __attribute__((weak)); // of the OpenMP that oneDNN brings, where it does

enum { SLOTS = 256, OPERANDS = 4 }; // shapes remembered (a model has a few dozen); A, B, bias, C

typedef struct Entry { // one compiled product
    Matmul key;        // without pointers
    bool used, works;
    dnnl_primitive_t primitive;
    dnnl_memory_t memory[OPERANDS];
} Entry;

struct Onednn {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    char version[32];
    int next; // the slot to give up when all are taken
    Entry entries[SLOTS];
};

static const int PLACE[OPERANDS] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_BIAS, DNNL_ARG_DST};

const char *onednn_version(const Onednn *o) { return o->version; }

static dnnl_data_type_t type_of(Dtype t) { return t == F32 ? dnnl_f32 : dnnl_bf16; }

// (batch, rows, columns), or (rows, columns) for a product on its own, with the strides given, in elements.
static bool describe(dnnl_memory_desc_t *out, Dtype t, bool alone, const int64_t shape[3], const int64_t strides[3]) {
    dnnl_dims_t d = {shape[0], shape[1], shape[2]}, s = {strides[0], strides[1], strides[2]};
    if (alone) d[0] = shape[1], d[1] = shape[2], s[0] = strides[1], s[1] = strides[2];
    return dnnl_memory_desc_init_by_strides(out, alone ? 2 : 3, d, type_of(t), s) == dnnl_success;
}

// The descriptions of A, B, bias and C.
static bool describe_all(dnnl_memory_desc_t md[OPERANDS], const Matmul *p) {
    int64_t a[3] = {p->batch, p->m, p->k}, a_strides[3] = {p->a_batch, p->a_row, p->a_column};
    int64_t b[3] = {p->batch, p->k, p->n}, b_strides[3] = {p->b_batch, p->b_row, p->b_column};
    int64_t c[3] = {p->batch, p->m, p->n}, c_strides[3] = {p->c_batch, p->c_row, 1};
    int64_t bias[3] = {1, 1, p->n}, bias_strides[3] = {p->n, p->n, 1};
    bool alone = p->batch == 1;
    return describe(&md[0], p->in, alone, a, a_strides) && describe(&md[1], p->in, alone, b, b_strides) &&
           describe(&md[2], F32, alone, bias, bias_strides) && describe(&md[3], p->out, alone, c, c_strides);
}

static Matmul key_of(const Matmul *p) { // field by field: padding bytes stay zero
    Matmul key;
    memset(&key, 0, sizeof key);
    key.m = p->m, key.n = p->n, key.k = p->k, key.batch = p->batch;
    key.a_row = p->a_row, key.a_column = p->a_column, key.b_row = p->b_row, key.b_column = p->b_column;
    key.c_row = p->c_row, key.a_batch = p->a_batch, key.b_batch = p->b_batch, key.c_batch = p->c_batch;
    key.in = p->in, key.out = p->out, key.add = p->add;
    static const float present = 0;
    key.bias = p->bias ? &present : NULL;
    return key;
}

static void clear(Entry *e) {
    if (e->primitive) dnnl_primitive_destroy(e->primitive);
    for (int i = 0; i < OPERANDS; i++)
        if (e->memory[i]) dnnl_memory_destroy(e->memory[i]);
    memset(e, 0, sizeof *e);
}

static bool make_primitive(const Onednn *o, Entry *e, const dnnl_memory_desc_t md[OPERANDS]) {
    dnnl_matmul_desc_t description;
    dnnl_primitive_attr_t attributes = NULL;
    dnnl_post_ops_t after = NULL;
    dnnl_primitive_desc_t compiled = NULL;
    bool ok = dnnl_matmul_desc_init(&description, &md[0], &md[1], e->key.bias ? &md[2] : NULL, &md[3]) == dnnl_success;
    ok = ok && dnnl_primitive_attr_create(&attributes) == dnnl_success && dnnl_post_ops_create(&after) == dnnl_success;
    if (ok && e->key.add) ok = dnnl_post_ops_append_sum(after, 1) == dnnl_success;
    ok = ok && dnnl_primitive_attr_set_post_ops(attributes, after) == dnnl_success;
    ok = ok && dnnl_primitive_desc_create(&compiled, &description, attributes, o->engine, NULL) == dnnl_success;
    ok = ok && dnnl_primitive_create(&e->primitive, compiled) == dnnl_success;
    for (int i = 0; i < OPERANDS && ok; i++)
        if (i != 2 || e->key.bias) ok = dnnl_memory_create(&e->memory[i], &md[i], o->engine, DNNL_MEMORY_NONE) == 0;
    if (compiled) dnnl_primitive_desc_destroy(compiled);
    if (after) dnnl_post_ops_destroy(after);
    if (attributes) dnnl_primitive_attr_destroy(attributes);
    return ok;
}

static void compile(const Onednn *o, Entry *e, const Matmul *p) {
    dnnl_memory_desc_t md[OPERANDS];
    e->used = true;
    e->key = key_of(p);
    e->works = describe_all(md, p) && make_primitive(o, e, md);
}

static Entry *find(Onednn *o, const Matmul *p) {
    Matmul key = key_of(p);
    for (int i = 0; i < SLOTS && o->entries[i].used; i++)
        if (!memcmp(&o->entries[i].key, &key, sizeof key)) // NOLINT(bugprone-suspicious-memory-comparison): see key_of
            return &o->entries[i];
    Entry *e = &o->entries[o->next];
    o->next = (o->next + 1) % SLOTS;
    clear(e);
    compile(o, e, p);
    return e;
}

Onednn *onednn_new(int threads) {
    Onednn *o = calloc(1, sizeof *o);
    check(o);
    if (omp_set_num_threads) omp_set_num_threads(threads);
    const dnnl_version_t *v = dnnl_version();
    snprintf(o->version, sizeof o->version, "%d.%d.%d", v->major, v->minor, v->patch);
    check(dnnl_engine_create(&o->engine, dnnl_cpu, 0) == dnnl_success);
    check(dnnl_stream_create(&o->stream, o->engine, dnnl_stream_default_flags) == dnnl_success);
    return o;
}

void onednn_free(Onednn *o) {
    if (!o) return;
    for (int i = 0; i < SLOTS; i++) clear(&o->entries[i]);
    dnnl_stream_destroy(o->stream);
    dnnl_engine_destroy(o->engine);
    free(o);
}

bool onednn_matmul(Onednn *o, const Matmul *p) {
    if (p->m <= 0 || p->n <= 0 || p->k <= 0 || p->batch <= 0) return false;
    Entry *e = find(o, p);
    if (!e->works) return false;
    void *data[OPERANDS] = {(void *)p->a, (void *)p->b, (void *)p->bias, p->c}; // inputs are only read
    dnnl_exec_arg_t arguments[OPERANDS];
    int count = 0;
    for (int i = 0; i < OPERANDS; i++) {
        if (!e->memory[i]) continue;
        check(dnnl_memory_set_data_handle(e->memory[i], data[i]) == dnnl_success);
        arguments[count++] = (dnnl_exec_arg_t){PLACE[i], e->memory[i]};
    }
    check(dnnl_primitive_execute(e->primitive, o->stream, count, arguments) == dnnl_success);
    check(dnnl_stream_wait(o->stream) == dnnl_success);
    return true;
}

#else

Onednn *onednn_new(int threads) {
    (void)threads;
    return NULL;
}
void onednn_free(Onednn *o) { check(!o); }
const char *onednn_version(const Onednn *o) {
    (void)o;
    return NULL;
}
bool onednn_matmul(Onednn *o, const Matmul *p) {
    (void)o, (void)p;
    return false;
}

#endif
