/* bifocal bench contrastive and checkpoint on very little: what they print is there and makes sense. */
#include "tests/cli/command.h"
#include <math.h>

static double number_of(const json_t *object, const char *key) { return json_get_number(object, key, -1); }

static void the_contrastive_bench_prints_speed_and_memory(void **state) {
    (void)state;
    json_t *r = command_json(0, "/",
                             WORDS("bench", "contrastive", "--pairs", "90", "--width", "8", "--rounds", "2",
                                   "--threads", "1", "--pieces", "4", "--json"));
    assert_true(number_of(r, "pairs") == 90 && number_of(r, "width") == 8 && number_of(r, "pieces") == 4);
    assert_true(number_of(r, "ranks") == 1 && number_of(r, "threads") == 1);
    assert_true(number_of(r, "seconds") > 0 && number_of(r, "fastest") <= number_of(r, "seconds"));
    assert_true(number_of(r, "gflops") > 0 && number_of(r, "peak_gflops") > 0);
    assert_true(number_of(r, "work_space_bytes") > 0);
    assert_true(number_of(r, "work_space_bytes") <= number_of(r, "predicted_bytes"));
    json_decref(r);
    assert_prints("pairs/s", "/", "bench", "contrastive", "--pairs", "3", "--width", "2", "--rounds", "1", "--kind",
                  "sigmoid");
}

static void the_checkpoint_bench_says_what_a_save_holds(void **state) {
    (void)state;
    char *folder = temporary_new();
    json_t *r = command_json(0, folder,
                             WORDS("bench", "checkpoint", "--out", "saved", "--saves", "2", "--tokens", "8",
                                   "--threads", "1", "--json", "model.text.width=16", "model.text.heads=2",
                                   "model.text.layers=1", "model.text.vocabulary=64", "model.text.context=16"));
    assert_true(number_of(r, "parameters") > 4000 && number_of(r, "bytes") == 12 * number_of(r, "parameters"));
    assert_true(number_of(r, "written_seconds") > 0 && number_of(r, "held_seconds") >= 0);
    assert_true(number_of(r, "held_percent") <= number_of(r, "worst_held_percent"));
    assert_true(number_of(r, "step_seconds") > 0);
    json_decref(r);
    assert_refuses(2, "model.text.context", folder, "bench", "checkpoint", "--out", "saved", "--tokens", "2000");
    temporary_free(folder);
}

static void the_benches_of_training_and_generation_count_what_a_model_must_do(void **state) {
    (void)state;
    json_t *r = command_json(0, "/",
                             WORDS("bench", "train", "--preset", "nanochar", "--iterations", "1", "--rounds", "1",
                                   "--threads", "1", "--memory", "1", "--json"));
    double tokens = 12 * 64, products = 4 * 12 * 128 * 128 + 65 * 128, attention = 4 * 2 * 128 * 65;
    assert_true(fabs(number_of(r, "model_flop") / (3 * tokens * (2 * products + attention)) - 1) < 1e-5);
    assert_true(number_of(r, "median_ms") > 0 && number_of(r, "per_second") > 0);
    json_decref(r);
    r = command_json(0, "/",
                     WORDS("bench", "generate", "--preset", "nanochar", "--tokens", "5", "--prompt", "3", "--batch",
                           "2", "--rounds", "1", "--threads", "1", "--json"));
    assert_true(number_of(r, "per_second") > 0 && number_of(r, "share") > 0);
    json_decref(r);
    assert_refuses(2, "no language model", "/", "bench", "generate", "--preset", "vit_ti");
    assert_refuses(2, "computed again", "/", "bench", "train", "--preset", "nanochar", "--memory", "0.001");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_contrastive_bench_prints_speed_and_memory),
        cmocka_unit_test(the_benches_of_training_and_generation_count_what_a_model_must_do),
        cmocka_unit_test(the_checkpoint_bench_says_what_a_save_holds)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
