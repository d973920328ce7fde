/* bifocal plan: what a run on so many processes would look like. */
#include "cli/commands.h"
#include "cli/options.h"
#include "train/plan.h"
#include <stdio.h>
#include <string.h>

enum { MOST_RANKS = 1 << 20, MOST_SETTINGS = 256 };

typedef struct Arguments {
    const char *config, *settings[MOST_SETTINGS];
    int n_settings, ranks; // ranks 0: what the config asks for
    int status;            // -1: go on
} Arguments;

static void usage(FILE *out) {
    fputs(
        "usage: bifocal plan CONFIG [section.key=value]... [--ranks N]\n"
        "       bifocal plan stages CONFIG [section.key=value]... --stages P [options]\n"
        "       bifocal plan schedule --stages P --microbatches M --schedule S [options]\n"
        "       bifocal plan step CONFIG [section.key=value]... --ranks N [options]\n"
        "       bifocal plan estimate --layers L --width H [options]\n\n"
        "  CONFIG              YAML file of a training run; its data need not be there\n"
        "  section.key=value   as for bifocal train\n"
        "  --ranks N           processes; otherwise as many as parallel.* asks for\n\n"
        "Prints the place of every process, the stages of a pipeline, what a process takes in memory, its share of a\n"
        "step and what it sends to others; starts nothing. Exit status 2 where the sizes do not fit.\n"
        "`bifocal plan stages --help`: what the units of a model cost, and how they are cut into stages;\n"
        "`bifocal plan schedule --help`: pipelines;\n"
        "`bifocal plan step --help`: time of a step and memory of its stages on a cluster;\n"
        "`bifocal plan estimate --help`: time and price of a large training by formulas.\n",
        out);
}

static int wrong(const char *what, const char *detail) {
    fprintf(stderr, "bifocal plan: %s%s; see `bifocal plan --help`\n", what, detail);
    return 2;
}

static void take_words(Arguments *a, int argc, char **argv) {
    for (int i = optind; i < argc && a->status < 0; i++) {
        if (strchr(argv[i], '=') && a->n_settings < MOST_SETTINGS)
            a->settings[a->n_settings++] = argv[i];
        else if (a->config || strchr(argv[i], '='))
            a->status = wrong(a->config ? "a second CONFIG: " : "too many settings: ", argv[i]);
        else
            a->config = argv[i];
    }
    if (a->status < 0 && !a->config) a->status = wrong("CONFIG is missing", "");
}

static void parse(Arguments *a, int argc, char **argv) {
    static const struct option options[] = {{"ranks", required_argument, 0, 'n'}, {"help", no_argument, 0, 'h'}, {0}};
    Error error = {0};
    *a = (Arguments){.status = -1};
    for (int c; (c = option_next(argc, argv, options, "plan", &error)) != -1;) {
        double ranks = 0;
        if (c == 'h') {
            usage(stdout);
            a->status = 0;
            return;
        }
        if (c != 'n' || !option_number(optarg, 1, MOST_RANKS, "--ranks", &ranks, &error)) {
            fprintf(stderr, "bifocal plan: %s\n", error.message);
            a->status = 2;
            return;
        }
        a->ranks = (int)ranks;
    }
    take_words(a, argc, argv);
}

int plan_main(int argc, char **argv) {
    Arguments a;
    TrainConfig config;
    Plan plan;
    Error error = {0};
    Buffer text = {0};
    if (argc > 1 && !strcmp(argv[1], "stages")) return plan_stages_main(argc - 1, argv + 1);
    if (argc > 1 && !strcmp(argv[1], "schedule")) return plan_schedule_main(argc - 1, argv + 1);
    if (argc > 1 && !strcmp(argv[1], "step")) return plan_step_main(argc - 1, argv + 1);
    if (argc > 1 && !strcmp(argv[1], "estimate")) return plan_estimate_main(argc - 1, argv + 1);
    parse(&a, argc, argv);
    if (a.status >= 0) return a.status;
    Arena *memory = arena_new(1 << 16);
    bool ok = train_config_read_planned(&config, a.config, a.settings, a.n_settings, memory, &error) &&
              plan_make(&config, a.ranks, memory, &plan, &error);
    if (ok) {
        plan_write(&config, &plan, &text);
        fwrite(text.data, 1, text.size, stdout);
    } else
        fprintf(stderr, "bifocal plan: %s\n", error.message);
    buffer_free(&text);
    arena_free(memory);
    return ok ? 0 : (int)error.kind;
}
