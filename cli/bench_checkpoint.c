/* bifocal bench checkpoint: how long a save holds the training, beside how long it takes to write. */
#include "cli/commands.h"
#include "cli/options.h"
#include "train/bench_checkpoint.h"
#include <stdio.h>

typedef struct Arguments {
    BenchCheckpointOptions options;
    bool json;
} Arguments;

static void usage(FILE *out) {
    fputs(
        "usage: bifocal bench checkpoint --out DIR [OPTION]... [model.KEY=VALUE]...\n\n"
        "Training steps of a text model on random tokens, and checkpoints that are written meanwhile: how long the\n"
        "training waited for a save, and how long that took until it was synced. The last checkpoint stays in DIR.\n\n"
        "  --out DIR      where to write\n"
        "  --saves N      checkpoints behind a first one, of which the median counts (5)\n"
        "  --tokens N     of a step (128)\n"
        "  --threads N    of the arithmetic (0: one per core)\n"
        "  --json         one JSON object on stdout\n\n"
        "Without settings the model is GPT-2 of 124M parameters; see `bifocal config --help` for its keys.\n",
        out);
}

static bool take_option(Arguments *a, int c, const char *value, Error *error) {
    double number = 0;
    bool ok = true;
    if (c == 'o')
        a->options.out = value;
    else if (c == 'j')
        a->json = true;
    else if (c == 's' && (ok = option_number(value, 1, 1000, "--saves", &number, error)))
        a->options.saves = (int)number;
    else if (c == 'k' && (ok = option_number(value, 1, 1 << 20, "--tokens", &number, error)))
        a->options.tokens = (int)number;
    else if (c == 't' && (ok = option_number(value, 0, 4096, "--threads", &number, error)))
        a->options.threads = (int)number;
    return ok;
}

static bool parse(Arguments *a, int argc, char **argv, bool *help, Error *error) {
    static const struct option options[] = {{"out", required_argument, 0, 'o'},
                                            {"saves", required_argument, 0, 's'},
                                            {"tokens", required_argument, 0, 'k'},
                                            {"threads", required_argument, 0, 't'},
                                            {"json", no_argument, 0, 'j'},
                                            {"help", no_argument, 0, 'h'},
                                            {0}};
    for (int c; (c = option_next(argc, argv, options, "bench checkpoint", error)) != -1;) {
        if ((*help = c == 'h')) return true;
        if (c == '?' || !take_option(a, c, optarg, error)) return false;
    }
    if (!a->options.out) return error_set(error, ERROR_USAGE, "give --out DIR; see `bifocal bench checkpoint --help`");
    a->options.overrides = (const char *const *)(argv + optind);
    a->options.override_count = argc - optind;
    return true;
}

static void print(const BenchCheckpointResult *r, bool json) {
    double share = 100 * r->held / r->written;
    if (json)
        printf("{\"parameters\": %.0f, \"bytes\": %.0f, \"held_seconds\": %.6g, \"written_seconds\": %.6g, "
               "\"held_percent\": %.6g, \"worst_held_percent\": %.6g, \"first_held_seconds\": %.6g, \"step_seconds\": "
               "%.6g, "
               "\"step_beside_a_save_seconds\": %.6g}\n",
               r->parameters, r->bytes, r->held, r->written, share, 100 * r->worst, r->first, r->step, r->step_beside);
    else
        printf("%.1f M parameters, %.2f GB: written in %.2f s (%.0f MB/s), training held for %.3f s: %.2f %% (worst "
               "%.2f %%; the first, right after the start, %.3f s); a step takes %.3f s, %.3f s beside a save\n",
               r->parameters / 1e6, r->bytes / 1e9, r->written, r->bytes / 1e6 / r->written, r->held, share,
               100 * r->worst, r->first, r->step, r->step_beside);
}

int bench_checkpoint_main(int argc, char **argv) {
    Arguments a = {.options = {.saves = 5, .tokens = 128}};
    BenchCheckpointResult result;
    Error error = {0};
    bool help = false, ok = parse(&a, argc, argv, &help, &error);
    if (help) return usage(stdout), 0;
    Log *log = log_new(LOG_WARNING, stderr);
    ok = ok && bench_checkpoint(&a.options, &result, log, &error);
    log_free(log);
    if (ok) return print(&result, a.json), 0;
    fprintf(stderr, "bifocal bench checkpoint: %s\n", error.message);
    return (int)error.kind;
}
