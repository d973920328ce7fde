/* The speed of every operator on a GPU, in one JSON line each, behind a line with what the GPU's own copies and
 * products reach: `bifocal bench ops --device cuda --json` for a machine that has only the kernels. Exit status 77: no
 * GPU. */
#include "kernels/bench_ops.h"
#include "kernels/cuda.h"
#include "tests/gpu/attention_cases.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void print_row(void *context, const BenchRow *r) {
    (void)context;
    double share = bench_floor_seconds(r) / r->seconds;
    char goal[16] = "null";
    if (r->goal > 0) snprintf(goal, sizeof goal, "%.2f", r->goal);
    printf("{\"name\": \"%s\", \"pass\": \"%s\", \"precision\": \"%s\", \"seconds\": %.9g, \"flop\": %.6g, \"bytes\": "
           "%.6g, "
           "\"share\": %.4f, \"goal\": %s, \"goal_met\": %s}\n",
           r->name, r->pass, r->dtype == F32 ? "f32" : "bf16", r->seconds, r->flop, r->bytes, share, goal,
           r->goal <= 0       ? "null"
           : share >= r->goal ? "true"
                              : "false");
    fflush(stdout);
}

// One update as the optimizer does it: 28 bytes a parameter, 30 with the bf16 copy.
enum { PARAMETERS = 64 << 20 };
typedef struct Update {
    Backend *backend;
    float *p, *m, *v, *g;
    uint16_t *shadow;
} Update;

static void update(void *context) {
    const Update *u = context;
    AdamW rule = {1e-3, 0.9, 0.95, 1e-8, 0.1, 1, 0.1, 0.05};
    AdamWPart part = {u->p, u->m, u->v, u->shadow, u->g, PARAMETERS, true};
    u->backend->adamw_parts(u->backend, &part, 1, &rule, NULL);
}

static void bench_adamw(Backend *b, const BenchOps *o) {
    size_t bytes = (size_t)PARAMETERS * sizeof(float);
    Update u = {b, b->allocate(b, bytes), b->allocate(b, bytes), b->allocate(b, bytes), b->allocate(b, bytes), NULL};
    u.shadow = b->allocate(b, bytes / 2);
    if (!u.p || !u.m || !u.v || !u.g || !u.shadow) return;
    float *all[] = {u.p, u.m, u.v, u.g};
    for (int i = 0; i < 4; i++) b->zero(b, all[i], bytes);
    BenchRow row = {
        .name = "adamw", .pass = "step", .dtype = BF16, .flop = 20.0 * PARAMETERS, .bytes = 30.0 * PARAMETERS};
    bench_measure(b, o, &row, update, &u);
    print_row(NULL, &row);
    for (int i = 0; i < 4; i++) b->release(b, all[i], bytes);
    b->release(b, u.shadow, bytes / 2);
}

// GPT-2's: 8 rows of 1,024 tokens, 50,304 words. Forward one product, backward three.
enum { LOSS_ROWS = 8192, LOSS_WIDTH = 768, LOSS_WORDS = 50304 };
typedef struct Loss {
    Backend *backend;
    void *x, *w, *dx;
    float *lse, *picked, *d_loss, *dw;
    int32_t *targets;
} Loss;

static const Vocabulary WORDS_OF_LOSS = {.held = LOSS_WORDS, .all = LOSS_WORDS};

static void loss_forward(void *context) {
    const Loss *l = context;
    l->backend->cross_entropy_forward(l->backend, l->lse, l->picked, l->x, l->w, l->targets, LOSS_ROWS, LOSS_WIDTH,
                                      WORDS_OF_LOSS, BF16);
}

static void loss_backward(void *context) {
    const Loss *l = context;
    l->backend->cross_entropy_backward(l->backend, l->dx, false, l->dw, false, l->d_loss, l->lse, l->x, l->w,
                                       l->targets, NULL, LOSS_ROWS, LOSS_WIDTH, WORDS_OF_LOSS, BF16);
}

static void *zeros(Backend *b, size_t bytes) {
    void *memory = b->allocate(b, bytes);
    if (memory) b->zero(b, memory, bytes);
    return memory;
}

// All words are equally likely and all targets the first one: what is computed does not depend on that.
static void bench_loss(Backend *b, const BenchOps *o) {
    size_t x = sizeof(uint16_t) * LOSS_ROWS * LOSS_WIDTH, w = sizeof(uint16_t) * (size_t)LOSS_WORDS * LOSS_WIDTH;
    size_t rows = sizeof(float) * LOSS_ROWS;
    Loss l = {b,
              zeros(b, x),
              zeros(b, w),
              zeros(b, x),
              zeros(b, rows),
              zeros(b, rows),
              zeros(b, rows),
              zeros(b, 2 * w),
              zeros(b, rows)};
    double product = 2.0 * LOSS_ROWS * LOSS_WIDTH * LOSS_WORDS;
    BenchRow row = {.name = "cross_entropy_50304", .pass = "forward", .dtype = BF16, .flop = product};
    if (!l.x || !l.w || !l.dx || !l.lse || !l.picked || !l.d_loss || !l.dw || !l.targets) return;
    bench_measure(b, o, &row, loss_forward, &l);
    print_row(NULL, &row);
    row.pass = "backward", row.flop = 3 * product;
    bench_measure(b, o, &row, loss_backward, &l);
    print_row(NULL, &row);
    void *const small[] = {l.lse, l.picked, l.d_loss, l.targets};
    for (int i = 0; i < 4; i++) b->release(b, small[i], rows);
    b->release(b, l.x, x), b->release(b, l.dx, x), b->release(b, l.w, w), b->release(b, l.dw, 2 * w);
}

// ---- parts ----

static void bench_bf16(Backend *b, const BenchOps *o) { bench_operators(b, o, BF16, NULL); }
static void bench_f32(Backend *b, const BenchOps *o) { bench_operators(b, o, F32, NULL); }
static void bench_all_products(Backend *b, const BenchOps *o) { bench_products(b, o, BF16); }

typedef struct Part {
    const char *name;
    void (*run)(Backend *, const BenchOps *);
} Part;
static const Part parts[] = {{"adamw", bench_adamw}, {"loss", bench_loss}, {"attention", attention_bench},
                             {"bf16", bench_bf16},   {"f32", bench_f32},   {"products", bench_all_products}};
enum { PARTS = sizeof parts / sizeof *parts };

static void print_peak(const Backend *b, const Peak *peak) {
    printf("{\"architecture\": \"%s\", \"copy_gbytes\": %.1f, \"cached_gbytes\": %.1f, \"f32_gflops\": %.1f, "
           "\"bf16_gflops\": %.1f}\n",
           b->isa, peak->copy, peak->cached, peak->f32, peak->bf16);
    fflush(stdout);
}

// gpu_bench [SECONDS FOR EACH FIGURE [PART]]; gpu_bench --list: the parts
int main(int argc, char **argv) {
    Error error = {0};
    const char *only = argc > 2 ? argv[2] : NULL;
    for (int i = 0; i < PARTS && argc > 1 && !strcmp(argv[1], "--list"); i++) puts(parts[i].name);
    if (argc > 1 && !strcmp(argv[1], "--list")) return 0;
    Log *log = log_new(LOG_WARNING, stderr);
    Backend *b = cuda_backend_new(&(CudaOptions){0}, log, &error);
    if (!b) {
        fprintf(stderr, "skipped: %s\n", error.message);
        log_free(log);
        return 77;
    }
    BenchOps o = {.seconds = argc > 1 ? atof(argv[1]) : 0.05, .row = print_row, .size = EXAMPLE_HUGE};
    o.peak = bench_peak(b, 0.3);
    if (!only || !strcmp(only, parts[0].name)) print_peak(b, &o.peak);
    for (int i = 0; i < PARTS; i++)
        if (!only || !strcmp(only, parts[i].name)) parts[i].run(b, &o);
    backend_free(b);
    log_free(log);
    return 0;
}
