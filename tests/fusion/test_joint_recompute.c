/* Recomputation in the joint model: the same bits in less memory whatever is computed again, in both halves of a
 * backward pass, with dropout and in bf16; and nothing is run again, or backwards, for what is frozen. */
#include "tests/fusion/tiny_joint.h"
#include "tests/support/test.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static JointConfig gpt_config(void) {
    JointConfig c = tiny_config();
    c.vision.dropout = c.text.dropout = 0.1;
    return c;
}

static JointConfig llama_config(void) {
    JointConfig c = gpt_config();
    c.text.norm = NORM_RMS;
    c.text.mlp = MLP_SWIGLU;
    c.text.rope = true;
    c.text.bias = c.text.tied = false;
    c.text.kv_heads = 1;
    c.text.heads = 4;
    c.text.width = 32;
    c.contrastive = CONTRASTIVE_SIGMOID;
    c.vision.pooling = POOL_ATTENTION;
    return c;
}

typedef struct Pass { // what one forward and backward pass gives and takes
    float *numbers;   // the means of the objectives, then all gradients; malloc'd
    size_t bytes;
    size_t peak;
    int64_t nodes;
    Cost cost, replayed;
} Pass;

static Pass run(const JointConfig *config, Dtype dtype, bool in_halves, unsigned objectives) {
    Tiny m;
    tiny_open(&m, config, dtype);
    Parameters *p = joint_parameters(m.joint);
    Batch batch = tiny_batch(m.memory);
    if (!(objectives >> OBJECTIVE_LM & 1)) batch.lm = (Sequences){0};
    if (!(objectives >> OBJECTIVE_CAPTION & 1)) batch.caption = (Sequences){0};
    if (!(objectives >> OBJECTIVE_CONTRASTIVE & 1)) batch.contrastive = (Sequences){0};
    if (!(objectives >> OBJECTIVE_MAE & 1)) batch.mae_images = 0;
    Pass r = {0};
    r.bytes = (size_t)(OBJECTIVES + parameters_elements(p, true)) * sizeof(float);
    float *to = r.numbers = calloc(1, r.bytes);
    JointPass pass = {.seed = 5, .training = true};
    parameters_begin_step(p);
    JointLoss loss = joint_loss(m.tape, m.joint, &batch, &pass);
    for (int o = 0; o < OBJECTIVES; o++, to++)
        if (loss.mean[o]) *to = tiny_value(&m, loss.mean[o]);
    tape_backward(m.tape, loss.total, in_halves ? INPUT_GRADIENTS : ALL_GRADIENTS);
    if (in_halves) tape_backward(m.tape, loss.total, WEIGHT_GRADIENTS);
    parameters_end_backward(p);
    for (int i = 0; i < parameters_count(p); i++) {
        const Tensor *t = &parameters_at(p, i)->tensor;
        if (!t->grad) continue;
        memcpy(to, t->grad, (size_t)tensor_count(t) * sizeof *to);
        to += tensor_count(t);
    }
    r.nodes = tape_nodes(m.tape), r.peak = tape_peak(m.tape);
    r.cost = tape_cost(m.tape), r.replayed = tape_replayed(m.tape);
    tiny_close(&m);
    return r;
}

static void every_kind_of_recomputation_has_the_same_bits(void **state) {
    (void)state;
    JointConfig configs[] = {gpt_config(), llama_config()};
    for (int k = 0; k < 4; k++) {
        JointConfig c = configs[k / 2];
        Dtype dtype = k % 2 ? BF16 : F32;
        Pass plain = run(&c, dtype, false, 15);
        for (int o = 0; o < OBJECTIVES; o++) assert_true(isfinite(plain.numbers[o]) && plain.numbers[o] != 0);
        for (int mode = RECOMPUTE_SELECTIVE; mode <= RECOMPUTE_FULL; mode++) {
            for (int in_halves = 0; in_halves < 2; in_halves++) {
                c.recompute = (Recompute)mode;
                Pass again = run(&c, dtype, in_halves, 15);
                assert_memory_equal(plain.numbers, again.numbers, plain.bytes);
                assert_true(again.cost.backward_flop == plain.cost.backward_flop);
                assert_true(again.cost.flop == plain.cost.flop + again.replayed.flop);
                free(again.numbers);
            }
        }
        free(plain.numbers);
    }
}

static void training_goes_on_alike_without_new_memory(void **state) {
    (void)state;
    enum { STEPS = 4 };
    float mean[2][STEPS][OBJECTIVES];
    for (int i = 0; i < 2; i++) {
        Tiny m;
        int64_t allocations = 0;
        JointConfig c = gpt_config();
        c.recompute = i ? RECOMPUTE_FULL : RECOMPUTE_NONE;
        tiny_open(&m, &c, F32);
        Batch batch = tiny_batch(m.memory);
        for (int step = 0; step < STEPS; step++) {
            tiny_step(&m, &batch, 1e-3, mean[i][step]);
            if (step == 0) allocations = tape_system_allocations(m.tape);
        }
        assert_int_equal(tape_system_allocations(m.tape), allocations);
        tiny_close(&m);
    }
    assert_memory_equal(mean[0], mean[1], sizeof mean[0]);
}

static void the_peak_falls_with_what_is_computed_again(void **state) {
    (void)state;
    JointConfig c = gpt_config();
    Pass pass[3];
    c.text.layers = c.vision.layers = 8;
    for (int mode = 0; mode < 3; mode++) {
        c.recompute = (Recompute)mode;
        pass[mode] = run(&c, F32, false, 1u << OBJECTIVE_LM | 1u << OBJECTIVE_CAPTION);
        free(pass[mode].numbers);
    }
    assert_true((double)pass[RECOMPUTE_SELECTIVE].peak < 0.85 * (double)pass[RECOMPUTE_NONE].peak);
    assert_true((double)pass[RECOMPUTE_FULL].peak < 0.35 * (double)pass[RECOMPUTE_NONE].peak);
    assert_true(pass[RECOMPUTE_NONE].replayed.flop == 0);
    double forward = pass[RECOMPUTE_NONE].cost.flop;
    assert_true(pass[RECOMPUTE_SELECTIVE].replayed.flop < 0.25 * forward); // GELU beside narrow products
    assert_true(pass[RECOMPUTE_FULL].replayed.flop > 0.5 * forward && pass[RECOMPUTE_FULL].replayed.flop < forward);
}

// Bytes that a forward pass over rows of text takes.
static double text_peak(const JointConfig *config) {
    Tiny m;
    tiny_open(&m, config, F32);
    Batch batch = {.lm = tiny_rows(m.memory, 4, 64, 1)};
    assert_non_null(joint_loss(m.tape, m.joint, &batch, &(JointPass){.seed = 5}).total);
    double peak = (double)tape_peak(m.tape);
    tiny_close(&m);
    return peak;
}

static void a_block_holds_what_the_estimate_says(void **state) {
    (void)state;
    for (int i = 0; i < 6; i++) {
        JointConfig few = i % 2 ? llama_config() : tiny_config();
        few.recompute = (Recompute)(i / 2);
        few.text.layers = 4;
        JointConfig many = few;
        many.text.layers = 10;
        double held = text_peak(&many) - text_peak(&few);
        double said = sizeof(float) * (text_activations(&many.text, 4 * 64, many.recompute, NULL) -
                                       text_activations(&few.text, 4 * 64, few.recompute, NULL));
        assert_true(held >= said && held < 1.12 * said); // statistics of norms and of attention beside it
    }
}

static Pass with_frozen(const char *freeze, unsigned objectives) {
    JointConfig c = gpt_config();
    c.recompute = RECOMPUTE_FULL;
    if (freeze) c.freeze = (StringList){&freeze, 1};
    Pass r = run(&c, F32, false, objectives);
    free(r.numbers);
    return r;
}

static void a_frozen_trunk_runs_neither_again_nor_backwards(void **state) {
    (void)state;
    JointConfig c = gpt_config();
    const unsigned caption = 1u << OBJECTIVE_CAPTION;
    Pass trained = with_frozen(NULL, caption), frozen = with_frozen("vision", caption);
    double block = vit_flop(&c.vision, TINY_IMAGES, vit_tokens(&c.vision)) / (double)c.vision.layers;
    assert_true(trained.nodes - frozen.nodes > c.vision.layers);
    assert_true(trained.replayed.flop - frozen.replayed.flop > 0.5 * block * (double)c.vision.layers);
    assert_true(trained.cost.backward_flop - frozen.cost.backward_flop > 1.9 * block * (double)c.vision.layers);
    // What is left is the text's: no more than its forward pass, and none of the trunk's.
    double places = 3.0 * TINY_LENGTH;
    assert_true(frozen.replayed.flop < 1.2 * text_flop(&c.text, places, places * TINY_LENGTH));
}

static void frozen_text_runs_backwards_for_the_image_alone(void **state) {
    (void)state;
    const unsigned caption = 1u << OBJECTIVE_CAPTION, lm = 1u << OBJECTIVE_LM, mae = 1u << OBJECTIVE_MAE;
    Pass both = with_frozen("text", caption | lm), captions = with_frozen("text", caption);
    assert_int_equal(both.nodes - captions.nodes, 1); // the sum of the total; nothing of the text for lm
    assert_true(both.replayed.flop == captions.replayed.flop);
    assert_true(with_frozen(NULL, caption | lm).replayed.flop > both.replayed.flop);
    Pass painting = with_frozen("text", mae), painting_all = with_frozen(NULL, mae);
    assert_true(painting.replayed.flop == painting_all.replayed.flop && painting.nodes == painting_all.nodes);
}

// Fewer calls run twice, in more memory, and the bits stay.
static void units_that_are_named_recompute_alone(void **state) {
    (void)state;
    static const char *const names[] = {"vision.blocks.1", "text"};
    JointConfig c = gpt_config();
    Pass none = run(&c, F32, false, 15);
    c.recompute = RECOMPUTE_FULL;
    Pass all = run(&c, F32, false, 15);
    c.recompute_units = (StringList){(const char **)names, 2};
    Pass some = run(&c, F32, true, 15);
    assert_memory_equal(none.numbers, some.numbers, none.bytes);
    assert_true(some.replayed.flop > 0 && some.replayed.flop < all.replayed.flop);
    free(none.numbers);
    free(all.numbers);
    free(some.numbers);
}

static void names_of_no_block_are_refused(void **state) {
    (void)state;
    static const char *const names[] = {"text", "vision.norm"};
    JointConfig c = gpt_config();
    Arena *memory = arena_new(4096);
    c.recompute_units = (StringList){(const char **)names, 2};
    const char *wrong = joint_check(&c, memory);
    assert_non_null(wrong);
    assert_non_null(strstr(wrong, "no block that is called or lies under 'vision.norm'"));
    arena_free(memory);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_kind_of_recomputation_has_the_same_bits),
        cmocka_unit_test(training_goes_on_alike_without_new_memory),
        cmocka_unit_test(a_block_holds_what_the_estimate_says),
        cmocka_unit_test(the_peak_falls_with_what_is_computed_again),
        cmocka_unit_test(a_frozen_trunk_runs_neither_again_nor_backwards),
        cmocka_unit_test(frozen_text_runs_backwards_for_the_image_alone),
        cmocka_unit_test(units_that_are_named_recompute_alone),
        cmocka_unit_test(names_of_no_block_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
