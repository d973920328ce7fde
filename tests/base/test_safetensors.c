/* safetensors: round trips, and the refusal of everything that is not exactly the format. */
#include "base/safetensors.h"
#include "tests/support/test.h"
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

typedef struct Fixture {
    char *folder, *path;
    Error error;
} Fixture;

static int set_up(void **state) {
    Fixture *f = calloc(1, sizeof *f);
    f->folder = temporary_new();
    f->path = temporary_path(f->folder, "model.safetensors");
    *state = f;
    return 0;
}

static int tear_down(void **state) {
    Fixture *f = *state;
    temporary_free(f->folder);
    free(f->path);
    free(f);
    return 0;
}

static const float weights[6] = {1, -2, 3.5f, 0, 1e-30f, 6};
static const int64_t steps[1] = {100};
static const uint16_t halves[4] = {1, 2, 3, 4};

static const SafeTensor tensors[] = {
    {.name = "b.bias", .dtype = "BF16", .rank = 1, .shape = {4}, .data = halves, .bytes = sizeof halves},
    {.name = "weight", .dtype = "F32", .rank = 2, .shape = {2, 3}, .data = weights, .bytes = sizeof weights},
    {.name = "step \"\xE2\x98\x83\"", .dtype = "I64", .rank = 0, .data = steps, .bytes = sizeof steps},
    {.name = "empty", .dtype = "F32", .rank = 3, .shape = {4, 0, 2}, .data = weights, .bytes = 0},
};
enum { COUNT = sizeof tensors / sizeof *tensors };

static void write_example(Fixture *f) {
    static const char *const metadata[] = {"format", "pt", "note", "two\nlines", "xxh3/other", "stale"};
    assert_done(safetensors_write(f->path, tensors, COUNT, metadata, 3, &f->error), &f->error);
}

static void what_was_written_is_read(void **state) {
    Fixture *f = *state;
    SafeTensors file;
    write_example(f);
    assert_done(safetensors_open(&file, f->path, &f->error), &f->error);
    assert_int_equal(file.count, COUNT);
    for (int i = 0; i < COUNT; i++) {
        const SafeTensor *found = safetensors_find(&file, tensors[i].name);
        assert_non_null(found);
        assert_string_equal(found->dtype, tensors[i].dtype);
        assert_int_equal(found->rank, tensors[i].rank);
        assert_memory_equal(found->shape, tensors[i].shape, sizeof found->shape);
        assert_int_equal(found->bytes, tensors[i].bytes);
        assert_memory_equal(found->data, tensors[i].data, (size_t)found->bytes);
    }
    assert_null(safetensors_find(&file, "absent"));
    assert_string_equal(safetensors_metadata(&file, "note"), "two\nlines");
    assert_string_equal(safetensors_metadata(&file, "format"), "pt");
    assert_null(safetensors_metadata(&file, "xxh3/other"));
    assert_done(safetensors_verify(&file, f->path, &f->error), &f->error);
    safetensors_close(&file);
    safetensors_close(&file);
}

static void the_order_given_does_not_change_the_bytes(void **state) {
    Fixture *f = *state;
    Buffer first = {0}, second = {0};
    SafeTensor turned[COUNT];
    for (int i = 0; i < COUNT; i++) turned[i] = tensors[COUNT - 1 - i];
    assert_done(safetensors_write(f->path, tensors, COUNT, NULL, 0, &f->error), &f->error);
    assert_done(file_read(f->path, &first, &f->error), &f->error);
    assert_done(safetensors_write(f->path, turned, COUNT, NULL, 0, &f->error), &f->error);
    assert_done(file_read(f->path, &second, &f->error), &f->error);
    assert_int_equal(first.size, second.size);
    assert_memory_equal(first.data, second.data, first.size);
    assert_int_equal((first.data[0] & 7), 0); // the header's length is a multiple of 8
    buffer_free(&first);
    buffer_free(&second);
}

// True where the file is read and its checksums hold.
static bool accepted(Fixture *f, const void *bytes, size_t size) {
    SafeTensors file;
    temporary_write(f->path, bytes, size);
    bool ok = safetensors_open(&file, f->path, &f->error) && safetensors_verify(&file, f->path, &f->error);
    safetensors_close(&file);
    return ok;
}

static void every_flipped_bit_is_noticed_59(void **state) {
    Fixture *f = *state;
    Buffer text = {0};
    write_example(f);
    assert_done(file_read(f->path, &text, &f->error), &f->error);
    assert_true(accepted(f, text.data, text.size));
    for (size_t bit = 0; bit < 8 * text.size; bit++) {
        text.data[bit / 8] = (char)(text.data[bit / 8] ^ 1 << bit % 8);
        if (accepted(f, text.data, text.size)) fail_msg("bit %zu of byte %zu flips unnoticed", bit % 8, bit / 8);
        assert_message_has(&f->error, f->path);
        text.data[bit / 8] = (char)(text.data[bit / 8] ^ 1 << bit % 8);
    }
    buffer_free(&text);
}

static void every_cut_is_noticed(void **state) {
    Fixture *f = *state;
    Buffer text = {0};
    write_example(f);
    assert_done(file_read(f->path, &text, &f->error), &f->error);
    for (size_t size = 0; size < text.size; size++) assert_false(accepted(f, text.data, size));
    buffer_text(&text, "x");
    assert_false(accepted(f, text.data, text.size));
    assert_message_has(&f->error, "behind the last tensor");
    buffer_free(&text);
}

// A file with this header in front of `data` zeros. Returns whether it opens.
static bool opens(Fixture *f, const char *header, size_t data) {
    Buffer file = {0};
    SafeTensors tensors_read;
    size_t size = strlen(header);
    for (int i = 0; i < 8; i++) buffer_append(&file, &(char){(char)(size >> 8 * i)}, 1);
    buffer_text(&file, header);
    buffer_reserve(&file, file.size + data);
    memset(file.data + file.size, 0, data);
    temporary_write(f->path, file.data, file.size + data);
    f->error.message[0] = 0;
    bool ok = safetensors_open(&tensors_read, f->path, &f->error);
    if (ok) assert_done(safetensors_verify(&tensors_read, f->path, &f->error), &f->error);
    safetensors_close(&tensors_read);
    buffer_free(&file);
    return ok;
}

#define ENTRY(name, dtype, shape, begin, end)                                                                          \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #begin "," #end "]}"

static void valid_files_of_other_writers_open(void **state) {
    Fixture *f = *state;
    assert_true(opens(f, "{}", 0));
    assert_true(opens(f, "{ }   ", 0));
    assert_true(opens(f, "{" ENTRY("s", "F64", "[]", 0, 8) "}", 8));
    assert_true(opens(f, "{" ENTRY("b", "U8", "[2]", 4, 6) " , " ENTRY("a", "F32", "[1,1]", 0, 4) "}", 6));
    assert_true(opens(f, "{" ENTRY("z", "F32", "[0,9223372036854775807]", 0, 0) "}", 0));
    assert_true(opens(f, "{\"__metadata__\":{\"a}\\\"{\":\"[\"}," ENTRY("a", "BOOL", "[1]", 0, 1) "}", 1));
    assert_true(opens(f, "{" ENTRY("a\\u0041", "F8_E4M3", "[1,1,1,1,1,1,1,1]", 0, 1) "}", 1));
}

typedef struct Refusal {
    const char *header;
    size_t data; // bytes behind it
    const char *why;
} Refusal;

static void assert_refused(Fixture *f, const Refusal *cases, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (opens(f, cases[i].header, cases[i].data)) fail_msg("accepted: %s", cases[i].header);
        assert_message_has(&f->error, cases[i].why);
        assert_message_has(&f->error, f->path);
    }
}

static void what_is_not_exactly_the_format_is_refused(void **state) {
    static const Refusal cases[] = {
        {"", 0, "must start with {"},
        {" {}", 0, "must start with {"},
        {"[]", 0, "must start with {"},
        {"{", 0, "name in quotes"},
        {"{" ENTRY("a", "F32", "[1]", 0, 4), 4, "comma or }"},
        {"{" ENTRY("a", "F32", "[1]", 0, 4) ",}", 4, "name in quotes"},
        {"{\"a\"}", 0, "colon"},
        {"{\"a\":1}", 0, "object was expected"},
        {"{\"a\":{}}", 0, "exactly dtype"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0],\"more\":1}}", 0, "exactly dtype"},
        {"{" ENTRY("a", "F4", "[1]", 0, 4) "}", 4, "dtype 'F4' is not one of"},
        {"{" ENTRY("a", "F32", "[1]", 0, 4) "}", 3, "outside"},
        {"{" ENTRY("a", "F32", "[1]", 4, 0) "}", 4, "outside"},
        {"{" ENTRY("a", "F32", "[1]", -4, 0) "}", 4, "outside"},
        {"{" ENTRY("a", "F32", "[2]", 0, 4) "}", 4, "do not fit"},
        {"{" ENTRY("a", "F32", "[-1]", 0, 4) "}", 4, "from 0 up"},
        {"{" ENTRY("a", "F32", "[1.0]", 0, 4) "}", 4, "from 0 up"},
        {"{" ENTRY("a", "F32", "1", 0, 4) "}", 4, "list of integers"},
        {"{" ENTRY("a", "U8", "[1,1,1,1,1,1,1,1,1]", 0, 1) "}", 1, "more than 8 dimensions"},
        {"{\"__metadata__\":{\"a\":1}}", 0, "not a string"},
        {"{\"\xFF\":{}}", 0, "decode byte 0xff"},
        {"{\"a\\u0000\":{}}", 0, "NUL"},
    };
    assert_refused(*state, cases, sizeof cases / sizeof *cases);
}

static void overlaps_and_holes_are_refused_61(void **state) {
    static const Refusal cases[] = {
        {"{" ENTRY("a", "F32", "[1]", 0, 4) "," ENTRY("b", "F32", "[1]", 0, 4) "}", 4, "overlaps"},
        {"{" ENTRY("a", "F32", "[2]", 0, 8) "," ENTRY("b", "F32", "[1]", 4, 8) "}", 8, "overlaps"},
        {"{" ENTRY("a", "F32", "[1]", 4, 8) "}", 8, "hole"},
        {"{" ENTRY("a", "F32", "[1]", 0, 4) "," ENTRY("b", "F32", "[1]", 8, 12) "}", 12, "hole"},
    };
    assert_refused(*state, cases, sizeof cases / sizeof *cases);
}

static void a_name_that_is_there_twice_is_refused_62(void **state) {
    static const Refusal cases[] = {
        {"{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0, "duplicate"},
        {"{" ENTRY("a", "F32", "[1]", 0, 4) "," ENTRY("a", "F32", "[1]", 4, 8) "}", 8, "there twice"},
        {"{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}}", 0, "duplicate"},
        {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, "there twice"},
    };
    assert_refused(*state, cases, sizeof cases / sizeof *cases);
}

static void shapes_that_overflow_are_refused_63(void **state) {
    static const Refusal cases[] = {
        {"{" ENTRY("a", "F32", "[4294967296,4294967296]", 0, 4) "}", 4, "overflow"},
        {"{" ENTRY("a", "F32", "[4611686018427387905]", 0, 4) "}", 4, "do not fit"},
        {"{" ENTRY("a", "F32", "[99999999999999999999]", 0, 4) "}", 4, "big"},
    };
    assert_refused(*state, cases, sizeof cases / sizeof *cases);
}

static void trailing_bytes_are_refused_64(void **state) {
    static const Refusal cases[] = {
        {"{} x", 0, "follows"},
        {"{" ENTRY("a", "F32", "[1]", 0, 4) "}", 8, "behind the last"},
        {"{}", 1, "behind the last"},
    };
    assert_refused(*state, cases, sizeof cases / sizeof *cases);
}

static void lengths_beyond_the_file_are_refused_before_use_60(void **state) {
    static const uint64_t lengths[] = {0, 3, 100000000, 100000001, (uint64_t)1 << 63, UINT64_MAX, UINT64_MAX - 7};
    Fixture *f = *state;
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        char bytes[10] = {0};
        for (int k = 0; k < 8; k++) bytes[k] = (char)(lengths[i] >> 8 * k);
        memcpy(bytes + 8, "{}", 2);
        assert_false(accepted(f, bytes, sizeof bytes));
    }
}

// Nesting, and a header of many small lists: neither may take a stack or memory out of proportion.
static void hostile_headers_cost_little(void **state) {
    Fixture *f = *state;
    Buffer header = {0};
    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    buffer_text(&header, "{\"a\":{\"shape\":");
    for (int i = 0; i < 4 << 20; i++) buffer_text(&header, "[");
    assert_false(opens(f, header.data, 0));
    buffer_clear(&header);
    buffer_text(&header, "{");
    for (int i = 0; i < 100000; i++) buffer_printf(&header, "%s\"%d\":{\"dtype\":\"U8\"}", i ? "," : "", i);
    buffer_text(&header, "}");
    assert_false(opens(f, header.data, 0));
    getrusage(RUSAGE_SELF, &after);
    assert_true(after.ru_maxrss - before.ru_maxrss < 200000); // KiB
    buffer_free(&header);
}

static void a_failed_write_leaves_the_old_file(void **state) {
    Fixture *f = *state;
    SafeTensors file;
    SafeTensor bad = tensors[0];
    write_example(f);
    bad.name = "\xFF";
    assert_false(safetensors_write(f->path, &bad, 1, NULL, 0, &f->error));
    assert_message_has(&f->error, "UTF-8");
    assert_done(safetensors_open(&file, f->path, &f->error), &f->error);
    assert_int_equal(file.count, COUNT);
    safetensors_close(&file);
}

static void a_file_may_be_saved_over_itself_while_it_is_mapped_66(void **state) {
    Fixture *f = *state;
    SafeTensors file, again;
    write_example(f);
    assert_done(safetensors_open(&file, f->path, &f->error), &f->error);
    assert_done(safetensors_write(f->path, file.tensors, file.count, (const char *const *)file.metadata,
                                  file.metadata_count, &f->error),
                &f->error);
    assert_done(safetensors_verify(&file, f->path, &f->error), &f->error);
    assert_done(safetensors_open(&again, f->path, &f->error), &f->error);
    assert_done(safetensors_verify(&again, f->path, &f->error), &f->error);
    assert_int_equal(again.count, COUNT);
    safetensors_close(&file);
    safetensors_close(&again);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(what_was_written_is_read),
        TEST(the_order_given_does_not_change_the_bytes),
        TEST(every_flipped_bit_is_noticed_59),
        TEST(every_cut_is_noticed),
        TEST(valid_files_of_other_writers_open),
        TEST(what_is_not_exactly_the_format_is_refused),
        TEST(overlaps_and_holes_are_refused_61),
        TEST(a_name_that_is_there_twice_is_refused_62),
        TEST(shapes_that_overflow_are_refused_63),
        TEST(trailing_bytes_are_refused_64),
        TEST(lengths_beyond_the_file_are_refused_before_use_60),
        TEST(hostile_headers_cost_little),
        TEST(a_failed_write_leaves_the_old_file),
        TEST(a_file_may_be_saved_over_itself_while_it_is_mapped_66),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
