/* Tasks over a model of random weights: the same scores in any batch, what they are made of, and what is left out. */
#include "base/files.h"
#include "data/image.h"
#include "eval/evaluation.h"
#include "tests/support/test.h"
#include "tiny_eval.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const shipped[] = {"zero_shot", "retrieval", "caption", "vqa"};

static char *results_text(const json_t *results, const char *task) {
    char *text =
        json_dumps(json_object_get(json_object_get(results, "results"), task), JSON_COMPACT | JSON_REAL_PRECISION(17));
    assert_non_null(text);
    return text;
}

static void expect_same_scores(int threads, Dtype dtype, const char *task, bool text) {
    static const int64_t batches[] = {1, 4, 7, 64};
    char *first = NULL;
    for (int b = 0; b < 4; b++) {
        TinyEval t;
        tiny_eval_open(&t, b ? threads : 1, dtype);
        json_t *results = tiny_run(&t, task, text ? t.texts : t.captions, batches[b]);
        char *scores = results_text(results, task);
        if (first)
            assert_string_equal(scores, first);
        else
            first = strdup(scores);
        free(scores);
        json_decref(results);
        tiny_eval_close(&t);
    }
    free(first);
}

static void scores_do_not_depend_on_the_batch_or_threads(void **state) {
    (void)state;
    for (int i = 0; i < 4; i++) expect_same_scores(1 + i, F32, shipped[i], false);
    expect_same_scores(3, F32, "perplexity", true);
}

static void scores_in_bf16_do_not_depend_on_the_batch(void **state) {
    (void)state;
    for (int i = 0; i < 4; i++) expect_same_scores(2, BF16, shipped[i], false);
    expect_same_scores(2, BF16, "perplexity", true);
}

// The loss of `count` tokens by a window of its own: inputs[i] predicts inputs[i + 1].
static double window_loss(TinyEval *t, Tape *tape, const int32_t *inputs, int count) {
    Arena *memory = arena_new(1 << 12);
    Sequences s = {.rows = 1, .length = count};
    s.tokens = arena_array(memory, int32_t, count);
    s.targets = arena_array(memory, int32_t, count);
    s.positions = arena_array(memory, int32_t, count);
    s.range = arena_array(memory, int32_t, 2 * count);
    s.ends = arena_array(memory, int32_t, 1);
    for (int i = 0; i < count; i++) {
        s.tokens[i] = inputs[i];
        s.targets[i] = inputs[i + 1];
        s.positions[i] = i;
        s.range[2 * i + 1] = i + 1;
    }
    tape_reset(tape);
    Tensor *losses = joint_token_losses(tape, t->model.joint, &s, NULL);
    assert_null(tape_error(tape));
    float *host = arena_array(memory, float, count);
    tape_read(tape, losses, host);
    double sum = 0;
    for (int i = 0; i < count; i++) sum += (double)host[i];
    arena_free(memory);
    return sum;
}

static void perplexity_rolls_over_disjoint_windows(void **state) {
    (void)state;
    enum { L = 48 };
    TinyEval t;
    Error error = {0};
    tiny_eval_open(&t, 1, F32);
    char text[130];
    for (int i = 0; i < 130; i++) text[i] = i % 7 == 6 ? ' ' : "adelrs"[i % 6];
    char *path = temporary_path(t.folder, "one.txt");
    assert_done(file_write(path, text, sizeof text, &error), &error);
    json_t *results = tiny_run(&t, "perplexity", path, 2);
    int32_t ids[131] = {tokenizer_begin(t.model.tokenizer)};
    TokenIds encoded = {0};
    assert_done(tokenizer_encode(t.model.tokenizer, text, sizeof text, &encoded, &error), &error);
    assert_int_equal(encoded.count, 130);
    memcpy(ids + 1, encoded.ids, sizeof(int32_t) * 130);
    Tape *tape = tape_new(t.backend, false);
    double loss = window_loss(&t, tape, ids, L) + window_loss(&t, tape, ids + L, L) +
                  window_loss(&t, tape, ids + 2 * L, 130 - 2 * L);
    double bits = loss / 130 / log(2);
    assert_true(fabs(tiny_metric(results, "perplexity", "bits_per_byte,none") - bits) < 1e-6 * bits);
    assert_true(fabs(tiny_metric(results, "perplexity", "loss,none") - loss / 130) < 1e-6 * loss);
    assert_true(fabs(tiny_metric(results, "perplexity", "byte_perplexity,none") / exp(loss / 130) - 1) < 1e-6);
    assert_true(fabs(tiny_metric(results, "perplexity", "word_perplexity,none") / exp(loss / 19) - 1) < 1e-4);
    assert_string_equal(
        json_get_string(json_object_get(json_object_get(results, "results"), "perplexity"), "loss_stderr,none", ""),
        "N/A"); // one document has none
    tape_free(tape);
    token_ids_free(&encoded);
    json_decref(results);
    free(path);
    tiny_eval_close(&t);
}

// Rows are as long as their windows need: their losses are those of windows that stand alone.
static void texts_of_any_length_score_as_each_does_by_itself(void **state) {
    (void)state;
    enum { DOCUMENTS = 9, LONGEST = 46 };
    static const int lengths[DOCUMENTS] = {1, 40, 3, 17, 46, 12, 24, 25, 2};
    TinyEval t;
    Error error = {0};
    Buffer lines = {0};
    double loss = 0, tokens = 0;
    tiny_eval_open(&t, 1, F32);
    Tape *tape = tape_new(t.backend, false);
    for (int d = 0; d < DOCUMENTS; d++) {
        char text[LONGEST + 1] = "";
        TokenIds ids = {0};
        for (int i = 0; i < lengths[d]; i++) text[i] = "adelrs"[(i + d) % 6];
        buffer_printf(&lines, "{\"text\": \"%s\"}\n", text);
        token_ids_push(&ids, tokenizer_begin(t.model.tokenizer));
        assert_done(tokenizer_encode(t.model.tokenizer, text, strlen(text), &ids, &error), &error);
        loss += window_loss(&t, tape, ids.ids, ids.count - 1);
        tokens += ids.count - 1;
        token_ids_free(&ids);
    }
    char *path = temporary_path(t.folder, "lengths.jsonl");
    assert_done(file_write(path, lines.data, lines.size, &error), &error);
    for (int batch = 1; batch <= 9; batch += 4) {
        json_t *results = tiny_run(&t, "perplexity", path, batch);
        double got = tiny_metric(results, "perplexity", "loss,none");
        assert_true(fabs(got - loss / tokens) <= 1e-12 * got);
        json_decref(results);
    }
    tape_free(tape);
    buffer_free(&lines);
    free(path);
    tiny_eval_close(&t);
}

// Features of one view by itself, (E).
static void view_features(TinyEval *t, Tape *tape, const Image *image, Crop crop, bool flip, float *out) {
    uint8_t pixels[TINY_SIDE * TINY_SIDE * 3];
    image_resize(image, crop, pixels, TINY_SIDE, TINY_SIDE, flip);
    tape_reset(tape);
    tape_read(tape, joint_image_features(tape, t->model.joint, joint_pixels(tape, t->model.joint, pixels, NULL, 1)), out);
}

// Centre and corners at 7/8 of the shorter side, or the whole centre, with their mirror images.
static void expect_averaged_views(TinyEval *t, TaskViews views) {
    enum { COUNT = 5, MOST_WIDTH = 64 };
    Error error = {0};
    Task task = {.name = "views", .type = TASK_ZERO_SHOT, .background = "#ffffff", .views = (int)views};
    Tape *tape = tape_new(t->backend, false);
    Threads *threads = threads_new(2);
    Evaluation e = {.model = &t->model, .tape = tape, .threads = threads, .task = &task, .batch = COUNT};
    SampleBatch batch = {0};
    e.examples = examples_open(t->captions, COUNT, "image", &error);
    assert_done(e.examples && sample_batch_next(&e, &batch, true, &error), &error);
    int64_t width = t->model.config.embedding;
    float got[COUNT * MOST_WIDTH], one[MOST_WIDTH];
    assert_true(width <= MOST_WIDTH);
    assert_done(picture_features(&e, &batch, got, &error), &error);
    for (int i = 0; i < COUNT; i++) {
        Image image = {0};
        DecodeOptions whole = {.least_side = 0};
        double sum[MOST_WIDTH] = {0}, square = 0;
        assert_done(image_decode(batch.samples[i].image.data, batch.samples[i].image.size, &whole, &image, &error),
                    &error);
        double side = image.height, length = views == VIEWS_TEN ? side * 0.875 : side; // it is wider than high
        double right = image.width - length, low = image.height - length;
        Crop crops[] = {{right / 2, low / 2, length, length},
                        {0, 0, length, length},
                        {right, 0, length, length},
                        {0, low, length, length},
                        {right, low, length, length}};
        for (int v = 0; v < (views == VIEWS_TEN ? 10 : 2); v++) {
            view_features(t, tape, &image, crops[v / 2], v % 2, one);
            for (int64_t c = 0; c < width; c++) sum[c] += (double)one[c];
        }
        for (int64_t c = 0; c < width; c++) square += sum[c] * sum[c];
        for (int64_t c = 0; c < width; c++)
            assert_true(fabs((double)got[i * width + c] - sum[c] / sqrt(square)) <= 1e-6);
        image_free(&image);
    }
    sample_batch_free(&batch);
    examples_close(e.examples);
    threads_free(threads);
    tape_free(tape);
}

static void features_of_several_views_are_averaged(void **state) {
    (void)state;
    TinyEval t;
    tiny_eval_open(&t, 1, F32);
    expect_averaged_views(&t, VIEWS_MIRRORED);
    expect_averaged_views(&t, VIEWS_TEN);
    tiny_eval_close(&t);
}

static void random_weights_guess(void **state) {
    (void)state;
    TinyEval t;
    tiny_eval_open(&t, 1, F32);
    json_t *zero = tiny_run(&t, "zero_shot", t.captions, 8), *pairs = tiny_run(&t, "retrieval", t.captions, 8),
           *captions = tiny_run(&t, "caption", t.captions, 8), *questions = tiny_run(&t, "vqa", t.captions, 8);
    assert_true(fabs(tiny_metric(zero, "zero_shot", "acc_chance,none") - 1.0 / 6) < 1e-12);
    assert_true(fabs(tiny_metric(zero, "zero_shot", "acc5_chance,none") - 5.0 / 6) < 1e-12);
    assert_true(tiny_metric(zero, "zero_shot", "acc,none") <= tiny_metric(zero, "zero_shot", "acc5,none"));
    assert_true(tiny_metric(pairs, "retrieval", "text_to_image_R@1,none") >= 0);
    assert_true(tiny_metric(pairs, "retrieval", "image_to_text_R@10,none") >=
                tiny_metric(pairs, "retrieval", "image_to_text_R@1,none"));
    double uniform = log((double)joint_config(t.model.joint)->text.vocabulary);
    assert_true(fabs(tiny_metric(captions, "caption", "loss,none") - uniform) < 1);
    assert_true(fabs(tiny_metric(questions, "vqa", "exact_match_chance,none") - 8.0 / 23) < 1e-12);
    assert_int_equal(json_get_int(json_object_get(json_object_get(zero, "n-samples"), "zero_shot"), "effective", 0),
                     TINY_SAMPLES);
    json_decref(zero);
    json_decref(pairs);
    json_decref(captions);
    json_decref(questions);
    tiny_eval_close(&t);
}

static void damaged_pictures_are_left_out_and_counted(void **state) {
    (void)state;
    TinyEval t;
    Error error = {0};
    tiny_eval_open(&t, 1, F32);
    char *broken = temporary_path(t.folder, "images/3.png"), *gone = temporary_path(t.folder, "images/7.png");
    assert_done(file_write(broken, "<html>", 6, &error), &error);
    assert_int_equal(remove(gone), 0);
    for (int i = 0; i < 4; i++) {
        json_t *results = tiny_run(&t, shipped[i], t.captions, 4);
        const json_t *counts = json_object_get(json_object_get(results, "n-samples"), shipped[i]);
        assert_int_equal(json_get_int(counts, "original", 0), TINY_SAMPLES);
        assert_int_equal(json_get_int(counts, "effective", 0), TINY_SAMPLES - 2);
        json_decref(results);
    }
    free(broken);
    free(gone);
    tiny_eval_close(&t);
}

// A question longer than the context, and one without an answer, do not stop the others.
static void questions_that_cannot_be_asked_are_left_out(void **state) {
    (void)state;
    TinyEval t;
    Error error = {0};
    tiny_eval_open(&t, 1, F32);
    static const char lines[] =
        "{\"image\": \"images/0.png\", \"question\": \"what colour?\", \"answer\": \"red\"}\n"
        "{\"image\": \"images/1.png\", \"question\": \"what colour is the big big big big big big big circle?\", "
        "\"answer\": \"red\"}\n"
        "{\"image\": \"images/2.png\", \"question\": \"what colour?\"}\n";
    char *data = temporary_path(t.folder, "questions.jsonl");
    char *task = tiny_task(&t, "ask.yaml", "type: vqa\nanswer: 'a {answer}'\n");
    assert_done(file_write(data, lines, sizeof lines - 1, &error), &error);
    json_t *results = tiny_run(&t, task, data, 4);
    const json_t *counts = json_object_get(json_object_get(results, "n-samples"), "ask");
    assert_int_equal(json_get_int(counts, "original", 0), 3);
    assert_int_equal(json_get_int(counts, "effective", 0), 1);
    json_decref(results);
    free(data);
    free(task);
    tiny_eval_close(&t);
}

static void every_sample_is_logged_where_asked(void **state) {
    (void)state;
    TinyEval t;
    Error error = {0};
    tiny_eval_open(&t, 1, F32);
    EvaluateOptions options = {
        .tasks = shipped, .task_count = 4, .data = t.captions, .batch = 5, .samples = t.folder, .limit = 11};
    json_t *results = NULL;
    assert_done(evaluate(&t.model, t.backend, &options, &results, NULL, &error), &error);
    static const char *const logged[] = {"samples_zero_shot.jsonl", "samples_retrieval.jsonl", "samples_caption.jsonl",
                                         "samples_vqa.jsonl"};
    for (int i = 0; i < 4; i++) {
        char *path = temporary_path(t.folder, logged[i]);
        JsonLines *lines = json_lines_open(path, &error);
        json_t *line = NULL;
        int count = 0;
        assert_done(lines != NULL, &error);
        while (json_lines_next(lines, &line, &error) && line) {
            assert_int_equal(json_get_int(line, "doc_id", -1), count++);
            assert_non_null(json_object_get(line, "target"));
            json_decref(line);
        }
        assert_int_equal(count, 11);
        json_lines_close(lines);
        free(path);
    }
    json_decref(results);
    tiny_eval_close(&t);
}

static void expect_refusal(TinyEval *t, const char *task, const char *data, const char *part) {
    Error error = {0};
    EvaluateOptions options = {.tasks = &task, .task_count = 1, .data = data, .batch = 4};
    json_t *results = NULL;
    assert_false(evaluate(&t->model, t->backend, &options, &results, NULL, &error));
    assert_null(results);
    assert_message_has(&error, part);
}

static void what_cannot_be_run_is_refused_with_a_remedy(void **state) {
    (void)state;
    TinyEval t;
    tiny_eval_open(&t, 1, F32);
    char *wide = tiny_task(&t, "wide.yaml", "type: perplexity\nwindow: 100\n");
    char *other = tiny_task(&t, "other.yaml", "type: zero_shot\nclass_field: kind\n");
    char *unfit = tiny_task(&t, "unfit.yaml", "type: zero_shot\nclasses: nowhere.txt\n");
    char *fields = tiny_task(&t, "fields.yaml", "type: vqa\nquestion: '{what}'\n");
    expect_refusal(&t, "zero_shot", NULL, "--data PATH");
    expect_refusal(&t, "zero_shot", "/nowhere.jsonl", "/nowhere.jsonl");
    expect_refusal(&t, "zero_sho", t.captions, "did you mean 'zero_shot'");
    expect_refusal(&t, wide, t.texts, "window 100");
    expect_refusal(&t, other, t.captions, "class_field");
    expect_refusal(&t, unfit, t.captions, "nowhere.txt");
    expect_refusal(&t, fields, t.captions, "field \"what\"");
    free(wide);
    free(other);
    free(unfit);
    free(fields);
    tiny_eval_close(&t);
}

static void what_was_found_before_a_failure_is_kept_and_the_failure_named(void **state) {
    (void)state;
    TinyEval t;
    Error error = {0};
    tiny_eval_open(&t, 1, F32);
    char *other = tiny_task(&t, "other.yaml", "type: zero_shot\nclass_field: kind\n"); // no sample has it
    const char *const tasks[] = {"retrieval", other, "caption"};
    EvaluateOptions options = {.tasks = tasks, .task_count = 3, .data = t.captions, .batch = 4};
    json_t *results = NULL, *found;
    assert_false(evaluate(&t.model, t.backend, &options, &results, NULL, &error));
    assert_message_has(&error, "task other");
    assert_non_null(found = json_object_get(results, "results"));
    assert_int_equal(json_object_size(found), 1);
    assert_non_null(json_object_get(found, "retrieval"));
    json_decref(results);
    free(other);
    tiny_eval_close(&t);
}

static void ranks_count_what_goes_first(void **state) {
    (void)state;
    const float scores[] = {1, 3, 3, 2, NAN};
    assert_int_equal(rank_of(scores, 4, 1), 0);
    assert_int_equal(rank_of(scores, 4, 2), 1);
    assert_int_equal(rank_of(scores, 4, 3), 2);
    assert_int_equal(rank_of(scores, 4, 0), 3);
    assert_int_equal(rank_of(scores, 5, 4), 4); // NaN is right about nothing
    assert_int_equal(rank_of(scores, 5, 1), 1);
}

static void answers_are_compared_without_case_and_spaces(void **state) {
    (void)state;
    Buffer out = {0};
    normalize_answer("  Two\t Red\n circles ", &out);
    assert_string_equal(out.data, "two red circles");
    normalize_answer("", &out);
    assert_string_equal(out.data, "");
    normalize_answer("红色 圆形", &out);
    assert_string_equal(out.data, "红色 圆形");
    buffer_free(&out);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scores_do_not_depend_on_the_batch_or_threads),
        cmocka_unit_test(scores_in_bf16_do_not_depend_on_the_batch),
        cmocka_unit_test(perplexity_rolls_over_disjoint_windows),
        cmocka_unit_test(texts_of_any_length_score_as_each_does_by_itself),
        cmocka_unit_test(features_of_several_views_are_averaged),
        cmocka_unit_test(random_weights_guess),
        cmocka_unit_test(damaged_pictures_are_left_out_and_counted),
        cmocka_unit_test(questions_that_cannot_be_asked_are_left_out),
        cmocka_unit_test(every_sample_is_logged_where_asked),
        cmocka_unit_test(what_cannot_be_run_is_refused_with_a_remedy),
        cmocka_unit_test(what_was_found_before_a_failure_is_kept_and_the_failure_named),
        cmocka_unit_test(ranks_count_what_goes_first),
        cmocka_unit_test(answers_are_compared_without_case_and_spaces),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
