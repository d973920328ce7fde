/* bifocal bench ops: the speed of every operator and of matrix products beside what this machine can do at most. */
#include "cli/commands.h"
#include "cli/options.h"
#include "kernels/bench_ops.h"
#include "kernels/device.h"
#include <stdio.h>
#include <string.h>

enum { F32_ONLY, BF16_ONLY, BOTH };
enum { LARGE, HUGE, AS_FITS };

typedef struct Arguments {
    BenchOps bench;
    double threads;              // 0: one for each core
    int precision, device, size; // size: 0 large, 1 huge, 2 as fits the device
    bool json, products_only, operators_only;
    int rows; // printed
} Arguments;

static void usage(FILE *out) {
    fputs(
        "usage: bifocal bench ops [OPTION]...\n\n"
        "Every operator, forward and backward, and matrix products of the shapes of known models beside oneDNN's, "
        "each\n"
        "as a share of what this machine can do at most: multiply-adds in registers (GFLOP/s) or a copy that fits no\n"
        "cache (GB/s), probed in the same run. What fits a cache can pass 100 % of the latter.\n\n"
        "  --only TEXT            names that hold TEXT\n"
        "  --operators            no matrix products\n"
        "  --products             matrix products only\n"
        "  --precision f32|bf16|both  of the activations (both)\n"
        "  --device cpu|cuda|auto what is measured (cpu); a GPU's own products and copies are what it can do at most\n"
        "  --size large|huge|auto of operators; auto: huge on a GPU (auto)\n"
        "  --threads N            0: one for each core (0)\n"
        "  --seconds S            for each figure (0.1)\n"
        "  --json                 one JSON object a line on stdout\n"
        "Environment: BIFOCAL_CPU=plain|avx2|avx512|avx512-bf16 forces a lower instruction set.\n",
        out);
}

static const char *precision_of(const BenchRow *r) { return r->dtype == F32 ? "f32" : "bf16"; }

static void print_json(const BenchRow *r) {
    double share = bench_floor_seconds(r) / r->seconds;
    char goal[16] = "null";
    if (r->goal > 0) snprintf(goal, sizeof goal, "%.2f", r->goal);
    printf("{\"name\": \"%s\", \"pass\": \"%s\", \"precision\": \"%s\", \"seconds\": %.9g, \"fastest\": %.9g, "
           "\"slowest\": %.9g, \"gflops\": %.2f, \"gbytes\": %.2f, \"peak_gflops\": %.1f, \"peak_gbytes\": %.1f, "
           "\"share\": %.4f, \"goal\": %s, \"goal_met\": %s, \"peer_seconds\": %.9g}\n",
           r->name, r->pass, precision_of(r), r->seconds, r->fastest, r->slowest, r->flop / r->seconds * 1e-9,
           r->bytes / r->seconds * 1e-9, r->peak_gflops, r->peak_gbytes, share, goal,
           r->goal <= 0       ? "null"
           : share >= r->goal ? "true"
                              : "false",
           r->peer_seconds);
}

static void print_text(Arguments *a, const BenchRow *r) {
    if (a->rows == 1)
        printf("%-24s %-8s %-4s %11s  %-15s %-15s %s\n", "what", "pass", "", "median", "rate", "machine", "share");
    bool compute = bench_is_compute_bound(r);
    const char *unit = compute ? "GFLOP/s" : "GB/s";
    double rate = (compute ? r->flop : r->bytes) / r->seconds * 1e-9;
    printf("%-24s %-8s %-4s %8.1f us  %7.1f %-7s %7.1f %-7s %4.0f %%", r->name, r->pass, precision_of(r),
           r->seconds * 1e6, rate, unit, compute ? r->peak_gflops : r->peak_gbytes, unit,
           100 * bench_floor_seconds(r) / r->seconds);
    if (r->goal > 0 && bench_floor_seconds(r) / r->seconds < r->goal)
        printf("  below its goal of %.0f %%", 100 * r->goal);
    if (r->peer_seconds > 0)
        printf("   oneDNN %8.1f us, ours is %.2f x", r->peer_seconds * 1e6, r->peer_seconds / r->seconds);
    printf("\n");
    fflush(stdout);
}

static void print_row(void *context, const BenchRow *r) {
    Arguments *a = context;
    a->rows++;
    if (a->json)
        print_json(r);
    else
        print_text(a, r);
}

static bool run(Arguments *a, Log *log, Error *error) {
    Backend *b =
        device_backend_new(&(DeviceOptions){.device = (Device)a->device, .threads = (int)a->threads}, log, error);
    if (!b) return false;
    bool cpu = !strcmp(b->name, "cpu");
    int threads = cpu ? threads_count(cpu_threads(b)) : 1;
    Peak peak = bench_peak(b, 0.2);
    a->bench.peak = peak;
    a->bench.size = a->size == HUGE || (a->size == AS_FITS && !cpu) ? EXAMPLE_HUGE : EXAMPLE_LARGE;
    a->bench.row = print_row;
    a->bench.context = a;
    if (a->json)
        printf("{\"isa\": \"%s\", \"threads\": %d, \"peak_f32_gflops\": %.1f, \"peak_bf16_gflops\": %.1f, "
               "\"peak_copy_gbytes\": %.1f, \"peak_cached_gbytes\": %.1f}\n",
               b->isa, threads, peak.f32, peak.bf16, peak.copy, peak.cached);
    else
        printf(
            "%s, %d thread%s; at most: f32 %.0f GFLOP/s, bf16 %.0f GFLOP/s, copy %.1f GB/s, in the cache %.1f GB/s\n",
            b->isa, threads, threads == 1 ? "" : "s", peak.f32, peak.bf16, peak.copy, peak.cached);
    for (int i = 0; i < 2; i++) {
        Dtype dtype = i ? BF16 : F32;
        if (a->precision != BOTH && a->precision != i) continue;
        if (!a->products_only) bench_operators(b, &a->bench, dtype, log);
        if (!a->operators_only) bench_products(b, &a->bench, dtype);
    }
    backend_free(b);
    return true;
}

// True where the arguments are understood; *status is the exit status where there is nothing more to do, else -1.
static bool parse(Arguments *a, int argc, char **argv, int *status, Error *error) {
    static const struct option options[] = {{"only", required_argument, 0, 'n'},
                                            {"operators", no_argument, 0, 'o'},
                                            {"products", no_argument, 0, 'm'},
                                            {"precision", required_argument, 0, 'p'},
                                            {"device", required_argument, 0, 'v'},
                                            {"size", required_argument, 0, 'z'},
                                            {"threads", required_argument, 0, 't'},
                                            {"seconds", required_argument, 0, 's'},
                                            {"json", no_argument, 0, 'j'},
                                            {"help", no_argument, 0, 'h'},
                                            {0}};
    *status = -1;
    bool ok = true;
    for (int c; ok && *status < 0 && (c = option_next(argc, argv, options, "bench ops", error)) != -1;) {
        if (c == 'n')
            a->bench.only = optarg;
        else if (c == 'o')
            a->operators_only = true;
        else if (c == 'm')
            a->products_only = true;
        else if (c == 'p')
            ok = option_choice(optarg, "f32|bf16|both", "--precision", &a->precision, error);
        else if (c == 'v')
            ok = option_choice(optarg, DEVICE_CHOICES, "--device", &a->device, error);
        else if (c == 'z')
            ok = option_choice(optarg, "large|huge|auto", "--size", &a->size, error);
        else if (c == 't')
            ok = option_number(optarg, 0, 1024, "--threads", &a->threads, error);
        else if (c == 's')
            ok = option_number(optarg, 0.001, 60, "--seconds", &a->bench.seconds, error);
        else if (c == 'j')
            a->json = true;
        else if (c == 'h')
            usage(stdout), *status = 0;
        else
            ok = false;
    }
    if (!ok || *status >= 0 || optind == argc) return ok;
    return error_set(error, ERROR_USAGE, "'%s' is not an option; see `bifocal bench ops --help`", argv[optind]);
}

int bench_ops_main(int argc, char **argv) {
    Arguments a = {.bench = {.seconds = 0.1}, .precision = BOTH, .size = AS_FITS};
    Error error = {0};
    int status;
    if (!parse(&a, argc, argv, &status, &error)) {
        fprintf(stderr, "bifocal bench ops: %s\n", error.message);
        return 2;
    }
    if (status >= 0) return status;
    Log *log = log_new(LOG_WARNING, stderr);
    bool done = run(&a, log, &error);
    if (!done) log_error(log, "%s", error.message);
    if (done && !a.rows && a.bench.only)
        log_error(log, "--only '%s': no operator or product has that in its name", a.bench.only);
    log_free(log);
    return a.rows ? 0 : 2;
}
