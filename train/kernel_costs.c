/* See kernel_costs.h. */
#include "train/kernel_costs.h"
#include "kernels/dry_gpu.h"
#include "train/bench_model.h"
#include "train/device_memory.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

// Seconds between two kernels of a graph, the second of which waits for the first; and shares of the data sheet that
// long products, attention with heads of 64 and streaming kernels are known to reach on Hopper.
static const double GAP = 1e-6, PRODUCTS = 0.75, ATTENTION = 0.4, BANDWIDTH = 0.9;
static const double CLIP = 1;

DryRates kernel_rates_bound(const GpuKind *k) {
    return (DryRates){.bf16 = k->bf16, .f32 = k->f32, .fp8 = k->fp8, .bandwidth = k->bandwidth, .launch = GAP};
}

DryRates kernel_rates_expected(const GpuKind *k) {
    return (DryRates){.bf16 = PRODUCTS * k->bf16,
                      .f32 = PRODUCTS * k->f32,
                      .fp8 = PRODUCTS * k->fp8,
                      .attention = ATTENTION * k->bf16,
                      .bandwidth = BANDWIDTH * k->bandwidth,
                      .launch = GAP};
}

// ---- a step ----

static bool step(BenchModel *m, Optimizer *optimizer, int64_t number, Error *error) {
    double loss;
    return bench_model_start(m, optimizer, number, CLIP, error) && bench_model_finish(m, &loss, error);
}

// The kernels that were called since the rates were set.
static int take(const Backend *b, DryKernel *of) {
    DryKernel kernel;
    int count = 0;
    for (int i = 0; dry_kernel(b, i, &kernel); i++) {
        check(i < KERNELS_COSTED);
        if (kernel.calls) of[count++] = kernel;
    }
    return count;
}

// The first step may set things up.
static bool run_steps(Backend *b, BenchModel *m, Optimizer *optimizer, const GpuKind *gpu, KernelCosts *out,
                      Error *error) {
    DryRates rates[2] = {kernel_rates_bound(gpu), kernel_rates_expected(gpu)};
    bool ok = step(m, optimizer, 1, error);
    for (int i = 0; i < 2 && ok; i++) {
        dry_set_rates(b, &rates[i]);
        ok = step(m, optimizer, 2 + i, error);
        out->count = take(b, i ? out->expected : out->bound);
    }
    return ok;
}

bool kernel_costs_preset(const BenchPreset *p, Dtype compute, Recompute again, const GpuKind *gpu, KernelCosts *out,
                         Error *error) {
    OptimizerConfig adamw = {.learning_rate = 1e-4, .schedule = SCHEDULE_CONSTANT, .beta1 = 0.9, .beta2 = 0.95};
    Backend *b = dry_gpu_new(0);
    Optimizer *optimizer = NULL;
    *out = (KernelCosts){.unit = bench_preset_unit(p), .units = bench_preset_units(p)};
    dry_gpu_fuse(b);
    BenchModel *m = bench_model_new(b, p, compute, again, error);
    if (m) optimizer = optimizer_new(b, bench_model_parameters(m), &adamw, 1000);
    bool ok = m && run_steps(b, m, optimizer, gpu, out, error);
    if (ok) out->flop = bench_model_flop(m);
    optimizer_free(optimizer);
    bench_model_free(m);
    backend_free(b);
    return ok;
}

typedef struct Taking {
    DryKernel *of;
    int count;
} Taking;

static void take_into(void *context, const Backend *b) {
    Taking *t = context;
    t->count = take(b, t->of);
}

bool kernel_costs_run(const TrainConfig *c, const Layout *l, const GpuKind *gpu, KernelCosts *out, Error *error) {
    DryRates bound = kernel_rates_bound(gpu), expected = kernel_rates_expected(gpu);
    Taking first = {out->bound, 0}, second = {out->expected, 0};
    RehearsedStep step;
    if (!device_step_rehearse(c, l, &bound, &step, take_into, &first, error) ||
        !device_step_rehearse(c, l, &expected, &step, take_into, &second, error))
        return false;
    bool sees = step.images > 0;
    out->count = first.count, out->flop = step.flop;
    out->unit = sees ? "images" : "tokens", out->units = sees ? step.images : step.tokens;
    return true;
}

double kernel_costs_seconds(const KernelCosts *c, bool expected) {
    const DryKernel *of = expected ? c->expected : c->bound;
    double seconds = 0;
    for (int i = 0; i < c->count; i++) seconds += of[i].work + of[i].gaps;
    return seconds;
}

// ---- in words ----

static int by_time(const void *a, const void *b) {
    double x = ((const DryKernel *)a)->work + ((const DryKernel *)a)->gaps;
    double y = ((const DryKernel *)b)->work + ((const DryKernel *)b)->gaps;
    return (x < y) - (x > y);
}

static void write_kernel(const DryKernel *k, double all, Buffer *out) {
    buffer_printf(out, "  %-28s %6" PRId64 " %8" PRId64 " %10.2f %10.3f %9.3f %7.1f %%\n", k->name, k->calls,
                  k->launches, k->flop / 1e9, k->bytes / 1e9, 1e3 * (k->work + k->gaps),
                  100 * (k->work + k->gaps) / all);
}

static void write_together(const KernelCosts *c, const char *what, bool expected, double peak, Buffer *out) {
    double seconds = kernel_costs_seconds(c, expected);
    buffer_printf(out, "%s: %.2f ms a step, %.4g %s/s, MFU %.1f %%\n", what, 1e3 * seconds, c->units / seconds, c->unit,
                  100 * c->flop / seconds / peak);
}

void kernel_costs_write(const KernelCosts *c, const GpuKind *gpu, Dtype compute, Buffer *out) {
    DryKernel sorted[KERNELS_COSTED], sum = {.name = "together"};
    double all = kernel_costs_seconds(c, true), peak = gpu_peak(gpu, compute);
    memcpy(sorted, c->expected, sizeof sorted);
    qsort(sorted, (size_t)c->count, sizeof *sorted, by_time);
    buffer_printf(out, "modelled for %s, not measured: %.1f TFLOP a step of the model, %.2f ms at the peak\n\n",
                  gpu->key, c->flop / 1e12, 1e3 * c->flop / peak);
    buffer_printf(out, "  %-28s %6s %8s %10s %10s %9s %9s\n", "kernel", "calls", "launches", "GFLOP", "GB", "ms",
                  "share");
    for (int i = 0; i < c->count; i++) {
        const DryKernel *k = &sorted[i];
        write_kernel(k, all, out);
        sum.calls += k->calls, sum.launches += k->launches, sum.flop += k->flop, sum.bytes += k->bytes;
        sum.work += k->work, sum.gaps += k->gaps;
    }
    write_kernel(&sum, all, out);
    buffer_text(out, "\n");
    write_together(c, "as kernels reach it (75 % of products, 40 % of attention, 90 % of memory, 1 us a launch)", true,
                   peak, out);
    write_together(c, "at most, everything at its peak", false, peak, out);
}
