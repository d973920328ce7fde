/* See tiny_project.h. */
#include "tests/cli/tiny_project.h"
#include "tests/cli/command.h"
#include <stdlib.h>

static const char CONFIG[] = "tokenizer: words.model\n"
                             "data:\n"
                             "  - {path: data, objectives: [caption, contrastive, mae], batch: 4}\n"
                             "  - {path: data, objectives: [caption], question: '{question}', answer: '{answer}', "
                             "batch: 2}\n"
                             "  - {path: text, objectives: [lm], batch: 2}\n"
                             "sequence: {lm: 24, caption: 64, contrastive: 40}\n"
                             "model:\n"
                             "  weight: {lm: 0.5, caption: 1, contrastive: 1, mae: 0.5}\n"
                             "  embedding: 16\n"
                             "  vision: {enabled: true, image_size: 32, patch: 8, width: 16, layers: 1, heads: 2}\n"
                             "  text: {context: 64, width: 16, layers: 1, heads: 2}\n"
                             "  mae: {decoder_width: 16, decoder_layers: 1, decoder_heads: 2}\n"
                             "train: {steps: 4}\n"
                             "optimizer: {warmup_steps: 2, learning_rate: 0.01, schedule: constant}\n"
                             "checkpoint: {every: 2, keep: 10}\n"
                             "threads: 2\n";

char *tiny_project_new(void) {
    char *folder = temporary_new(), *config = temporary_path(folder, "config.yaml");
    temporary_write(config, CONFIG, sizeof CONFIG - 1);
    free(config);
    assert_prints("raw: 60 scenes", folder, "data", "synth", "--out", "raw", "--samples", "60", "--threads", "2");
    assert_prints("data: 60 samples", folder, "data", "build", "raw/train/captions.jsonl", "--image-field", "image",
                  "--text-field", "caption", "--out", "data");
    assert_prints("text: 60 samples", folder, "data", "build", "raw/text.txt", "--documents", "lines", "--out", "text");
    assert_prints("words.model: 350 pieces", folder, "tokenizer", "train", "data", "text", "--vocab-size", "350",
                  "--type", "bpe", "--text-field", "caption", "--out", "words.model");
    return folder;
}

char *project;

int open_project(void **state) {
    (void)state;
    project = tiny_project_new();
    return 0;
}

int close_project(void **state) {
    (void)state;
    temporary_free(project);
    return 0;
}
