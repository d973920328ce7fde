/* See bench_train.h. A device that works beside the host is not waited for within a round of steps, as in training. */
#include "train/bench_train.h"
#include "base/clock.h"
#include "kernels/bench_ops.h"
#include "kernels/cuda/host/work_space.h"
#include "kernels/dry_gpu.h"
#include "train/bench_model.h"
#include "train/device_use.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

enum {
    WARM = 2,         // steps that are not measured
    DEVICE_WARM = 5,  // where the first ones are run, written down and captured
    DEVICE_ROUND = 4, // steps that are timed together
    READS = 3,        // blocks that a GPU holds for the losses of two steps under way: cuda_read.c
    STEPS = 1000,
};
#define CLIP 1.0
static const OptimizerConfig adamw = {.learning_rate = 1e-4,
                                      .schedule = SCHEDULE_CONSTANT,
                                      .weight_decay = 0.1,
                                      .beta1 = 0.9,
                                      .beta2 = 0.999,
                                      .epsilon = 1e-8,
                                      .gradient_clip = CLIP};
static const double MOMENTS = 2 * sizeof(float); // bytes of a parameter's

typedef struct Bench {
    const BenchTrainOptions *options;
    BenchPreset preset;
    Backend *backend;
    BenchModel *model;
    Optimizer *optimizer;
    Recompute recompute;
    int64_t steps;    // so far
    DeviceUse before; // of the GPU, with nothing of a model on it
    double planned;   // bytes of tensors and work space
} Bench;

static double model_bytes(const BenchModel *m) {
    const Parameters *p = bench_model_parameters(m);
    ParameterMemory memory = parameters_memory(p);
    return memory.parameters + memory.gradients + memory.buckets + MOMENTS * (double)parameters_elements(p, true) +
           bench_model_inputs(m) + (double)tape_peak(bench_model_tape(m));
}

// ---- how much is computed again ----

// Two steps of the same code over memory that is not there.
static bool rehearse_on(Backend *dry, const BenchPreset *p, Dtype precision, Recompute recompute, double *bytes,
                        Error *error) {
    double loss;
    bool ok = true;
    void *reads[READS] = {0};
    DryGpuMemory held;
    BenchModel *m = bench_model_new(dry, p, precision, recompute, error);
    Optimizer *optimizer = m ? optimizer_new(dry, bench_model_parameters(m), &adamw, STEPS) : NULL;
    for (int i = 0; m && i < READS; i++) reads[i] = dry->allocate(dry, WORK_BLOCK_FIRST);
    for (int i = 0; m && ok && i < 2; i++)
        ok = bench_model_start(m, optimizer, i + 1, CLIP, error) && bench_model_finish(m, &loss, error);
    held = dry_gpu_memory(dry);
    *bytes = (double)(held.regions + held.products);
    for (int i = 0; m && i < READS; i++) dry->release(dry, reads[i], WORK_BLOCK_FIRST);
    optimizer_free(optimizer);
    bench_model_free(m);
    return m && ok;
}

// Bytes that tensors and work space take on a GPU; negative where the step failed.
static double rehearse(const BenchPreset *p, Dtype precision, Recompute recompute, Error *error) {
    double bytes = -1;
    Backend *dry = dry_gpu_new(0);
    bool ok = rehearse_on(dry, p, precision, recompute, &bytes, error);
    backend_free(dry);
    return ok ? bytes : -1;
}

bool bench_train_fit(const BenchPreset *p, Dtype precision, double memory, Recompute *out, Error *error) {
    static const Recompute least_first[] = {RECOMPUTE_NONE, RECOMPUTE_SELECTIVE, RECOMPUTE_FULL};
    double bytes = 0;
    for (int i = 0; i < 3; i++) {
        bytes = rehearse(p, precision, *out = least_first[i], error);
        if (bytes < 0) return false;
        if (bytes <= memory) return true;
    }
    return error_set(error, ERROR_USAGE, "a step of %s takes %.1f GiB with everything computed again; there are %.1f",
                     p->name, bytes / 0x1p30, memory / 0x1p30);
}

// ---- steps ----

static bool open_bench(Bench *b, Log *log, Error *error) {
    const BenchTrainOptions *o = b->options;
    if (!bench_preset(&b->preset, o->preset, error)) return false;
    if (o->shrink) bench_preset_shrink(&b->preset);
    b->recompute = o->recompute;
    if (o->memory > 0 && !bench_train_fit(&b->preset, o->precision, o->memory, &b->recompute, error)) return false;
    b->backend = device_backend_new(&(DeviceOptions){.device = o->device, .threads = o->threads}, log, error);
    if (!b->backend) return false;
    if (b->backend->memory) {
        device_use_first(b->backend);
        device_use(b->backend, &b->before);
        b->planned = rehearse(&b->preset, o->precision, b->recompute, error);
        if (b->planned < 0) return false;
    }
    b->model = bench_model_new(b->backend, &b->preset, o->precision, b->recompute, error);
    if (!b->model) return false;
    b->optimizer = optimizer_new(b->backend, bench_model_parameters(b->model), &adamw, STEPS);
    return true;
}

static void close_bench(Bench *b) {
    optimizer_free(b->optimizer);
    bench_model_free(b->model);
    backend_free(b->backend);
}

static bool finish(Bench *b, double *loss, Error *error) {
    if (!bench_model_finish(b->model, loss, error)) return false;
    return isfinite(*loss) || error_set(error, ERROR_FAILED, "a loss is not finite");
}

// Seconds of one of `count` steps, each started before the host looks at the one before; negative where one failed.
static double time_steps(Bench *b, int count, double *loss, Error *error) {
    double start = clock_seconds();
    for (int i = 0; i < count; i++) {
        if (!bench_model_start(b->model, b->optimizer, ++b->steps, CLIP, error)) return -1;
        if (i && !finish(b, loss, error)) return -1;
    }
    bool ok = finish(b, loss, error);
    b->backend->wait(b->backend);
    return ok ? (clock_seconds() - start) / count : -1;
}

static int by_time(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void summarise(const Bench *b, double *times, int count, double loss, BenchTrainResult *out) {
    Tape *tape = bench_model_tape(b->model);
    Cost cost = tape_cost(tape), again = tape_replayed(tape);
    bool on_cpu = !strcmp(b->backend->name, "cpu");
    DeviceUse now;
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    qsort(times, (size_t)count, sizeof *times, by_time);
    *out = (BenchTrainResult){.unit = bench_preset_unit(&b->preset),
                              .units = bench_preset_units(&b->preset),
                              .median = times[count / 2],
                              .best = times[0],
                              .worst = times[count - 1],
                              .flop = bench_model_flop(b->model),
                              .peak_flops =
                                  b->options->shrink ? INFINITY : bench_most_flops(b->backend, b->options->precision),
                              .computed = (cost.flop - again.flop + cost.backward_flop) * (double)b->preset.pieces,
                              .peak_bytes = on_cpu ? (double)usage.ru_maxrss * 1024 : model_bytes(b->model),
                              .activation_bytes = (double)tape_peak(tape),
                              .parameters = (double)parameters_elements(bench_model_parameters(b->model), false),
                              .recompute = b->recompute,
                              .loss = loss};
    if (!device_use(b->backend, &now)) return;
    out->planned = (BenchMemory){b->planned, device_use_limit(&b->before, 1).context};
    out->held = (BenchMemory){now.held, now.others};
    out->peak_bytes = now.held;
}

double bench_memory_off(const BenchTrainResult *r) {
    double planned = r->planned.tensors + r->planned.others;
    return planned > 0 ? (r->held.tensors + r->held.others) / planned - 1 : 0;
}

bool bench_train(const BenchTrainOptions *o, BenchTrainResult *out, Log *log, Error *error) {
    Bench b = {.options = o};
    double loss = 0, first_loss = 0, *times = calloc((size_t)(o->iterations > 0 ? o->iterations : 1), sizeof *times);
    check(times);
    bool ok = open_bench(&b, log, error), beside = ok && strcmp(b.backend->name, "cpu") != 0;
    int round = beside && o->iterations >= DEVICE_ROUND ? DEVICE_ROUND : 1, count = 0;
    ok = ok && time_steps(&b, 1, &first_loss, error) >= 0;
    ok = ok && time_steps(&b, beside ? DEVICE_WARM : WARM, &loss, error) >= 0;
    double until = clock_seconds() + (o->seconds > 0 ? o->seconds : INFINITY);
    do {
        ok = ok && (times[count++] = time_steps(&b, round, &loss, error)) >= 0;
    } while (ok && (count + 1) * round <= o->iterations && clock_seconds() < until);
    if (ok) summarise(&b, times, count, loss, out), out->first_loss = first_loss;
    close_bench(&b);
    free(times);
    return ok;
}
