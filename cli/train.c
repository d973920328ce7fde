/* bifocal train and bifocal config. */
#include "cli/commands.h"
#include "cli/options.h"
#include "kernels/comm/watch.h"
#include "train/run.h"
#include "train/train_config.h"
#include <signal.h>
#include <stdio.h>
#include <string.h>

static volatile sig_atomic_t stop_signal; // the one global: a signal handler can reach nothing else

// A second SIGINT is a user who does not want to wait; other signals come from programs, which repeat them.
static void on_signal(int number) {
    if (stop_signal && number == SIGINT) {
        signal(number, SIG_DFL);
        raise(number);
    }
    if (!stop_signal) stop_signal = number;
}

static void catch_signals(void) {
    struct sigaction action = {.sa_handler = on_signal};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGUSR1, &action, NULL); // what mpirun and Slurm pass on to ranks
}

static void usage(FILE *out) {
    fputs(
        "usage: bifocal train CONFIG [section.key=value]... --run DIR [--resume] [--trace FILE]\n\n"
        "  CONFIG                 YAML file (`bifocal config` lists its keys); with --resume it may be left out\n"
        "  section.key=value      set before the run starts; data.0.path=DIR reaches into lists\n"
        "  --run DIR              folder of the run: config.yaml, metrics.jsonl, log.txt, checkpoints/\n"
        "  --resume               go on from the newest checkpoint, bit for bit; start where there is none\n"
        "  --allow-changed-data   resume although a dataset is not the one trained on so far\n"
        "  --trace FILE           a timeline of all processes, in Chrome's format: compute, communication, data, "
        "saving,\n"
        "                         layers, and what a GPU does\n"
        "  --quiet                warnings and errors alone\n\n"
        "Started by mpirun, srun or `bifocal launch -n N`, N processes train together (parallel.* says how); each but\n"
        "the first keeps a log of its own, DIR/logs/rank-00001.txt.\n\n"
        "SIGINT, SIGTERM and SIGUSR1 save and stop (exit status 128 + the signal's number); another SIGINT stops at\n"
        "once.\n",
        out);
}

typedef struct Arguments {
    TrainOptions options;
    ConfigWords words;
    LogLevel level;
    int status; // -1: go on
} Arguments;

static int wrong(const char *what, const char *detail) {
    fprintf(stderr, "bifocal train: %s%s; see `bifocal train --help`\n", what, detail);
    return 2;
}

static void parse(Arguments *a, int argc, char **argv) {
    static const struct option options[] = {{"run", required_argument, 0, 'r'},
                                            {"resume", no_argument, 0, 'c'},
                                            {"allow-changed-data", no_argument, 0, 'd'},
                                            {"trace", required_argument, 0, 't'},
                                            {"quiet", no_argument, 0, 'q'},
                                            {"help", no_argument, 0, 'h'},
                                            {0}};
    *a = (Arguments){.status = -1, .level = LOG_INFO};
    a->options.stop = &stop_signal;
    Error error = {0};
    for (int c; (c = option_next(argc, argv, options, "train", &error)) != -1;) {
        if (c == 'r')
            a->options.run = optarg;
        else if (c == 'c')
            a->options.resume = true;
        else if (c == 'd')
            a->options.allow_changed_data = true;
        else if (c == 't')
            a->options.trace = optarg;
        else if (c == 'q')
            a->level = LOG_WARNING;
        else if (c == 'h')
            usage(stdout), a->status = 0;
        else {
            fprintf(stderr, "bifocal train: %s\n", error.message);
            a->status = (int)error.kind;
        }
        if (a->status >= 0) return;
    }
    if (!config_words(&a->words, argc, argv, &error)) a->status = wrong(error.message, "");
    a->options.config = a->words.config;
    a->options.overrides = a->words.settings;
    a->options.n_overrides = a->words.count;
    if (a->status < 0 && !a->options.run) a->status = wrong("--run DIR is missing", "");
    if (a->status < 0 && !a->options.config && !a->options.resume) a->status = wrong("CONFIG is missing", "");
}

// One rank speaks for all of them; the others' logs hold it too.
static void say_end(const Arguments *a, Log *log, bool ok, const TrainResult *result, const Error *error) {
    bool leads = comm_rank(a->options.world) == 0;
    if (!ok)
        log_write(log, leads ? LOG_ERROR : LOG_INFO, "%s", error->message);
    else if (result->interrupted)
        log_write(log, leads ? LOG_WARNING : LOG_INFO,
                  "stopped after step %lld, saved; go on with: bifocal train --run %s --resume", result->step,
                  a->options.run);
    else
        log_info(log, "done: %lld steps, %.1f s in this call; `bifocal report %s` draws it", result->step,
                 result->seconds, a->options.run);
}

// Over all ranks that were started together.
static int train_together(Arguments *a, Log *log) {
    TrainResult result = {0};
    Error error = {0};
    if (!(a->options.world = comm_world_new(log, &error))) {
        log_error(log, "%s", error.message);
        return (int)error.kind;
    }
    bool ok =
        watch_open(&a->options.watch, a->options.world, log, &error) && train_run(&a->options, &result, log, &error);
    say_end(a, log, ok, &result, &error);
    watch_close(a->options.watch);
    comm_free(a->options.world);
    return !ok ? (int)error.kind : result.interrupted ? 128 + result.interrupted : 0;
}

int train_main(int argc, char **argv) {
    Arguments a;
    parse(&a, argc, argv);
    if (a.status >= 0) return a.status;
    catch_signals();
    Log *log = log_new(a.level, stderr);
    int status = train_together(&a, log);
    log_free(log);
    return status;
}

static bool print_resolved(const char *path, char **overrides, int count, Error *error) {
    Arena *memory = arena_new(1 << 16);
    TrainConfig config;
    Buffer yaml = {0};
    ConfigSchema schema = train_schema(memory);
    bool ok = config_read(&schema, path, (const char *const *)overrides, count, &config, memory, error);
    if (ok) config_write(&schema, &config, &yaml);
    if (ok) fwrite(yaml.data, 1, yaml.size, stdout);
    buffer_free(&yaml);
    arena_free(memory);
    return ok;
}

int config_main(int argc, char **argv) {
    if (argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))) {
        puts("usage: bifocal config [FILE [section.key=value]...]\n\n"
             "Without FILE: every key with type, default, range, unit and meaning. With FILE: what it resolves to.");
        return 0;
    }
    if (argc > 1) {
        Error error = {0};
        bool ok = print_resolved(argv[1], argv + 2, argc - 2, &error);
        if (!ok) fprintf(stderr, "bifocal config: %s\n", error.message);
        return ok ? 0 : (int)error.kind;
    }
    Arena *memory = arena_new(1 << 16);
    Buffer text = {0};
    ConfigSchema schema = train_schema(memory);
    config_help(&schema, &text);
    fwrite(text.data, 1, text.size, stdout);
    buffer_free(&text);
    arena_free(memory);
    return 0;
}
