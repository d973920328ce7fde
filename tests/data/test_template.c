/* Texts from fields. */
#include "base/json.h"
#include "data/template.h"
#include "tests/support/test.h"
#include <string.h>

static const char FIELDS[] =
    "{\"class\": \"Golden Delicious\", \"count\": 3, \"tags\": [\"red\", \"round\"], \"none\": null, "
    "\"empty\": \"\", \"spaces\": \"  \", \"list\": [], \"deep\": [[1]]}";

// What variant `variant` of `text` makes of FIELDS; NULL: refused. The caller frees the buffer.
static bool expand(const char *text, int variant, uint64_t draw, Buffer *out) {
    Error error;
    Template *t = template_parse(text, &error);
    if (!t) fail_msg("%s", error.message);
    json_t *fields = json_parse(FIELDS, sizeof FIELDS - 1, "fields", &error);
    bool ok = template_expand(t, variant, fields, draw, out, &error);
    json_decref(fields);
    template_free(t);
    return ok;
}

static void assert_expands(const char *text, int variant, uint64_t draw, const char *wanted) {
    Buffer out = {0};
    assert_true(expand(text, variant, draw, &out));
    assert_string_equal(out.data, wanted);
    buffer_free(&out);
}

static void fields_are_put_into_the_text(void **state) {
    (void)state;
    assert_expands("a photo of {class}", 0, 0, "a photo of Golden Delicious");
    assert_expands("{count} x {class}!", 0, 0, "3 x Golden Delicious!");
    assert_expands("plain", 0, 0, "plain");
}

static void doubled_braces_are_braces(void **state) {
    (void)state;
    assert_expands("{{{class}}} {{}}", 0, 0, "{Golden Delicious} {}");
}

static void variants_stand_apart_by_bars(void **state) {
    (void)state;
    assert_expands("one {count}||two {class}", 0, 0, "one 3");
    assert_expands("one {count}||two {class}", 1, 0, "two Golden Delicious");
}

static void one_of_a_list_is_drawn(void **state) {
    (void)state;
    assert_expands("{tags}", 0, 0, "red");
    assert_expands("{tags}", 0, 1, "round");
    assert_expands("{tags}", 0, 7, "round");
}

static void what_is_absent_or_blank_is_refused_and_leaves_no_trace(void **state) {
    static const char *const texts[] = {"a {missing}", "a {none}", "a {empty}", "a {list}", "a {deep}", "{spaces}"};
    (void)state;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        Buffer out = {0};
        buffer_text(&out, "kept");
        assert_false(expand(texts[i], 0, 0, &out));
        assert_string_equal(out.data, "kept");
        assert_int_equal(out.size, 4);
        buffer_free(&out);
    }
}

static void a_draw_passes_over_variants_that_cannot_be_made(void **state) {
    Error error;
    Buffer out = {0};
    Template *t = template_parse("{missing}||{class}||{none}", &error);
    json_t *fields = json_parse(FIELDS, sizeof FIELDS - 1, "fields", &error);
    (void)state;
    for (uint64_t draw = 0; draw < 6; draw++) {
        buffer_clear(&out);
        assert_done(template_draw(t, fields, draw, &out, &error), &error);
        assert_string_equal(out.data, "Golden Delicious");
    }
    json_decref(fields);
    template_free(t);
    buffer_free(&out);
}

static void broken_templates_are_refused_with_a_remedy(void **state) {
    static const struct {
        const char *text, *part;
    } cases[] = {
        {"a {class", "without }"}, {"a class}", "without {"}, {"{}", "names no field"},
        {"{a{b}", "within"},       {"", "empty variant"},     {"a||", "empty variant"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Error error;
        assert_null(template_parse(cases[i].text, &error));
        assert_int_equal(error.kind, ERROR_USAGE);
        assert_message_has(&error, cases[i].part);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fields_are_put_into_the_text),
        cmocka_unit_test(doubled_braces_are_braces),
        cmocka_unit_test(variants_stand_apart_by_bars),
        cmocka_unit_test(one_of_a_list_is_drawn),
        cmocka_unit_test(what_is_absent_or_blank_is_refused_and_leaves_no_trace),
        cmocka_unit_test(a_draw_passes_over_variants_that_cannot_be_made),
        cmocka_unit_test(broken_templates_are_refused_with_a_remedy),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
