/* What a message must say of itself, and what is said where it is another one. */
#include "tests/support/test.h"
#include "train/pipeline_message.h"
#include <string.h>

typedef struct Case {
    MessageLayout layout;
    MessageHeader what;
    _Alignas(64) char message[4096];
} Case;

// Streams "lm", f32 (2, 3, 4), and "trunk", bf16 (5, 8).
static Case whole(bool gradients) {
    Case c = {.layout = {.streams = 1U << STREAM_LM | 1U << STREAM_TRUNK},
              .what = {.step = 7, .microbatch = 3, .boundary = 2, .gradients = gradients, .wanted = 1U << STREAM_LM}};
    c.layout.shapes[STREAM_LM] = (StreamShape){3, F32, {2, 3, 4}};
    c.layout.shapes[STREAM_TRUNK] = (StreamShape){2, BF16, {5, 8}};
    c.layout = message_layout_of(&c.layout, ~0U);
    assert_true(c.layout.bytes <= sizeof c.message);
    message_begin(c.message, &c.layout, &c.what)->streams = c.layout.streams;
    return c;
}

static MessageHeader *header(Case *c) { return (MessageHeader *)(void *)c->message; }

static void assert_refused(const Case *c, const char *const *parts) {
    Error error = {0};
    assert_false(message_check(c->message, &c->layout, &c->what, &error));
    assert_message_has(&error, "microbatch 3, boundary in front of part 2");
    for (; *parts; parts++) assert_message_has(&error, *parts);
}
#define ASSERT_REFUSED(c, ...) assert_refused(c, (const char *const[]){__VA_ARGS__, NULL})

static void streams_stand_one_behind_the_other(void **state) {
    (void)state;
    Case c = whole(false);
    MessageLayout lm = message_layout_of(&c.layout, 1U << STREAM_LM), none = message_layout_of(&c.layout, 0);
    assert_true(none.bytes >= sizeof(MessageHeader) && none.streams == 0);
    assert_int_equal(lm.at[STREAM_LM], none.bytes);
    assert_int_equal(lm.bytes, none.bytes + 128); // 96, up to whole lines
    assert_int_equal(c.layout.bytes, none.bytes + 128 + 128);
    assert_int_equal(c.layout.at[STREAM_LM] % 64, 0);
}

static void the_message_that_is_expected_is_taken(void **state) {
    (void)state;
    Error error = {0};
    for (int gradients = 0; gradients < 2; gradients++) {
        Case c = whole(gradients);
        assert_done(message_check(c.message, &c.layout, &c.what, &error), &error);
        assert_int_equal(header(&c)->wanted, 1U << STREAM_LM);
    }
}

static void another_message_is_named(void **state) {
    (void)state;
    Case c = whole(false);
    header(&c)->microbatch = 4;
    ASSERT_REFUSED(&c, "a message of step 7, microbatch 4, to part 2 came in its place");
    c = whole(false);
    header(&c)->step = 8;
    ASSERT_REFUSED(&c, "a message of step 8");
    c = whole(false);
    header(&c)->gradients = 1;
    ASSERT_REFUSED(&c, "of gradients");
    c = whole(false);
    header(&c)->magic++;
    ASSERT_REFUSED(&c, "no message of a pipeline");
}

static void another_shape_is_named_with_the_one_expected(void **state) {
    (void)state;
    Case c = whole(false);
    header(&c)->shapes[STREAM_LM].shape[1] = 6;
    ASSERT_REFUSED(&c, joint_stream_names[STREAM_LM], "f32 (2, 6, 4)", "f32 (2, 3, 4)");
    c = whole(true);
    header(&c)->shapes[STREAM_TRUNK].dtype = F32;
    ASSERT_REFUSED(&c, "gradient of stream", joint_stream_names[STREAM_TRUNK], "f32 (5, 8)", "bf16 (5, 8)");
}

static void a_stream_may_neither_be_missing_nor_too_many(void **state) {
    (void)state;
    Case c = whole(false);
    header(&c)->streams = 1U << STREAM_TRUNK;
    ASSERT_REFUSED(&c, joint_stream_names[STREAM_LM], "f32 (2, 3, 4), did not come");
    c = whole(false);
    header(&c)->streams |= 1U << STREAM_MAE;
    ASSERT_REFUSED(&c, joint_stream_names[STREAM_MAE], "which this batch does not have");
}

static void a_gradient_may_be_missing_where_nothing_was_formed(void **state) {
    (void)state;
    Error error = {0};
    Case c = whole(true);
    header(&c)->streams = 1U << STREAM_TRUNK;
    assert_done(message_check(c.message, &c.layout, &c.what, &error), &error);
}

static void what_leaves_must_be_what_is_expected(void **state) {
    (void)state;
    Error error = {0};
    Case c = whole(false);
    Tensor lm = {.rank = 3, .dtype = F32, .shape = {2, 3, 4}}, trunk = {.rank = 2, .dtype = BF16, .shape = {5, 8}};
    JointStreams streams = {0};
    streams.of[STREAM_LM] = &lm, streams.of[STREAM_TRUNK] = &trunk;
    assert_done(message_check_leaving(&c.layout, &streams, &error), &error);
    trunk.shape[1] = 9;
    assert_false(message_check_leaving(&c.layout, &streams, &error));
    assert_message_has(&error, "is bf16 (5, 9) where bf16 (5, 8) was to leave");
    streams.of[STREAM_TRUNK] = NULL;
    assert_false(message_check_leaving(&c.layout, &streams, &error));
    assert_message_has(&error, "is absent where bf16 (5, 8) was to leave");
    trunk.shape[1] = 8;
    streams.of[STREAM_TRUNK] = streams.of[STREAM_MAE] = &trunk;
    assert_false(message_check_leaving(&c.layout, &streams, &error));
    assert_message_has(&error, "is bf16 (5, 8) where nothing was to leave");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(streams_stand_one_behind_the_other),
        cmocka_unit_test(the_message_that_is_expected_is_taken),
        cmocka_unit_test(another_message_is_named),
        cmocka_unit_test(another_shape_is_named_with_the_one_expected),
        cmocka_unit_test(a_stream_may_neither_be_missing_nor_too_many),
        cmocka_unit_test(what_leaves_must_be_what_is_expected),
        cmocka_unit_test(a_gradient_may_be_missing_where_nothing_was_formed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
