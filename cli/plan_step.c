/* bifocal plan step: how long a step of a config takes on a cluster that is not there, and what its stages hold. */
#include "base/files.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "train/schedule_svg.h"
#include "train/stages.h"
#include "kernels/device.h"
#include "train/recompute_plan.h"
#include "train/step_time.h"
#include <stddef.h>
#include <stdio.h>
#include <string.h>

enum { MOST_RANKS = 1 << 20 };

typedef struct Arguments {
    ConfigWords words;
    const char *svg;
    double ranks, node;
    Cluster cluster;
    bool help;
} Arguments;

typedef struct RateOption {
    const char *name;
    size_t offset;
} RateOption;
#define AT(member) offsetof(Arguments, member)
static const RateOption rates[] = {
    {"ranks", AT(ranks)},
    {"node", AT(node)},
    {"flops", AT(cluster.rates.flops)},
    {"bandwidth", AT(cluster.rates.bandwidth)},
    {"peak", AT(cluster.peak)},
    {"memory", AT(cluster.memory)},
    {"host", AT(cluster.host)},
    {"inside", AT(cluster.inside)},
    {"outside", AT(cluster.outside)},
    {"latency", AT(cluster.latency)},
};
enum { RATES = sizeof rates / sizeof *rates };

static void usage(FILE *out) {
    fputs(
        "usage: bifocal plan step CONFIG [section.key=value]... --ranks N [options]\n\n"
        "  --ranks N         devices\n"
        "  --flops X         FLOP/s that products reach on one (600e12: an H100's bf16, as all that follows)\n"
        "  --bandwidth B     bytes/s that it reads and writes (2.6e12)\n"
        "  --peak X          FLOP/s that it could do at most (989e12): for the share of it\n"
        "  --memory BYTES    of it (80e9); parallel.stage_memory says how much of it a stage may take\n"
        "  --host B          bytes/s between it and its host, each way, for train.offload (50e9)\n"
        "  --node N          devices of a node (8)\n"
        "  --inside B        bytes/s that a device sends within its node (360e9)\n"
        "  --outside B       and to other nodes (40e9)\n"
        "  --latency S       seconds of a message (10e-6)\n"
        "  --svg FILE        draw the timeline of a step's rows\n\n"
        "Prints which units of the model are on which stage, what each holds, works and waits, and what a step takes:\n"
        "rows of the pipeline with their messages, the pass for features of pairs, gradients, update. Starts "
        "nothing.\n",
        out);
}

// ---- the command line ----

static bool take_rate(Arguments *a, int which, Error *error) {
    char name[32];
    bool count = which < 2; // ranks and node
    double *value = (double *)((char *)a + rates[which].offset);
    snprintf(name, sizeof name, "--%s", rates[which].name);
    if (!option_number(optarg, count ? 1 : 1e-9, count ? MOST_RANKS : 1e24, name, value, error)) return false;
    return !count || *value == (double)(int)*value ||
           error_set(error, ERROR_USAGE, "%s '%s' is not a whole number", name, optarg);
}

static bool parse(Arguments *a, int argc, char **argv, Error *error) {
    struct option options[RATES + 3] = {{0}};
    for (int i = 0; i < RATES; i++) options[i] = (struct option){rates[i].name, required_argument, 0, 256 + i};
    options[RATES] = (struct option){"svg", required_argument, 0, 'o'};
    options[RATES + 1] = (struct option){"help", no_argument, 0, 'h'};
    *a = (Arguments){.cluster = h100_cluster, .node = h100_cluster.node};
    for (int c; !a->help && (c = option_next(argc, argv, options, "plan step", error)) != -1;) {
        if (c == 'h')
            a->help = true;
        else if (c == 'o')
            a->svg = optarg;
        else if (c < 256 || !take_rate(a, c - 256, error))
            return false;
    }
    a->cluster.node = (int)a->node;
    if (a->help) return true;
    if (!config_words(&a->words, argc, argv, error)) return false;
    if (!a->words.config) return error_set(error, ERROR_USAGE, "CONFIG is missing; see `bifocal plan step --help`");
    return a->ranks > 0 || error_set(error, ERROR_USAGE, "--ranks is missing; see `bifocal plan step --help`");
}

// ---- what comes out ----

static void print_stages(const StepTime *t) {
    const PipelineTable *table = &t->plan.table;
    Stages stages = {.table = *table,
                     .units = t->plan.costs.list,
                     .count = t->plan.costs.units,
                     .parts = table->shape.stages * table->shape.chunks,
                     .first = t->plan.first};
    Buffer text = {0};
    stages_describe(&stages, &text);
    printf("%s\n\n", text.data);
    buffer_free(&text);
    printf("stage      works  of it tensor     waits   parameters  microbatches       memory\n");
    for (int i = 0; i < table->shape.stages; i++) {
        const StagePlan *held = &t->plan.stages[i];
        printf("%5d %8.1f ms %9.1f ms %8.1f%% %10.1f M %13.3g %8.1f GB\n", i, 1e3 * t->loads[i].rows,
               1e3 * t->loads[i].tensor, 100 * t->waits[i].bubble, t->loads[i].trained / 1e6,
               (double)t->peaks[i].live / table->shape.chunks, (held->parameters + held->tapes) / 1e9);
    }
}

static void print_step(const Arguments *a, const Layout *l, const StepTime *t) {
    printf("\n%-40s %10.1f ms\n", "features of all pairs", 1e3 * t->features);
    printf("%-40s %10.1f ms, bubble %.1f %%\n", "rows of the pipeline", 1e3 * t->rows.total, 100 * t->rows.bubble);
    printf("%-40s %10.1f ms\n", "gradients, values, update", 1e3 * t->exchange);
    printf("%-40s %10.1f ms\n", "step", 1e3 * t->total);
    printf("%-40s %10.1f MB, %.1f GB in all a step\n", "a message between stages; a rank sends", t->message / 1e6,
           t->sent / 1e9);
    printf("%-40s %10.1f GB of %.1f, of which CUDA and work space take %.1f\n", "fullest stage", t->memory / 1e9,
           a->cluster.memory / 1e9, a->cluster.taken / 1e9);
    printf("%-40s %10.4g /s, %.4g a step\n", "positions of text", t->tokens / t->total, t->tokens);
    printf("%-40s %10.4g /s, %.4g a step\n", "pictures", t->images / t->total, t->images);
    printf("%-40s %10.1f %%, %.4g FLOP a step\n", "of the devices' peak (MFU)",
           100 * step_utilisation(t, l, &a->cluster), t->flop);
}

static bool draw(const Arguments *a, const StepTime *t, Error *error) {
    const PipelineShape *s = &t->plan.table.shape;
    char title[160];
    Buffer svg = {0};
    snprintf(title, sizeof title, "%s: %d stages, %d microbatches; rows of a step %.3g s, bubble %.1f %%",
             pipeline_names[s->kind], s->stages, s->microbatches, t->rows.total, 100 * t->rows.bubble);
    bool ok = timeline_svg(&svg, &(TimelinePanel){title, &t->line, t->peaks}, 1, error) &&
              file_write(a->svg, svg.data, svg.size, error);
    buffer_free(&svg);
    return ok;
}

// Of auto: the cheapest with which a rank of the cluster has room for its step.
static bool choose_recompute(const Arguments *a, TrainConfig *c, const Layout *l, Arena *arena, Error *error) {
    RecomputePlan found;
    if (c->model.recompute != RECOMPUTE_AUTO) return true;
    c->device = DEVICE_CUDA;
    return recompute_plan(c, l, device_limit(a->cluster.memory), arena, &found, error);
}

static bool plan(const Arguments *a, Arena *arena, Error *error) {
    TrainConfig config;
    Layout layout;
    StepTime time;
    Buffer text = {0};
    if (!train_config_read_planned(&config, a->words.config, a->words.settings, a->words.count, arena, error) ||
        !layout_resolve(&config, (int)a->ranks, &layout, error) ||
        !choose_recompute(a, &config, &layout, arena, error) ||
        !step_time(&config, &layout, &a->cluster, arena, &time, error) || (a->svg && !draw(a, &time, error)))
        return false;
    layout_describe(&config, &layout, &text);
    printf("%s\n", text.data);
    buffer_free(&text);
    print_stages(&time);
    print_step(a, &layout, &time);
    return true;
}

int plan_step_main(int argc, char **argv) {
    Arguments a;
    Error error = {0};
    Arena *arena = arena_new(1 << 20);
    bool ok = parse(&a, argc, argv, &error);
    if (ok && a.help)
        usage(stdout);
    else
        ok = ok && plan(&a, arena, &error);
    if (!ok) fprintf(stderr, "bifocal plan step: %s\n", error.message);
    arena_free(arena);
    return ok ? 0 : (int)error.kind;
}
