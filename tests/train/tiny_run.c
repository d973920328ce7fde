/* See tiny_run.h. */
#include "tests/train/tiny_run.h"
#include "base/files.h"
#include "data/build.h"
#include "data/synth.h"
#include "tokenizers/tokenizer.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SAMPLES = 40, MOST_SETTINGS = 64 };

static void build(const char *source, const char *out, Documents documents) {
    Error error = {0};
    BuildResult result;
    BuildOptions options = {.sources = &source, .source_count = 1, .out = out, .documents = documents, .force = true};
    options.rules =
        (RowRules){.image_fields = {"image"}, .text_fields = {"caption"}, .image_count = 1, .text_count = 1};
    assert_done(build_dataset(&options, NULL, &result, &error), &error);
}

void tiny_run_remake_data(TinyRun *r, uint64_t seed) {
    Error error = {0};
    SynthResult result;
    char *raw = temporary_path(r->folder, "raw"), *captions = temporary_path(r->folder, "raw/train/captions.jsonl");
    char *lines = temporary_path(r->folder, "raw/text.txt");
    char *train = temporary_path(r->folder, "train"), *text = temporary_path(r->folder, "text");
    SynthOptions options = {.out = raw, .samples = SAMPLES, .seed = seed, .threads = 1, .force = true};
    assert_done(synth_write(&options, NULL, &result, &error), &error);
    build(captions, train, DOCUMENTS_NONE);
    build(lines, text, DOCUMENTS_LINES);
    char *const owned[] = {raw, captions, lines, train, text};
    for (int i = 0; i < 5; i++) free(owned[i]);
}

static const char *one_text(void *context, size_t *size) {
    Buffer *text = context;
    *size = text->size;
    if (!text->capacity) return NULL;
    text->capacity = 0; // given once
    return text->data;
}

static void train_tokenizer(const TinyRun *r) {
    Error error = {0};
    Buffer text = {0}, model = {0};
    char *lines = temporary_path(r->folder, "raw/text.txt"), *path = temporary_path(r->folder, "words.model");
    TokenizerTraining options = {.type = TOKENIZER_BPE, .vocabulary = 220, .character_coverage = 1, .seed = 1};
    assert_done(file_read(lines, &text, &error), &error);
    Buffer source = text;
    assert_done(tokenizer_train(&options, one_text, &source, &model, &error), &error);
    assert_done(file_write(path, model.data, model.size, &error), &error);
    buffer_free(&text);
    buffer_free(&model);
    free(lines);
    free(path);
}

void tiny_run_open(TinyRun *r, uint64_t seed) {
    *r = (TinyRun){.folder = temporary_new()};
    tiny_run_remake_data(r, seed);
    train_tokenizer(r);
}

void tiny_run_close(TinyRun *r) { temporary_free(r->folder); }

static const char CONFIG[] =
    "tokenizer: %s/words.model\n"
    "data:\n"
    "  - {path: %s/train, objectives: [caption, contrastive, mae], text: '{caption}||{caption_zh}', batch: 5}\n"
    "  - {path: %s/train, objectives: [caption], question: '{question}', answer: '{answer}', batch: 3}\n"
    "  - {path: %s/text, objectives: [lm], batch: 2}\n"
    "sequence: {lm: 24, caption: 64, contrastive: 40}\n"
    "model:\n"
    "  weight: {lm: 0.5, caption: 1, contrastive: 1, mae: 0.5}\n"
    "  embedding: 16\n"
    "  vision: {enabled: true, image_size: 32, patch: 8, width: 16, layers: 1, heads: 2, dropout: 0.1}\n"
    "  text: {context: 64, width: 16, layers: 1, heads: 2, dropout: 0.1}\n"
    "  mae: {decoder_width: 16, decoder_layers: 1, decoder_heads: 2}\n"
    "train: {steps: 6}\n"
    "optimizer: {warmup_steps: 2, learning_rate: 0.01}\n"
    "checkpoint: {every: 3, keep: 10}\n"
    "threads: 2\n";

typedef struct Rank { // of a run, on a thread of its own
    TrainOptions options;
    TrainResult result;
    Error error;
    bool ok;
} Rank;

static void *run_rank(void *context) {
    Rank *rank = context;
    Log *log = log_new(LOG_ERROR, stderr);
    rank->ok = train_run(&rank->options, &rank->result, log, &rank->error);
    log_free(log);
    return NULL;
}

TinyRun shared;

int open_shared(void **state) {
    (void)state;
    tiny_run_open(&shared, 1);
    return 0;
}

int close_shared(void **state) {
    (void)state;
    tiny_run_close(&shared);
    return 0;
}

static void write_config(const TinyRun *r, const char *path) {
    char yaml[4096];
    Error error = {0};
    int n = snprintf(yaml, sizeof yaml, CONFIG, r->folder, r->folder, r->folder, r->folder);
    assert_done(file_write(path, yaml, (size_t)n, &error), &error);
}

bool tiny_train_ranks(const TinyRun *r, const char *name, const char *const *settings, bool resume, int ranks,
                      const volatile sig_atomic_t *const *stop, TrainResult *result, Error *error) {
    enum { MOST = 16 };
    Rank rank[MOST] = {0};
    Comm *ends[MOST] = {NULL};
    pthread_t threads[MOST];
    char *config = temporary_path(r->folder, "config.yaml"), *run = temporary_path(r->folder, name);
    assert_in_range(ranks, 1, MOST);
    write_config(r, config);
    if (ranks > 1) comm_threads_new(ranks, ends);
    for (int i = 0; i < ranks; i++) {
        rank[i].options = (TrainOptions){.config = config,
                                         .overrides = settings,
                                         .run = run,
                                         .resume = resume,
                                         .stop = stop ? stop[i] : NULL,
                                         .trace = r->trace,
                                         .world = ends[i]};
        while (settings && settings[rank[i].options.n_overrides]) rank[i].options.n_overrides++;
        assert_int_equal(pthread_create(&threads[i], NULL, run_rank, &rank[i]), 0);
    }
    for (int i = 0; i < ranks; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < ranks; i++) {
        comm_free(ends[i]);
        assert_string_equal(rank[i].error.message, rank[0].error.message);
        assert_int_equal(rank[i].ok, rank[0].ok);
        assert_int_equal(rank[i].result.step, rank[0].result.step);
        assert_int_equal(rank[i].result.interrupted, rank[0].result.interrupted);
    }
    free(config);
    free(run);
    *result = rank[0].result;
    *error = rank[0].error;
    return rank[0].ok;
}

bool tiny_train_rank(const TinyRun *r, const char *name, const char *const *settings, Comm *world, TrainResult *result,
                     Error *error) {
    char *config = temporary_path(r->folder, "config.yaml"), *run = temporary_path(r->folder, name);
    Rank rank = {.options = {.config = config, .overrides = settings, .run = run, .world = world}};
    if (comm_rank(world) == 0) write_config(r, config);
    comm_barrier(world, "the config");
    while (settings && settings[rank.options.n_overrides]) rank.options.n_overrides++;
    run_rank(&rank);
    free(config);
    free(run);
    *result = rank.result;
    *error = rank.error;
    return rank.ok;
}

bool tiny_train(const TinyRun *r, const char *name, const char *const *settings, bool resume,
                const volatile sig_atomic_t *stop, TrainResult *result, Error *error) {
    return tiny_train_ranks(r, name, settings, resume, 1, &stop, result, error);
}

void tiny_config(const TinyRun *r, const char *const *settings, Arena *memory, TrainConfig *config) {
    char *path = temporary_path(r->folder, "config.yaml");
    int count = 0;
    Error error = {0};
    while (settings && settings[count]) count++;
    write_config(r, path);
    assert_done(train_config_read(config, path, settings, count, memory, &error), &error);
    free(path);
}

char *tiny_run_path(const TinyRun *r, const char *name, const char *file) {
    char *run = temporary_path(r->folder, name), *path = temporary_path(run, file);
    free(run);
    return path;
}
