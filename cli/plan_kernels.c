/* bifocal plan kernels: what a GPU does in a training step, kernel by kernel, modelled from its data sheet. */
#include "cli/commands.h"
#include "cli/options.h"
#include "kernels/device.h"
#include "train/kernel_costs.h"
#include "train/plan.h"
#include "train/recompute_plan.h"
#include <stdio.h>
#include <string.h>

typedef struct Arguments {
    const char *preset; // or
    ConfigWords words;
    int ranks; // 0: what the config asks for
    const GpuKind *gpu;
    Dtype compute;
    Recompute recompute;
    bool help;
} Arguments;

static void usage(FILE *out) {
    fputs("usage: bifocal plan kernels CONFIG [section.key=value]... [--ranks N] [--gpu NAME]\n"
          "       bifocal plan kernels --preset NAME [--precision bf16|f32] [--recompute none|selective|full] [--gpu "
          "NAME]\n\n"
          "  CONFIG          YAML file of a training run; its data need not be there\n"
          "  --ranks N       processes; otherwise as many as parallel.* asks for\n"
          "  --preset NAME   a step of `bifocal bench train`\n"
          "  --gpu NAME      h100, a100, l40s, ... (h100)\n\n"
          "Prints which kernels a step calls on a GPU, how often, their FLOP and the bytes they move, the longest\n"
          "first, and what the step takes at the least: each kernel as long as its FLOP or its bytes take by the\n"
          "maker's figures, once as good kernels reach these and once in full. Modelled: no GPU is needed. What\n"
          "ranks exchange is not in it.\n",
          out);
}

static bool take(Arguments *a, int option, Error *error) {
    int choice = 0;
    double ranks = 0;
    if (option == 'n' && !option_number(optarg, 1, 1 << 20, "--ranks", &ranks, error)) return false;
    if (option == 'n') a->ranks = (int)ranks;
    if (option == 'p') a->preset = optarg;
    if (option == 'g' && !(a->gpu = gpu_kind(optarg)))
        return error_set(error, ERROR_USAGE, "--gpu %s is not known", optarg);
    if (option == 'f' && !option_choice(optarg, "bf16|f32", "--precision", &choice, error)) return false;
    if (option == 'f') a->compute = choice ? F32 : BF16;
    if (option == 'c' && !option_choice(optarg, "none|selective|full", "--recompute", &choice, error)) return false;
    if (option == 'c') a->recompute = (Recompute)choice;
    return true;
}

static bool parse(Arguments *a, int argc, char **argv, Error *error) {
    static const struct option options[] = {{"preset", required_argument, 0, 'p'},
                                            {"gpu", required_argument, 0, 'g'},
                                            {"precision", required_argument, 0, 'f'},
                                            {"recompute", required_argument, 0, 'c'},
                                            {"ranks", required_argument, 0, 'n'},
                                            {"help", no_argument, 0, 'h'},
                                            {0}};
    *a = (Arguments){.gpu = gpu_kind("h100"), .compute = BF16};
    for (int c; (c = option_next(argc, argv, options, "plan kernels", error)) != -1;) {
        if ((a->help = c == 'h')) return true;
        if (c == '?' || !take(a, c, error)) return false;
    }
    if (!config_words(&a->words, argc, argv, error)) return false;
    if (!a->words.config == !a->preset)
        return error_set(error, ERROR_USAGE, "a CONFIG or --preset is wanted; see `bifocal plan kernels --help`");
    return true;
}

static bool of_preset(const Arguments *a, KernelCosts *costs, Error *error) {
    BenchPreset preset;
    return bench_preset(&preset, a->preset, error) &&
           kernel_costs_preset(&preset, a->compute, a->recompute, a->gpu, costs, error);
}

static bool of_run(Arguments *a, KernelCosts *costs, Arena *arena, Error *error) {
    TrainConfig c;
    Plan plan;
    RecomputePlan chosen;
    DeviceLimit limit = device_limit(a->gpu->memory);
    if (!train_config_read_planned(&c, a->words.config, a->words.settings, a->words.count, arena, error) ||
        !plan_make(&c, a->ranks, arena, &plan, error))
        return false;
    if (plan.layout.size[MESH_PIPELINE] > 1)
        return error_set(error, ERROR_USAGE, "stages of a pipeline are told by `bifocal plan stages`");
    if (c.model.fp8 && !(a->gpu->fp8 > 0))
        return error_set(error, ERROR_USAGE,
                         "precision: fp8 needs a GPU of compute capability 8.9 or newer; %s is older", a->gpu->key);
    c.device = DEVICE_CUDA;
    a->compute = c.precision ? BF16 : F32;
    if (c.model.recompute == RECOMPUTE_AUTO && !recompute_plan(&c, &plan.layout, limit, arena, &chosen, error))
        return false;
    return kernel_costs_run(&c, &plan.layout, a->gpu, costs, error);
}

static bool print(Arguments *a, Error *error) {
    KernelCosts costs;
    Buffer text = {0};
    Arena *arena = arena_new(1 << 16);
    bool ok = a->preset ? of_preset(a, &costs, error) : of_run(a, &costs, arena, error);
    if (ok) {
        kernel_costs_write(&costs, a->gpu, a->compute, &text);
        fwrite(text.data, 1, text.size, stdout);
    }
    buffer_free(&text);
    arena_free(arena);
    return ok;
}

int plan_kernels_main(int argc, char **argv) {
    Arguments a;
    Error error = {0};
    bool ok = parse(&a, argc, argv, &error);
    if (ok && a.help) return usage(stdout), 0;
    if (ok && print(&a, &error)) return 0;
    fprintf(stderr, "bifocal plan kernels: %s\n", error.message);
    return (int)error.kind;
}
