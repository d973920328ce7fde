/* The joint model: objectives together and apart, image slots, freezing, dropout, what does not fit. */
#include "tiny_joint.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static void every_loss_falls(const JointConfig *config, Dtype dtype) {
    Tiny m;
    tiny_open(&m, config, dtype);
    Batch batch = tiny_batch(m.memory);
    float first[OBJECTIVES], last[OBJECTIVES];
    tiny_step(&m, &batch, 3e-3, first);
    for (int i = 0; i < 39; i++) tiny_step(&m, &batch, 3e-3, last);
    for (int o = 0; o < OBJECTIVES; o++) {
        print_message("%s: %.4f to %.4f\n", objective_names[o], first[o], last[o]);
        assert_true(last[o] < 0.9 * first[o]);
    }
    tiny_close(&m);
}

static void all_four_losses_fall_in_one_step(void **state) {
    (void)state;
    JointConfig config = tiny_config();
    every_loss_falls(&config, F32);
}

static void all_four_losses_fall_in_bf16(void **state) {
    (void)state;
    JointConfig config = tiny_config();
    every_loss_falls(&config, BF16);
}

static void the_sigmoid_loss_and_llama_text_train_too(void **state) {
    (void)state;
    JointConfig config = tiny_config();
    config.contrastive = CONTRASTIVE_SIGMOID;
    config.vision.pooling = POOL_ATTENTION;
    config.vision.positions = POSITIONS_SINCOS;
    config.connector = CONNECTOR_LINEAR;
    config.text.norm = NORM_RMS;
    config.text.mlp = MLP_SWIGLU;
    config.text.rope = true;
    config.text.kv_heads = 1;
    config.text.bias = config.text.tied = false;
    every_loss_falls(&config, F32);
}

// ---- subsets ----

static Batch only(const Batch *whole, unsigned objectives) {
    Batch b = *whole;
    if (!(objectives & 1u << OBJECTIVE_LM)) b.lm.rows = 0;
    if (!(objectives & 1u << OBJECTIVE_CAPTION)) b.caption.rows = 0;
    if (!(objectives & 1u << OBJECTIVE_CONTRASTIVE)) b.contrastive.rows = 0;
    if (!(objectives & 1u << OBJECTIVE_MAE)) b.mae_images = 0;
    if (objectives == 1u << OBJECTIVE_LM) b.images = 0;
    return b;
}

// MAE runs apart from the trunk's other images, and the trunk computes each image by itself.
static void an_objective_does_not_change_with_its_company(void **state) {
    (void)state;
    Tiny m;
    JointConfig config = tiny_config();
    tiny_open(&m, &config, F32);
    Batch whole = tiny_batch(m.memory);
    JointPass pass = {.seed = 5};
    float together[OBJECTIVES];
    JointLoss loss = joint_loss(m.tape, m.joint, &whole, &pass);
    for (int o = 0; o < OBJECTIVES; o++) together[o] = tiny_value(&m, loss.mean[o]);
    for (unsigned subset = 1; subset < 1u << OBJECTIVES; subset++) {
        tape_reset(m.tape);
        Batch part = only(&whole, subset);
        loss = joint_loss(m.tape, m.joint, &part, &pass);
        double total = 0;
        for (int o = 0; o < OBJECTIVES; o++) {
            bool present = subset >> o & 1;
            assert_int_equal(loss.mean[o] != NULL, present);
            assert_int_equal(loss.count[o] > 0, present);
            if (!present) continue;
            float alone = tiny_value(&m, loss.mean[o]);
            assert_true(fabsf(alone - together[o]) <= 1e-6f * fabsf(together[o]));
            total += alone;
        }
        assert_true(fabs(tiny_value(&m, loss.total) - total) <= 1e-5 * fabs(total));
    }
    tiny_close(&m);
}

static void the_total_is_the_weighted_sum_of_means_over_global_counts(void **state) {
    (void)state;
    Tiny m;
    JointConfig config = tiny_config();
    double weights[OBJECTIVES] = {0.5, 2, 0.25, 3}, expected = 0;
    memcpy(config.weight, weights, sizeof weights);
    tiny_open(&m, &config, F32);
    Batch batch = tiny_batch(m.memory);
    int64_t own[OBJECTIVES], global[OBJECTIVES];
    joint_counts(&config, &batch, own);
    assert_int_equal(own[OBJECTIVE_LM], 2 * 11);
    assert_int_equal(own[OBJECTIVE_CAPTION], batch.caption.target_count);
    assert_int_equal(own[OBJECTIVE_CONTRASTIVE], TINY_IMAGES);
    assert_int_equal(own[OBJECTIVE_MAE], TINY_IMAGES * 12);
    for (int o = 0; o < OBJECTIVES; o++) global[o] = (o + 2) * own[o];
    JointPass alone = {.seed = 5}, shared = {.seed = 5, .global_count = global};
    JointLoss loss = joint_loss(m.tape, m.joint, &batch, &alone);
    for (int o = 0; o < OBJECTIVES; o++) expected += weights[o] * tiny_value(&m, loss.mean[o]) / (o + 2);
    tape_reset(m.tape);
    loss = joint_loss(m.tape, m.joint, &batch, &shared);
    assert_true(fabs(tiny_value(&m, loss.total) - expected) <= 1e-5 * fabs(expected));
    tiny_close(&m);
}

// ---- images in sequences ----

static float caption_mean(Tiny *m, const Batch *batch) {
    JointPass pass = {.seed = 5};
    tape_reset(m->tape);
    return tiny_value(m, joint_loss(m->tape, m->joint, batch, &pass).mean[OBJECTIVE_CAPTION]);
}

static void swap_images(uint8_t *pixels, int a, int b) {
    enum { BYTES = TINY_SIDE * TINY_SIDE * 3 };
    uint8_t copy[BYTES];
    memcpy(copy, pixels + a * BYTES, BYTES);
    memcpy(pixels + a * BYTES, pixels + b * BYTES, BYTES);
    memcpy(pixels + b * BYTES, copy, BYTES);
}

static void slots_name_the_image_wherever_it_stands_in_the_batch(void **state) {
    (void)state;
    Tiny m;
    JointConfig config = tiny_config();
    tiny_open(&m, &config, F32);
    Batch whole = tiny_batch(m.memory), batch = only(&whole, 1u << OBJECTIVE_CAPTION);
    float before = caption_mean(&m, &batch);
    swap_images(batch.pixels, 1, 3);
    float wrong = caption_mean(&m, &batch); // the two images of the last row have changed places
    for (int i = 0; i < batch.caption.rows * batch.caption.length; i++) {
        int32_t *row = &batch.caption.image_rows[i], image = *row / TINY_SLOTS;
        if (*row >= 0 && (image == 1 || image == 3)) *row += (image == 1 ? 2 : -2) * TINY_SLOTS;
    }
    assert_true(caption_mean(&m, &batch) == before);
    assert_true(fabsf(wrong - before) > 1e-6f);
    tiny_close(&m);
}

static void an_image_may_serve_several_rows(void **state) {
    (void)state;
    Tiny m;
    JointConfig config = tiny_config();
    tiny_open(&m, &config, F32);
    Batch whole = tiny_batch(m.memory), batch = only(&whole, 1u << OBJECTIVE_CAPTION);
    int bytes = TINY_SIDE * TINY_SIDE * 3;
    memcpy(batch.pixels + 2 * bytes, batch.pixels, (size_t)bytes); // image 2 becomes image 0
    float copied = caption_mean(&m, &batch);
    for (int i = 0; i < batch.caption.rows * batch.caption.length; i++)
        if (batch.caption.image_rows[i] / TINY_SLOTS == 2) batch.caption.image_rows[i] -= 2 * TINY_SLOTS;
    assert_true(caption_mean(&m, &batch) == copied);
    tiny_close(&m);
}

// ---- freezing ----

typedef struct Work { // of one step
    int64_t nodes;
    double backward;
} Work;

static Work work_of(const char *freeze, unsigned objectives) {
    Tiny m;
    JointConfig config = tiny_config();
    if (freeze) config.freeze = (StringList){&freeze, 1};
    tiny_open(&m, &config, F32);
    Batch whole = tiny_batch(m.memory), batch = only(&whole, objectives);
    JointPass pass = {.seed = 5, .training = true};
    Parameters *p = joint_parameters(m.joint);
    parameters_begin_step(p);
    JointLoss loss = joint_loss(m.tape, m.joint, &batch, &pass);
    Work work = {tape_nodes(m.tape), tape_cost(m.tape).backward_flop};
    tape_backward(m.tape, loss.total, ALL_GRADIENTS);
    parameters_end_backward(p);
    for (int i = 0; i < parameters_count(p); i++) {
        const Parameter *item = parameters_at(p, i);
        assert_int_equal(item->frozen, item->tensor.grad == NULL);
    }
    tiny_close(&m);
    return work;
}

static void a_frozen_trunk_costs_no_gradient_work(void **state) {
    (void)state;
    unsigned caption = 1u << OBJECTIVE_CAPTION;
    Work trained = work_of(NULL, caption), frozen = work_of("vision", caption),
         deep = work_of("vision.blocks.1", caption);
    JointConfig c = tiny_config();
    double trunk = vit_flop(&c.vision, TINY_IMAGES, vit_tokens(&c.vision));
    assert_true(frozen.nodes < trained.nodes);
    // All of the trunk's backward products go but the patch embedding's input gradient, which was never wanted.
    assert_true(trained.backward - frozen.backward > 1.9 * trunk);
    assert_true(deep.nodes == trained.nodes); // gradients pass through a frozen block to the one below it
}

static void a_frozen_text_still_passes_gradients_to_the_image(void **state) {
    (void)state;
    unsigned caption = 1u << OBJECTIVE_CAPTION, lm = 1u << OBJECTIVE_LM;
    Work trained = work_of(NULL, caption), frozen = work_of("text", caption);
    assert_true(frozen.nodes > 0 && frozen.backward < trained.backward);
    Tiny m;
    const char *text = "text";
    JointConfig config = tiny_config();
    config.freeze = (StringList){&text, 1};
    tiny_open(&m, &config, F32);
    Batch whole = tiny_batch(m.memory), batch = only(&whole, lm);
    JointPass pass = {.seed = 5};
    joint_loss(m.tape, m.joint, &batch, &pass);
    assert_int_equal(tape_nodes(m.tape), 0); // nothing that is trained takes part
    tiny_close(&m);
}

static void freezing_what_is_not_there_is_refused(void **state) {
    (void)state;
    Error error = {0};
    const char *typo = "visoin";
    JointConfig config = tiny_config();
    config.freeze = (StringList){&typo, 1};
    Backend *backend = cpu_backend_new(1, NULL, NULL);
    assert_null(joint_new(backend, &config, NULL, F32, 1, &error));
    assert_non_null(strstr(error.message, "visoin"));
    backend_free(backend);
}

// ---- dropout ----

// The row's losses do not depend on which rows are computed beside it.
static void dropout_is_drawn_by_global_row(void **state) {
    (void)state;
    Tiny m;
    JointConfig config = tiny_config();
    config.text.dropout = 0.3;
    tiny_open(&m, &config, F32);
    Batch whole = tiny_batch(m.memory), batch = only(&whole, 1u << OBJECTIVE_LM);
    int64_t count[OBJECTIVES] = {22, 1, 1, 1};
    JointPass pass = {.seed = 5, .training = true, .global_count = count};
    float both = tiny_value(&m, joint_loss(m.tape, m.joint, &batch, &pass).mean[OBJECTIVE_LM]);
    Batch first = batch, second = batch;
    first.lm.rows = second.lm.rows = 1;
    second.lm.tokens += 12;
    second.lm.targets += 12;
    second.lm.positions += 12;
    second.lm.range += 24;
    second.first_row[OBJECTIVE_LM] = 1;
    float a = tiny_value(&m, joint_loss(m.tape, m.joint, &first, &pass).mean[OBJECTIVE_LM]);
    float b = tiny_value(&m, joint_loss(m.tape, m.joint, &second, &pass).mean[OBJECTIVE_LM]);
    assert_true(fabsf(a + b - both) <= 1e-5f * both);
    second.first_row[OBJECTIVE_LM] = 0; // other draws
    float c = tiny_value(&m, joint_loss(m.tape, m.joint, &second, &pass).mean[OBJECTIVE_LM]);
    assert_true(fabsf(c - b) > 1e-4f);
    batch.step = 1;
    float later = tiny_value(&m, joint_loss(m.tape, m.joint, &batch, &pass).mean[OBJECTIVE_LM]);
    assert_true(fabsf(later - both) > 1e-4f);
    tiny_close(&m);
}

// ---- the step as a whole ----

// All masters after three steps, in the order of parameters; malloc'd.
static float *trained_masters(Dtype dtype, int threads, int64_t *count) {
    Tiny m;
    JointConfig config = tiny_config();
    config.text.dropout = config.vision.dropout = 0.1;
    tiny_open_threads(&m, &config, dtype, threads);
    Batch batch = tiny_batch(m.memory);
    float mean[OBJECTIVES];
    for (int i = 0; i < 3; i++) tiny_step(&m, &batch, 1e-3, mean);
    Parameters *p = joint_parameters(m.joint);
    *count = parameters_elements(p, false);
    float *all = malloc((size_t)*count * sizeof *all), *to = all;
    for (int i = 0; i < parameters_count(p); i++) {
        int64_t n = tensor_count(&parameters_at(p, i)->tensor);
        memcpy(to, parameters_at(p, i)->master, (size_t)n * sizeof *to);
        to += n;
    }
    tiny_close(&m);
    return all;
}

static void training_has_the_same_bits_on_any_number_of_threads(void **state) {
    (void)state;
    const Dtype types[] = {F32, BF16};
    for (int t = 0; t < 2; t++) {
        int64_t count;
        float *one = trained_masters(types[t], 1, &count);
        for (int threads = 2; threads <= 4; threads += 2) {
            float *more = trained_masters(types[t], threads, &count);
            assert_memory_equal(one, more, (size_t)count * sizeof *one);
            free(more);
        }
        free(one);
    }
}

static void the_second_identical_step_asks_the_system_for_nothing(void **state) {
    (void)state;
    Tiny m;
    JointConfig config = tiny_config();
    tiny_open(&m, &config, F32);
    Batch batch = tiny_batch(m.memory);
    float mean[OBJECTIVES];
    tiny_step(&m, &batch, 1e-3, mean);
    int64_t before = tape_system_allocations(m.tape);
    tiny_step(&m, &batch, 1e-3, mean);
    assert_int_equal(tape_system_allocations(m.tape), before);
    tiny_close(&m);
}

// Gradients of all parameters, from one backward pass or from its two halves; malloc'd.
static float *gradients(bool halves, int64_t *count) {
    Tiny m;
    JointConfig config = tiny_config();
    tiny_open(&m, &config, F32);
    Batch batch = tiny_batch(m.memory);
    JointPass pass = {.seed = 5, .training = true};
    Parameters *p = joint_parameters(m.joint);
    parameters_begin_step(p);
    JointLoss loss = joint_loss(m.tape, m.joint, &batch, &pass);
    tape_backward(m.tape, loss.total, halves ? INPUT_GRADIENTS : ALL_GRADIENTS);
    if (halves) tape_backward(m.tape, loss.total, WEIGHT_GRADIENTS);
    parameters_end_backward(p);
    *count = parameters_elements(p, true);
    float *all = malloc((size_t)*count * sizeof *all), *to = all;
    for (int i = 0; i < parameters_count(p); i++) {
        const Parameter *item = parameters_at(p, i);
        if (item->frozen) continue;
        memcpy(to, item->tensor.grad, (size_t)tensor_count(&item->tensor) * sizeof *to);
        to += tensor_count(&item->tensor);
    }
    tiny_close(&m);
    return all;
}

static void a_backward_pass_in_two_halves_has_the_same_bits(void **state) {
    (void)state;
    int64_t count;
    float *whole = gradients(false, &count), *halves = gradients(true, &count);
    assert_memory_equal(whole, halves, (size_t)count * sizeof *whole);
    free(whole);
    free(halves);
}

static void flop_of_a_step_are_three_times_its_forward_products(void **state) {
    (void)state;
    Tiny m;
    JointConfig config = tiny_config();
    tiny_open(&m, &config, F32);
    Batch batch = tiny_batch(m.memory);
    JointPass pass = {.seed = 5};
    joint_loss(m.tape, m.joint, &batch, &pass);
    double counted = tape_cost(m.tape).flop, model = joint_flop(&config, &batch) / 3;
    print_message("operators count %.0f FLOP, the model %.0f\n", counted, model);
    assert_true(model < counted && model > 0.8 * counted); // norms and activations, unscored rows
    tiny_close(&m);
}

// ---- what does not fit ----

static void sizes_that_do_not_divide_are_refused_with_what_would(void **state) {
    (void)state;
    Arena *memory = arena_new(1 << 12);
    JointConfig good = tiny_config(), c = good;
    assert_null(joint_check(&good, memory));
    c.vision.patch = 5;
    assert_non_null(strstr(joint_check(&c, memory), "15 or 20 would"));
    c = good;
    c.vision.heads = 3;
    assert_non_null(strstr(joint_check(&c, memory), "30 or 33 would"));
    c = good;
    c.text.heads = 5;
    assert_non_null(strstr(joint_check(&c, memory), "model.text: width 24 does not divide into 5 heads"));
    c = good;
    c.text.kv_heads = 3;
    assert_non_null(strstr(joint_check(&c, memory), "key-value heads"));
    c = good;
    c.mae.mask_ratio = 0.99;
    assert_non_null(strstr(joint_check(&c, memory), "it must leave 1 to 15"));
    c = good;
    c.text.context = 16;
    assert_non_null(strstr(joint_check(&c, memory), "no room for an image of 16 tokens"));
    c = good;
    c.has_vision = false;
    assert_non_null(strstr(joint_check(&c, memory), "model.vision.enabled: true"));
    memset(c.weight, 0, sizeof c.weight);
    assert_non_null(strstr(joint_check(&c, memory), "set one above 0"));
    arena_free(memory);
}

static void every_key_has_help_and_a_default_that_fits(void **state) {
    (void)state;
    Arena *memory = arena_new(1 << 12);
    JointConfig config;
    config_defaults(&joint_schema, &config, memory);
    assert_null(joint_check(&config, memory));
    for (int i = 0; i < joint_schema.count; i++) {
        const ConfigKey *key = &joint_schema.keys[i];
        assert_true(strlen(key->help) > 5 && key->unit && key->fallback);
        assert_int_equal(strncmp(key->name, "model.", 6), 0);
    }
    arena_free(memory);
}

static void an_objective_of_weight_zero_declares_nothing(void **state) {
    (void)state;
    Tiny m;
    JointConfig config = tiny_config();
    config.weight[OBJECTIVE_MAE] = config.weight[OBJECTIVE_CONTRASTIVE] = 0;
    tiny_open(&m, &config, F32);
    Parameters *p = joint_parameters(m.joint);
    assert_null(parameters_find(p, "mae.mask_token"));
    assert_null(parameters_find(p, "contrastive.log_scale"));
    assert_non_null(parameters_find(p, "connector.0.weight"));
    Batch batch = tiny_batch(m.memory);
    JointPass pass = {.seed = 5};
    JointLoss loss = joint_loss(m.tape, m.joint, &batch, &pass);
    assert_true(loss.mean[OBJECTIVE_LM] && !loss.mean[OBJECTIVE_MAE] && !loss.mean[OBJECTIVE_CONTRASTIVE]);
    tiny_close(&m);
}

// The estimate by which a run is refused must be below what is really taken, but not far.
static void memory_is_estimated_from_below(void **state) {
    (void)state;
    for (int i = 0; i < 6; i++) {
        Tiny m;
        float mean[OBJECTIVES];
        JointConfig c = tiny_config();
        bool bf16 = i % 2;
        c.recompute = (Recompute)(i / 2);
        tiny_open(&m, &c, bf16 ? BF16 : F32);
        Batch b = tiny_batch(m.memory);
        tiny_step(&m, &b, 0, mean);
        JointSizes sizes = {b.images, b.mae_images,
                            b.lm.rows * b.lm.length + b.caption.rows * b.caption.length +
                                b.contrastive.rows * b.contrastive.length};
        JointMemory least = joint_memory(&c, &sizes, bf16 ? BF16 : F32, NULL);
        double model = (double)parameters_elements(joint_parameters(m.joint), false) * (bf16 ? 18 : 16);
        double activations = (double)tape_peak(m.tape);
        assert_true(least.model <= model && least.model > 0.7 * model);
        assert_true(least.activations <= activations &&
                    least.activations > (c.recompute == RECOMPUTE_FULL ? 0.15 : 0.4) * activations);
        tiny_close(&m);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_four_losses_fall_in_one_step),
        cmocka_unit_test(all_four_losses_fall_in_bf16),
        cmocka_unit_test(the_sigmoid_loss_and_llama_text_train_too),
        cmocka_unit_test(an_objective_does_not_change_with_its_company),
        cmocka_unit_test(the_total_is_the_weighted_sum_of_means_over_global_counts),
        cmocka_unit_test(slots_name_the_image_wherever_it_stands_in_the_batch),
        cmocka_unit_test(an_image_may_serve_several_rows),
        cmocka_unit_test(a_frozen_trunk_costs_no_gradient_work),
        cmocka_unit_test(a_frozen_text_still_passes_gradients_to_the_image),
        cmocka_unit_test(freezing_what_is_not_there_is_refused),
        cmocka_unit_test(dropout_is_drawn_by_global_row),
        cmocka_unit_test(training_has_the_same_bits_on_any_number_of_threads),
        cmocka_unit_test(the_second_identical_step_asks_the_system_for_nothing),
        cmocka_unit_test(a_backward_pass_in_two_halves_has_the_same_bits),
        cmocka_unit_test(flop_of_a_step_are_three_times_its_forward_products),
        cmocka_unit_test(sizes_that_do_not_divide_are_refused_with_what_would),
        cmocka_unit_test(every_key_has_help_and_a_default_that_fits),
        cmocka_unit_test(an_objective_of_weight_zero_declares_nothing),
        cmocka_unit_test(memory_is_estimated_from_below),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
