/* Tar: headers are as ustar says, and the reader is silent about nothing. */
#include "base/files.h"
#include "data/tar.h"
#include "tests/support/test.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void add_member(Buffer *tar, const char *name, const void *bytes, size_t size) {
    static const char zeros[TAR_BLOCK];
    tar_append_header(tar, name, (int64_t)size);
    buffer_append(tar, bytes, size);
    buffer_append(tar, zeros, (size_t)tar_padding((int64_t)size));
}

static void add_end(Buffer *tar) {
    static const char zeros[2 * TAR_BLOCK];
    buffer_append(tar, zeros, sizeof zeros);
}

static Buffer three_members(void) {
    Buffer tar = {0};
    char block[TAR_BLOCK];
    memset(block, 'x', sizeof block);
    add_member(&tar, "000.jpg", "picture", 7);
    add_member(&tar, "000.txt", block, sizeof block);
    add_member(&tar, "001.jpg", "another", 7);
    add_end(&tar);
    return tar;
}

// Reads all; members counts them, refused the ones that a careful reader leaves out.
static bool walk(const Buffer *tar, int *members, int *refused, Error *error) {
    TarReader reader = tar_reader(tar_source_memory(tar, "t.tar"));
    TarEntry entry;
    bool end = false;
    *members = *refused = 0;
    *error = (Error){0};
    while (tar_next(&reader, &entry, &end, error)) {
        if (end) return true;
        ++*members;
        *refused += entry.refused != NULL;
    }
    return false;
}

// Changes header bytes and makes the checksum good again.
static void patch(Buffer *tar, size_t header, size_t at, const void *bytes, size_t size) {
    uint8_t *b = (uint8_t *)tar->data + header;
    memcpy(b + at, bytes, size);
    memset(b + 148, ' ', 8);
    unsigned sum = 0;
    for (int i = 0; i < TAR_BLOCK; i++) sum += b[i];
    snprintf((char *)b + 148, 7, "%06o", sum);
    b[154] = 0;
    b[155] = ' ';
}

static void expect_refused(Buffer tar, const char *why) {
    int members, refused;
    Error error;
    assert_false(walk(&tar, &members, &refused, &error));
    assert_message_has(&error, why);
    assert_message_has(&error, "t.tar: byte ");
    buffer_free(&tar);
}

static void what_is_written_is_read(void **state) {
    (void)state;
    Buffer tar = three_members();
    int members, refused;
    Error error;
    assert_done(walk(&tar, &members, &refused, &error), &error);
    assert_int_equal(members, 3);
    assert_int_equal(refused, 0);
    TarReader reader = tar_reader(tar_source_memory(&tar, "t.tar"));
    TarEntry entry;
    bool end;
    assert_done(tar_next(&reader, &entry, &end, &error), &error);
    assert_string_equal(entry.name, "000.jpg");
    assert_int_equal(entry.data_offset, 512);
    assert_int_equal(entry.size, 7);
    buffer_free(&tar);
}

static void a_header_is_a_pure_function_of_name_and_size(void **state) {
    (void)state;
    Buffer a = {0}, b = {0};
    tar_append_header(&a, "000000001.jpg", 12345);
    tar_append_header(&b, "000000001.jpg", 12345);
    assert_int_equal(a.size, TAR_BLOCK);
    assert_memory_equal(a.data, b.data, a.size);
    assert_memory_equal(a.data + 257,
                        "ustar\0"
                        "00",
                        8);
    assert_memory_equal(a.data + 124, "00000030071", 12); // octal
    assert_memory_equal(a.data + 136, "00000000000", 12); // mtime
    buffer_free(&a);
    buffer_free(&b);
}

static void names_and_sizes_beyond_ustar_go_into_pax(void **state) {
    (void)state;
    char name[201];
    memset(name, 'k', 200);
    memcpy(name + 196, ".jpg", 5);
    Buffer tar = {0};
    add_member(&tar, name, "bytes", 5);
    add_end(&tar);
    TarReader reader = tar_reader(tar_source_memory(&tar, "t.tar"));
    TarEntry entry;
    bool end;
    Error error = {0};
    assert_done(tar_next(&reader, &entry, &end, &error), &error);
    assert_string_equal(entry.name, name);
    assert_int_equal(entry.size, 5);
    buffer_free(&tar);
    tar_append_header(&tar, "large.bin", INT64_C(9) << 30);
    reader = tar_reader(tar_source_memory(&tar, "t.tar"));
    assert_false(tar_next(&reader, &entry, &end, &error)); // the data is not there, the size is
    assert_int_equal(entry.size, INT64_C(9) << 30);
    buffer_free(&tar);
}

static void one_flip_in_a_header_is_an_error(void **state) {
    (void)state;
    Buffer tar = three_members();
    int members, refused;
    Error error;
    for (size_t bit = 0; bit < TAR_BLOCK * 8; bit++) {
        size_t at = 1024 + bit / 8; // the second header
        tar.data[at] ^= (char)(1 << bit % 8);
        bool ok = walk(&tar, &members, &refused, &error);
        tar.data[at] ^= (char)(1 << bit % 8);
        // The spaces and zeros around the checksum's own digits carry nothing.
        if (ok && !(bit / 8 >= 148 && bit / 8 < 156)) fail_msg("bit %zu of a header passed", bit);
    }
    buffer_free(&tar);
}

static void a_cut_anywhere_is_an_error(void **state) {
    (void)state;
    Buffer tar = three_members();
    int members, refused;
    Error error;
    for (size_t size = 0; size < tar.size; size++) {
        Buffer part = {.data = tar.data, .size = size};
        if (walk(&part, &members, &refused, &error)) fail_msg("cut at byte %zu passed", size);
        assert_true(strlen(error.message) > 10);
    }
    buffer_free(&tar);
}

static void a_zeroed_block_is_an_error(void **state) {
    (void)state;
    Buffer tar = three_members();
    memset(tar.data + 1024, 0, TAR_BLOCK);
    expect_refused(tar, "a block was zeroed");
}

static void concatenated_archives_are_an_error(void **state) {
    (void)state;
    Buffer tar = three_members(), second = three_members();
    buffer_append(&tar, second.data, second.size);
    buffer_free(&second);
    expect_refused(tar, "another archive follows");
}

static void garbage_behind_the_end_is_an_error(void **state) {
    (void)state;
    Buffer tar = three_members();
    buffer_text(&tar, "garbage");
    expect_refused(tar, "garbage");
}

static void gzip_is_named(void **state) {
    (void)state;
    Buffer tar = three_members();
    memcpy(tar.data, "\x1f\x8b\x08", 3);
    expect_refused(tar, "gzip");
}

static void an_empty_file_is_an_error(void **state) {
    (void)state;
    expect_refused((Buffer){0}, "empty");
}

static void impossible_sizes_are_errors(void **state) {
    (void)state;
    Buffer tar = three_members();
    patch(&tar, 0, 124, "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xf0", 12); // -16 in base 256
    expect_refused(tar, "size");
    tar = three_members();
    patch(&tar, 0, 124, "\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 12); // beyond 2^63
    expect_refused(tar, "size");
    tar = three_members();
    patch(&tar, 0, 124, "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff", 12); // 2^63 - 1
    expect_refused(tar, "cut inside the data");
}

// A PAX header with these records in front of a member of 5 bytes.
static Buffer with_pax(const char *records, size_t told) {
    static const char zeros[TAR_BLOCK];
    Buffer tar = {0};
    char size[12];
    tar_append_header(&tar, "PaxHeader", (int64_t)strlen(records));
    patch(&tar, 0, 156, "x", 1);
    snprintf(size, sizeof size, "%011zo", told ? told : strlen(records));
    patch(&tar, 0, 124, size, 12);
    buffer_text(&tar, records);
    buffer_append(&tar, zeros, (size_t)tar_padding((int64_t)tar.size));
    add_member(&tar, "000.txt", "bytes", 5);
    add_end(&tar);
    return tar;
}

static void pax_headers_that_lie_are_errors(void **state) {
    (void)state;
    expect_refused(with_pax("12 size=999\n", 0), "disagree");
    expect_refused(with_pax("99 path=a.txt\n", 0), "lengths are wrong");
    expect_refused(with_pax("3 a=\n", 0), "lengths are wrong");
    expect_refused(with_pax("18446744073709551616 a=b\n", 0), "lengths are wrong");
    expect_refused(with_pax("14 path=a.txt\n", 2 << 20), "over 1 MiB");
}

static void unsafe_members_are_named_and_left_out(void **state) {
    (void)state;
    static const char *const names[] = {"/etc/passwd", "../up.txt", "a/../../b.txt", "a/..", "bad\xff.txt"};
    static const char types[] = "123467S";
    int members, refused;
    Error error;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        Buffer tar = {0};
        add_member(&tar, names[i], "x", 1);
        add_end(&tar);
        assert_done(walk(&tar, &members, &refused, &error), &error);
        if (refused != 1) fail_msg("%s passed", names[i]);
        buffer_free(&tar);
    }
    for (const char *type = types; *type; type++) {
        Buffer tar = {0};
        bool plain = *type == '7'; // contiguous: a regular file
        add_member(&tar, "a.txt", "", 0);
        patch(&tar, 0, 156, type, 1);
        add_end(&tar);
        assert_done(walk(&tar, &members, &refused, &error), &error);
        if (refused != 1) fail_msg("type %c passed%s", *type, plain ? " without bytes" : "");
        buffer_free(&tar);
    }
}

static void the_system_tar_lists_what_was_written(void **state) {
    (void)state;
    if (system("tar --version >/dev/null 2>&1") != 0) {
        print_message("there is no tar on this machine: skipped\n");
        skip();
    }
    char *folder = temporary_new(), *path = temporary_path(folder, "t.tar");
    Buffer tar = three_members(), command = {0};
    Error error = {0};
    assert_done(file_write(path, tar.data, tar.size, &error), &error);
    buffer_printf(&command, "test \"$(tar -tf %s | tr '\\n' ' ')\" = '000.jpg 000.txt 001.jpg '", path);
    assert_int_equal(system(command.data), 0);
    buffer_free(&tar);
    buffer_free(&command);
    free(path);
    temporary_free(folder);
}

static void many_tiny_members_take_linear_time_and_flat_memory(void **state) {
    (void)state;
    enum { MEMBERS = 50000 };
    Buffer tar = {0};
    char name[24];
    int members, refused;
    Error error;
    for (int i = 0; i < MEMBERS; i++) {
        snprintf(name, sizeof name, "%09d.txt", i);
        add_member(&tar, name, "x", 1);
    }
    add_end(&tar);
    assert_done(walk(&tar, &members, &refused, &error), &error);
    assert_int_equal(members, MEMBERS);
    buffer_free(&tar);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_is_read),
        cmocka_unit_test(a_header_is_a_pure_function_of_name_and_size),
        cmocka_unit_test(names_and_sizes_beyond_ustar_go_into_pax),
        cmocka_unit_test(one_flip_in_a_header_is_an_error),
        cmocka_unit_test(a_cut_anywhere_is_an_error),
        cmocka_unit_test(a_zeroed_block_is_an_error),
        cmocka_unit_test(concatenated_archives_are_an_error),
        cmocka_unit_test(garbage_behind_the_end_is_an_error),
        cmocka_unit_test(gzip_is_named),
        cmocka_unit_test(an_empty_file_is_an_error),
        cmocka_unit_test(impossible_sizes_are_errors),
        cmocka_unit_test(pax_headers_that_lie_are_errors),
        cmocka_unit_test(unsafe_members_are_named_and_left_out),
        cmocka_unit_test(the_system_tar_lists_what_was_written),
        cmocka_unit_test(many_tiny_members_take_linear_time_and_flat_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
