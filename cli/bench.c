/* bifocal bench: ops | train | generate | loader | comm | checkpoint | contrastive. Every figure stands beside the
 * machine's limit, or a peer's in the same run. */
#include "base/json.h"
#include "base/log.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "train/bench_train.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct BenchArguments {
    BenchTrainOptions options;
    const char *peer; // a command that prints one JSON line with "median_ms"; {preset} and {precision} are filled in
    int rounds;
    bool json;
} BenchArguments;

static void usage(FILE *out) {
    fputs("usage: bifocal bench train [--preset NAME] [--precision f32|bf16] [--device cpu|cuda|auto] [--threads N]\n"
          "                           [--iterations N] [--recompute none|selective|full] [--memory GIB] [--peer "
          "COMMAND]\n"
          "                           [--json]\n\n"
          "A whole training step on random data: forward, backward, clip, AdamW. MFU: the model's FLOP, by the GPU's\n"
          "stated peak, or by the multiply-adds that this CPU was measured to do. Presets: ",
          out);
    for (int i = 0; bench_presets[i]; i++) fprintf(out, "%s%s%s", i ? "," : "", i % 8 ? " " : "\n  ", bench_presets[i]);
    fputs("\n\n  --memory GIB     recompute as little as a step of so much memory allows, instead of --recompute\n"
          "  --peer COMMAND   run this in turn with ours, on the same cores; it prints one JSON line with "
          "\"median_ms\".\n"
          "                   {preset} and {precision} in it are filled in\n"
          "  --rounds N       turns of ours and the peer's (default 3); the median over the turns counts\n",
          out);
}

static void fill_in(Buffer *command, const char *template, const char *preset, const char *precision) {
    for (const char *p = template; *p;) {
        if (!strncmp(p, "{preset}", 8))
            buffer_text(command, preset), p += 8;
        else if (!strncmp(p, "{precision}", 11))
            buffer_text(command, precision), p += 11;
        else
            buffer_append(command, p++, 1);
    }
}

// The peer's median time of a step in seconds, or a negative number with a message.
static double run_peer(const BenchArguments *a, Error *error) {
    char line[4096] = "";
    Buffer command = {0};
    fill_in(&command, a->peer, a->options.preset, a->options.precision == BF16 ? "bf16" : "f32");
    FILE *pipe = popen(command.data, "r");
    bool read = pipe && fgets(line, sizeof line, pipe);
    int status = pipe ? pclose(pipe) : -1;
    json_t *answer = read && status == 0 ? json_parse(line, strlen(line), "the peer's answer", error) : NULL;
    double median = json_get_number(answer, "median_ms", -1) / 1e3;
    if (!answer || median <= 0)
        error_set(error, ERROR_FAILED, "the peer's command gave no \"median_ms\": %s", command.data);
    json_decref(answer);
    buffer_free(&command);
    return median;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print(const BenchArguments *a, const BenchTrainResult *r, const double *ours, const double *peer) {
    const char *precision = a->options.precision == BF16 ? "bf16" : "f32";
    double units = r->units, mine = ours[a->rounds / 2], gflops = r->computed / mine / 1e9,
           other = a->peer ? peer[a->rounds / 2] : 0, mfu = r->flop / mine / r->peak_flops;
    if (a->json) {
        printf("{\"preset\": \"%s\", \"precision\": \"%s\", \"median_ms\": %.3f, \"best_ms\": %.3f, \"worst_ms\": "
               "%.3f, \"per_second\": %.2f, \"unit\": \"%s\", "
               "\"gflops\": %.1f, \"model_flop\": %.6g, \"peak_gflops\": %.1f, \"mfu\": %.4f, \"peak_gb\": %.3f, "
               "\"activations_gb\": %.3f, \"parameters\": "
               "%.0f, "
               "\"peer_median_ms\": %.3f}\n",
               a->options.preset, precision, 1e3 * mine, 1e3 * ours[0], 1e3 * ours[a->rounds - 1], units / mine,
               r->unit, gflops, r->flop, r->peak_flops / 1e9, mfu, r->peak_bytes / 1e9, r->activation_bytes / 1e9,
               r->parameters, 1e3 * other);
        return;
    }
    printf("%-9s %-4s  %8.2f ms a step (%.2f .. %.2f over %d turns)  %10.0f %s/s  %7.1f GFLOP/s, MFU %.1f %% of "
           "%.0f  peak %.2f GB, activations %.3f GB",
           a->options.preset, precision, 1e3 * mine, 1e3 * ours[0], 1e3 * ours[a->rounds - 1], a->rounds, units / mine,
           r->unit, gflops, 100 * mfu, r->peak_flops / 1e9, r->peak_bytes / 1e9, r->activation_bytes / 1e9);
    if (r->planned.tensors > 0) printf(" (planned within %+.1f %%)", 100 * bench_memory_off(r));
    if (a->peer)
        printf("  peer %.2f ms (%.2f .. %.2f): %.2f x", 1e3 * other, 1e3 * peer[0], 1e3 * peer[a->rounds - 1],
               other / mine);
    printf("\n");
}

static bool run(const BenchArguments *a, Error *error) {
    BenchTrainResult result = {0};
    Log *log = log_new(LOG_WARNING, stderr);
    double *ours = calloc((size_t)a->rounds, sizeof *ours), *peer = calloc((size_t)a->rounds, sizeof *peer);
    bool ok = ours && peer;
    for (int i = 0; i < a->rounds && ok; i++) {
        ok = bench_train(&a->options, &result, log, error);
        ours[i] = result.median;
        if (ok && a->peer) ok = (peer[i] = run_peer(a, error)) > 0;
    }
    if (ok) {
        qsort(ours, (size_t)a->rounds, sizeof *ours, by_value);
        qsort(peer, (size_t)a->rounds, sizeof *peer, by_value);
        print(a, &result, ours, peer);
    }
    free(ours);
    free(peer);
    log_free(log);
    return ok;
}

static bool take_option(BenchArguments *a, int c, const char *value, Error *error) {
    double number = 0;
    int choice = 0;
    bool ok = true;
    if (c == 'p')
        a->options.preset = value;
    else if (c == 'e')
        a->peer = value;
    else if (c == 'j')
        a->json = true;
    else if (c == 'f' && (ok = option_choice(value, "f32|bf16", "--precision", &choice, error)))
        a->options.precision = choice ? BF16 : F32;
    else if (c == 't' && (ok = option_number(value, 0, 4096, "--threads", &number, error)))
        a->options.threads = (int)number;
    else if (c == 'v' && (ok = option_choice(value, DEVICE_CHOICES, "--device", &choice, error)))
        a->options.device = (Device)choice;
    else if (c == 'c' && (ok = option_choice(value, "none|selective|full", "--recompute", &choice, error)))
        a->options.recompute = (Recompute)choice;
    else if (c == 'm' && (ok = option_number(value, 0.001, 1e6, "--memory", &number, error)))
        a->options.memory = number * 0x1p30;
    else if (c == 'i' && (ok = option_number(value, 1, 1e9, "--iterations", &number, error)))
        a->options.iterations = (int)number;
    else if (c == 'r' && (ok = option_number(value, 1, 1e6, "--rounds", &number, error)))
        a->rounds = (int)number;
    return ok;
}

static bool parse(BenchArguments *a, int argc, char **argv, bool *help, Error *error) {
    static const struct option options[] = {{"preset", required_argument, 0, 'p'},
                                            {"precision", required_argument, 0, 'f'},
                                            {"device", required_argument, 0, 'v'},
                                            {"threads", required_argument, 0, 't'},
                                            {"iterations", required_argument, 0, 'i'},
                                            {"recompute", required_argument, 0, 'c'},
                                            {"memory", required_argument, 0, 'm'},
                                            {"peer", required_argument, 0, 'e'},
                                            {"rounds", required_argument, 0, 'r'},
                                            {"json", no_argument, 0, 'j'},
                                            {"help", no_argument, 0, 'h'},
                                            {0}};
    *a = (BenchArguments){.options = {.preset = "nanochar", .precision = F32, .iterations = 20}, .rounds = 3};
    for (int c; (c = option_next(argc, argv, options, "bench train", error)) != -1;) {
        if ((*help = c == 'h')) return true;
        if (c == '?' || !take_option(a, c, optarg, error)) return false;
    }
    if (optind == argc) return true;
    return error_set(error, ERROR_USAGE, "'%s' is not an option; see `bifocal bench train --help`", argv[optind]);
}

int bench_train_main(int argc, char **argv) {
    BenchArguments a;
    Error error = {0};
    bool help = false, ok = parse(&a, argc, argv, &help, &error);
    if (help) return usage(stdout), 0;
    if (ok && run(&a, &error)) return 0;
    fprintf(stderr, "bifocal bench train: %s\n", error.message);
    return (int)error.kind;
}

int bench_main(int argc, char **argv) {
    static const char *const names[] = {"ops", "train", "loader", "comm", "checkpoint", "contrastive", "generate"};
    static int (*const acts[])(int, char **) = {bench_ops_main,     bench_train_main,      bench_loader_main,
                                                bench_comm_main,    bench_checkpoint_main, bench_contrastive_main,
                                                bench_generate_main};
    enum { ACTS = sizeof names / sizeof *names };
    for (int i = 0; argc > 1 && i < ACTS; i++)
        if (!strcmp(argv[1], names[i])) return acts[i](argc - 1, argv + 1);
    bool help = argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"));
    Error error = {0};
    if (argc < 2 || help)
        fputs("usage: bifocal bench ops | train | loader | comm | checkpoint | contrastive | generate [--help]\n",
              help ? stdout : stderr);
    else
        option_unknown(&error, "act", argv[1], names, ACTS, "bench --help"),
            fprintf(stderr, "bifocal bench: %s\n", error.message);
    return help ? 0 : 2;
}
