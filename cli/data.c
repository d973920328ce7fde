/* bifocal data: dispatch, and the acts that look at datasets: ls and verify. */
#include "cli/commands.h"
#include "cli/data_commands.h"
#include "cli/options.h"
#include "data/manifest.h"
#include "data/verify.h"
#include "base/json.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool data_number(const char *text, long long least, long long most, const char *option, long long *value,
                 Error *error) {
    char *end = NULL;
    errno = 0;
    *value = strtoll(text, &end, 10);
    if (errno || end == text || *end || *value < least || *value > most)
        return error_set(error, ERROR_USAGE, "%s '%s' is not a whole number from %lld to %lld", option, text, least,
                         most);
    return true;
}

bool data_size(const char *text, const char *option, long long *value, Error *error) {
    char *end = NULL;
    errno = 0;
    *value = strtoll(text, &end, 10);
    int shift = *end == 'K' ? 10 : *end == 'M' ? 20 : *end == 'G' ? 30 : 0;
    if (errno || end == text || end[shift != 0] || *value < 1 || *value > (1LL << 42) >> shift)
        return error_set(error, ERROR_USAGE, "%s '%s' is not a number of bytes, as in 500000, 64M or 1G", option, text);
    *value <<= shift;
    return true;
}

// ---- ls and verify ----

typedef struct Look {
    bool json;
    const char *path;
} Look;

static DataOutcome parse_look(int argc, char **argv, const char *usage, Look *look, Error *error) {
    static const struct option options[] = {{"json", no_argument, 0, 'j'}, {"help", no_argument, 0, 'h'}, {0}};
    char command[32];
    snprintf(command, sizeof command, "data %s", argv[0]);
    for (int c; (c = option_next(argc, argv, options, command, error)) != -1;) {
        if (c == 'h') {
            fputs(usage, stdout);
            return DATA_HELP;
        }
        if (c == '?') return DATA_FAILED;
        look->json = true;
    }
    if (argc - optind != 1) {
        error_set(error, ERROR_USAGE, "one dataset folder is wanted; see `bifocal data %s --help`", argv[0]);
        return DATA_FAILED;
    }
    look->path = argv[optind];
    return DATA_DONE;
}

static void print_size(const char *label, int64_t bytes) {
    if (bytes < 10 << 20)
        printf("%-12s %.1f KiB\n", label, (double)bytes / 1024);
    else
        printf("%-12s %.1f MiB\n", label, (double)bytes / (1 << 20));
}

static void print_histogram(const char *label, const json_t *h, const char *unit) {
    if (!json_get_int(h, "count", 0)) return;
    printf("%-12s %lld to %lld %s, mean %.1f, of %lld\n", label, (long long)json_get_int(h, "least", 0),
           (long long)json_get_int(h, "most", 0), unit, json_get_number(h, "mean", 0),
           (long long)json_get_int(h, "count", 0));
}

static void print_counts(const char *label, json_t *counts) {
    const char *name;
    json_t *value;
    if (!json_object_size(counts)) return;
    printf("%-12s", label);
    json_object_foreach(counts, name, value) printf(" %s %lld", name, (long long)json_integer_value(value));
    putchar('\n');
}

static void print_text(const char *label, const char *text) {
    if (*text) printf("%-12s %s\n", label, text);
}

static void print_manifest(const Manifest *m) {
    json_t *histograms = json_object_get(m->json, "histograms"), *source = json_object_get(m->json, "source");
    print_text("name", json_get_string(m->json, "name", ""));
    printf("%-12s %s\n%-12s %s\n", "uuid", json_get_string(m->json, "uuid", ""), "root", m->root);
    printf("%-12s %lld in %d shards\n", "samples", (long long)m->samples, m->shard_count);
    print_size("size", json_get_int(m->json, "bytes", 0));
    print_histogram("width", json_object_get(histograms, "width"), "pixels");
    print_histogram("height", json_object_get(histograms, "height"), "pixels");
    print_histogram("text", json_object_get(histograms, "caption_characters"), "characters");
    print_counts("language", json_object_get(histograms, "language"));
    print_counts("left out", json_object_get(m->json, "dropped"));
    print_text("license", json_get_string(m->json, "license", ""));
    print_text("source", json_get_string(source, "name", ""));
    printf("\n%-18s %10s %14s  %s\n", "shard", "samples", "bytes", "sha256");
    for (int i = 0; i < m->shard_count; i++) {
        char hex[SHA256_HEX + 1];
        hex_encode(m->shards[i].sha256, SHA256_SIZE, hex);
        printf("%-18s %10lld %14lld  %.16s\n", m->shards[i].path, (long long)m->shards[i].samples,
               (long long)m->shards[i].bytes, hex);
    }
}

DataOutcome data_ls_main(int argc, char **argv, Log *log, Error *error) {
    static const char usage[] =
        "usage: bifocal data ls DIR [--json]\n\n"
        "What a dataset holds: shards, samples, sizes, languages, lengths of captions, what was\n"
        "left out and why. --json: its dataset.json.\n";
    Look look = {0};
    Manifest m;
    (void)log;
    DataOutcome outcome = parse_look(argc, argv, usage, &look, error);
    if (outcome != DATA_DONE) return outcome;
    if (!manifest_read(&m, look.path, error)) return DATA_FAILED;
    if (look.json) {
        json_dumpf(m.json, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
        putchar('\n');
    } else {
        print_manifest(&m);
    }
    manifest_free(&m);
    return DATA_DONE;
}

DataOutcome data_verify_main(int argc, char **argv, Log *log, Error *error) {
    static const char usage[] = "usage: bifocal data verify DIR [--json]\n\n"
                                "Checks every byte of a dataset: hashes, the structure of the tars, the CRC of every\n"
                                "member, sidecars and ledger. Findings go to stderr, a summary to stdout; the exit\n"
                                "status is 1 where there is any.\n";
    Look look = {0};
    DataOutcome outcome = parse_look(argc, argv, usage, &look, error);
    if (outcome != DATA_DONE) return outcome;
    json_t *list = json_array();
    int64_t findings = dataset_verify_list(look.path, list, log, error);
    if (look.json) {
        if (findings < 0) json_array_append_new(list, json_string(error->message));
        json_t *object = json_pack("{s:s,s:I,s:O}", "path", look.path, "findings",
                                   (json_int_t)(findings < 0 ? 1 : findings), "list", list);
        json_dumpf(object, stdout, JSON_INDENT(2));
        putchar('\n');
        json_decref(object);
    } else if (findings == 0) {
        printf("%s: whole\n", look.path);
    }
    json_decref(list);
    if (findings > 0)
        error_set(error, ERROR_FAILED, "%s: damaged, %lld findings: restore it from a copy or build it again",
                  look.path, (long long)findings);
    return findings == 0 ? DATA_DONE : DATA_FAILED;
}

// ---- dispatch ----

typedef struct Act {
    const char *name;
    DataOutcome (*run)(int argc, char **argv, Log *, Error *);
    const char *help;
} Act;

static const Act acts[] = {
    {"synth", data_synth_main, "draw scenes with captions, questions and answers, to try things on"},
    {"build", data_build_main, "make a dataset of pictures and texts"},
    {"ls", data_ls_main, "say what a dataset holds"},
    {"verify", data_verify_main, "check every byte of a dataset"},
};
enum { ACTS = sizeof acts / sizeof *acts };

static void usage(FILE *out) {
    fputs("usage: bifocal data ACT ...   (bifocal data ACT --help says more)\n\n", out);
    for (int i = 0; i < ACTS; i++) fprintf(out, "  %-8s %s\n", acts[i].name, acts[i].help);
}

int data_main(int argc, char **argv) {
    Error error = {0};
    if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        usage(argc < 2 ? stderr : stdout);
        return argc < 2 ? ERROR_USAGE : 0;
    }
    for (int i = 0; i < ACTS; i++) {
        if (strcmp(argv[1], acts[i].name) != 0) continue;
        Log *log = log_new(LOG_INFO, stderr);
        DataOutcome outcome = acts[i].run(argc - 1, argv + 1, log, &error);
        if (outcome == DATA_FAILED) log_error(log, "%s", error.message);
        log_free(log);
        return outcome == DATA_FAILED ? (int)error.kind : 0;
    }
    const char *names[ACTS];
    for (int i = 0; i < ACTS; i++) names[i] = acts[i].name;
    option_unknown(&error, "act", argv[1], names, ACTS, "data --help");
    fprintf(stderr, "bifocal data: %s\n", error.message);
    return (int)error.kind;
}
