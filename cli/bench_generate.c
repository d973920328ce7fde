/* bifocal bench generate: tokens a second beside what the memory's bandwidth allows. */
#include "cli/commands.h"
#include "cli/options.h"
#include "train/bench_generate.h"
#include <stdio.h>

typedef struct Arguments {
    BenchGenerateOptions options;
    bool json, help;
} Arguments;

static void usage(FILE *out) {
    fputs(
        "usage: bifocal bench generate [OPTION]...\n\n"
        "Text from a language model of random weights. The share is of the speed at which the machine, at its rate of\n"
        "copying, could read every weight and what the cache holds once for each token.\n\n"
        "  --preset NAME          of `bifocal bench train` (gpt2_124m)\n"
        "  --batch N              texts at a time (1)\n"
        "  --prompt N             tokens of each prompt (32)\n"
        "  --tokens N             that each text gets (128)\n"
        "  --temperature T        0: the likeliest word (0)\n"
        "  --rounds N             the median counts (3)\n"
        "  --precision f32|bf16   (bf16)\n"
        "  --device cpu|cuda|auto (cpu)\n"
        "  --threads N            0: one for each core (0)\n"
        "  --json                 one JSON object\n",
        out);
}

static bool take(Arguments *a, int c, const char *value, Error *error) {
    BenchGenerateOptions *o = &a->options;
    double number = 0;
    int choice = 0;
    bool ok = true;
    if (c == 'p')
        o->preset = value;
    else if (c == 'j')
        a->json = true;
    else if (c == 'h')
        a->help = true;
    else if (c == 'f' && (ok = option_choice(value, "f32|bf16", "--precision", &choice, error)))
        o->precision = choice ? BF16 : F32;
    else if (c == 'v' && (ok = option_choice(value, DEVICE_CHOICES, "--device", &choice, error)))
        o->device = (Device)choice;
    else if (c == 'b' && (ok = option_number(value, 1, 4096, "--batch", &number, error)))
        o->batch = (int)number;
    else if (c == 'l' && (ok = option_number(value, 1, 1e6, "--prompt", &number, error)))
        o->prompt = (int64_t)number;
    else if (c == 'n' && (ok = option_number(value, 1, 1e6, "--tokens", &number, error)))
        o->tokens = (int64_t)number;
    else if (c == 'e')
        ok = option_number(value, 0, 100, "--temperature", &o->temperature, error);
    else if (c == 'r' && (ok = option_number(value, 1, 1e6, "--rounds", &number, error)))
        o->rounds = (int)number;
    else if (c == 't' && (ok = option_number(value, 0, 4096, "--threads", &number, error)))
        o->threads = (int)number;
    return ok && c != '?';
}

static bool parse(Arguments *a, int argc, char **argv, Error *error) {
    static const struct option options[] = {
        {"preset", required_argument, 0, 'p'},  {"batch", required_argument, 0, 'b'},
        {"prompt", required_argument, 0, 'l'},  {"tokens", required_argument, 0, 'n'},
        {"rounds", required_argument, 0, 'r'},  {"temperature", required_argument, 0, 'e'},
        {"device", required_argument, 0, 'v'},  {"precision", required_argument, 0, 'f'},
        {"threads", required_argument, 0, 't'}, {"json", no_argument, 0, 'j'},
        {"help", no_argument, 0, 'h'},          {0}};
    *a = (Arguments){
        .options = {.preset = "gpt2_124m", .batch = 1, .prompt = 32, .tokens = 128, .rounds = 3, .precision = BF16}};
    for (int c; !a->help && (c = option_next(argc, argv, options, "bench generate", error)) != -1;)
        if (!take(a, c, optarg, error)) return false;
    if (a->help || optind == argc) return true;
    return error_set(error, ERROR_USAGE, "'%s' is not an option; see `bifocal bench generate --help`", argv[optind]);
}

static void print(const Arguments *a, const BenchGenerateResult *r) {
    const BenchGenerateOptions *o = &a->options;
    const char *precision = o->precision == BF16 ? "bf16" : "f32";
    if (a->json)
        printf("{\"preset\": \"%s\", \"precision\": \"%s\", \"batch\": %d, \"prompt\": %lld, \"tokens\": %lld, "
               "\"seconds\": %.6g, \"per_second\": %.6g, \"bytes\": %.6g, \"copy_gbytes\": %.2f, \"share\": %.4f}\n",
               o->preset, precision, o->batch, (long long)o->prompt, (long long)o->tokens, r->seconds, r->per_second,
               r->bytes, r->copy_gbytes, r->share);
    else
        printf("%s %s, %d text%s: %.1f tokens/s, %.3f ms a token; weights and cache %.3f GB a token, %.0f %% of %.1f "
               "GB/s\n",
               o->preset, precision, o->batch, o->batch > 1 ? "s" : "", r->per_second,
               1e3 * r->seconds / (double)o->tokens, r->bytes / 1e9, 100 * r->share, r->copy_gbytes);
}

int bench_generate_main(int argc, char **argv) {
    Arguments a;
    Error error = {0};
    BenchGenerateResult result;
    Log *log = log_new(LOG_WARNING, stderr);
    bool ok = parse(&a, argc, argv, &error);
    if (ok && a.help)
        usage(stdout);
    else if (ok && (ok = bench_generate(&a.options, &result, log, &error)))
        print(&a, &result);
    log_free(log);
    if (ok) return 0;
    fprintf(stderr, "bifocal bench generate: %s\n", error.message);
    return (int)error.kind;
}
