/* The speed of whole training steps and of generation on a GPU, a JSON line each: `bifocal bench train` and `bifocal
 * bench generate` for a machine that has nothing but compilers and CUDA, with the figures that a single H100 or H200 is
 * to reach beside them. Any other device runs the same rows, shrunken with --tiny. Exit status 77: no GPU.
 *
 *   gpu_step [--device cpu|cuda] [--tiny] [--only NAME] [--memory GIB] [--seconds S]
 *   gpu_step --list      the rows' names, the most telling first: for one process each
 *   gpu_step --peak      the line of the device alone */
#include "base/clock.h"
#include "kernels/bench_ops.h"
#include "kernels/gpus.h"
#include "train/bench_generate.h"
#include "train/bench_train.h"
#include "train/device_use.h"
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Arguments {
    Device device;
    bool tiny, list, peak_only;
    const char *only;       // a row's name; NULL: all
    double memory, seconds; // bytes; of each row
    Peak peak;
} Arguments;

typedef struct Row {
    const char *preset;
    double goal; // MFU; 0: none
} Row;

static const Row rows[] = {
    {"gpt2_124m", 0.55}, {"gpt2_1558m", 0.60}, {"vit_b16", 0.55}, {"vit_l16", 0.55},      {"mae_vit_l", 0.50},
    {"clip_b32", 0},     {"joint_b", 0.45},    {"joint_b_lm", 0}, {"joint_b_caption", 0}, {"joint_b_contrastive", 0},
    {"joint_b_mae", 0},  {"vit_ti", 0},        {"gpt_6m", 0},
};

// What MFU is a share of: the dense bf16 products that the maker states, FLOP/s; of other devices those measured.
static double stated_peak(const Backend *b, const Peak *measured) {
    const GpuKind *kind = b->device ? gpu_kind(b->device) : NULL;
    return kind ? gpu_peak(kind, BF16) : 1e9 * (measured->bf16 > 0 ? measured->bf16 : measured->f32);
}

// Planned within 3 %, and what libraries load later within what is put aside for it.
static bool plan_holds(const BenchTrainResult *r) {
    double planned = r->planned.tensors + r->planned.others, held = r->held.tensors + r->held.others;
    return fabs(r->held.tensors - r->planned.tensors) <= 0.03 * r->planned.tensors &&
           fabs(held - planned) <= fmax(0.03 * planned, DEVICE_LATER_BYTES);
}

static void print_memory(const BenchTrainResult *r) {
    printf("\"tensors_planned\": %.0f, \"tensors_held\": %.0f, \"others_planned\": %.0f, \"others_held\": %.0f, "
           "\"plan_off\": %.4f, \"plan_holds\": %s, ",
           r->planned.tensors, r->held.tensors, r->planned.others, r->held.others, bench_memory_off(r),
           plan_holds(r) ? "true" : "false");
}

static void print_row(const Row *row, const BenchTrainResult *r, double peak) {
    static const char *const again[] = {
        [RECOMPUTE_NONE] = "none", [RECOMPUTE_SELECTIVE] = "selective", [RECOMPUTE_FULL] = "full"};
    double mfu = r->flop / r->median / peak;
    char goal[16] = "null";
    if (row->goal > 0) snprintf(goal, sizeof goal, "%.2f", row->goal);
    printf("{\"row\": \"%s\", \"unit\": \"%s\", \"units\": %.0f, \"seconds\": %.6g, \"fastest\": %.6g, \"slowest\": "
           "%.6g, \"per_second\": %.6g, \"flop\": %.6g, \"mfu\": %.4f, \"goal_mfu\": %s, \"goal_met\": %s, "
           "\"peak_bytes\": %.0f, ",
           row->preset, r->unit, r->units, r->median, r->best, r->worst, r->units / r->median, r->flop, mfu, goal,
           row->goal <= 0     ? "null"
           : mfu >= row->goal ? "true"
                              : "false",
           r->peak_bytes);
    if (r->planned.tensors > 0) print_memory(r);
    printf("\"parameters\": %.0f, \"recompute\": \"%s\", \"first_loss\": %.5g, \"loss\": %.5g}\n", r->parameters,
           again[r->recompute], r->first_loss, r->loss);
    fflush(stdout);
}

static bool run_row(const Arguments *a, const Row *row, double peak, Log *log) {
    Error error = {0};
    BenchTrainResult result;
    BenchTrainOptions options = {.preset = row->preset,
                                 .shrink = a->tiny,
                                 .precision = BF16,
                                 .device = a->device,
                                 .iterations = a->tiny ? 2 : 40,
                                 .seconds = a->seconds,
                                 .memory = a->memory};
    if (a->only && strcmp(a->only, row->preset) != 0) return true;
    if (bench_train(&options, &result, log, &error)) {
        print_row(row, &result, peak);
        if (plan_holds(&result)) return true;
        fprintf(stderr, "%s: its memory was not planned within 3 %%: it holds %+.1f %%\n", row->preset,
                100 * bench_memory_off(&result));
        return false;
    }
    fprintf(stderr, "%s: %s\n", row->preset, error.message);
    return false;
}

// ---- generation ----

typedef struct Speech {
    const char *row, *preset;
    int batch;
    double goal; // share of the bandwidth; 0: none
} Speech;

static const Speech speeches[] = {
    {"generate_124m_1", "gpt2_124m", 1, 0.70},
    {"generate_124m_64", "gpt2_124m", 64, 0},
    {"generate_1558m_1", "gpt2_1558m", 1, 0.70},
    {"generate_1558m_64", "gpt2_1558m", 64, 0},
};

static bool run_speech(const Arguments *a, const Speech *s, Log *log) {
    Error error = {0};
    BenchGenerateResult r;
    BenchGenerateOptions options = {.preset = s->preset, .shrink = a->tiny, .precision = BF16, .device = a->device};
    options.batch = s->batch, options.rounds = a->tiny ? 1 : 3;
    options.prompt = a->tiny ? 4 : 32, options.tokens = a->tiny ? 8 : 256;
    char goal[16] = "null";
    if (a->only && strcmp(a->only, s->row) != 0) return true;
    if (s->goal > 0) snprintf(goal, sizeof goal, "%.2f", s->goal);
    if (!bench_generate(&options, &r, log, &error)) {
        fprintf(stderr, "%s: %s\n", s->row, error.message);
        return false;
    }
    printf(
        "{\"row\": \"%s\", \"unit\": \"tokens\", \"batch\": %d, \"prompt\": %lld, \"tokens\": %lld, \"seconds\": %.6g, "
        "\"per_second\": %.6g, \"bytes_a_token\": %.6g, \"bandwidth_share\": %.4f, \"goal_share\": %s, \"goal_met\": "
        "%s}\n",
        s->row, s->batch, (long long)options.prompt, (long long)options.tokens, r.seconds, r.per_second, r.bytes,
        r.share, goal,
        s->goal <= 0         ? "null"
        : r.share >= s->goal ? "true"
                             : "false");
    fflush(stdout);
    return true;
}

static bool parse(Arguments *a, int argc, char **argv) {
    static const struct option options[] = {
        {"device", required_argument, 0, 'd'},  {"tiny", no_argument, 0, 't'},
        {"only", required_argument, 0, 'o'},    {"memory", required_argument, 0, 'm'},
        {"seconds", required_argument, 0, 's'}, {"list", no_argument, 0, 'l'},
        {"peak", no_argument, 0, 'p'},          {0}};
    *a = (Arguments){.device = DEVICE_CUDA, .seconds = 3};
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (c == 'd')
            a->device = strcmp(optarg, "cpu") ? DEVICE_CUDA : DEVICE_CPU;
        else if (c == 't')
            a->tiny = true;
        else if (c == 'o')
            a->only = optarg;
        else if (c == 'm')
            a->memory = atof(optarg) * 0x1p30;
        else if (c == 's')
            a->seconds = atof(optarg);
        else if (c == 'l')
            a->list = true;
        else if (c == 'p')
            a->peak_only = true;
        else
            return false;
    }
    return optind == argc;
}

// The device's own figures, in a line of their own unless a single row is wanted; 0 where there is no such device.
static double measure_peak(Arguments *a, Log *log) {
    Error error = {0};
    Backend *b = device_backend_new(&(DeviceOptions){.device = a->device, .threads = a->tiny ? 1 : 0}, log, &error);
    if (!b) {
        fprintf(stderr, "skipped: %s\n", error.message);
        return 0;
    }
    bool stated = a->only && b->device && gpu_kind(b->device);
    a->peak = a->tiny || stated ? (Peak){.copy = 1, .bf16 = 1000} : bench_peak(b, 0.2); // what is tiny is not measured
    double peak = stated_peak(b, &a->peak);
    if (a->only) {
        backend_free(b);
        return peak;
    }
    printf("{\"architecture\": \"%s\", \"copy_gbytes\": %.1f, \"bf16_gflops\": %.1f, \"stated_flops\": %.6g}\n", b->isa,
           a->peak.copy, a->peak.bf16, peak);
    fflush(stdout);
    backend_free(b);
    return peak;
}

static int list_rows(void) {
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) puts(rows[i].preset);
    for (size_t i = 0; i < sizeof speeches / sizeof *speeches; i++) puts(speeches[i].row);
    return 0;
}

int main(int argc, char **argv) {
    Arguments a;
    if (!parse(&a, argc, argv)) {
        fprintf(stderr, "usage: gpu_step [--device cpu|cuda] [--tiny] [--only NAME] [--memory GIB] [--seconds S] | "
                        "--list | --peak\n");
        return 2;
    }
    if (a.list) return list_rows();
    Log *log = log_new(LOG_WARNING, stderr);
    double peak = measure_peak(&a, log);
    bool ok = peak > 0;
    if (a.peak_only) a.only = "";
    for (size_t i = 0; peak > 0 && i < sizeof rows / sizeof *rows; i++) ok &= run_row(&a, &rows[i], peak, log);
    for (size_t i = 0; peak > 0 && i < sizeof speeches / sizeof *speeches; i++) ok &= run_speech(&a, &speeches[i], log);
    log_free(log);
    return peak <= 0 ? 77 : !ok;
}
