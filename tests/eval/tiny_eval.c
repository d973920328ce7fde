/* See tiny_eval.h. */
#include "tiny_eval.h"
#include "base/files.h"
#include "base/philox.h"
#include "data/image.h"
#include "tests/support/test.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const colours[] = {"red", "green", "blue"}, *const shapes[] = {"circle", "square"};

static const char *next_text(void *context, size_t *size) {
    static const char text[] = "a big red green or blue circle and two small squares, what colour is the shape?\n";
    int *calls = context;
    *size = sizeof text - 1;
    return (*calls)++ ? NULL : text;
}

static Tokenizer *train_tokenizer(void) {
    TokenizerTraining options = {.type = TOKENIZER_CHAR,
                                 .vocabulary = 400,
                                 .character_coverage = 1,
                                 .byte_fallback = true,
                                 .keep_whitespace = true};
    Buffer model = {0};
    Error error = {0};
    int calls = 0;
    assert_done(tokenizer_train(&options, next_text, &calls, &model, &error), &error);
    Tokenizer *t = tokenizer_from_bytes(model.data, model.size, "tiny", &error);
    assert_done(t != NULL, &error);
    buffer_free(&model);
    return t;
}

static void save_model(const char *folder, Backend *backend) {
    JointConfig config = {
        .has_vision = true,
        .vision = {.image_size = TINY_SIDE,
                   .patch = 8,
                   .width = 16,
                   .layers = 1,
                   .heads = 2,
                   .pooling = POOL_MEAN,
                   .norm_epsilon = 1e-6,
                   .patch_bias = true},
        .text = {.context = 48,
                 .width = 24,
                 .layers = 2,
                 .heads = 2,
                 .bias = true,
                 .rope_base = 10000,
                 .norm_epsilon = 1e-5},
        .mae = {.mask_ratio = 0.75, .decoder_width = 16, .decoder_layers = 1, .decoder_heads = 2},
        .embedding = 12,
        .weight = {1, 1, 1, 0},
        .pixel_mean = {0.5, 0.5, 0.5},
        .pixel_std = {0.5, 0.5, 0.5},
    };
    Error error = {0};
    Tokenizer *tokenizer = train_tokenizer();
    config.text.vocabulary = tokenizer_vocabulary(tokenizer);
    Joint *joint = joint_new(backend, &config, NULL, F32, 3, &error);
    assert_done(joint != NULL, &error);
    assert_done(folder_create(folder, &error) && model_save(folder, joint, tokenizer, &error), &error);
    joint_free(joint);
    tokenizer_free(tokenizer);
}

static void save_picture(const char *folder, int i) {
    uint8_t pixels[20 * 18 * 3];
    Rng rng = rng_for(1, PURPOSE_TEST, (uint64_t)i);
    for (size_t p = 0; p < sizeof pixels; p++) pixels[p] = (uint8_t)rng_below(&rng, 256);
    Buffer png = {0}, path = {0};
    Error error = {0};
    assert_done(image_encode_png(&(Image){20, 18, pixels}, &png, &error), &error);
    buffer_printf(&path, "%s/images/%d.png", folder, i);
    FILE *file = fopen(path.data, "wb"); // without the syncs of file_write: there are many
    assert_non_null(file);
    assert_int_equal(fwrite(png.data, 1, png.size, file), png.size);
    assert_int_equal(fclose(file), 0);
    buffer_free(&png);
    buffer_free(&path);
}

static void save_data(const TinyEval *t) {
    Buffer captions = {0}, texts = {0};
    Error error = {0};
    char *images = temporary_path(t->folder, "images");
    assert_done(folder_create(images, &error), &error);
    for (int i = 0; i < TINY_SAMPLES; i++) {
        const char *colour = colours[i % 3], *shape = shapes[i % 2];
        save_picture(t->folder, i);
        buffer_printf(&captions,
                      "{\"image\": \"images/%d.png\", \"caption\": \"%s %s %s\", \"class\": \"%s %s\", "
                      "\"question\": \"what colour is the %s?\", \"answer\": \"%s\"}\n",
                      i, i % 5 ? "a" : "two", colour, shape, colour, shape, shape, colour);
        buffer_printf(&texts, "{\"text\": \"");
        for (int k = 0; k <= i * 2; k++) buffer_printf(&texts, "%s %s%s", colour, shape, k % 3 ? " and " : ", ");
        buffer_printf(&texts, "\"}\n");
    }
    assert_done(file_write(t->captions, captions.data, captions.size, &error), &error);
    assert_done(file_write(t->texts, texts.data, texts.size, &error), &error);
    buffer_free(&captions);
    buffer_free(&texts);
    free(images);
}

void tiny_eval_open(TinyEval *t, int threads, Dtype dtype) {
    Error error = {0};
    *t = (TinyEval){.folder = temporary_new(), .backend = cpu_backend_new(threads, NULL, NULL)};
    t->captions = temporary_path(t->folder, "captions.jsonl");
    t->texts = temporary_path(t->folder, "text.jsonl");
    save_data(t);
    char *model = temporary_path(t->folder, "model");
    save_model(model, t->backend);
    assert_done(model_load(&t->model, t->backend, model, dtype, NULL, &error), &error);
    free(model);
}

void tiny_eval_close(TinyEval *t) {
    model_unload(&t->model);
    backend_free(t->backend);
    free(t->captions);
    free(t->texts);
    temporary_free(t->folder);
}

char *tiny_task(const TinyEval *t, const char *name, const char *yaml) {
    Error error = {0};
    char *path = temporary_path(t->folder, name);
    assert_done(file_write(path, yaml, strlen(yaml), &error), &error);
    return path;
}

json_t *tiny_run(TinyEval *t, const char *task, const char *data, int64_t batch) {
    Error error = {0};
    EvaluateOptions options = {.tasks = &task, .task_count = 1, .data = data, .batch = batch, .threads = 2};
    json_t *results = NULL;
    assert_done(evaluate(&t->model, t->backend, &options, &results, NULL, &error), &error);
    return results;
}

double tiny_metric(const json_t *results, const char *task, const char *key) {
    return json_get_number(json_object_get(json_object_get(results, "results"), task), key, NAN);
}
