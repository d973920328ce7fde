/* bifocal plan: what a run on so many processes would look like. */
#include "cli/commands.h"
#include "cli/options.h"
#include "kernels/device.h"
#include "kernels/gpus.h"
#include "train/device_fit.h"
#include "train/device_use.h"
#include "train/lane_balance.h"
#include "train/plan.h"
#include "train/recompute_plan.h"
#include <stdio.h>
#include <string.h>

enum { MOST_RANKS = 1 << 20 };

typedef struct Arguments {
    ConfigWords words;
    int ranks;     // 0: what the config asks for
    char gpu[64];  // what --gpu names; "": nothing
    double memory; // bytes of the GPU; 0: not given
    int status;    // -1: go on
} Arguments;

static void usage(FILE *out) {
    fputs(
        "usage: bifocal plan CONFIG [section.key=value]... [--ranks N] [--gpu NAME] [--memory GB]\n"
        "       bifocal plan stages CONFIG [section.key=value]... --stages P [options]\n"
        "       bifocal plan schedule --stages P --microbatches M --schedule S [options]\n"
        "       bifocal plan step CONFIG [section.key=value]... --ranks N [options]\n"
        "       bifocal plan kernels CONFIG [section.key=value]... [options]\n"
        "       bifocal plan estimate --layers L --width H [options]\n\n"
        "  CONFIG              YAML file of a training run; its data need not be there\n"
        "  section.key=value   as for bifocal train\n"
        "  --ranks N           processes; otherwise as many as parallel.* asks for\n"
        "  --gpu NAME          what a GPU would hold: h100, a100, l40s, ..., or NAME:GIB; with device=cuda: this\n"
        "                      machine's, measured, or h100\n"
        "  --memory GB         that it has, in 1e9 bytes\n\n"
        "Prints the place of every process, the stages of a pipeline, what a process takes in memory, its share of a\n"
        "step and what it sends to others; starts nothing. For a GPU: all that it would hold, part by part, whether\n"
        "it fits, the largest microbatch that does, and which lanes of a joint step would wait (docs/cuda.md). Exit\n"
        "status 2 where the sizes do not fit together.\n"
        "`bifocal plan stages --help`: what the units of a model cost, and how they are cut into stages;\n"
        "`bifocal plan schedule --help`: pipelines;\n"
        "`bifocal plan step --help`: time of a step and memory of its stages on a cluster;\n"
        "`bifocal plan kernels --help`: what a GPU does in a step, kernel by kernel;\n"
        "`bifocal plan estimate --help`: time and price of a large training by formulas.\n",
        out);
}

static int wrong(const char *what, const char *detail) {
    fprintf(stderr, "bifocal plan: %s%s; see `bifocal plan --help`\n", what, detail);
    return 2;
}

static bool take_gpu(Arguments *a, const char *text, Error *error) {
    const char *colon = strrchr(text, ':');
    double gib = 0;
    snprintf(a->gpu, sizeof a->gpu, "%.*s", (int)(colon ? colon - text : (long)strlen(text)), text);
    if (colon && !option_number(colon + 1, 0.1, 1e6, "--gpu NAME:GIB", &gib, error)) return false;
    if (colon) a->memory = gib * 0x1p30;
    if (colon || gpu_kind(a->gpu)) return true;
    Buffer names = {0};
    for (int i = 0; gpu_kind_at(i); i++) buffer_printf(&names, "%s%s", i ? ", " : "", gpu_kind_at(i)->key);
    error_set(error, ERROR_USAGE, "--gpu %s is not known; there are %s; or NAME:GIB says what it has", text,
              names.data);
    buffer_free(&names);
    return false;
}

static bool take(Arguments *a, int option, Error *error) {
    double number = 0;
    if (option == 'g') return take_gpu(a, optarg, error);
    if (option == 'm') {
        if (!option_number(optarg, 0.1, 1e6, "--memory", &number, error)) return false;
        a->memory = number * 1e9;
        return true;
    }
    if (option != 'n' || !option_number(optarg, 1, MOST_RANKS, "--ranks", &number, error)) return false;
    a->ranks = (int)number;
    return true;
}

static void parse(Arguments *a, int argc, char **argv) {
    static const struct option options[] = {{"ranks", required_argument, 0, 'n'},
                                            {"gpu", required_argument, 0, 'g'},
                                            {"memory", required_argument, 0, 'm'},
                                            {"help", no_argument, 0, 'h'},
                                            {0}};
    Error error = {0};
    *a = (Arguments){.status = -1};
    for (int c; (c = option_next(argc, argv, options, "plan", &error)) != -1;) {
        if (c == 'h') {
            usage(stdout);
            a->status = 0;
            return;
        }
        if (!take(a, c, &error)) {
            fprintf(stderr, "bifocal plan: %s\n", error.message);
            a->status = 2;
            return;
        }
    }
    if (!config_words(&a->words, argc, argv, &error))
        a->status = wrong(error.message, "");
    else if (!a->words.config)
        a->status = wrong("CONFIG is missing", "");
}

// ---- on a GPU ----

typedef struct Target {
    char name[160];
    DeviceLimit limit;
    bool fp8; // it has tensor cores for that, as far as is known
} Target;

// The one at hand, as it is now; false: there is none.
static bool find_own(Target *t) {
    Error none = {0};
    DeviceUse use;
    Backend *b = device_backend_new(&(DeviceOptions){.device = DEVICE_CUDA}, NULL, &none);
    if (!b) return false;
    device_use_first(b);
    bool found = device_use(b, &use);
    if (found) {
        t->limit = device_use_limit(&use, 1);
        t->fp8 = b->matmul_fp8 != NULL;
        snprintf(t->name, sizeof t->name, "the GPU of this machine (%.100s)", b->device);
    }
    backend_free(b);
    return found;
}

static void find_target(const Arguments *a, Target *t) {
    const GpuKind *kind = gpu_kind(*a->gpu ? a->gpu : "h100");
    if (!*a->gpu && !(a->memory > 0) && find_own(t)) return;
    t->limit = device_limit(a->memory > 0 ? a->memory : kind->memory);
    t->limit.gpu = kind;
    t->fp8 = !kind || kind->fp8 > 0;
    if (kind)
        snprintf(t->name, sizeof t->name, "a GPU (%s)", kind->key);
    else
        snprintf(t->name, sizeof t->name, "a GPU (%s, %.1f GiB)", a->gpu, t->limit.bytes / 0x1p30);
}

static void write_largest(const Layout *l, int pieces, Buffer *out) {
    if (!pieces)
        buffer_text(out, "  no microbatch is small enough\n");
    else
        buffer_printf(out, "  largest microbatch that fits: train.microbatches=%d%s\n", pieces,
                      pieces == l->pieces ? ", as it is" : "");
}

static void write_choice(const RecomputePlan *p, const TrainConfig *c, Buffer *out) {
    buffer_text(out, "  train.recompute: auto takes ");
    recompute_plan_write(p, c, out);
    for (int i = 0; i < c->model.recompute_units.count; i++)
        buffer_printf(out, "%s%s", i ? "," : "\n  train.recompute_units=", c->model.recompute_units.items[i]);
    buffer_text(out, "\n");
}

static bool plan_gpu(const Arguments *a, TrainConfig *c, const Layout *l, Arena *arena, Buffer *out, Error *error) {
    Target t;
    RecomputePlan plan;
    int pieces;
    bool again = c->model.recompute == RECOMPUTE_AUTO, lanes = !c->model.lanes;
    find_target(a, &t);
    if (c->model.fp8 && !t.fp8)
        return error_set(error, ERROR_USAGE,
                         "precision: fp8 needs a GPU of compute capability 8.9 or newer; %s is older", t.name);
    if (!device_fit_lanes(c, l, t.limit, error)) return false;
    if (!(again ? recompute_plan(c, l, t.limit, arena, &plan, error)
                : device_memory_plan(c, l, t.limit, &plan.memory, error)))
        return false;
    TrainConfig fewest = *c; // as a run would have it that does not fit otherwise
    if (lanes) fewest.model.lanes = 1;
    if (!device_fit_pieces(&fewest, l->ranks, t.limit, &pieces, error)) return false;
    device_memory_write(&plan.memory, t.name, t.limit.bytes, out);
    if (again) write_choice(&plan, c, out);
    if (lanes && c->model.lanes > 1) buffer_printf(out, "  train.lanes: auto takes %d\n", c->model.lanes);
    write_largest(l, pieces, out);
    return lane_balance_plan(c, l, t.limit.gpu ? t.limit.gpu : gpu_kind("h100"), arena, out, error);
}

static bool make(const Arguments *a, Arena *memory, Buffer *out, Error *error) {
    TrainConfig config;
    Plan plan;
    if (!train_config_read_planned(&config, a->words.config, a->words.settings, a->words.count, memory, error))
        return false;
    if (*a->gpu || a->memory > 0) config.device = DEVICE_CUDA;
    if (!plan_make(&config, a->ranks, memory, &plan, error)) return false;
    plan_write(&config, &plan, out);
    bool whole = plan.layout.size[MESH_PIPELINE] == 1;
    return config.device != DEVICE_CUDA || !whole || plan_gpu(a, &config, &plan.layout, memory, out, error);
}

int plan_main(int argc, char **argv) {
    Arguments a;
    Error error = {0};
    Buffer text = {0};
    if (argc > 1 && !strcmp(argv[1], "stages")) return plan_stages_main(argc - 1, argv + 1);
    if (argc > 1 && !strcmp(argv[1], "schedule")) return plan_schedule_main(argc - 1, argv + 1);
    if (argc > 1 && !strcmp(argv[1], "step")) return plan_step_main(argc - 1, argv + 1);
    if (argc > 1 && !strcmp(argv[1], "kernels")) return plan_kernels_main(argc - 1, argv + 1);
    if (argc > 1 && !strcmp(argv[1], "estimate")) return plan_estimate_main(argc - 1, argv + 1);
    parse(&a, argc, argv);
    if (a.status >= 0) return a.status;
    Arena *memory = arena_new(1 << 16);
    bool ok = make(&a, memory, &text, &error);
    if (ok)
        fwrite(text.data, 1, text.size, stdout);
    else
        fprintf(stderr, "bifocal plan: %s\n", error.message);
    buffer_free(&text);
    arena_free(memory);
    return ok ? 0 : (int)error.kind;
}
