/* bifocal tokenizer: train, encode, decode. */
#include "base/buffer.h"
#include "base/files.h"
#include "base/json.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "cli/tokenizer_sources.h"
#include "tokenizers/tokenizer.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_FIELDS = 32 };

typedef struct Arguments {
    const char *model, *out;
    const char *fields[MOST_FIELDS];
    int field_count;
    bool json;
    TokenizerTraining training;
} Arguments;

static void usage(FILE *out) {
    fputs("usage: bifocal tokenizer train SOURCE... --out FILE.model --vocab-size N [OPTION]...\n"
          "       bifocal tokenizer encode --model FILE.model     texts on stdin, a line each; ids on stdout\n"
          "       bifocal tokenizer decode --model FILE.model     ids on stdin, a line a text; texts on stdout\n\n"
          "  SOURCE               a text file, a .jsonl file (with --text-field) or a dataset folder\n"
          "  --out FILE           where the model goes\n"
          "  --vocab-size N       pieces, the four special ids and the 256 bytes counted\n"
          "  --type TYPE          unigram (the default), bpe or char\n"
          "  --text-field NAME    a field that holds text; may be given several times\n"
          "  --no-byte-fallback   unknown characters become <unk>, not bytes\n"
          "  --keep-whitespace    newlines and runs of spaces come back as they were (for raw text)\n"
          "  --coverage SHARE     of the text's characters that get pieces (0.9995; 1 for --type char)\n"
          "  --seed S             of the sampling of very large corpora\n"
          "  --json               train: one JSON object about the model on stdout\n",
          out);
}

static bool take_option(Arguments *a, int c, const char *value, Error *error) {
    double number = 0;
    int choice = 0;
    switch (c) {
    case 'm':
        a->model = value;
        return true;
    case 'o':
        a->out = value;
        return true;
    case 'b':
        a->training.byte_fallback = false;
        return true;
    case 'k':
        a->training.keep_whitespace = true;
        return true;
    case 'j':
        a->json = true;
        return true;
    case 't':
        return option_choice(value, "unigram|bpe|char", "--type", &choice, error) &&
               (a->training.type = (TokenizerType)choice, true);
    case 'f':
        if (a->field_count == MOST_FIELDS) return error_set(error, ERROR_USAGE, "more than %d fields", MOST_FIELDS);
        a->fields[a->field_count++] = value;
        return true;
    case 'v':
        if (!option_number(value, 5, 4e6, "--vocab-size", &number, error)) return false;
        a->training.vocabulary = (int)number;
        return true;
    case 'c':
        return option_number(value, 0.5, 1, "--coverage", &a->training.character_coverage, error);
    case 's':
        if (!option_number(value, 0, 9e15, "--seed", &number, error)) return false;
        a->training.seed = (uint64_t)number;
        return true;
    default:
        return false;
    }
}

static bool parse(Arguments *a, int argc, char **argv, Error *error) {
    static const struct option options[] = {{"model", required_argument, 0, 'm'},
                                            {"out", required_argument, 0, 'o'},
                                            {"vocab-size", required_argument, 0, 'v'},
                                            {"type", required_argument, 0, 't'},
                                            {"text-field", required_argument, 0, 'f'},
                                            {"no-byte-fallback", no_argument, 0, 'b'},
                                            {"keep-whitespace", no_argument, 0, 'k'},
                                            {"coverage", required_argument, 0, 'c'},
                                            {"seed", required_argument, 0, 's'},
                                            {"json", no_argument, 0, 'j'},
                                            {0}};
    *a = (Arguments){.training = {.byte_fallback = true}};
    for (int c; (c = option_next(argc, argv, options, "tokenizer", error)) != -1;)
        if (c == '?' || !take_option(a, c, optarg, error)) return false;
    if (a->training.character_coverage == 0)
        a->training.character_coverage = a->training.type == TOKENIZER_CHAR ? 1 : 0.9995;
    return true;
}

static void print_json(const char *path, const Tokenizer *t, int64_t texts) {
    char hash[20];
    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)tokenizer_hash(t));
    json_t *object = json_pack("{s:s, s:i, s:I, s:s}", "model", path, "vocabulary", tokenizer_vocabulary(t), "texts",
                               (json_int_t)texts, "hash", hash);
    json_dumpf(object, stdout, 0);
    putchar('\n');
    json_decref(object);
}

static bool train(const Arguments *a, char **sources, int count, Error *error) {
    if (!count) return error_set(error, ERROR_USAGE, "no SOURCE to train on");
    if (!a->out) return error_set(error, ERROR_USAGE, "--out FILE.model is missing");
    if (!a->training.vocabulary) return error_set(error, ERROR_USAGE, "--vocab-size N is missing");
    TextSources *texts = text_sources_open((const char *const *)sources, count, a->fields, a->field_count, error);
    if (!texts) return false;
    Buffer model = {0};
    Tokenizer *tokenizer = NULL;
    bool ok = tokenizer_train(&a->training, text_sources_next, texts, &model, error);
    int64_t seen = text_sources_count(texts);
    ok = text_sources_close(texts, error) && ok; // an unreadable source is the first cause
    ok = ok && (tokenizer = tokenizer_from_bytes(model.data, model.size, a->out, error)) &&
         file_write(a->out, model.data, model.size, error);
    if (ok && a->json)
        print_json(a->out, tokenizer, seen);
    else if (ok)
        printf("%s: %d pieces from %lld texts\n", a->out, tokenizer_vocabulary(tokenizer), (long long)seen);
    tokenizer_free(tokenizer);
    buffer_free(&model);
    return ok;
}

static bool encode_line(const Tokenizer *t, const char *line, size_t size, Error *error) {
    TokenIds ids = {0};
    bool ok = tokenizer_encode(t, line, size, &ids, error);
    for (int i = 0; ok && i < ids.count; i++) printf("%s%d", i ? " " : "", ids.ids[i]);
    if (ok) putchar('\n');
    token_ids_free(&ids);
    return ok;
}

static bool decode_line(const Tokenizer *t, const char *line, size_t size, Error *error) {
    TokenIds ids = {0};
    Buffer text = {0};
    bool ok = true;
    for (const char *at = line; ok && *(at += strspn(at, " \t\r"));) {
        char *end = NULL;
        errno = 0;
        long id = strtol(at, &end, 10);
        if (errno || end == at || !strchr(" \t\r", *end) || id < 0 || id > INT32_MAX)
            ok = error_set(error, ERROR_FAILED, "byte %zu: not an id", (size_t)(at - line) + 1);
        else
            token_ids_push(&ids, (int32_t)id);
        at = end;
    }
    if (ok && strlen(line) < size) ok = error_set(error, ERROR_FAILED, "a zero byte is not an id");
    ok = ok && tokenizer_decode(t, ids.ids, ids.count, &text, error);
    if (ok && text.size) fwrite(text.data, 1, text.size, stdout);
    if (ok) putchar('\n');
    token_ids_free(&ids);
    buffer_free(&text);
    return ok;
}

static bool filter(const Arguments *a, bool encode, Error *error) {
    if (!a->model) return error_set(error, ERROR_USAGE, "--model FILE.model is missing");
    Tokenizer *t = tokenizer_load(a->model, error);
    if (!t) return false;
    char *line = NULL;
    size_t capacity = 0;
    ssize_t size = 0;
    bool ok = true;
    for (long number = 1; ok && (size = getline(&line, &capacity, stdin)) >= 0; number++) {
        if (size && line[size - 1] == '\n') line[--size] = 0;
        ok = encode ? encode_line(t, line, (size_t)size, error) : decode_line(t, line, (size_t)size, error);
        if (!ok) error_prefix(error, "stdin, line %ld", number);
    }
    if (ok && (fflush(stdout) || ferror(stdout))) ok = error_set_errno(error, ERROR_FAILED, "stdout");
    free(line);
    tokenizer_free(t);
    return ok;
}

int tokenizer_main(int argc, char **argv) {
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) return usage(stdout), 0;
    if (argc < 2) return usage(stderr), 2;
    const char *act = argv[1];
    Arguments a;
    Error error = {0};
    bool ok = parse(&a, argc - 1, argv + 1, &error);
    char **rest = argv + 1 + optind;
    int count = argc - 1 - optind;
    bool training = !strcmp(act, "train"), encode = !strcmp(act, "encode"), decode = !strcmp(act, "decode");
    if (ok && !training && !encode && !decode)
        ok = option_unknown(&error, "act", act, (const char *const[]){"train", "encode", "decode"}, 3,
                            "tokenizer --help");
    else if (ok && training)
        ok = train(&a, rest, count, &error);
    else if (ok && count)
        ok = error_set(&error, ERROR_USAGE, "'%s': not expected here (texts come on stdin)", rest[0]);
    else if (ok)
        ok = filter(&a, encode, &error);
    if (!ok) fprintf(stderr, "bifocal tokenizer: %s\n", error.message);
    return ok ? 0 : (int)error.kind;
}
