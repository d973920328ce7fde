/* bifocal data build: its options, and what it says at the end. */
#include "cli/data_commands.h"
#include "cli/options.h"
#include "data/build.h"
#include "base/clock.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] =
    "usage: bifocal data build SOURCE... --out DIR [OPTION]...\n\n"
    "  SOURCE                 a .jsonl file with its pictures beside it, a .json file that is one array of rows, a\n"
    "                         folder of pictures with captions in .txt files of the same names, or a text file\n"
    "  --out DIR              where the dataset goes: a new folder\n"
    "  --force                replace the dataset that is there\n\n"
    "rows of .jsonl and .json (the whole row is kept as the sample's .json):\n"
    "  --image-field NAME     holds the path of a picture; again for several pictures a sample\n"
    "  --image-template T     the path, made of fields: \"images/{image}.png\"\n"
    "  --text-field NAME      holds the caption, or a text without pictures; again for further captions\n"
    "  --question-field NAME, --answer-field NAME\n"
    "  --columns A,B,...      names for the values of rows that are arrays\n\n"
    "text files:\n"
    "  --documents HOW        whole: one document, in pieces of at most 64 KiB that join to the file (the default);\n"
    "                         lines: a line a sample; blank: blank lines part the samples\n\n"
    "  --validation-fraction F, --validation-out DIR\n"
    "                         hold out a share for validation: the tail of each whole text, else samples drawn\n"
    "                         by a hash of what they are, so that rows about one picture stay together\n"
    "  --seed S               of that draw (0)\n"
    "  --limit N              stop after N samples\n"
    "  --shard-size BYTES     of a tar, as in 64M (256M)\n"
    "  --name TEXT, --license TEXT, --source-name TEXT\n"
    "                         for the record in dataset.json\n"
    "  --dali-index           also an index for NVIDIA DALI beside each shard\n"
    "  --json                 one JSON object about the dataset on stdout\n";

typedef struct Arguments {
    BuildOptions build;
    bool json;
} Arguments;

static bool add_field(const char **fields, int *count, const char *name, Error *error) {
    if (*count == ROW_FIELDS) return error_set(error, ERROR_USAGE, "more than %d fields of one kind", ROW_FIELDS);
    fields[(*count)++] = name;
    return true;
}

static bool take_documents(const char *text, Documents *out, Error *error) {
    static const char *const names[] = {"whole", "lines", "blank"};
    for (int i = 0; i < 3; i++)
        if (strcmp(text, names[i]) == 0) return *out = (Documents)(DOCUMENTS_WHOLE + i), true;
    return error_set(error, ERROR_USAGE, "--documents '%s' is none of whole, lines, blank", text);
}

static bool take_fraction(const char *text, double *out, Error *error) {
    char *end;
    *out = strtod(text, &end);
    if (end == text || *end || !(*out > 0 && *out < 1))
        return error_set(error, ERROR_USAGE, "--validation-fraction '%s' is not between 0 and 1", text);
    return true;
}

static const char **text_option(BuildOptions *b, int c) {
    switch (c) {
    case 'o':
        return &b->out;
    case 'T':
        return &b->image_template;
    case 'q':
        return &b->rules.question_field;
    case 'a':
        return &b->rules.answer_field;
    case 'c':
        return &b->columns;
    case 'V':
        return &b->validation_out;
    case 'n':
        return &b->name;
    case 'L':
        return &b->license;
    case 's':
        return &b->source_name;
    default:
        return NULL;
    }
}

static bool take_option(Arguments *a, int c, const char *value, Error *error) {
    BuildOptions *b = &a->build;
    long long number = 0;
    const char **text = text_option(b, c);
    if (text) return *text = value, true;
    switch (c) {
    case 'i':
        return add_field(b->rules.image_fields, &b->rules.image_count, value, error);
    case 't':
        return add_field(b->rules.text_fields, &b->rules.text_count, value, error);
    case 'd':
        return take_documents(value, &b->documents, error);
    case 'v':
        return take_fraction(value, &b->validation_fraction, error);
    case 'f':
        return b->force = true;
    case 'D':
        return b->dali_index = true;
    case 'j':
        return a->json = true;
    case 'S':
        if (!data_number(value, 0, INT64_MAX, "--seed", &number, error)) return false;
        b->seed = (uint64_t)number;
        return true;
    case 'l':
        if (!data_number(value, 1, INT64_MAX, "--limit", &number, error)) return false;
        b->limit = number;
        return true;
    case 'z':
        if (!data_size(value, "--shard-size", &number, error)) return false;
        b->shard_size = number;
        return true;
    default:
        return false;
    }
}

static DataOutcome parse(int argc, char **argv, Arguments *a, Error *error) {
    static const struct option options[] = {{"out", required_argument, 0, 'o'},
                                            {"force", no_argument, 0, 'f'},
                                            {"image-field", required_argument, 0, 'i'},
                                            {"image-template", required_argument, 0, 'T'},
                                            {"text-field", required_argument, 0, 't'},
                                            {"question-field", required_argument, 0, 'q'},
                                            {"answer-field", required_argument, 0, 'a'},
                                            {"columns", required_argument, 0, 'c'},
                                            {"documents", required_argument, 0, 'd'},
                                            {"validation-fraction", required_argument, 0, 'v'},
                                            {"validation-out", required_argument, 0, 'V'},
                                            {"seed", required_argument, 0, 'S'},
                                            {"limit", required_argument, 0, 'l'},
                                            {"shard-size", required_argument, 0, 'z'},
                                            {"name", required_argument, 0, 'n'},
                                            {"license", required_argument, 0, 'L'},
                                            {"source-name", required_argument, 0, 's'},
                                            {"dali-index", no_argument, 0, 'D'},
                                            {"json", no_argument, 0, 'j'},
                                            {"help", no_argument, 0, 'h'},
                                            {0}};
    for (int c; (c = option_next(argc, argv, options, "data build", error)) != -1;) {
        if (c == 'h') {
            fputs(usage, stdout);
            return DATA_HELP;
        }
        if (c == '?' || !take_option(a, c, optarg, error)) return DATA_FAILED;
    }
    a->build.sources = (const char *const *)argv + optind;
    a->build.source_count = argc - optind;
    return DATA_DONE;
}

static json_t *summary_json(const char *path, const DatasetSummary *s) {
    return json_pack("{s:s,s:I,s:i,s:I,s:I,s:s,s:s}", "path", path, "samples", (json_int_t)s->samples, "shards",
                     s->shards, "bytes", (json_int_t)s->bytes, "left_out", (json_int_t)s->dropped, "root", s->root,
                     "uuid", s->uuid);
}

static void print_summary(const char *path, const DatasetSummary *s) {
    printf("%s: %lld samples in %d shards, %.1f MiB, root %.16s\n", path, (long long)s->samples, s->shards,
           (double)s->bytes / (1 << 20), s->root);
}

static void print_result(const Arguments *a, const BuildResult *r) {
    const BuildOptions *b = &a->build;
    if (!a->json) {
        print_summary(b->out, &r->train);
        if (b->validation_out) print_summary(b->validation_out, &r->validation);
        return;
    }
    json_t *object = summary_json(b->out, &r->train);
    if (b->validation_out) json_object_set_new(object, "validation", summary_json(b->validation_out, &r->validation));
    json_dumpf(object, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(object);
}

DataOutcome data_build_main(int argc, char **argv, Log *log, Error *error) {
    Arguments a = {0};
    BuildResult result;
    double start = clock_seconds();
    DataOutcome outcome = parse(argc, argv, &a, error);
    if (outcome != DATA_DONE) return outcome;
    if (!build_dataset(&a.build, log, &result, error)) return DATA_FAILED;
    double seconds = clock_seconds() - start;
    log_info(log, "built in %.1f s, %.0f samples/s", seconds,
             (double)(result.train.samples + result.validation.samples) / (seconds > 0 ? seconds : 1));
    print_result(&a, &result);
    return DATA_DONE;
}
