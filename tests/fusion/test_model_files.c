/* Models on disk: what is saved is what is loaded, and what is damaged is refused. */
#include "base/files.h"
#include "base/json.h"
#include "fusion/model_files.h"
#include "tests/support/test.h"
#include "tiny_joint.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *text_once(void *context, size_t *size) {
    const char **left = context, *text = *left;
    *left = NULL;
    *size = text ? strlen(text) : 0;
    return text;
}

static Tokenizer *characters(const char *of) {
    Buffer model = {0};
    Error error = {0};
    TokenizerTraining options = {.type = TOKENIZER_CHAR, .vocabulary = 64, .character_coverage = 1};
    const char *text = of;
    assert_done(tokenizer_train(&options, text_once, &text, &model, &error), &error);
    Tokenizer *t = tokenizer_from_bytes(model.data, model.size, "characters", &error);
    assert_non_null(t);
    buffer_free(&model);
    return t;
}

typedef struct Saved { // RUN/checkpoints/step-00000020 holds a tiny model
    Tiny tiny;
    Tokenizer *tokenizer;
    char *run, *folder, *weights, *config, *words;
} Saved;

static void save(Saved *s) {
    Error error = {0};
    const char *freeze[2] = {"vision.blocks.0", "text.norm"};
    JointConfig config = tiny_config();
    config.freeze = (StringList){freeze, 2};
    config.text.norm_epsilon = 1.25e-5;
    config.pixel_mean[1] = 0.1; // no exact binary
    config.vision.pooling = POOL_ATTENTION;
    tiny_open(&s->tiny, &config, F32);
    s->tokenizer = characters("the quick brown fox jumps over the lazy dog");
    s->run = temporary_new();
    s->folder = temporary_path(s->run, "checkpoints/step-00000020");
    s->weights = temporary_path(s->folder, "model.safetensors");
    s->config = temporary_path(s->folder, "model.json");
    s->words = temporary_path(s->folder, "tokenizer.model");
    assert_done(folder_create(s->folder, &error), &error);
    assert_done(model_save(s->folder, s->tiny.joint, s->tokenizer, &error), &error);
}

static void forget(Saved *s) {
    temporary_free(s->run);
    free(s->folder);
    free(s->weights);
    free(s->config);
    free(s->words);
    tokenizer_free(s->tokenizer);
    tiny_close(&s->tiny);
}

static void assert_refused(Saved *s, const char *why) {
    LoadedModel m;
    Error error = {0};
    assert_false(model_load(&m, s->tiny.backend, s->folder, F32, NULL, &error));
    assert_int_equal(error.kind, ERROR_FAILED);
    assert_message_has(&error, why);
    assert_null(m.joint);
}

static void a_model_comes_back_as_it_was_saved(void **state) {
    (void)state;
    Saved s;
    LoadedModel m;
    Error error = {0};
    save(&s);
    assert_done(model_load(&m, s.tiny.backend, s.folder, F32, NULL, &error), &error);
    Parameters *before = joint_parameters(s.tiny.joint), *after = joint_parameters(m.joint);
    assert_int_equal(parameters_count(before), parameters_count(after));
    for (int i = 0; i < parameters_count(before); i++) {
        const Parameter *a = parameters_at(before, i), *b = parameters_find(after, a->tensor.name);
        assert_memory_equal(a->master, b->master, (size_t)tensor_count(&a->tensor) * sizeof(float));
        assert_int_equal(a->frozen, b->frozen);
    }
    const JointConfig *config = joint_config(s.tiny.joint);
    assert_true(m.config.text.norm_epsilon == 1.25e-5 && m.config.pixel_mean[1] == 0.1);
    assert_int_equal(m.config.freeze.count, 2);
    assert_string_equal(m.config.freeze.items[1], "text.norm");
    assert_int_equal(m.config.vision.pooling, POOL_ATTENTION);
    assert_memory_equal(&m.config.mae, &config->mae, sizeof config->mae);
    assert_true(tokenizer_hash(m.tokenizer) == tokenizer_hash(s.tokenizer));
    assert_int_equal(m.step, 20);
    model_unload(&m);
    forget(&s);
}

static void a_run_gives_its_newest_complete_checkpoint(void **state) {
    (void)state;
    Saved s;
    LoadedModel m;
    Error error = {0};
    save(&s);
    char *newer = temporary_path(s.run, "checkpoints/step-00000100"),
         *half = temporary_path(s.run, "checkpoints/.step-00000200.tmp");
    char *empty = temporary_path(s.run, "checkpoints/step-00000300");
    assert_done(folder_create(newer, &error) && folder_create(half, &error) && folder_create(empty, &error), &error);
    assert_done(model_save(newer, s.tiny.joint, NULL, &error), &error);
    assert_done(model_save(half, s.tiny.joint, NULL, &error), &error);
    char *said = NULL;
    size_t length = 0;
    FILE *stream = open_memstream(&said, &length);
    Log *log = log_new(LOG_WARNING, stream);
    assert_done(model_load(&m, s.tiny.backend, s.run, BF16, log, &error), &error);
    log_free(log);
    assert_int_equal(fclose(stream), 0);
    assert_non_null(strstr(said, "step-00000300 is not a complete checkpoint: ignored"));
    assert_null(strstr(said, "step-00000020"));
    free(said);
    assert_int_equal(m.step, 100);
    assert_null(m.tokenizer);
    assert_string_equal(m.path, newer);
    model_unload(&m);
    free(newer);
    free(half);
    free(empty);
    forget(&s);
}

static void a_folder_without_a_model_is_refused(void **state) {
    (void)state;
    char *folder = temporary_new(), found[1024], *inside = temporary_path(folder, "checkpoints");
    Error error = {0};
    assert_false(model_find_checkpoint(folder, found, NULL, &error));
    assert_message_has(&error, "neither a model");
    assert_done(folder_create(inside, &error), &error);
    assert_false(model_find_checkpoint(folder, found, NULL, &error));
    assert_message_has(&error, "no complete checkpoint yet");
    free(inside);
    temporary_free(folder);
}

static void flip(const char *path, size_t from_the_end) {
    Buffer bytes = {0};
    Error error = {0};
    assert_done(file_read(path, &bytes, &error), &error);
    bytes.data[bytes.size - from_the_end] ^= 1;
    assert_done(file_write(path, bytes.data, bytes.size, &error), &error);
    buffer_free(&bytes);
}

static void a_flipped_bit_in_the_weights_is_found(void **state) {
    (void)state;
    Saved s;
    save(&s);
    flip(s.weights, 1000);
    assert_refused(&s, "model.safetensors");
    forget(&s);
}

static void set_key(Saved *s, const char *key, json_t *value) {
    Error error = {0};
    json_t *object = json_read_file(s->config, &error);
    assert_non_null(object);
    json_object_set_new(json_object_get(object, "config"), key, value);
    assert_done(json_write_file(s->config, object, &error), &error);
    json_decref(object);
}

static void a_config_that_is_not_the_models_is_refused(void **state) {
    (void)state;
    Saved s;
    save(&s);
    set_key(&s, "model.vision.layers", json_integer(3));
    assert_refused(&s, "missing (vision.blocks.2.norm1.scale");
    set_key(&s, "model.vision.layers", json_integer(2048));
    assert_refused(&s, "needs");
    set_key(&s, "model.vision.layers", json_string("two"));
    assert_refused(&s, "model.json");
    set_key(&s, "model.vision.layers", json_null());
    assert_refused(&s, "model.vision.layers");
    forget(&s);
}

static void a_description_that_was_changed_is_refused(void **state) {
    (void)state;
    Saved s;
    save(&s);
    set_key(&s, "model.text.norm_epsilon", json_real(2e-5)); // fits the weights all the same
    assert_refused(&s, "model.json: damaged, or of another checkpoint");
    forget(&s);
}

static void an_unknown_key_is_refused_by_name(void **state) {
    (void)state;
    Saved s;
    save(&s);
    set_key(&s, "model.vision.patches", json_integer(4));
    assert_refused(&s, "model.vision.patches");
    forget(&s);
}

static void another_tokenizer_is_refused(void **state) {
    (void)state;
    Saved s;
    Error error = {0};
    size_t size;
    save(&s);
    Tokenizer *other = characters("zyx wvu");
    const void *bytes = tokenizer_bytes(other, &size);
    assert_done(file_write(s.words, bytes, size, &error), &error);
    assert_refused(&s, "not the tokenizer the model was trained with");
    tokenizer_free(other);
    forget(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_model_comes_back_as_it_was_saved),
        cmocka_unit_test(a_run_gives_its_newest_complete_checkpoint),
        cmocka_unit_test(a_folder_without_a_model_is_refused),
        cmocka_unit_test(a_flipped_bit_in_the_weights_is_found),
        cmocka_unit_test(a_config_that_is_not_the_models_is_refused),
        cmocka_unit_test(a_description_that_was_changed_is_refused),
        cmocka_unit_test(an_unknown_key_is_refused_by_name),
        cmocka_unit_test(another_tokenizer_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
