/* The next token: greedy and by lot. */
#include "kernels/cpu/cpu.h"
#include "text/sampling.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

enum { V = 6, DRAWS = 40000 };
static const float logits[V] = {0, 2, 1, 2, -1, -30};

static Backend *backend;

// Token number `position` of a prompt.
static int32_t choose(const Sampling *s, const float *scores, int width, uint64_t prompt, uint64_t position) {
    WordDraw draw = sampling_draw(s, prompt, INT32_MAX);
    int32_t next, place = 0, slot = 0, range[2] = {0, 1}, step = (int32_t)position, said;
    WordRows speech = {&draw, &next, &place, &slot, range, &step, &said, 1, -1};
    backend->choose_words(backend, &speech, scores, 1, width, F32);
    assert_int_equal(said, next);
    assert_int_equal(step, position + 1);
    return next;
}

static void count_draws(const Sampling *s, double share[V]) {
    for (int i = 0; i < V; i++) share[i] = 0;
    for (uint64_t n = 0; n < DRAWS; n++) {
        int32_t id = choose(s, logits, V, n / 100, n % 100);
        assert_true(id >= 0 && id < V);
        share[id] += 1.0 / DRAWS;
    }
}

static void greedy_takes_the_first_maximum(void **state) {
    (void)state;
    assert_int_equal(choose(&(Sampling){.top_p = 1, .seed = 5}, logits, V, 3, 4), 1);
}

static void logits_that_are_not_numbers_give_no_token(void **state) {
    (void)state;
    Sampling s = {.temperature = 1, .top_p = 1};
    for (int lot = 0; lot < 2; lot++, s.temperature = 0) {
        assert_int_equal(choose(&s, (float[]){0, NAN, 1}, 3, 0, 0), -1);
        assert_int_equal(choose(&s, (float[]){-INFINITY, -INFINITY}, 2, 0, 0), -1);
        assert_int_equal(choose(&s, (float[]){0, INFINITY}, 2, 0, 0), -1);
        assert_int_equal(choose(&s, (float[]){-INFINITY, 1}, 2, 0, 0), 1);
    }
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
    Sampling a = {.temperature = 3, .top_p = 1, .seed = 1}, b = a;
    b.seed = 2;
    int other_seed = 0, other_prompt = 0, other_position = 0;
    for (uint64_t i = 0; i < 200; i++) {
        int32_t first = choose(&a, logits, V, 7, i);
        assert_int_equal(choose(&a, logits, V, 7, i), first);
        other_seed += choose(&b, logits, V, 7, i) != first;
        other_prompt += choose(&a, logits, V, 8, i) != first;
        other_position += choose(&a, logits, V, 7, i + 1) != first;
    }
    assert_true(other_seed > 100 && other_prompt > 100 && other_position > 100);
}

static void row_of(WordDraw *draw, int32_t most) { *draw = sampling_draw(&(Sampling){.top_p = 1}, 0, most); }

// Two rows of greedy choices: what they said, and where they stand behind each.
static void rows_move_on_until_their_end(void **state) {
    (void)state;
    enum { END = 3, KEPT = 2 };
    WordDraw draws[2];
    int32_t next[2], positions[2] = {4, 6}, slots[2] = {4, 16}, range[4] = {1, 5, 0, 7}, step[2] = {0};
    int32_t said[2 * KEPT];
    row_of(&draws[0], 10), row_of(&draws[1], 2);
    WordRows speech = {draws, next, positions, slots, range, step, said, KEPT, END};
    static const float scores[3][8] = {
        {0, 1, 0, 0, 0, 0, 1, 0}, {1, 0, 0, 0, 0, 1, 0, 0}, {0, 0, 0, 1, 0, 0, 1, 0}}; // both rows' of a step
    static const int32_t words[3][2] = {{1, 2}, {0, 1}, {END, END}};
    static const int32_t places[3][2] = {{5, 7}, {6, 7}, {6, 7}}, ends[3][2] = {{6, 8}, {7, 0}, {0, 0}};
    for (int n = 0; n < 3; n++) {
        backend->choose_words(backend, &speech, scores[n], 2, 4, F32);
        for (int r = 0; r < 2; r++) {
            assert_int_equal(next[r], words[n][r]);
            assert_int_equal(said[n % KEPT * 2 + r], words[n][r]);
            assert_int_equal(positions[r], places[n][r]);
            assert_int_equal(slots[r], places[n][r] + 10 * r);
            assert_int_equal(range[2 * r + 1], ends[n][r]);
            assert_int_equal(step[r], n + 1);
        }
    }
}

static void settings_out_of_range_are_named(void **state) {
    (void)state;
    assert_null(sampling_check(&(Sampling){.top_p = 1}));
    assert_non_null(sampling_check(&(Sampling){.temperature = -1, .top_p = 1}));
    assert_non_null(sampling_check(&(Sampling){.temperature = NAN, .top_p = 1}));
    assert_non_null(sampling_check(&(Sampling){.top_p = 0}));
    assert_non_null(sampling_check(&(Sampling){.top_k = -1, .top_p = 1}));
}

static int open_backend(void **state) {
    (void)state;
    backend = cpu_backend_new(1, NULL, NULL);
    return 0;
}
static int close_backend(void **state) {
    (void)state;
    backend_free(backend);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy_takes_the_first_maximum),
        cmocka_unit_test(logits_that_are_not_numbers_give_no_token),
        cmocka_unit_test(draws_follow_the_softmax),
        cmocka_unit_test(top_k_leaves_k_tokens),
        cmocka_unit_test(top_p_leaves_the_smallest_likely_set),
        cmocka_unit_test(a_draw_depends_on_seed_prompt_and_position_alone),
        cmocka_unit_test(rows_move_on_until_their_end),
        cmocka_unit_test(settings_out_of_range_are_named),
    };
    return cmocka_run_group_tests(tests, open_backend, close_backend);
}
