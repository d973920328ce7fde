/* bifocal: one program for data, tokenizers, training, evaluation and generation. This file only finds the sub-command.
 */
#include "cli/commands.h"
#include "cli/options.h"
#include <signal.h>
#include <stdio.h>
#include <string.h>

typedef struct Command {
    const char *name, *help;
    int (*run)(int argc, char **argv);
} Command;

static const Command commands[] = {
    {"data", "synth | build | ls | verify: make and look into datasets", data_main},
    {"tokenizer", "train | encode | decode: SentencePiece models", tokenizer_main},
    {"train", "pretrain a text-image model: CONFIG [section.key=value]... --run DIR", train_main},
    {"launch", "several processes that train together: -n N train CONFIG ...", launch_main},
    {"plan", "what a run on N processes would take and send: CONFIG [section.key=value]... --ranks N", plan_main},
    {"eval", "zero-shot benchmarks: MODEL --task NAME,...", eval_main},
    {"generate", "text from a prompt and pictures: MODEL --prompt TEXT [--image FILE]...", generate_main},
    {"export", "a trained model as one folder of whole files: MODEL --out DIR", export_main},
    {"report", "one HTML page about a run: RUN", report_main},
    {"config", "every key of a training config, with default, range and meaning", config_main},
    {"bench", "ops | train | loader | comm | checkpoint | contrastive: measured speed beside the machine's limits",
     bench_main},
    {"doctor", "what this machine has, and what the program makes of it", doctor_main},
};
enum { COMMANDS = sizeof commands / sizeof *commands };

static void usage(FILE *out) {
    fprintf(out, "usage: bifocal COMMAND [ARGUMENT]...\n\n");
    for (int i = 0; i < COMMANDS; i++) fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].help);
    fprintf(out,
            "\n`bifocal COMMAND --help` says more. Exit status: 0 done, 1 failed or damage found, 2 wrong usage.\n");
}

static int unknown(const char *word) {
    const char *names[COMMANDS];
    for (int i = 0; i < COMMANDS; i++) names[i] = commands[i].name;
    Error error = {0};
    option_unknown(&error, "command", word, names, COMMANDS, "--help");
    fprintf(stderr, "bifocal: %s\n", error.message);
    return (int)error.kind;
}

int main(int argc, char **argv) {
    signal(SIGXFSZ, SIG_IGN); // a file that may grow no further is an error with its name, not the end of the process
    if (argc < 2) return usage(stderr), 2;
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) return usage(stdout), 0;
    if (!strcmp(argv[1], "--version")) return printf("bifocal %s\n", BIFOCAL_VERSION), 0;
    for (int i = 0; i < COMMANDS; i++)
        if (!strcmp(argv[1], commands[i].name)) return commands[i].run(argc - 1, argv + 1);
    return unknown(argv[1]);
}
