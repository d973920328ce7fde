/* Rows of training sequences: what is a target, who sees whom, and what is cut. */
#include "data/sequence.h"
#include "tests/support/test.h"

enum { PAD = 0, BEGIN = 2, END = 3 };
static const SequenceIds IDS = {PAD, BEGIN, END};

static TokenIds ids(int count, int32_t first, int32_t *storage) {
    for (int i = 0; i < count; i++) storage[i] = first + i;
    return (TokenIds){storage, count, count};
}

static void assert_row(const Sequences *s, const int32_t *array, int row, const int32_t *wanted) {
    for (int t = 0; t < s->length; t++)
        if (array[row * s->length + t] != wanted[t])
            fail_msg("row %d, position %d: %d, not %d", row, t, array[row * s->length + t], wanted[t]);
}

static void assert_range(const Sequences *s, int t, int first, int end) {
    assert_int_equal(s->range[2 * t], first);
    assert_int_equal(s->range[2 * t + 1], end);
}

static void a_caption_follows_its_image_and_is_scored_to_its_end(void **state) {
    Arena *arena = *state;
    int32_t storage[2];
    TokenIds text = ids(2, 10, storage);
    Segment segments[] = {segment_image(4), segment_scored(&text)};
    Sequences s;
    Error error;
    sequences_new(&s, arena, 1, 8, IDS);
    assert_done(sequence_put(&s, 0, segments, 2, 3, IDS, SEQUENCE_CLOSED, &error), &error);
    assert_row(&s, s.tokens, 0, (int32_t[]){-1, -1, -1, BEGIN, 10, 11, END, PAD});
    assert_row(&s, s.targets, 0, (int32_t[]){-1, -1, -1, 10, 11, END, -1, -1});
    assert_row(&s, s.positions, 0, (int32_t[]){0, 1, 2, 3, 4, 5, 6, 0});
    assert_row(&s, s.image_rows, 0, (int32_t[]){12, 13, 14, -1, -1, -1, -1, -1});
    assert_int_equal(s.ends[0], 6);
    assert_int_equal(s.target_count, 3);
    assert_int_equal(s.token_count, 4);
}

static void slots_see_each_other_text_is_causal_and_padding_sees_nothing(void **state) {
    Arena *arena = *state;
    int32_t storage[1];
    TokenIds text = ids(1, 10, storage);
    Segment segments[] = {segment_image(0), segment_image(1), segment_scored(&text)};
    Sequences s;
    Error error;
    sequences_new(&s, arena, 1, 8, IDS);
    assert_done(sequence_put(&s, 0, segments, 3, 2, IDS, SEQUENCE_CLOSED, &error), &error);
    for (int t = 0; t < 4; t++) assert_range(&s, t, 0, 4);
    for (int t = 4; t < 7; t++) assert_range(&s, t, 0, t + 1);
    assert_range(&s, 7, 0, 0);
    assert_row(&s, s.image_rows, 0, (int32_t[]){0, 1, 2, 3, -1, -1, -1, -1});
}

static void only_the_answer_of_a_question_is_scored(void **state) {
    Arena *arena = *state;
    int32_t asked[2], answered[1];
    TokenIds question = ids(2, 10, asked), answer = ids(1, 20, answered);
    Segment segments[] = {segment_image(0), segment_text(&question), segment_scored(&answer)};
    Sequences s;
    Error error;
    sequences_new(&s, arena, 1, 6, IDS);
    assert_done(sequence_put(&s, 0, segments, 3, 1, IDS, SEQUENCE_CLOSED, &error), &error);
    assert_row(&s, s.tokens, 0, (int32_t[]){-1, BEGIN, 10, 11, 20, END});
    assert_row(&s, s.targets, 0, (int32_t[]){-1, -1, -1, 20, END, -1});
}

static void an_image_inside_a_text_sees_what_is_before_it_and_itself(void **state) {
    Arena *arena = *state;
    int32_t before[1], after[1];
    TokenIds first = ids(1, 10, before), second = ids(1, 20, after);
    Segment segments[] = {segment_text(&first), segment_image(2), segment_scored(&second)};
    Sequences s;
    Error error;
    sequences_new(&s, arena, 1, 6, IDS);
    assert_done(sequence_put(&s, 0, segments, 3, 2, IDS, SEQUENCE_OPEN, &error), &error);
    assert_row(&s, s.tokens, 0, (int32_t[]){BEGIN, 10, -1, -1, 20, PAD});
    assert_row(&s, s.targets, 0, (int32_t[]){-1, -1, -1, 20, -1, -1});
    assert_range(&s, 1, 0, 2);
    assert_range(&s, 2, 0, 4);
    assert_range(&s, 3, 0, 4);
    assert_range(&s, 4, 0, 5);
}

static void a_prompt_has_no_targets_and_no_end(void **state) {
    Arena *arena = *state;
    int32_t storage[2];
    TokenIds prompt = ids(2, 10, storage);
    Segment segment = segment_text(&prompt);
    Sequences s;
    Error error;
    sequences_new(&s, arena, 1, 4, IDS);
    assert_done(sequence_put(&s, 0, &segment, 1, 9, IDS, SEQUENCE_OPEN, &error), &error);
    assert_row(&s, s.tokens, 0, (int32_t[]){BEGIN, 10, 11, PAD});
    assert_int_equal(s.target_count, 0);
    assert_int_equal(s.ends[0], 2);
}

static void an_empty_prompt_is_the_begin_token(void **state) {
    Arena *arena = *state;
    Segment segment = segment_image(0);
    Sequences s;
    Error error;
    sequences_new(&s, arena, 1, 4, IDS);
    assert_done(sequence_put(&s, 0, &segment, 1, 1, IDS, SEQUENCE_OPEN, &error), &error);
    assert_row(&s, s.tokens, 0, (int32_t[]){-1, BEGIN, PAD, PAD});
}

static void a_long_row_loses_the_front_of_its_question_first(void **state) {
    Arena *arena = *state;
    int32_t asked[6], answered[2];
    TokenIds question = ids(6, 10, asked), answer = ids(2, 20, answered);
    Segment segments[] = {segment_image(0), segment_text(&question), segment_scored(&answer)};
    Sequences s;
    Error error;
    sequences_new(&s, arena, 1, 7, IDS);
    assert_done(sequence_put(&s, 0, segments, 3, 1, IDS, SEQUENCE_CLOSED, &error), &error);
    assert_row(&s, s.tokens, 0, (int32_t[]){-1, BEGIN, 14, 15, 20, 21, END});
}

static void a_cut_caption_still_predicts_the_token_behind_the_cut(void **state) {
    Arena *arena = *state;
    int32_t storage[6];
    TokenIds text = ids(6, 10, storage);
    Segment segments[] = {segment_image(0), segment_scored(&text)};
    Sequences s;
    Error error;
    sequences_new(&s, arena, 1, 4, IDS);
    assert_done(sequence_put(&s, 0, segments, 2, 1, IDS, SEQUENCE_CLOSED, &error), &error);
    assert_row(&s, s.tokens, 0, (int32_t[]){-1, BEGIN, 10, 11});
    assert_row(&s, s.targets, 0, (int32_t[]){-1, 10, 11, 12});
    assert_int_equal(s.target_count, 3);
}

static void slots_that_do_not_fit_are_an_error(void **state) {
    Arena *arena = *state;
    Segment segment = segment_image(0);
    Sequences s;
    Error error;
    sequences_new(&s, arena, 1, 4, IDS);
    assert_false(sequence_put(&s, 0, &segment, 1, 4, IDS, SEQUENCE_OPEN, &error));
    assert_message_has(&error, "4 image slots");
}

static void a_contrastive_row_keeps_its_end_however_long_the_text(void **state) {
    Arena *arena = *state;
    int32_t storage[9];
    TokenIds text = ids(9, 10, storage);
    Sequences s;
    sequences_new(&s, arena, 2, 5, IDS);
    sequence_put_contrastive(&s, 0, text.ids, 9, IDS);
    sequence_put_contrastive(&s, 1, text.ids, 1, IDS);
    assert_row(&s, s.tokens, 0, (int32_t[]){BEGIN, 10, 11, 12, END});
    assert_row(&s, s.tokens, 1, (int32_t[]){BEGIN, 10, END, PAD, PAD});
    assert_int_equal(s.ends[0], 4);
    assert_int_equal(s.ends[1], 2);
    assert_int_equal(s.target_count, 0);
}

static void packed_pieces_do_not_see_each_other(void **state) {
    Arena *arena = *state;
    Sequences s;
    sequences_new(&s, arena, 1, 6, IDS);
    sequence_put_piece(&s, 0, 0, (int32_t[]){11, END}, 2, TOKEN_NONE);
    sequence_put_piece(&s, 0, 2, (int32_t[]){BEGIN, 20, 21}, 3, 22);
    assert_row(&s, s.tokens, 0, (int32_t[]){11, END, BEGIN, 20, 21, PAD});
    assert_row(&s, s.targets, 0, (int32_t[]){END, -1, 20, 21, 22, -1});
    assert_row(&s, s.positions, 0, (int32_t[]){0, 1, 0, 1, 2, 0});
    assert_range(&s, 1, 0, 2);
    assert_range(&s, 2, 2, 3);
    assert_range(&s, 4, 2, 5);
    assert_range(&s, 5, 0, 0);
    assert_int_equal(s.target_count, 4);
}

static int set_up(void **state) { return (*state = arena_new(4096)) == NULL; }

static int tear_down(void **state) {
    arena_free(*state);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_caption_follows_its_image_and_is_scored_to_its_end, set_up, tear_down),
        cmocka_unit_test_setup_teardown(slots_see_each_other_text_is_causal_and_padding_sees_nothing, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(only_the_answer_of_a_question_is_scored, set_up, tear_down),
        cmocka_unit_test_setup_teardown(an_image_inside_a_text_sees_what_is_before_it_and_itself, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_prompt_has_no_targets_and_no_end, set_up, tear_down),
        cmocka_unit_test_setup_teardown(an_empty_prompt_is_the_begin_token, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_long_row_loses_the_front_of_its_question_first, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_cut_caption_still_predicts_the_token_behind_the_cut, set_up, tear_down),
        cmocka_unit_test_setup_teardown(slots_that_do_not_fit_are_an_error, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_contrastive_row_keeps_its_end_however_long_the_text, set_up, tear_down),
        cmocka_unit_test_setup_teardown(packed_pieces_do_not_see_each_other, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
