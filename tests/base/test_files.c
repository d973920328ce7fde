/* Files: whole reads, folders, and writes that are never half there. */
#include "base/files.h"
#include "tests/support/test.h"
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct Fixture {
    char *folder, *path, *aside;
    Buffer text;
    Error error;
} Fixture;

static int set_up(void **state) {
    Fixture *f = calloc(1, sizeof *f);
    f->folder = temporary_new();
    f->path = temporary_path(f->folder, "file");
    f->aside = temporary_path(f->folder, "file.tmp");
    *state = f;
    return 0;
}

static int tear_down(void **state) {
    Fixture *f = *state;
    temporary_free(f->folder);
    free(f->path);
    free(f->aside);
    buffer_free(&f->text);
    free(f);
    return 0;
}

static void what_was_written_is_read(void **state) {
    Fixture *f = *state;
    char bytes[100000];
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (char)(i * 7);
    assert_done(file_write(f->path, bytes, sizeof bytes, &f->error), &f->error);
    assert_done(file_read(f->path, &f->text, &f->error), &f->error);
    assert_int_equal(f->text.size, sizeof bytes);
    assert_memory_equal(f->text.data, bytes, sizeof bytes);
    assert_int_equal(file_size(f->path), sizeof bytes);
    assert_true(file_exists(f->path) && !folder_exists(f->path) && !file_exists(f->aside));
    assert_done(file_write(f->path, "", 0, &f->error), &f->error);
    assert_done(file_read(f->path, &f->text, &f->error), &f->error);
    assert_string_equal(f->text.data, "");
}

static void files_of_unknown_size_are_read_whole(void **state) {
    Fixture *f = *state;
    assert_done(file_read("/proc/self/status", &f->text, &f->error), &f->error);
    assert_non_null(strstr(f->text.data, "VmSize"));
    assert_false(file_read_limited("/proc/self/status", 100, &f->text, &f->error));
    assert_message_has(&f->error, "100 bytes");
}

static void what_cannot_be_read_is_named(void **state) {
    Fixture *f = *state;
    assert_false(file_read(f->path, &f->text, &f->error));
    assert_message_has(&f->error, f->path);
    assert_message_has(&f->error, "No such file");
    assert_false(file_read(f->folder, &f->text, &f->error));
    assert_message_has(&f->error, "folder");
    assert_done(file_write(f->path, "12345", 5, &f->error), &f->error);
    assert_false(file_read_limited(f->path, 4, &f->text, &f->error));
    assert_done(file_read_limited(f->path, 5, &f->text, &f->error), &f->error);
    assert_int_equal(file_size(f->aside), -1);
}

static void pieces_may_be_written_anywhere(void **state) {
    Fixture *f = *state;
    AtomicFile *file = atomic_open(f->path, &f->error);
    assert_non_null(file);
    assert_done(atomic_write(file, "head", 4, &f->error), &f->error);
    assert_done(atomic_write_at(file, 8, "tail", 4, &f->error), &f->error);
    assert_done(atomic_write(file, "body", 4, &f->error), &f->error);
    assert_false(file_exists(f->path));
    assert_done(atomic_commit(file, &f->error), &f->error);
    assert_done(file_read(f->path, &f->text, &f->error), &f->error);
    assert_string_equal(f->text.data, "headbodytail");
    file = atomic_open(f->path, &f->error);
    assert_done(atomic_write(file, "new", 3, &f->error), &f->error);
    atomic_abandon(file);
    atomic_abandon(NULL);
    assert_false(file_exists(f->aside));
    assert_done(file_read(f->path, &f->text, &f->error), &f->error);
    assert_string_equal(f->text.data, "headbodytail");
}

// Odd pieces of odd sizes around the blocks in which a large file is written.
static void a_large_file_is_what_was_written(void **state) {
    enum { MOST = 9000123, PIECE = 1000003 };
    static const size_t sizes[] = {0, 1, 4096, 4 << 20, (4 << 20) + 1, MOST};
    Fixture *f = *state;
    char *bytes = malloc(MOST);
    assert_non_null(bytes);
    for (size_t i = 0; i < MOST; i++) bytes[i] = (char)(i * 2654435761u >> 13);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        AtomicFile *file = atomic_open_large(f->path, &f->error);
        assert_non_null(file);
        for (size_t at = 0; at < sizes[i]; at += PIECE) {
            size_t left = sizes[i] - at;
            assert_done(atomic_write(file, bytes + at, left < PIECE ? left : PIECE, &f->error), &f->error);
        }
        assert_done(atomic_commit(file, &f->error), &f->error);
        assert_done(file_read(f->path, &f->text, &f->error), &f->error);
        assert_int_equal(f->text.size, sizes[i]);
        assert_true(!sizes[i] || memcmp(f->text.data, bytes, sizes[i]) == 0);
    }
    AtomicFile *file = atomic_open_large(f->path, &f->error);
    assert_done(atomic_write(file, "new", 3, &f->error), &f->error);
    atomic_abandon(file);
    assert_false(file_exists(f->aside));
    assert_int_equal(file_size(f->path), MOST);
    free(bytes);
}

static void a_full_disk_stops_a_large_file(void **state) {
    Fixture *f = *state;
    size_t size = 10 << 20;
    char *bytes = calloc(1, size);
    struct rlimit before, limit;
    assert_non_null(bytes);
    assert_done(file_write(f->path, "old", 3, &f->error), &f->error);
    getrlimit(RLIMIT_FSIZE, &before);
    limit = before;
    limit.rlim_cur = 5000001;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &limit);
    AtomicFile *file = atomic_open_large(f->path, &f->error);
    bool written = file && atomic_write(file, bytes, size, &f->error);
    atomic_abandon(file);
    setrlimit(RLIMIT_FSIZE, &before);
    assert_false(written);
    assert_message_has(&f->error, "free some space");
    assert_false(file_exists(f->aside));
    assert_int_equal(file_size(f->path), 3);
    free(bytes);
}

static void a_full_disk_is_an_error_and_leaves_the_old_file(void **state) {
    Fixture *f = *state;
    char bytes[20000] = {0};
    assert_done(file_write(f->path, "old", 3, &f->error), &f->error);
    struct rlimit before, limit;
    getrlimit(RLIMIT_FSIZE, &before);
    limit = before;
    limit.rlim_cur = 10000; // a write stops short here, the next fails
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &limit);
    bool written = file_write(f->path, bytes, sizeof bytes, &f->error);
    setrlimit(RLIMIT_FSIZE, &before);
    assert_false(written);
    assert_message_has(&f->error, "at byte 10000");
    assert_message_has(&f->error, "free some space");
    assert_false(file_exists(f->aside));
    assert_done(file_read(f->path, &f->text, &f->error), &f->error);
    assert_string_equal(f->text.data, "old");
}

// A device that is always full stands behind the aside name.
static void a_write_to_a_full_device_is_an_error(void **state) {
    Fixture *f = *state;
    int full = open("/dev/full", O_WRONLY);
    if (full < 0) skip();
    assert_done(file_write(f->path, "old", 3, &f->error), &f->error);
    AtomicFile *file = atomic_open(f->path, &f->error);
    int probe = dup(full); // descriptors are given in order: the file's is the one before
    assert_true(dup2(full, probe - 1) == probe - 1);
    assert_false(atomic_write(file, "new", 3, &f->error));
    assert_message_has(&f->error, "No space left");
    atomic_abandon(file);
    close(probe);
    close(full);
    assert_done(file_read(f->path, &f->text, &f->error), &f->error);
    assert_string_equal(f->text.data, "old");
}

enum { KILLED_SIZE = 200000 };

static _Noreturn void write_for_ever(const char *path) {
    static char bytes[KILLED_SIZE];
    Error error = {0};
    for (int i = 0;; i++) {
        memset(bytes, 'a' + i % 26, sizeof bytes);
        if (!file_write(path, bytes, sizeof bytes, &error)) _exit(1);
    }
}

// A child writes one whole file after another until it is killed; whenever that is, the file is one of them.
static void a_killed_writer_leaves_a_whole_file(void **state) {
    Fixture *f = *state;
    static char bytes[KILLED_SIZE];
    Error error = {0};
    assert_done(file_write(f->path, memset(bytes, 'a', sizeof bytes), sizeof bytes, &error), &error);
    for (int round = 0; round < 25; round++) {
        pid_t child = fork();
        if (child == 0) write_for_ever(f->path);
        usleep((useconds_t)(500 + 700 * round));
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        assert_done(file_read(f->path, &f->text, &f->error), &f->error);
        assert_int_equal(f->text.size, KILLED_SIZE);
        for (int i = 1; i < KILLED_SIZE; i++)
            if (f->text.data[i] != f->text.data[0]) fail_msg("byte %d is of another file", i);
    }
    assert_done(file_write(f->path, "after", 5, &error), &error); // the aside file it left is no hindrance
}

static void an_aside_name_that_is_a_link_is_not_followed(void **state) {
    Fixture *f = *state;
    char *other = temporary_path(f->folder, "other");
    assert_done(file_write(other, "safe", 4, &f->error), &f->error);
    assert_int_equal(symlink(other, f->aside), 0);
    assert_false(file_write(f->path, "new", 3, &f->error));
    assert_done(file_read(other, &f->text, &f->error), &f->error);
    assert_string_equal(f->text.data, "safe");
    free(other);
}

static void a_mapped_file_may_be_written_over(void **state) {
    Fixture *f = *state;
    MappedFile map;
    assert_done(file_write(f->path, "first", 5, &f->error), &f->error);
    assert_done(mapped_open(&map, f->path, &f->error), &f->error);
    assert_done(file_write(f->path, "2nd", 3, &f->error), &f->error);
    assert_int_equal(map.size, 5);
    assert_memory_equal(map.data, "first", 5);
    assert_done(mapped_check(&map, f->path, &f->error), &f->error);
    mapped_close(&map);
    mapped_close(&map);
    assert_false(mapped_open(&map, f->folder, &f->error));
    mapped_close(&map);
}

static void a_mapped_file_that_shrinks_is_noticed(void **state) {
    Fixture *f = *state;
    MappedFile map;
    assert_done(file_write(f->path, "12345", 5, &f->error), &f->error);
    assert_done(mapped_open(&map, f->path, &f->error), &f->error);
    assert_int_equal(truncate(f->path, 2), 0);
    assert_false(mapped_check(&map, f->path, &f->error));
    assert_message_has(&f->error, "shrank from 5 to 2");
    mapped_close(&map);
    assert_int_equal(truncate(f->path, 0), 0);
    assert_done(mapped_open(&map, f->path, &f->error), &f->error);
    assert_int_equal(map.size, 0);
    mapped_close(&map);
}

static void a_named_pipe_is_refused_without_waiting_for_a_writer(void **state) {
    Fixture *f = *state;
    MappedFile map;
    assert_int_equal(mkfifo(f->path, 0600), 0);
    alarm(20);
    assert_false(mapped_open(&map, f->path, &f->error));
    alarm(0);
    assert_message_has(&f->error, "not a regular file");
}

static void folders_are_made_listed_and_removed(void **state) {
    Fixture *f = *state;
    char *deep = temporary_path(f->folder, "a//b/c/"), *link = temporary_path(f->folder, "a/link"), **names;
    int count;
    assert_done(folder_create(deep, &f->error), &f->error);
    assert_done(folder_create(deep, &f->error), &f->error);
    assert_true(folder_exists(deep));
    assert_int_equal(symlink(f->folder, link), 0); // a link out of the tree: removed, not followed
    assert_done(file_write(f->path, "x", 1, &f->error), &f->error);
    assert_done(folder_list(f->folder, &names, &count, &f->error), &f->error);
    assert_int_equal(count, 2);
    assert_string_equal(names[0], "a");
    assert_string_equal(names[1], "file");
    names_free(names, count);
    char *top = temporary_path(f->folder, "a");
    assert_done(folder_remove(top, &f->error), &f->error);
    assert_false(folder_exists(top));
    assert_true(file_exists(f->path));
    assert_done(folder_remove(top, &f->error), &f->error);
    assert_false(folder_list(top, &names, &count, &f->error));
    assert_false(folder_create(f->path, &f->error));
    assert_message_has(&f->error, f->path);
    free(top);
    free(link);
    free(deep);
}

static void names_have_bases_and_extensions(void **state) {
    (void)state;
    assert_string_equal(path_base("a/b.c/d.tar.gz"), "d.tar.gz");
    assert_string_equal(path_base("plain"), "plain");
    assert_string_equal(path_extension("a/b.c/d.tar.gz"), "gz");
    assert_string_equal(path_extension("a.b/c"), "");
    assert_string_equal(path_extension(".hidden"), "");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(what_was_written_is_read),
        TEST(files_of_unknown_size_are_read_whole),
        TEST(what_cannot_be_read_is_named),
        TEST(pieces_may_be_written_anywhere),
        TEST(a_large_file_is_what_was_written),
        TEST(a_full_disk_stops_a_large_file),
        TEST(a_full_disk_is_an_error_and_leaves_the_old_file),
        TEST(a_write_to_a_full_device_is_an_error),
        TEST(a_killed_writer_leaves_a_whole_file),
        TEST(an_aside_name_that_is_a_link_is_not_followed),
        TEST(a_mapped_file_may_be_written_over),
        TEST(a_mapped_file_that_shrinks_is_noticed),
        TEST(a_named_pipe_is_refused_without_waiting_for_a_writer),
        TEST(folders_are_made_listed_and_removed),
        TEST(names_have_bases_and_extensions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
