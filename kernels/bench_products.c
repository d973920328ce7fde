/* The matrix products of bench_ops.h: the shapes of a linear layer y = x W^T in known models, with both gradients, by
 * our kernel and by oneDNN in turn on the same memory. */
#include "base/error.h"
#include "kernels/bench_ops.h"
#include "kernels/cpu/onednn.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Layer {
    const char *name;
    int64_t rows, out, in; // x (rows, in), W (out, in)
} Layer;

static const Layer LAYERS[] = {
    {"GPT-2 qkv", 1024, 2304, 768},
    {"GPT-2 projection", 1024, 768, 768},
    {"GPT-2 up", 1024, 3072, 768},
    {"GPT-2 down", 1024, 768, 3072},
    {"GPT-2 logits, part", 1024, 8192, 768},
    {"ViT-B qkv", 1576, 2304, 768},
    {"ViT-B projection", 1576, 768, 768},
    {"ViT-B up", 1576, 3072, 768},
    {"ViT-B down", 1576, 768, 3072},
    {"width 384 qkv", 1024, 1152, 384},
    {"width 384 up", 1024, 1536, 384},
    {"width 384 down", 1024, 384, 1536},
    {"width 192 up", 1024, 768, 192},
    {"width 128 qkv", 768, 384, 128},
    {"width 128 projection", 768, 128, 128},
    {"width 128 up", 768, 512, 128},
    {"width 128 down", 768, 128, 512},
    {"65 characters", 768, 65, 128},
    {"64 cubed", 64, 64, 64},
    {"1024 cubed", 1024, 1024, 1024},
};
enum { LAYER_COUNT = sizeof LAYERS / sizeof *LAYERS, PASSES = 3 };
static const char *const PASS[PASSES] = {"forward", "input", "weight"};

typedef struct Operands { // f32 sizes; bf16 uses the first half
    void *x, *w, *y;
} Operands;

typedef struct Call {
    Backend *backend;
    Onednn *peer;        // NULL: ours
    Fp8Scaling *scaling; // of both sides: in fp8; NULL: as they are
    Matmul p;
} Call;

static void run(void *context) {
    Call *c = context;
    if (c->scaling)
        c->backend->matmul_fp8(c->backend, &c->p, (Fp8Side){c->scaling, NULL, FP8_E4M3},
                               (Fp8Side){c->scaling, NULL, FP8_E4M3});
    else if (c->peer)
        check(onednn_matmul(c->peer, &c->p));
    else
        c->backend->matmul(c->backend, &c->p);
}

// y = x W^T;  dx = dy W;  dW = dy^T x, in f32 as gradients of parameters are.
static Matmul product(const Layer *l, int pass, const Operands *m, Dtype t) {
    Matmul p = {.batch = 1, .in = t, .out = t, .a_column = 1, .b_column = 1};
    if (pass == 0) {
        p.m = l->rows, p.n = l->out, p.k = l->in;
        p.a = m->x, p.b = m->w, p.c = m->y;
        p.a_row = l->in, p.b_row = 1, p.b_column = l->in, p.c_row = l->out;
    } else if (pass == 1) {
        p.m = l->rows, p.n = l->in, p.k = l->out;
        p.a = m->y, p.b = m->w, p.c = m->x;
        p.a_row = l->out, p.b_row = l->in, p.c_row = l->in;
    } else {
        p.m = l->out, p.n = l->in, p.k = l->rows;
        p.a = m->y, p.b = m->x, p.c = m->w;
        p.a_row = 1, p.a_column = l->out, p.b_row = l->in, p.c_row = l->in;
        p.out = F32;
    }
    return p;
}

static void fill(Backend *b, void *device, int64_t count, Dtype t) { // small numbers, both signs
    void *x = malloc((size_t)count * dtype_size(t));
    check(x);
    for (int64_t i = 0; i < count; i++) {
        float v = (float)(i * 7 % 13 - 6) * 0.01f;
        if (t == F32)
            ((float *)x)[i] = v;
        else
            ((uint16_t *)x)[i] = f32_to_bf16(v);
    }
    b->upload(b, device, x, (size_t)count * dtype_size(t));
    free(x);
}

static void bench_pass(Backend *b, Onednn *peer, const BenchOps *o, const Layer *l, int pass, const Operands *m,
                       BenchRow *row) {
    Call ours = {b, NULL, NULL, product(l, pass, m, row->dtype)}, theirs = ours;
    theirs.peer = peer;
    BenchRow other = *row;
    bench_measure(b, o, row, run, &ours);
    if (peer && onednn_matmul(peer, &theirs.p)) {
        bench_measure(b, o, &other, run, &theirs);
        row->peer_seconds = other.seconds;
    }
    o->row(o->context, row);
}

// Rounding both sides included; on a device that has it.
static void bench_fp8(Backend *b, const BenchOps *o, const Layer *l, int pass, const Operands *m,
                      const BenchRow *like) {
    Fp8Scaling scaling = {.scale = 1, .inverse = 1};
    Call call = {b, NULL, NULL, product(l, pass, m, like->dtype)};
    BenchRow row = *like;
    bool fits = call.p.m % 16 == 0 && call.p.n % 16 == 0 && call.p.k % 16 == 0 && like->dtype == BF16;
    if (!b->apart || !b->matmul_fp8 || !fits) return;
    call.scaling = b->allocate(b, sizeof scaling);
    check(call.scaling);
    b->upload(b, call.scaling, &scaling, sizeof scaling);
    snprintf(row.name, sizeof row.name, "%s, fp8", l->name);
    bench_measure(b, o, &row, run, &call);
    o->row(o->context, &row);
    b->release(b, call.scaling, sizeof scaling);
}

static void bench_layer(Backend *b, Onednn *peer, const BenchOps *o, const Layer *l, Dtype t) {
    size_t sizes[3] = {(size_t)(l->rows * l->in) * 4, (size_t)(l->out * l->in) * 4, (size_t)(l->rows * l->out) * 4};
    Operands m = {b->allocate(b, sizes[0]), b->allocate(b, sizes[1]), b->allocate(b, sizes[2])};
    check(m.x && m.w && m.y);
    for (int pass = 0; pass < PASSES; pass++) {
        fill(b, m.x, l->rows * l->in, t);
        fill(b, m.w, l->out * l->in, t);
        fill(b, m.y, l->rows * l->out, t);
        double size = (double)dtype_size(t), out = pass == 2 ? 4 : size;
        double count[3] = {(double)(l->rows * l->in), (double)(l->out * l->in), (double)(l->rows * l->out)};
        BenchRow row = {.pass = PASS[pass], .dtype = t};
        row.flop = 2 * (double)l->rows * (double)l->out * (double)l->in;
        row.bytes = size * (count[0] + count[1] + count[2]) + (out - size) * count[1];
        snprintf(row.name, sizeof row.name, "%s", l->name);
        bench_pass(b, peer, o, l, pass, &m, &row);
        bench_fp8(b, o, l, pass, &m, &row);
    }
    b->release(b, m.x, sizes[0]);
    b->release(b, m.w, sizes[1]);
    b->release(b, m.y, sizes[2]);
}

void bench_products(Backend *b, const BenchOps *o, Dtype dtype) {
    Onednn *peer = strcmp(b->name, "cpu") ? NULL : onednn_new(threads_count(cpu_threads(b))); // of the CPU's products
    for (int i = 0; i < LAYER_COUNT; i++)
        if (!o->only || strstr(LAYERS[i].name, o->only)) bench_layer(b, peer, o, &LAYERS[i], dtype);
    onednn_free(peer);
}
