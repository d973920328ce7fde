/* data build: each kind of source becomes samples, bad rows are counted and named and stop nothing. */
#include "data/build.h"
#include "base/files.h"
#include "data/manifest.h"
#include "base/json.h"
#include "tests/data/samples.h"
#include "tests/support/test.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct Fixture {
    char *folder, *out, *held;
    BuildOptions options;
    BuildResult result;
    const char *sources[4];
} Fixture;

static Fixture start(void) {
    Fixture f = {.folder = temporary_new()};
    f.out = temporary_path(f.folder, "out");
    f.held = temporary_path(f.folder, "held");
    f.options = (BuildOptions){.out = f.out};
    return f;
}

static void add_source(Fixture *f, const char *name) {
    f->sources[f->options.source_count++] = temporary_path(f->folder, name);
    f->options.sources = f->sources;
}

static void done(Fixture *f) {
    for (int i = 0; i < f->options.source_count; i++) free((char *)f->sources[i]);
    free(f->out);
    free(f->held);
    temporary_free(f->folder);
}

static void build(Fixture *f) {
    Error error = {0};
    assert_done(build_dataset(&f->options, NULL, &f->result, &error), &error);
    assert_int_equal(dataset_verify(f->out, NULL, &error), 0);
}

static void expect_error(Fixture *f, ErrorKind kind, const char *says) {
    Error error = {0};
    assert_false(build_dataset(&f->options, NULL, &f->result, &error));
    assert_int_equal(error.kind, kind);
    assert_message_has(&error, says);
}

static int64_t dropped(const Fixture *f, const char *cause) {
    Manifest m;
    Error error = {0};
    assert_done(manifest_read(&m, f->out, &error), &error);
    int64_t n = json_get_int(json_object_get(m.json, "dropped"), cause, 0);
    manifest_free(&m);
    return n;
}

// Text member `index` of sample `number`; "" where there is none. Valid until the next call.
static const char *text_of(const char *path, int64_t number, MemberKind kind, int index) {
    static char text[4096];
    Error error = {0};
    Buffer bytes = {0};
    Sample s;
    Dataset *d = dataset_open(path, &error);
    assert_done(d != NULL, &error);
    assert_done(dataset_sample(d, number, &s, &bytes, &error), &error);
    const Member *m = sample_member(&s, kind, index);
    snprintf(text, sizeof text, "%s", m ? (const char *)m->bytes : "");
    buffer_free(&bytes);
    dataset_close(d);
    return text;
}

static void rows_of_jsonl_become_samples(void **state) {
    (void)state;
    Fixture f = start();
    put_picture(f.folder, "images/a.png", 4, 10);
    put_picture(f.folder, "images/b.jpg", 6, 20);
    put_file(f.folder, "rows.jsonl",
             "\xEF\xBB\xBF{\"image\": \"images/a.png\", \"caption\": \"first\", \"zh\": \"第一\", \"class\": 3}\r\n"
             "\n"
             "{\"image\": \"images/b.jpg\", \"caption\": \"second\\u0020one\"}\n"
             "{\"image\": \"./images/b.jpg\", \"caption\": \"third\", \"zh\": null}");
    add_source(&f, "rows.jsonl");
    f.options.rules =
        (RowRules){.image_fields = {"image"}, .image_count = 1, .text_fields = {"caption", "zh"}, .text_count = 2};
    build(&f);
    assert_int_equal(f.result.train.samples, 3);
    assert_int_equal(f.result.train.dropped, 0);
    assert_string_equal(text_of(f.out, 0, MEMBER_TEXT, 0), "first");
    assert_string_equal(text_of(f.out, 0, MEMBER_TEXT, 1), "第一");
    assert_string_equal(text_of(f.out, 1, MEMBER_TEXT, 0), "second one");
    assert_string_equal(text_of(f.out, 1, MEMBER_TEXT, 1), "");
    assert_string_equal(text_of(f.out, 1, MEMBER_JSON, 0),
                        "{\"image\": \"images/b.jpg\", \"caption\": \"second\\u0020one\"}"); // as it was
    done(&f);
}

static void questions_and_columns_become_samples(void **state) {
    (void)state;
    Fixture f = start();
    put_picture(f.folder, "images/0.png", 4, 10);
    put_file(f.folder, "questions.json",
             "[[\"what shape?\", \"circle\", 0], [\"is it red?\", \"no\", 0], [\"short\", 1], "
             "{\"question\": \"an object?\", \"answer\": \"yes\", \"image\": 0}]");
    add_source(&f, "questions.json");
    f.options.columns = "question,answer,image";
    f.options.image_template = "images/{image}.png";
    f.options.rules = (RowRules){.question_field = "question", .answer_field = "answer"};
    build(&f);
    assert_int_equal(f.result.train.samples, 3);
    assert_int_equal(dropped(&f, "row_wrong_columns"), 1);
    assert_string_equal(text_of(f.out, 0, MEMBER_TEXT, 0), "what shape? circle");
    assert_string_equal(text_of(f.out, 0, MEMBER_JSON, 0),
                        "{\"question\":\"what shape?\",\"answer\":\"circle\",\"image\":0}");
    done(&f);
}

static void a_folder_of_pictures_with_captions_becomes_samples(void **state) {
    (void)state;
    Fixture f = start();
    put_picture(f.folder, "in/b.JPG.jpg", 5, 1);
    put_file(f.folder, "in/b.JPG.txt", "second caption\r\n");
    put_picture(f.folder, "in/a.png", 4, 1);
    put_file(f.folder, "in/a.txt",
             "\xEF\xBB\xBF"
             "first caption\n");
    put_picture(f.folder, "in/sub/c.png", 4, 1);
    put_file(f.folder, "in/notes.md", "no picture");
    add_source(&f, "in/");
    build(&f);
    assert_int_equal(f.result.train.samples, 2);
    assert_int_equal(dropped(&f, "caption_missing"), 1);
    assert_string_equal(text_of(f.out, 0, MEMBER_TEXT, 0), "first caption");
    assert_string_equal(text_of(f.out, 1, MEMBER_TEXT, 0), "second caption");
    done(&f);
}

// Bad-inputs 49 to 53 and what a row can lack.
// Whatever the folder is called: the same samples on each side of a split.
static void a_folder_may_be_named_from_where_one_is(void **state) {
    (void)state;
    char *here = getcwd(NULL, 0), root[65] = "", name[32];
    assert_non_null(here);
    Fixture f = start();
    for (int i = 0; i < 16; i++) {
        snprintf(name, sizeof name, "in/%d.png", i);
        put_picture(f.folder, name, 4, i);
        snprintf(name, sizeof name, "in/%d.txt", i);
        put_file(f.folder, name, "a caption");
    }
    f.options.validation_fraction = 0.4;
    f.options.validation_out = f.held;
    f.options.force = true;
    f.options.sources = f.sources;
    f.options.source_count = 1;
    const char *const names[] = {"in", "./in", "in/"};
    assert_int_equal(chdir(f.folder), 0);
    for (int i = 0; i < 3; i++) {
        f.sources[0] = names[i];
        build(&f);
        assert_int_equal(f.result.train.samples + f.result.validation.samples, 16);
        if (i) assert_string_equal(f.result.train.root, root);
        snprintf(root, sizeof root, "%s", f.result.train.root);
    }
    assert_int_equal(chdir(here), 0);
    f.options.source_count = 0;
    done(&f);
    free(here);
}

static void bad_rows_are_counted_by_cause_and_stop_nothing(void **state) {
    (void)state;
    static const struct {
        const char *row, *cause;
    } rows[] = {
        {"{\"image\": \"a.png\", \"caption\": \"bad \xff utf-8\"}", "row_not_utf8"},
        {"{\"image\": \"a.png\", \"caption\": \"overlong \xc0\xaf\"}", "row_not_utf8"},
        {"{\"image\": \"a.png\", \"caption\": \"x\", \"caption\": \"y\"}", "row_not_json"},
        {"{\"image\": \"a.png\"", "row_not_json"},
        {"[1, 2]", "row_not_object"},
        {"{\"image\": \"a.png\", \"caption\": \" \\t\\u3000\"}", "caption_blank"},
        {"{\"image\": \"a.png\", \"caption\": \"\"}", "caption_blank"},
        {"{\"image\": \"a.png\", \"caption\": 7}", "caption_not_text"},
        {"{\"image\": \"a.png\"}", "caption_missing"},
        {"{\"caption\": \"x\"}", "image_field_missing"},
        {"{\"image\": \"gone.png\", \"caption\": \"x\"}", "image_missing"},
        {"{\"image\": \"empty.png\", \"caption\": \"x\"}", "image_empty"},
        {"{\"image\": \"pipe.png\", \"caption\": \"x\"}", "image_unreadable"}, // and nobody waits for it
        {"{\"image\": \"/dev/zero\", \"caption\": \"x\"}", "image_unreadable"},
        {"{\"image\": \"page.png\", \"caption\": \"x\"}", "image_not_decodable"},
    };
    enum { ROWS = sizeof rows / sizeof *rows };
    Fixture f = start();
    Buffer text = {0};
    put_picture(f.folder, "a.png", 4, 10);
    put_file(f.folder, "empty.png", "");
    put_file(f.folder, "page.png", "<html>404</html>");
    char *pipe = temporary_path(f.folder, "pipe.png");
    check(mkfifo(pipe, 0600) == 0);
    free(pipe);
    for (int i = 0; i < ROWS; i++) buffer_printf(&text, "%s\n", rows[i].row);
    buffer_text(&text, "{\"image\": \"a.png\", \"caption\": \"good\"}\n");
    for (int i = 0; i < 3000; i++) buffer_text(&text, "[");
    buffer_text(&text, "\n{\"image\": \"a.png\", \"caption\": \"");
    for (int i = 0; i <= CAPTION_MOST; i++) buffer_text(&text, "x");
    buffer_text(&text, "\"}\n{\"image\": \"a.png\", \"caption\": \"nul \\u0000 in it\"}\n");
    buffer_reserve(&text, text.size + ROW_MOST + 2);
    memset(text.data + text.size, '1', ROW_MOST + 1);
    text.size += ROW_MOST + 1;
    buffer_text(&text, "\n");
    put_bytes(f.folder, "rows.jsonl", text.data, text.size);
    add_source(&f, "rows.jsonl");
    f.options.rules =
        (RowRules){.image_fields = {"image"}, .image_count = 1, .text_fields = {"caption"}, .text_count = 1};
    build(&f);
    assert_int_equal(f.result.train.samples, 1);
    assert_int_equal(f.result.train.dropped, ROWS + 4);
    assert_int_equal(dropped(&f, "row_not_utf8"), 2);
    assert_int_equal(dropped(&f, "row_not_json"), 4); // NUL among them: JSON text that C cannot hold
    assert_int_equal(dropped(&f, "caption_blank"), 2);
    assert_int_equal(dropped(&f, "caption_too_long"), 1);
    assert_int_equal(dropped(&f, "row_too_long"), 1);
    for (int i = 0; i < ROWS; i++)
        if (!dropped(&f, rows[i].cause)) fail_msg("no row was left out for %s", rows[i].cause);
    size_t size;
    char *ledger = get_file(f.out, "ledger.jsonl", &size);
    assert_non_null(strstr(ledger, "\"place\":\"rows.jsonl:3\""));
    free(ledger);
    buffer_free(&text);
    done(&f);
}

// The concatenation of all texts of a dataset.
static Buffer joined(const char *path) {
    Error error = {0};
    Buffer bytes = {0}, out = {0};
    Sample s;
    Dataset *d = dataset_open(path, &error);
    assert_done(d != NULL, &error);
    for (int64_t i = 0; i < dataset_samples(d); i++) {
        assert_done(dataset_sample(d, i, &s, &bytes, &error), &error);
        assert_true(s.members[0].size <= 64 << 10);
        buffer_append(&out, s.members[0].bytes, (size_t)s.members[0].size);
    }
    buffer_free(&bytes);
    dataset_close(d);
    return out;
}

// Long lines, lines beyond a piece, Chinese, CRLF, zeros and no newline at the end.
static Buffer awkward_text(void) {
    Buffer text = {0};
    for (int i = 0; i < 9000; i++) buffer_printf(&text, "line %d of the text 第%d行\r\n%s", i, i, i % 7 ? "" : "\n\n");
    for (int i = 0; i < 70000; i++) buffer_text(&text, "长");
    buffer_append(&text, "\0zero\n", 6);
    buffer_text(&text, "the end");
    return text;
}

static void pieces_of_a_whole_text_join_to_the_file(void **state) {
    (void)state;
    Fixture f = start();
    Buffer text = awkward_text();
    put_bytes(f.folder, "book.txt", text.data, text.size);
    add_source(&f, "book.txt");
    build(&f);
    Buffer back = joined(f.out);
    assert_int_equal(back.size, text.size);
    assert_memory_equal(back.data, text.data, text.size);
    buffer_free(&text);
    buffer_free(&back);
    done(&f);
}

static void the_tail_of_a_whole_text_is_held_out_by_characters(void **state) {
    (void)state;
    Fixture f = start();
    Buffer text = awkward_text();
    put_bytes(f.folder, "book.txt", text.data, text.size);
    add_source(&f, "book.txt");
    f.options.validation_out = f.held;
    f.options.validation_fraction = 0.1;
    build(&f);
    Buffer head = joined(f.out), tail = joined(f.held);
    int64_t characters = 0, in_head = 0;
    for (size_t i = 0; i < text.size; i++) characters += ((uint8_t)text.data[i] & 0xC0) != 0x80;
    for (size_t i = 0; i < head.size; i++) in_head += ((uint8_t)head.data[i] & 0xC0) != 0x80;
    assert_int_equal(in_head, (int64_t)((double)characters * 0.9));
    assert_int_equal(head.size + tail.size, text.size);
    assert_memory_equal(head.data, text.data, head.size);
    assert_memory_equal(tail.data, text.data + head.size, tail.size);
    buffer_free(&text);
    buffer_free(&head);
    buffer_free(&tail);
    done(&f);
}

static void lines_and_paragraphs_become_documents(void **state) {
    (void)state;
    Fixture f = start();
    put_file(f.folder, "poem.zh", "one\r\ntwo\n\n\n  \nthree\nfour");
    add_source(&f, "poem.zh");
    f.options.documents = DOCUMENTS_LINES;
    build(&f);
    assert_int_equal(f.result.train.samples, 4);
    assert_string_equal(text_of(f.out, 0, MEMBER_TEXT, 0), "one");
    assert_string_equal(text_of(f.out, 3, MEMBER_TEXT, 0), "four");
    f.options.documents = DOCUMENTS_BLANK;
    f.options.force = true;
    build(&f);
    assert_int_equal(f.result.train.samples, 2);
    assert_string_equal(text_of(f.out, 0, MEMBER_TEXT, 0), "one\r\ntwo");
    assert_string_equal(text_of(f.out, 1, MEMBER_TEXT, 0), "three\nfour");
    done(&f);
}

static void put_numbered_rows(Fixture *f, int pictures, int rows) {
    Buffer text = {0};
    char name[16];
    for (int i = 0; i < pictures; i++) {
        snprintf(name, sizeof name, "%d.png", i);
        put_picture(f->folder, name, 2, i % 256);
    }
    for (int i = 0; i < rows; i++)
        buffer_printf(&text, "{\"image\": \"%d.png\", \"text\": \"t%d\"}\n", i % pictures, i);
    put_file(f->folder, "rows.jsonl", text.data);
    buffer_free(&text);
    add_source(f, "rows.jsonl");
    f->options.rules =
        (RowRules){.image_fields = {"image"}, .image_count = 1, .text_fields = {"text"}, .text_count = 1};
}

static void rows_about_one_picture_stay_on_one_side_of_a_split(void **state) {
    (void)state;
    enum { PICTURES = 60, ROWS = 240 };
    Fixture f = start();
    bool in_train[PICTURES] = {false};
    int n;
    put_numbered_rows(&f, PICTURES, ROWS);
    f.options.validation_out = f.held;
    f.options.validation_fraction = 0.3;
    f.options.seed = 7;
    build(&f);
    int64_t held = f.result.validation.samples;
    assert_int_equal(f.result.train.samples + held, ROWS);
    assert_in_range(held, ROWS * 15 / 100, ROWS * 45 / 100);
    for (int64_t i = 0; i < ROWS - held; i++)
        if (sscanf(text_of(f.out, i, MEMBER_JSON, 0), "{\"image\": \"%d", &n) == 1) in_train[n] = true;
    for (int64_t i = 0; i < held; i++) {
        assert_int_equal(sscanf(text_of(f.held, i, MEMBER_JSON, 0), "{\"image\": \"%d", &n), 1);
        assert_false(in_train[n]);
    }
    done(&f);
}

static void the_same_input_gives_the_same_dataset_from_anywhere(void **state) {
    (void)state;
    Fixture a = start(), b = start();
    put_numbered_rows(&a, 5, 20);
    put_numbered_rows(&b, 5, 20);
    build(&a);
    build(&b);
    size_t n, m;
    char *x = get_file(a.out, "dataset.json", &n), *y = get_file(b.out, "dataset.json", &m);
    assert_int_equal(n, m);
    assert_memory_equal(x, y, n);
    free(x);
    free(y);
    done(&a);
    done(&b);
}

static void limits_and_shard_sizes_hold(void **state) {
    (void)state;
    Fixture f = start();
    put_numbered_rows(&f, 5, 50);
    f.options.limit = 30;
    f.options.shard_size = 10000;
    f.options.dali_index = true;
    build(&f);
    assert_int_equal(f.result.train.samples, 30);
    assert_true(f.result.train.shards > 3);
    size_t size;
    char *index = get_file(f.out, "shard-000000.idx", &size);
    assert_memory_equal(index, "v1.2 ", 5);
    assert_non_null(strstr(index, "png 512 "));
    free(index);
    done(&f);
}

static void wrong_usage_says_what_to_do(void **state) {
    (void)state;
    Fixture f = start();
    expect_error(&f, ERROR_USAGE, "no source");
    put_numbered_rows(&f, 1, 2);
    f.options.rules = (RowRules){0};
    expect_error(&f, ERROR_USAGE, "there are: image, text");
    f.options.rules = (RowRules){.question_field = "q"};
    expect_error(&f, ERROR_USAGE, "--answer-field");
    f.options.rules = (RowRules){.text_fields = {"text"}, .text_count = 1};
    f.options.validation_fraction = 0.5;
    expect_error(&f, ERROR_USAGE, "--validation-out");
    f.options.validation_fraction = 0;
    f.options.image_template = "{a";
    expect_error(&f, ERROR_USAGE, "template");
    f.options.image_template = NULL;
    add_source(&f, "absent.jsonl");
    expect_error(&f, ERROR_USAGE, "no such source");
    put_file(f.folder, "table.parquet", "PAR1");
    add_source(&f, "table.parquet");
    free((char *)f.sources[1]); // the absent one
    f.sources[1] = f.sources[2];
    f.options.source_count = 2;
    expect_error(&f, ERROR_USAGE, "not a kind of source");
    done(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_of_jsonl_become_samples),
        cmocka_unit_test(questions_and_columns_become_samples),
        cmocka_unit_test(a_folder_of_pictures_with_captions_becomes_samples),
        cmocka_unit_test(a_folder_may_be_named_from_where_one_is),
        cmocka_unit_test(bad_rows_are_counted_by_cause_and_stop_nothing),
        cmocka_unit_test(pieces_of_a_whole_text_join_to_the_file),
        cmocka_unit_test(the_tail_of_a_whole_text_is_held_out_by_characters),
        cmocka_unit_test(lines_and_paragraphs_become_documents),
        cmocka_unit_test(rows_about_one_picture_stay_on_one_side_of_a_split),
        cmocka_unit_test(the_same_input_gives_the_same_dataset_from_anywhere),
        cmocka_unit_test(limits_and_shard_sizes_hold),
        cmocka_unit_test(wrong_usage_says_what_to_do),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
