/* Every operator of the list on a GPU against the CPU backend: outputs and gradients on random odd shapes in f32 and
 * bf16, the same bits in three runs, no allocation in a second step; and what no operator calls. A JSON line to stdout
 * for each, as soon as it is known. A part that ends the process (a fault of the device, an abort, a minute without an
 * end) is told like any other that does not hold, and another process goes on behind it. Exit status 0: all holds, 1:
 * something does not, 77: there is no GPU. Needs nothing but the kernels, so that it runs on a bare machine. */
#include "base/clock.h"
#include "base/error.h"
#include "kernels/comm/device_link.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cuda.h"
#include "tests/gpu/attention_cases.h"
#include "tests/kernels/operator_run.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { RUNS = 3, MOST_SEEDS = 16, NO_GPU = 77, PATIENCE = 60 /* seconds for a part */ };

typedef struct Check {
    Backend *cpu, *gpu;
    Tape *cpu_tape, *gpu_tape;
    Arena *memory;
    int seeds;
    int failed, cases;
} Check;

typedef struct Result {      // of one operator in one precision
    double output, gradient; // the largest difference from the CPU, as a share of what is allowed
    double error,
        cpu_error; // of outputs: rms of the difference from the reference in f64 by the rms of that, the worst case
    int cases, unequal_runs, allocations;
    char wrong[160]; // the first thing that does not hold
} Result;

static double rms(Values v) {
    double sum = 0;
    for (int64_t i = 0; i < v.count; i++) sum += v.value[i] * v.value[i] / (double)v.count;
    return sqrt(sum);
}

static double rms_difference(Values a, Values b) {
    double sum = 0;
    for (int64_t i = 0; i < a.count; i++)
        sum += (a.value[i] - b.value[i]) * (a.value[i] - b.value[i]) / (double)a.count;
    return sqrt(sum);
}

// The largest difference as a share of what is allowed: sums in another order; in bf16 two roundings of 2^-8 on each
// side.
static double share(Values got, Values want, Dtype t) {
    double typical = rms(want), worst = 0;
    for (int64_t i = 0; i < want.count; i++) {
        double size = fabs(want.value[i]) + typical + 1e-12;
        double part = fabs(got.value[i] - want.value[i]) / (t == F32 ? 2e-5 * size : 0x1p-6 * size);
        if (!(part <= worst)) worst = part; // NaN stays
    }
    return worst;
}

static void complain(Result *r, Choice c, const char *what, double number) {
    if (!r->wrong[0])
        snprintf(r->wrong, sizeof r->wrong, "%s, variant %d, seed %d: %g", what, c.variant, (int)c.seed, number);
}

static void keep_worst(double *worst, double value) {
    if (!(value <= *worst)) *worst = value;
}

static bool same_bits(const Run *a, const Run *b) {
    if (memcmp(a->out.value, b->out.value, sizeof(double) * (size_t)a->out.count) != 0) return false;
    for (int i = 0; i < MAX_INPUTS; i++)
        if (a->gradient[i].value &&
            memcmp(a->gradient[i].value, b->gradient[i].value, sizeof(double) * (size_t)a->gradient[i].count) != 0)
            return false;
    return true;
}

static void compare(const Run *gpu, const Run *cpu, Result *r) {
    Choice c = gpu->choice;
    double part = share(gpu->out, cpu->out, c.dtype);
    keep_worst(&r->output, part);
    if (!(part <= 1)) complain(r, c, "an output, in units of what is allowed", part);
    for (int i = 0; i < MAX_INPUTS; i++) {
        if (!gpu->gradient[i].value) continue;
        part = share(gpu->gradient[i], cpu->gradient[i], c.dtype);
        keep_worst(&r->gradient, part);
        if (!(part <= 1)) complain(r, c, "a gradient, in units of what is allowed", part);
    }
    Values truth = run_reference(cpu);
    double size = rms(truth) + 1e-12;
    keep_worst(&r->error, rms_difference(gpu->out, truth) / size);
    keep_worst(&r->cpu_error, rms_difference(cpu->out, truth) / size);
}

static void check_case(Check *k, Choice c, Result *r) {
    arena_reset(k->memory);
    Run cpu = run_forward(k->memory, k->cpu_tape, c), gpu = {0};
    run_backward(&cpu, false);
    int64_t allocations = 0;
    for (int run = 0; run < RUNS; run++) {
        Run again = run_forward(k->memory, k->gpu_tape, c);
        run_backward(&again, false);
        if (run == 0) gpu = again, allocations = tape_system_allocations(k->gpu_tape);
        if (run && !same_bits(&gpu, &again)) r->unequal_runs++, complain(r, c, "other bits in another run", run);
    }
    if (tape_system_allocations(k->gpu_tape) != allocations)
        r->allocations++, complain(r, c, "it allocates in every step", 1);
    compare(&gpu, &cpu, r);
    r->cases++;
}

static void print_result(const Result *r, const Operator *op, Dtype t) {
    printf("{\"operator\": \"%s\", \"precision\": \"%s\", \"cases\": %d, \"output\": %.3g, \"gradient\": %.3g, "
           "\"error\": %.4g, \"cpu_error\": %.4g, \"unequal_runs\": %d, \"allocations\": %d, \"wrong\": \"%s\"}\n",
           op->name, t == F32 ? "f32" : "bf16", r->cases, isfinite(r->output) ? r->output : 1e30,
           isfinite(r->gradient) ? r->gradient : 1e30, isfinite(r->error) ? r->error : 1e30,
           isfinite(r->cpu_error) ? r->cpu_error : 1e30, r->unequal_runs, r->allocations, r->wrong);
}

static void check_operator(Check *k, const Operator *op, Dtype t) {
    Result r = {0};
    int variants = run_variants(k->cpu_tape, op);
    for (int v = 0; v < variants; v++)
        for (int seed = 0; seed < k->seeds; seed++) check_case(k, (Choice){op, t, v, (uint64_t)seed}, &r);
    k->cases += r.cases;
    k->failed += r.wrong[0] != 0;
    print_result(&r, op, t);
}

// ---- what no operator calls ----

static void *device_copy(Backend *b, const void *host, size_t bytes) {
    void *memory = b->allocate(b, bytes);
    check(memory);
    b->upload(b, memory, host, bytes);
    return memory;
}

static void draw(Rng *rng, float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] = (float)rng_normal(rng);
}

// More than the pinned memory that copies go through, of odd size, there and back.
static bool copies_come_back(const Check *k) {
    Backend *b = k->gpu;
    enum { COUNT = (45 << 20) + 7 };
    unsigned char *out = malloc(COUNT), *in = calloc(1, COUNT);
    check(out && in);
    for (int i = 0; i < COUNT; i++) out[i] = (unsigned char)(i * 31 + i / 4096);
    void *first = device_copy(b, out, COUNT), *second = b->allocate(b, COUNT);
    b->copy(b, second, first, COUNT);
    b->download(b, in, second, COUNT);
    bool same = !memcmp(in, out, COUNT);
    b->zero(b, second, COUNT);
    b->download(b, in, second, COUNT);
    for (int i = 0; i < COUNT && same; i++) same = in[i] == 0;
    b->release(b, first, COUNT);
    b->release(b, second, COUNT);
    free(in);
    free(out);
    return same;
}

static bool memory_grows_in_place(const Check *k) {
    Backend *b = k->gpu;
    enum { FIRST = 4 << 20, MORE = 64 << 20 };
    char byte = 7, back = 0, *memory = b->allocate(b, FIRST);
    bool ok = memory && b->extend(b, memory, FIRST, MORE);
    if (ok) b->upload(b, memory + FIRST + MORE - 1, &byte, 1);
    if (ok) b->download(b, &back, memory + FIRST + MORE - 1, 1);
    b->release(b, memory, FIRST + MORE);
    return ok && back == 7;
}

enum { PARAMETERS = 10007 };

static void update(Backend *b, const float *start, float *out, uint16_t *shadow) {
    size_t bytes = PARAMETERS * sizeof(float);
    float *p = device_copy(b, start, bytes), *m = device_copy(b, start + PARAMETERS, bytes);
    float *v = device_copy(b, start + 2 * PARAMETERS, bytes), *g = device_copy(b, start + 3 * PARAMETERS, bytes);
    uint16_t *s = b->allocate(b, bytes / 2);
    AdamW rule = {1e-2, 0.9, 0.95, 1e-8, 0.1, 0.7, 1 - 0.81, 1 - 0.9025};
    b->adamw_parts(b, &(AdamWPart){p, m, v, s, g, PARAMETERS, true}, 1, &rule, NULL);
    b->download(b, out, p, bytes);
    b->download(b, shadow, s, bytes / 2);
    float *all[] = {p, m, v, g};
    for (int i = 0; i < 4; i++) b->release(b, all[i], bytes);
    b->release(b, s, bytes / 2);
}

static bool adamw_agrees(const Check *k) {
    static float start[4 * PARAMETERS], out[2][PARAMETERS];
    static uint16_t shadow[2][PARAMETERS];
    Rng rng = rng_for(3, PURPOSE_TEST, 0);
    draw(&rng, start, 4 * PARAMETERS);
    for (int i = 2 * PARAMETERS; i < 3 * PARAMETERS; i++) start[i] = fabsf(start[i]);
    update(k->cpu, start, out[0], shadow[0]);
    update(k->gpu, start, out[1], shadow[1]);
    bool ok = true;
    for (int i = 0; i < PARAMETERS && ok; i++)
        ok = fabsf(out[0][i] - out[1][i]) <= 2e-6f * (1 + fabsf(out[0][i])) && shadow[1][i] == f32_to_bf16(out[1][i]);
    return ok;
}

static bool sums_for_the_host_agree(const Check *k) {
    enum { BLOCKS = 37, BLOCK = 1024 };
    static float x[BLOCKS * BLOCK];
    double squares[2][BLOCKS];
    Rng rng = rng_for(4, PURPOSE_TEST, 0);
    draw(&rng, x, BLOCKS * BLOCK);
    Backend *backends[] = {k->cpu, k->gpu};
    bool ok = true;
    for (int i = 0; i < 2; i++) {
        x[777] = 1;
        float *memory = device_copy(backends[i], x, sizeof x);
        double *sums = backends[i]->allocate(backends[i], sizeof squares[i]);
        backends[i]->block_squares(backends[i], sums, memory, BLOCKS, BLOCK);
        backends[i]->download(backends[i], squares[i], sums, sizeof squares[i]);
        backends[i]->release(backends[i], sums, sizeof squares[i]);
        ok = ok && backends[i]->first_nonfinite(backends[i], memory, BLOCKS * BLOCK, F32) == -1;
        x[777] = NAN;
        backends[i]->upload(backends[i], memory, x, sizeof x);
        ok = ok && backends[i]->first_nonfinite(backends[i], memory, BLOCKS * BLOCK, F32) == 777;
        backends[i]->release(backends[i], memory, sizeof x);
    }
    for (int i = 0; i < BLOCKS && ok; i++) ok = fabs(squares[0][i] - squares[1][i]) <= 1e-9 * squares[0][i];
    return ok;
}

enum { FP8_ROWS = 256, FP8_WIDTH = 128 };

// y = x W^T in fp8, and the largest numbers on the way.
static void multiply_fp8(Backend *b, const uint16_t *x, const uint16_t *w, uint16_t *y, float most[2]) {
    enum { X_BYTES = FP8_ROWS * FP8_WIDTH * 2, W_BYTES = FP8_WIDTH * FP8_WIDTH * 2 };
    Fp8Scaling scaling[2] = {{.scale = 64, .inverse = 1.0F / 64}, {.scale = 1024, .inverse = 1.0F / 1024}};
    float zeros[2] = {0, 0}, *device_most = device_copy(b, zeros, sizeof zeros);
    Fp8Scaling *device_scaling = device_copy(b, scaling, sizeof scaling);
    void *device_x = device_copy(b, x, X_BYTES), *device_w = device_copy(b, w, W_BYTES), *out = b->allocate(b, X_BYTES);
    Matmul p = {.m = FP8_ROWS, .n = FP8_WIDTH, .k = FP8_WIDTH, .batch = 1, .in = BF16, .out = BF16};
    p.a = device_x, p.a_row = FP8_WIDTH, p.a_column = 1, p.b = device_w, p.b_row = 1, p.b_column = FP8_WIDTH;
    p.c = out, p.c_row = FP8_WIDTH;
    b->matmul_fp8(b, &p, (Fp8Side){&device_scaling[0], &device_most[0], FP8_E4M3},
                  (Fp8Side){&device_scaling[1], &device_most[1], FP8_E4M3});
    b->download(b, y, out, X_BYTES);
    b->download(b, most, device_most, sizeof zeros);
    b->release(b, device_most, sizeof zeros);
    b->release(b, device_scaling, sizeof scaling);
    b->release(b, device_x, X_BYTES);
    b->release(b, device_w, W_BYTES);
    b->release(b, out, X_BYTES);
}

// Where the GPU has it.
static bool fp8_agrees(const Check *k) {
    static uint16_t x[FP8_ROWS * FP8_WIDTH], w[FP8_WIDTH * FP8_WIDTH], y[2][FP8_ROWS * FP8_WIDTH];
    float most[2][2];
    Rng rng = rng_for(5, PURPOSE_TEST, 0);
    if (!k->gpu->matmul_fp8) return true;
    for (int i = 0; i < FP8_ROWS * FP8_WIDTH; i++) x[i] = f32_to_bf16((float)rng_normal(&rng));
    for (int i = 0; i < FP8_WIDTH * FP8_WIDTH; i++) w[i] = f32_to_bf16(0.1F * (float)rng_normal(&rng));
    multiply_fp8(k->cpu, x, w, y[0], most[0]);
    multiply_fp8(k->gpu, x, w, y[1], most[1]);
    bool ok = most[0][0] == most[1][0] && most[0][1] == most[1][1];
    for (int i = 0; i < FP8_ROWS * FP8_WIDTH && ok; i++) {
        float a = bf16_to_f32(y[0][i]), b = bf16_to_f32(y[1][i]);
        ok = fabsf(a - b) <= 0x1p-7F * (fabsf(a) + 0.1F);
    }
    return ok;
}

static bool too_much_memory_is_refused(const Check *k) { return !k->gpu->allocate(k->gpu, (size_t)1 << 50); }

// ---- sequences: the same calls at once, command by command, and as a graph ----

enum { CHAIN_ROWS = 256, CHAIN_WIDTH = 512, CHAIN_RUNS = 4 };
typedef struct Chain {
    void *x, *w, *y, *z;
    float *mean, *rstd, *scale, *shift, *sum;
} Chain;

// z = gelu(norm(x) W^T), and its sum by a factor that comes as a message.
static BackendRead *run_chain(Backend *b, const Chain *c, double factor) {
    Matmul p = {.m = CHAIN_ROWS, .n = CHAIN_WIDTH, .k = CHAIN_WIDTH, .batch = 1, .in = BF16, .out = BF16};
    p.a = c->y, p.a_row = CHAIN_WIDTH, p.a_column = 1, p.b = c->w, p.b_row = 1, p.b_column = CHAIN_WIDTH;
    p.c = c->z, p.c_row = CHAIN_WIDTH;
    b->layernorm_forward(b, c->y, c->mean, c->rstd, c->x, c->scale, c->shift, CHAIN_ROWS, CHAIN_WIDTH, 1e-5, BF16);
    b->matmul(b, &p);
    b->gelu_forward(b, c->z, c->z, (int64_t)CHAIN_ROWS * CHAIN_WIDTH, 1, BF16);
    b->sum_into(b, c->sum, c->z, (int64_t)CHAIN_ROWS * CHAIN_WIDTH, factor, BF16);
    return backend_read_start(b, c->sum, sizeof(float));
}

static bool sequences_have_the_bits_of_calls(const Check *k) {
    enum { NUMBERS = CHAIN_ROWS * CHAIN_WIDTH, BYTES = 2 * NUMBERS, VECTOR = CHAIN_WIDTH * sizeof(float) };
    static uint16_t x[NUMBERS], w[CHAIN_WIDTH * CHAIN_WIDTH], z[2][NUMBERS];
    static float ones[CHAIN_WIDTH];
    Backend *b = k->gpu;
    Rng rng = rng_for(6, PURPOSE_TEST, 0);
    for (int i = 0; i < NUMBERS; i++) x[i] = f32_to_bf16((float)rng_normal(&rng));
    for (int i = 0; i < CHAIN_WIDTH * CHAIN_WIDTH; i++) w[i] = f32_to_bf16(0.05F * (float)rng_normal(&rng));
    for (int i = 0; i < CHAIN_WIDTH; i++) ones[i] = 1;
    Chain c = {device_copy(b, x, BYTES),     device_copy(b, w, sizeof w),  b->allocate(b, BYTES),
               b->allocate(b, BYTES),        b->allocate(b, VECTOR),       b->allocate(b, VECTOR),
               device_copy(b, ones, VECTOR), device_copy(b, ones, VECTOR), b->allocate(b, sizeof(float))};
    float sum[2] = {0};
    bool ok = true;
    for (int run = 0; run < CHAIN_RUNS; run++) {
        int to = run > 0;
        b->zero(b, c.z, BYTES);
        if (to) backend_sequence_begin(b, "a chain");
        BackendRead *read = run_chain(b, &c, 1 + run);
        if (to) backend_sequence_end(b);
        backend_read_finish(b, read, &sum[to]);
        b->download(b, z[to], c.z, BYTES);
        double want = (double)sum[0] * (1 + run);
        ok = ok && !memcmp(z[0], z[to], BYTES) && fabs((double)sum[to] - want) <= 1e-6 * fabs(want);
    }
    void *all[] = {c.x, c.w, c.y, c.z, c.mean, c.rstd, c.scale, c.shift, c.sum};
    size_t bytes[] = {BYTES, sizeof w, BYTES, BYTES, VECTOR, VECTOR, VECTOR, VECTOR, sizeof(float)};
    for (int i = 0; i < 9; i++) b->release(b, all[i], bytes[i]);
    return ok;
}

// ---- a link of one rank: NCCL takes every call, in a graph too; true where there is none ----

enum { LINKED = 1024 }; // numbers

static void call_link(DeviceLink *link, DeviceCall call) {
    call.rows = LINKED, call.width = 1, call.what = "a link of one rank";
    link->wait(link, link->start(link, &call));
}

// Sums in its own way and in order, a gather, a broadcast: all leave what was there.
static bool calls_keep_numbers(Backend *b, DeviceLink *link, float *x, const float *want) {
    static float got[LINKED];
    for (int run = 0; run < CHAIN_RUNS; run++) {
        backend_sequence_begin(b, "a link");
        call_link(link, (DeviceCall){.kind = CALL_ALL_REDUCE, .out = x, .in = x, .type = COMM_F32});
        call_link(link,
                  (DeviceCall){.kind = CALL_ALL_REDUCE, .out = x, .in = x, .type = COMM_F32, .order = COMM_ORDERED});
        call_link(link, (DeviceCall){.kind = CALL_ALL_GATHER, .out = x, .in = x, .type = COMM_F32});
        call_link(link, (DeviceCall){.kind = CALL_BROADCAST, .out = x, .in = x, .type = COMM_F32});
        backend_sequence_end(b);
    }
    b->download(b, got, x, sizeof got);
    return !memcmp(got, want, sizeof got) && !link->fault(link);
}

static bool a_link_of_one_rank_works(const Check *k) {
    static float want[LINKED];
    Backend *b = k->gpu;
    DeviceIdentity own = {0};
    DeviceLinkId id;
    Error error = {0};
    if (b->links) b->links->identify(b, &own);
    if (!own.can_link) {
        fprintf(stderr, "no link: %s\n", own.why_not);
        return true;
    }
    for (int i = 0; i < LINKED; i++) want[i] = (float)i;
    DeviceLink *link =
        b->links->new_id(b, &id, &error) ? b->links->open(b, LINK_COLLECTIVE, &id, 0, 1, "one", &error) : NULL;
    if (!link || own.wrong) {
        fprintf(stderr, "no link: %s\n", own.wrong ? own.why_not : error.message);
        return false;
    }
    float *x = device_copy(b, want, sizeof want);
    bool ok = calls_keep_numbers(b, link, x, want);
    link->close(link);
    b->release(b, x, sizeof want);
    return ok;
}

// ---- parts, and processes that do them ----

typedef struct Claim {
    const char *name;
    bool (*holds)(const Check *);
} Claim;
static const Claim claims[] = {
    {"copies_come_back", copies_come_back},
    {"memory_grows_in_place", memory_grows_in_place},
    {"too_much_memory_is_refused", too_much_memory_is_refused},
    {"adamw_agrees", adamw_agrees},
    {"sums_for_the_host_agree", sums_for_the_host_agree},
    {"fp8_agrees", fp8_agrees},
    {"sequences_have_the_bits_of_calls", sequences_have_the_bits_of_calls},
    {"a_link_of_one_rank_works", a_link_of_one_rank_works},
};
enum { CLAIMS = sizeof claims / sizeof *claims };

// What there is to do, one after the other: claims, cases of attention, operators in both precisions.
typedef struct Parts {
    const char *only; // part of a name; NULL: all
    int count;
} Parts;

static Parts all_parts(const char *only) {
    int operators = 0;
    while (operator_list[operators]) operators++;
    return (Parts){only, CLAIMS + attention_cases() + 2 * operators};
}

static const Operator *operator_of(int part, Dtype *t) {
    int at = part - CLAIMS - attention_cases();
    *t = at % 2 ? BF16 : F32;
    return operator_list[at / 2];
}

// "attention/gpt2", "layernorm bf16"
static void name_part(int part, char *name, size_t size) {
    Dtype t;
    if (part < CLAIMS)
        snprintf(name, size, "claim/%s", claims[part].name);
    else if (part < CLAIMS + attention_cases())
        snprintf(name, size, "attention/%s", attention_case_name(part - CLAIMS));
    else {
        const Operator *op = operator_of(part, &t);
        snprintf(name, size, "%s %s", op->name, t == F32 ? "f32" : "bf16");
    }
}

// "" names the operators alone.
static bool wanted(const Parts *p, int part) {
    char name[128];
    name_part(part, name, sizeof name);
    bool whole = part < CLAIMS + attention_cases();
    return !p->only || (strstr(name, p->only) && (*p->only || !whole));
}

static void do_part(Check *k, int part) {
    Dtype t;
    if (part >= CLAIMS + attention_cases()) {
        const Operator *op = operator_of(part, &t);
        check_operator(k, op, t);
        return;
    }
    char name[128];
    bool holds = part < CLAIMS ? claims[part].holds(k) : attention_case_holds(k->cpu, k->gpu, part - CLAIMS);
    name_part(part, name, sizeof name);
    printf("{\"claim\": \"%s\", \"holds\": %s}\n", name, holds ? "true" : "false");
    k->failed += !holds;
    k->cases++;
}

typedef struct Progress { // shared with the process that does the parts
    int part;             // the one it is at
    int failed, cases;
    bool told; // of the device
} Progress;

// From part `first` on. Returns an exit status.
static int do_parts(const Parts *p, int first, int seeds, Progress *progress) {
    Error error = {0};
    Log *log = log_new(LOG_INFO, stderr);
    Check k = {.seeds = seeds, .gpu = cuda_backend_new(&(CudaOptions){0}, log, &error)};
    if (!k.gpu) {
        fprintf(stderr, "skipped: %s\n", error.message);
        log_free(log);
        return NO_GPU;
    }
    k.cpu = cpu_backend_new(0, NULL, log);
    k.memory = arena_new(1 << 20);
    k.cpu_tape = tape_new(k.cpu, true), k.gpu_tape = tape_new(k.gpu, true);
    if (!progress->told) printf("{\"architecture\": \"%s\"}\n", k.gpu->isa);
    progress->told = true;
    for (progress->part = first; progress->part < p->count; progress->part++) {
        if (!wanted(p, progress->part)) continue;
        alarm(PATIENCE);
        do_part(&k, progress->part);
        alarm(0);
        fflush(stdout);
        progress->failed += k.failed, progress->cases += k.cases;
        k.failed = k.cases = 0;
    }
    fflush(stdout);
    tape_free(k.cpu_tape);
    tape_free(k.gpu_tape);
    arena_free(k.memory);
    backend_free(k.cpu);
    backend_free(k.gpu);
    log_free(log);
    return 0;
}

// What ended a process is told in its part's place. False: nothing can be done about it.
static bool tell_of_death(const Progress *p, const Parts *parts, int status) {
    char name[128];
    if (p->part < 0 || p->part >= parts->count) return false;
    name_part(p->part, name, sizeof name);
    if (WIFSIGNALED(status))
        printf("{\"claim\": \"%s\", \"holds\": false, \"wrong\": \"%s\"}\n", name, strsignal(WTERMSIG(status)));
    else
        printf("{\"claim\": \"%s\", \"holds\": false, \"wrong\": \"exit status %d\"}\n", name, WEXITSTATUS(status));
    fflush(stdout);
    return true;
}

// In processes of their own, since a device that failed is lost to the one that used it.
static int run_parts(const Parts *parts, int seeds, Progress *p) {
    for (int first = 0;; first = p->part + 1) {
        int status = 0;
        p->part = -1;
        pid_t child = fork();
        check(child >= 0);
        if (!child) exit(do_parts(parts, first, seeds, p));
        check(waitpid(child, &status, 0) == child);
        if (WIFEXITED(status) && (!WEXITSTATUS(status) || WEXITSTATUS(status) == NO_GPU)) return WEXITSTATUS(status);
        p->failed++;
        if (!tell_of_death(p, parts, status)) return 1;
    }
}

// gpu_check [SEEDS [PART OF A NAME]]; with --here all in this process, as other tools like it
int main(int argc, char **argv) {
    bool here = argc > 1 && !strcmp(argv[1], "--here");
    argc -= here, argv += here;
    int seeds = argc > 1 ? atoi(argv[1]) : 4;
    Parts parts = all_parts(argc > 2 ? argv[2] : NULL);
    Progress *p = mmap(NULL, sizeof *p, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    check(p != MAP_FAILED);
    double start = clock_seconds();
    if (seeds < 1 || seeds > MOST_SEEDS) seeds = MOST_SEEDS;
    int status = here ? do_parts(&parts, 0, seeds, p) : run_parts(&parts, seeds, p);
    if (status == NO_GPU) return status;
    printf("{\"cases\": %d, \"failed\": %d, \"seconds\": %.1f}\n", p->cases, p->failed, clock_seconds() - start);
    return p->failed != 0;
}
