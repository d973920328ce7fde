/* The next token: greedy and by lot. */
#include "text/sampling.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

enum { V = 6, DRAWS = 40000 };
static const float logits[V] = {0, 2, 1, 2, -1, -30};

static void count_draws(const Sampling *s, double share[V]) {
    Candidate scratch[V];
    for (int i = 0; i < V; i++) share[i] = 0;
    for (uint64_t n = 0; n < DRAWS; n++) {
        int32_t id = sample_token(s, logits, V, n / 100, n % 100, scratch);
        assert_true(id >= 0 && id < V);
        share[id] += 1.0 / DRAWS;
    }
}

static void greedy_takes_the_first_maximum(void **state) {
    (void)state;
    assert_int_equal(sample_greedy(logits, V), 1);
    Candidate scratch[V];
    assert_int_equal(sample_token(&(Sampling){.top_p = 1, .seed = 5}, logits, V, 3, 4, scratch), 1);
}

static void logits_that_are_not_numbers_give_no_token(void **state) {
    (void)state;
    Candidate scratch[3];
    Sampling s = {.temperature = 1, .top_p = 1};
    assert_int_equal(sample_token(&s, (float[]){0, NAN, 1}, 3, 0, 0, scratch), -1);
    assert_int_equal(sample_greedy((float[]){-INFINITY, -INFINITY}, 2), -1);
    assert_int_equal(sample_greedy((float[]){0, INFINITY}, 2), -1);
    assert_int_equal(sample_greedy((float[]){-INFINITY, 1}, 2), 1);
}

static void draws_follow_the_softmax(void **state) {
    (void)state;
    for (double temperature = 0.5; temperature < 4; temperature *= 2) {
        double share[V], p[V], sum = 0;
        count_draws(&(Sampling){.temperature = temperature, .top_p = 1, .seed = 1}, share);
        for (int i = 0; i < V; i++) sum += p[i] = exp(logits[i] / temperature);
        for (int i = 0; i < V; i++) assert_true(fabs(share[i] - p[i] / sum) < 0.012); // > 4 standard deviations
    }
}

static void top_k_leaves_k_tokens(void **state) {
    (void)state;
    double share[V];
    count_draws(&(Sampling){.temperature = 1, .top_k = 3, .top_p = 1}, share);
    assert_true(share[1] > 0 && share[3] > 0 && share[2] > 0);
    assert_true(share[0] == 0 && share[4] == 0 && share[5] == 0);
    count_draws(&(Sampling){.temperature = 1, .top_k = 1, .top_p = 1}, share);
    assert_true(share[1] > 0.999); // of equals the smaller id stays
}

static void top_p_leaves_the_smallest_likely_set(void **state) {
    (void)state;
    double share[V];
    // the softmax is .05, .38, .14, .38, .02, 0
    count_draws(&(Sampling){.temperature = 1, .top_p = 0.5}, share);
    assert_true(share[1] > 0.4 && share[3] > 0.4 && share[1] + share[3] > 0.999);
    count_draws(&(Sampling){.temperature = 1, .top_p = 0.8}, share);
    assert_true(share[2] > 0.1 && share[0] == 0);
    count_draws(&(Sampling){.temperature = 1, .top_p = 0.01}, share);
    assert_true(share[1] > 0.999);
}

static void a_draw_depends_on_seed_prompt_and_position_alone(void **state) {
    (void)state;
    Candidate scratch[V];
    Sampling a = {.temperature = 3, .top_p = 1, .seed = 1}, b = a;
    b.seed = 2;
    int other_seed = 0, other_prompt = 0, other_position = 0;
    for (uint64_t i = 0; i < 200; i++) {
        int32_t first = sample_token(&a, logits, V, 7, i, scratch);
        assert_int_equal(sample_token(&a, logits, V, 7, i, scratch), first);
        other_seed += sample_token(&b, logits, V, 7, i, scratch) != first;
        other_prompt += sample_token(&a, logits, V, 8, i, scratch) != first;
        other_position += sample_token(&a, logits, V, 7, i + 1, scratch) != first;
    }
    assert_true(other_seed > 100 && other_prompt > 100 && other_position > 100);
}

static void settings_out_of_range_are_named(void **state) {
    (void)state;
    assert_null(sampling_check(&(Sampling){.top_p = 1}));
    assert_non_null(sampling_check(&(Sampling){.temperature = -1, .top_p = 1}));
    assert_non_null(sampling_check(&(Sampling){.temperature = NAN, .top_p = 1}));
    assert_non_null(sampling_check(&(Sampling){.top_p = 0}));
    assert_non_null(sampling_check(&(Sampling){.top_k = -1, .top_p = 1}));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy_takes_the_first_maximum),
        cmocka_unit_test(logits_that_are_not_numbers_give_no_token),
        cmocka_unit_test(draws_follow_the_softmax),
        cmocka_unit_test(top_k_leaves_k_tokens),
        cmocka_unit_test(top_p_leaves_the_smallest_likely_set),
        cmocka_unit_test(a_draw_depends_on_seed_prompt_and_position_alone),
        cmocka_unit_test(settings_out_of_range_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
