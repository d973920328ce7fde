/* bifocal plan kernels: what a GPU does in a training step, kernel by kernel, modelled from its data sheet. */
#include "cli/commands.h"
#include "cli/options.h"
#include "train/kernel_costs.h"
#include <stdio.h>

typedef struct Arguments {
    const char *preset;
    const GpuKind *gpu;
    Dtype compute;
    Recompute recompute;
    bool help;
} Arguments;

static void usage(FILE *out) {
    fputs("usage: bifocal plan kernels --preset NAME [--gpu NAME] [--precision bf16|f32]\n"
          "                            [--recompute none|selective|full]\n\n"
          "  --preset NAME   a step of `bifocal bench train`\n"
          "  --gpu NAME      h100, a100, l40s, ... (h100)\n\n"
          "Prints which kernels a step calls on a GPU, how often, their FLOP and the bytes they move, the longest\n"
          "first, and what the step takes at the least: each kernel as long as its FLOP or its bytes take by the\n"
          "maker's figures, once as good kernels reach these and once in full. Modelled: no GPU is needed.\n",
          out);
}

static bool take(Arguments *a, int option, Error *error) {
    int choice = 0;
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
                                            {"help", no_argument, 0, 'h'},
                                            {0}};
    *a = (Arguments){.gpu = gpu_kind("h100"), .compute = BF16};
    for (int c; (c = option_next(argc, argv, options, "plan kernels", error)) != -1;) {
        if ((a->help = c == 'h')) return true;
        if (c == '?' || !take(a, c, error)) return false;
    }
    if (optind < argc)
        return error_set(error, ERROR_USAGE, "'%s' is not an option; see `bifocal plan kernels --help`", argv[optind]);
    return a->preset || error_set(error, ERROR_USAGE, "--preset is missing; see `bifocal plan kernels --help`");
}

static bool print(const Arguments *a, Error *error) {
    BenchPreset preset;
    KernelCosts costs;
    Buffer text = {0};
    if (!bench_preset(&preset, a->preset, error) ||
        !kernel_costs_preset(&preset, a->compute, a->recompute, a->gpu, &costs, error))
        return false;
    kernel_costs_write(&costs, a->gpu, a->compute, &text);
    fwrite(text.data, 1, text.size, stdout);
    buffer_free(&text);
    return true;
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
