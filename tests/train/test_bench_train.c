/* Presets of the training bench: their sizes and FLOP are the published ones, every kind of them runs, and memory says
 * how much is computed again. */
#include "kernels/cpu/cpu.h"
#include "kernels/dry.h"
#include "tests/support/test.h"
#include "train/bench_generate.h"
#include "train/bench_model.h"
#include "train/bench_train.h"
#include "train/kernel_costs.h"
#include <math.h>
#include <string.h>

static BenchPreset preset(const char *name) {
    BenchPreset p;
    Error error = {0};
    assert_done(bench_preset(&p, name, &error), &error);
    return p;
}

static double parameters_of(const char *name) {
    BenchPreset p = preset(name);
    Error error = {0};
    Backend *dry = dry_backend_new();
    BenchModel *m = bench_model_new(dry, &p, BF16, RECOMPUTE_NONE, &error);
    if (!m) fail_msg("%s", error.message);
    double count = (double)parameters_elements(bench_model_parameters(m), false);
    bench_model_free(m);
    backend_free(dry);
    return count;
}

static void models_have_the_published_number_of_parameters(void **state) {
    (void)state;
    assert_true(parameters_of("gpt2_124m") == 124439808); // Radford et al. 2019, as released
    assert_true(parameters_of("gpt2_1558m") == 1557611200);
    // Dosovitskiy et al. 2020 as in timm, whose head has a bias of 1,000 and whose patches have one
    assert_true(parameters_of("vit_b16") == 86567656 - 1000);
    assert_true(parameters_of("vit_l16") == 304326632 - 1000);
    assert_true(parameters_of("vit_ti") == 5717416 - 1000);
    double six = parameters_of("gpt_6m");
    assert_true(six > 5.5e6 && six < 6.5e6);
}

static double forward_gflop(const char *name, double units) {
    BenchPreset p = preset(name);
    return bench_preset_flop(&p) / 3 / units / 1e9;
}

static void flop_are_the_published_ones(void **state) {
    (void)state;
    double b16 = forward_gflop("vit_b16", 256), l16 = forward_gflop("vit_l16", 128);
    assert_true(fabs(b16 - 35.13) < 0.01); // of a picture, multiply and add counted; 17.56 and 61.6 GMAC in timm
    assert_true(fabs(l16 / 123.2 - 1) < 0.005);
    BenchPreset gpt = preset("gpt2_124m");
    double n = 124439808 - 1024 * 768, t = 1024, tokens = 32 * t;               // learned positions are no product
    double six_n = 6 * n * tokens, attention = 6 * 12 * 768 * (t + 1) * tokens; // causal: half of 12 L C T a token
    double biases_and_norms = 6 * tokens * (12 * (3 * 768 + 768 + 4 * 768 + 768 + 4 * 768) + 2 * 768);
    assert_true(fabs(bench_preset_flop(&gpt) / (six_n + attention - biases_and_norms) - 1) < 1e-6);
}

static void every_kind_of_step_runs(void **state) {
    (void)state;
    static const char *const names[] = {"gpt2_1558m", "vit_ti", "mae_vit_l", "clip_b32", "joint_b"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        for (int bf16 = 0; bf16 < 2; bf16++) {
            BenchTrainResult r = {0};
            Error error = {0};
            BenchTrainOptions o = {.preset = names[i], .shrink = true, .precision = bf16 ? BF16 : F32, .threads = 1};
            o.iterations = 2;
            assert_done(bench_train(&o, &r, NULL, &error), &error);
            assert_true(r.units > 0 && r.median > 0 && r.best <= r.median && r.median <= r.worst);
            assert_true(isfinite(r.loss) && r.loss > 0 && r.flop > 0 && r.parameters > 0 && r.activation_bytes > 0);
        }
}

static void pieces_add_up_to_the_loss_of_the_step(void **state) {
    (void)state;
    double loss[2];
    Error error = {0};
    Backend *b = cpu_backend_new(1, NULL, NULL);
    for (int i = 0; i < 2; i++) { // all pieces hold the same rows
        BenchPreset p = preset("gpt2_1558m");
        bench_preset_shrink(&p);
        if (i) p.batch /= p.pieces, p.pieces = 1;
        BenchModel *m = bench_model_new(b, &p, F32, RECOMPUTE_NONE, &error);
        assert_true(m && bench_model_start(m, NULL, 1, 1, &error) && bench_model_finish(m, &loss[i], &error));
        bench_model_free(m);
    }
    backend_free(b);
    assert_true(fabs(loss[0] - loss[1]) < 1e-5);
}

static void memory_says_how_much_is_computed_again(void **state) {
    (void)state;
    static const double gib[] = {400, 100, 40};
    static const Recompute want[] = {RECOMPUTE_NONE, RECOMPUTE_SELECTIVE, RECOMPUTE_FULL};
    BenchPreset p = preset("clip_b32");
    Recompute got;
    Error error = {0};
    for (int i = 0; i < 3; i++) {
        assert_done(bench_train_fit(&p, BF16, gib[i] * 0x1p30, &got, &error), &error);
        assert_int_equal(got, want[i]);
    }
    assert_false(bench_train_fit(&p, BF16, 1e9, &got, &error));
    assert_non_null(strstr(error.message, "GiB"));
    BenchTrainResult r;
    BenchTrainOptions o = {.preset = "gpt9"};
    assert_false(bench_train(&o, &r, NULL, &error));
    assert_non_null(strstr(error.message, "gpt2_124m"));
}

static void generation_is_held_against_the_bytes_it_reads(void **state) {
    (void)state;
    BenchGenerateOptions o = {.preset = "gpt2_124m", .shrink = true, .precision = F32, .threads = 1, .batch = 3};
    BenchGenerateResult r;
    Error error = {0};
    o.prompt = 4, o.tokens = 9, o.rounds = 1;
    assert_done(bench_generate(&o, &r, NULL, &error), &error);
    // 2 blocks of 12 C^2, 97 words; the cache holds 4 to 12 positions, 8 on average, 2 C wide in each block
    assert_true(r.bytes == 4 * (2 * 12 * 32 * 32 + 97 * 32 + 3 * 2 * 8 * 2 * 32));
    assert_true(r.seconds > 0 && r.share > 0 && r.copy_gbytes > 0);
    assert_true(fabs(r.per_second * r.seconds - 27) < 1e-6);
    o.tokens = 100;
    assert_false(bench_generate(&o, &r, NULL, &error));
    assert_non_null(strstr(error.message, "context of 24"));
    o.preset = "vit_ti";
    assert_false(bench_generate(&o, &r, NULL, &error));
}

static double flop_called(const KernelCosts *c) {
    double flop = 0;
    for (int i = 0; i < c->count; i++) // of attention's products going back, five, the model counts four
        flop += c->bound[i].flop * (strcmp(c->bound[i].name, "attention_backward") ? 1 : 0.8);
    return flop;
}

static void a_modelled_step_does_what_the_model_takes(void **state) {
    (void)state;
    static const char *const names[] = {"gpt2_124m", "vit_b16", "mae_vit_l", "joint_b_lm"};
    const GpuKind *h100 = gpu_kind("h100");
    for (int i = 0; i < 4; i++) {
        BenchPreset p = preset(names[i]);
        KernelCosts c;
        Error error = {0};
        assert_done(kernel_costs_preset(&p, BF16, RECOMPUTE_NONE, h100, &c, &error), &error);
        double share = flop_called(&c) / c.flop, bound = kernel_costs_seconds(&c, false);
        if (!(share > 0.995 && share < 1.01)) fail_msg("%s: %g of the model's FLOP", names[i], share);
        assert_true(bound > c.flop / h100->bf16 && bound < kernel_costs_seconds(&c, true));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(models_have_the_published_number_of_parameters),
        cmocka_unit_test(flop_are_the_published_ones),
        cmocka_unit_test(every_kind_of_step_runs),
        cmocka_unit_test(pieces_add_up_to_the_loss_of_the_step),
        cmocka_unit_test(generation_is_held_against_the_bytes_it_reads),
        cmocka_unit_test(memory_says_how_much_is_computed_again),
        cmocka_unit_test(a_modelled_step_does_what_the_model_takes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
