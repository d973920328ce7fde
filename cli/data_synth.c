/* bifocal data synth: its options, and what it says at the end. */
#include "cli/data_commands.h"
#include "cli/options.h"
#include "data/synth.h"
#include <jansson.h>
#include <stdio.h>

static const char usage[] =
    "usage: bifocal data synth --out DIR [OPTION]...\n\n"
    "Draws scenes of coloured shapes as JPEG and PNG files, with captions, questions and answers in English and\n"
    "Chinese: DIR/train and DIR/test with images/ and captions.jsonl, and DIR/text.txt with plain text.\n\n"
    "  --samples N    pictures for training (20000); a tenth more, at least 100, go to DIR/test\n"
    "  --seed S       another seed, other scenes (0); the same seed, the same bytes\n"
    "  --threads N    how many work at once (one a core); the bytes do not depend on it\n"
    "  --force        replace what is there\n"
    "  --json         one JSON object about it on stdout\n";

static bool take_option(SynthOptions *o, int c, const char *value, bool *json, Error *error) {
    long long number = 0;
    switch (c) {
    case 'o':
        o->out = value;
        return true;
    case 'n':
        if (!data_number(value, 1, 100000000, "--samples", &number, error)) return false;
        o->samples = number;
        return true;
    case 's':
        if (!data_number(value, 0, INT64_MAX, "--seed", &number, error)) return false;
        o->seed = (uint64_t)number;
        return true;
    case 't':
        if (!data_number(value, 1, 1024, "--threads", &number, error)) return false;
        o->threads = (int)number;
        return true;
    case 'f':
        return o->force = true;
    case 'j':
        return *json = true;
    default:
        return false;
    }
}

static void print_result(const char *out, const SynthResult *r, bool json) {
    if (!json) {
        printf("%s: %lld scenes for training, %lld held out, %d classes; %lld lines of text\n", out,
               (long long)r->train, (long long)r->test, r->classes, (long long)r->text_lines);
        return;
    }
    json_t *object = json_pack("{s:s,s:I,s:I,s:I,s:i}", "path", out, "train", (json_int_t)r->train, "test",
                               (json_int_t)r->test, "text_lines", (json_int_t)r->text_lines, "classes", r->classes);
    json_dumpf(object, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(object);
}

DataOutcome data_synth_main(int argc, char **argv, Log *log, Error *error) {
    static const struct option options[] = {{"out", required_argument, 0, 'o'},  {"samples", required_argument, 0, 'n'},
                                            {"seed", required_argument, 0, 's'}, {"threads", required_argument, 0, 't'},
                                            {"force", no_argument, 0, 'f'},      {"json", no_argument, 0, 'j'},
                                            {"help", no_argument, 0, 'h'},       {0}};
    SynthOptions o = {0};
    SynthResult result;
    bool json = false;
    for (int c; (c = option_next(argc, argv, options, "data synth", error)) != -1;) {
        if (c == 'h') {
            fputs(usage, stdout);
            return DATA_HELP;
        }
        if (c == '?' || !take_option(&o, c, optarg, &json, error)) return DATA_FAILED;
    }
    if (argc != optind) {
        error_set(error, ERROR_USAGE, "'%s' is not an option; see `bifocal data synth --help`", argv[optind]);
        return DATA_FAILED;
    }
    if (!synth_write(&o, log, &result, error)) return DATA_FAILED;
    print_result(o.out, &result, json);
    return DATA_DONE;
}
