/* Datasets: every sample comes back by its number, the same samples give the same bytes, and damage anywhere is found
 * and named. */
#include "data/dataset.h"
#include "base/files.h"
#include "data/manifest.h"
#include "data/verify.h"
#include "tests/data/samples.h"
#include "tests/support/test.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct Fixture {
    char *folder, *path; // path: of the dataset
    DatasetSummary summary;
} Fixture;

static Fixture make(int count, int64_t shard_size) {
    Fixture f = {.folder = temporary_new()};
    f.path = temporary_path(f.folder, "dataset");
    put_dataset(f.path, count, shard_size, &f.summary);
    return f;
}

static void done(Fixture *f) {
    free(f->path);
    temporary_free(f->folder);
}

static void every_sample_comes_back_by_its_number(void **state) {
    (void)state;
    enum { COUNT = 23 };
    Fixture f = make(COUNT, 8192);
    Error error = {0};
    Buffer bytes = {0};
    Dataset *d = dataset_open(f.path, &error);
    assert_done(d != NULL, &error);
    assert_int_equal(dataset_samples(d), COUNT);
    assert_true(f.summary.shards > 3);
    assert_string_equal(dataset_root(d), f.summary.root);
    for (int i = COUNT - 1; i >= 0; i--) {
        Sample s;
        char key[16], text[32];
        assert_done(dataset_sample(d, i, &s, &bytes, &error), &error);
        snprintf(key, sizeof key, "%09d", i);
        snprintf(text, sizeof text, "caption %d", i);
        assert_string_equal(s.key, key);
        assert_int_equal(s.number, i);
        assert_int_equal(s.width, 2 + i % 3);
        assert_string_equal((const char *)sample_member(&s, MEMBER_TEXT, 0)->bytes, text);
        assert_memory_equal(sample_member(&s, MEMBER_IMAGE, 0)->bytes, "\x89PNG", 4);
        assert_null(sample_member(&s, MEMBER_IMAGE, 1));
        assert_null(sample_member(&s, MEMBER_OTHER, 0));
    }
    buffer_free(&bytes);
    dataset_close(d);
    done(&f);
}

static const char *const whole_files[] = {
    "dataset.json",     "ledger.jsonl",           "sizes.json", "__len__", "shard-000000.tar",
    "shard-000000.bfx", "shard-000000_stats.json"};
enum { WHOLE_FILES = sizeof whole_files / sizeof *whole_files };

static void the_same_samples_give_the_same_bytes(void **state) {
    (void)state;
    Fixture a = make(5, 1 << 20), b = make(5, 1 << 20);
    for (int i = 0; i < WHOLE_FILES; i++) {
        size_t n, m;
        char *x = get_file(a.path, whole_files[i], &n), *y = get_file(b.path, whole_files[i], &m);
        assert_int_equal(n, m);
        if (n) assert_memory_equal(x, y, n);
        free(x);
        free(y);
    }
    assert_string_equal(a.summary.uuid, b.summary.uuid);
    Fixture c = make(6, 1 << 20);
    assert_string_not_equal(a.summary.uuid, c.summary.uuid);
    done(&a);
    done(&b);
    done(&c);
}

static void a_whole_dataset_verifies(void **state) {
    (void)state;
    Fixture f = make(9, 8192);
    Error error = {0};
    assert_int_equal(dataset_verify(f.path, NULL, &error), 0);
    done(&f);
}

// Overwrites a file in place, without the care of file_write: this runs some hundred thousand times.
static void poke(const char *path, const char *bytes, size_t size) {
    FILE *file = fopen(path, "r+b");
    check(file && fwrite(bytes, 1, size, file) == size && fclose(file) == 0);
}

// The findings of a damaged dataset; one of them, or the error, must name the file.
static bool damage_is_named(const char *path, const char *file) {
    Error error = {0};
    json_t *list = json_array(), *item;
    size_t i;
    int64_t findings = dataset_verify_list(path, list, NULL, &error);
    bool named = findings < 0 && strstr(error.message, file);
    json_array_foreach(list, i, item) if (strstr(json_string_value(item), file)) named = true;
    json_decref(list);
    return findings != 0 && named;
}

static void every_flipped_bit_of_every_file_is_found_and_named(void **state) {
    (void)state;
    Fixture f = make(1, 1 << 20);
    for (int i = 0; i < WHOLE_FILES; i++) {
        size_t size;
        char *bytes = get_file(f.path, whole_files[i], &size), *path = temporary_path(f.path, whole_files[i]);
        for (size_t at = 0; at < size; at++) {
            // All bits of each byte, one after the other; in the zeros of the tar one bit a byte says enough.
            bool sparse = i == 4 && at % 512 > 160 && bytes[at] == 0;
            for (int bit = sparse ? (int)at % 8 : 0; bit < 8; bit += sparse ? 8 : 1) {
                bytes[at] ^= (char)(1 << bit);
                poke(path, bytes, size);
                if (!damage_is_named(f.path, whole_files[i])) fail_msg("%s: byte %zu bit %d", whole_files[i], at, bit);
                bytes[at] ^= (char)(1 << bit);
            }
        }
        poke(path, bytes, size);
        free(path);
        free(bytes);
    }
    Error error = {0};
    assert_int_equal(dataset_verify(f.path, NULL, &error), 0);
    done(&f);
}

static void damage_in_a_member_is_an_error_of_that_sample_alone(void **state) {
    (void)state;
    Fixture f = make(4, 1 << 20);
    Error error = {0};
    Buffer bytes = {0};
    Sample s;
    size_t size;
    char *tar = get_file(f.path, "shard-000000.tar", &size), *path = temporary_path(f.path, "shard-000000.tar");
    char *caption = memmem(tar, size, "caption 2", 9);
    caption[3] ^= 4;
    poke(path, tar, size);
    Dataset *d = dataset_open(f.path, &error);
    assert_done(d != NULL, &error);
    assert_true(dataset_sample(d, 1, &s, &bytes, &error));
    assert_false(dataset_sample(d, 2, &s, &bytes, &error));
    assert_message_has(&error, "000000002.txt");
    assert_string_equal(s.key, "000000002"); // so that the caller can name it too
    assert_true(dataset_sample(d, 3, &s, &bytes, &error));
    dataset_close(d);
    buffer_free(&bytes);
    free(path);
    free(tar);
    done(&f);
}

static void a_shard_that_shrinks_while_in_use_is_an_error(void **state) {
    (void)state;
    Fixture f = make(4, 1 << 20);
    Error error = {0};
    Buffer bytes = {0};
    Sample s;
    char *path = temporary_path(f.path, "shard-000000.tar");
    Dataset *d = dataset_open(f.path, &error);
    assert_done(d != NULL, &error);
    assert_int_equal(truncate(path, 4096), 0);
    assert_false(dataset_sample(d, 3, &s, &bytes, &error));
    assert_message_has(&error, "shrank");
    dataset_close(d);
    assert_null(dataset_open(f.path, &error));
    assert_message_has(&error, "cut or changed");
    buffer_free(&bytes);
    free(path);
    done(&f);
}

static void expect_finding(Fixture *f, const char *says) {
    Error error = {0};
    json_t *list = json_array(), *item;
    size_t i;
    bool said = false;
    assert_true(dataset_verify_list(f->path, list, NULL, &error) > 0);
    json_array_foreach(list, i, item) said |= strstr(json_string_value(item), says) != NULL;
    if (!said) {
        json_array_foreach(list, i, item) print_message("%s\n", json_string_value(item));
        fail_msg("no finding says '%s'", says);
    }
    json_decref(list);
}

static void cuts_tails_and_strangers_are_told_apart(void **state) {
    (void)state;
    Fixture f = make(4, 1 << 20);
    size_t size;
    char *tar = get_file(f.path, "shard-000000.tar", &size);
    put_bytes(f.path, "shard-000000.tar", tar, 1536);
    expect_finding(&f, "it is cut");
    expect_finding(&f, "from key 000000000 to 000000003");
    put_bytes(f.path, "shard-000000.tar", tar, size - 1024);
    expect_finding(&f, "two blocks of zeros at the end are cut");
    char *more = malloc(size + 100);
    memcpy(more, tar, size);
    memset(more + size, 'x', 100);
    put_bytes(f.path, "shard-000000.tar", more, size + 100);
    expect_finding(&f, "something follows its end");
    put_bytes(f.path, "shard-000000.tar", tar, size);
    put_file(f.path, "shard-000001.tar", "x");
    expect_finding(&f, "shard-000001.tar: not in dataset.json");
    free(more);
    free(tar);
    done(&f);
}

static void a_damaged_header_says_what_other_readers_lose(void **state) {
    (void)state;
    Fixture f = make(4, 1 << 20);
    size_t size;
    char *tar = get_file(f.path, "shard-000000.tar", &size);
    char *header = memmem(tar, size, "000000001.txt", 13);
    header[0] ^= 1;
    put_bytes(f.path, "shard-000000.tar", tar, size);
    expect_finding(&f, "damaged header of 000000001.txt. Readers without the sidecar lose the 3 samples from key "
                       "000000001 to 000000003");
    free(tar);
    done(&f);
}

static void a_sidecar_of_another_shard_is_refused(void **state) {
    (void)state;
    Fixture f = make(12, 8192), other = make(13, 1 << 20);
    Error error = {0};
    size_t size;
    char *bytes = get_file(other.path, "shard-000000.bfx", &size);
    put_bytes(f.path, "shard-000000.bfx", bytes, size);
    assert_null(dataset_open(f.path, &error));
    assert_message_has(&error, "stale or swapped");
    expect_finding(&f, "stale");
    free(bytes);
    done(&f);
    done(&other);
}

static void swapped_captions_are_found(void **state) {
    (void)state;
    Fixture f = make(4, 1 << 20);
    size_t size;
    char *tar = get_file(f.path, "shard-000000.tar", &size);
    memcpy(memmem(tar, size, "caption 1", 9), "caption 2", 9);
    put_bytes(f.path, "shard-000000.tar", tar, size);
    expect_finding(&f, "not the pair that was written");
    free(tar);
    done(&f);
}

static void what_is_no_dataset_is_told_so(void **state) {
    (void)state;
    Fixture f = make(1, 1 << 20);
    Error error = {0};
    char *json = temporary_path(f.path, "dataset.json");
    assert_null(dataset_open("/nowhere/at/all", &error));
    assert_message_has(&error, "no such folder");
    assert_null(dataset_open(f.folder, &error));
    assert_message_has(&error, "bifocal data build");
    put_file(f.path, "dataset.json", "{}");
    assert_null(dataset_open(f.path, &error));
    assert_message_has(&error, "no seal");
    put_file(f.path, "dataset.json", "[[[[");
    assert_null(dataset_open(f.path, &error));
    assert_message_has(&error, json);
    free(json);
    done(&f);
}

static void nothing_is_overwritten_without_force(void **state) {
    (void)state;
    Fixture f = make(2, 1 << 20);
    Error error = {0};
    DatasetOptions o = {.path = f.path, .shard_size = 1 << 20};
    assert_null(dataset_create(&o, &error));
    assert_int_equal(error.kind, ERROR_USAGE);
    assert_message_has(&error, "--force");
    o.force = true;
    put_file(f.path, "notes.txt", "mine");
    assert_null(dataset_create(&o, &error));
    assert_message_has(&error, "notes.txt");
    char *notes = temporary_path(f.path, "notes.txt");
    unlink(notes);
    free(notes);
    done(&f);
}

static void a_dataset_stays_whole_until_another_takes_its_place(void **state) {
    (void)state;
    Fixture f = make(7, 1 << 20);
    Error error = {0};
    DatasetSummary summary;
    DatasetOptions o = {.path = f.path, .shard_size = 1 << 20, .force = true};
    char *aside = temporary_path(f.folder, "dataset.building");
    DatasetWriter *w = dataset_create(&o, &error);
    assert_done(w != NULL, &error);
    assert_true(folder_exists(aside));
    assert_int_equal(dataset_verify(f.path, NULL, &error), 0);
    assert_false(dataset_finish(w, &summary, &error)); // nothing was written
    assert_message_has(&error, "no sample");
    assert_false(folder_exists(aside));
    assert_int_equal(dataset_verify(f.path, NULL, &error), 0);

    put_dataset(f.path, 3, 1 << 20, &summary); // replaces it
    assert_string_not_equal(summary.root, f.summary.root);
    assert_false(folder_exists(aside));
    Dataset *d = dataset_open(f.path, &error);
    assert_done(d != NULL, &error);
    assert_int_equal(dataset_samples(d), 3);
    dataset_close(d);
    assert_int_equal(dataset_verify(f.path, NULL, &error), 0);
    free(aside);
    done(&f);
}

static void a_dataset_without_samples_is_an_error(void **state) {
    (void)state;
    char *folder = temporary_new();
    DatasetOptions o = {.path = folder, .shard_size = 1};
    DatasetSummary summary;
    Error error = {0};
    DatasetWriter *w = dataset_create(&o, &error);
    assert_done(w != NULL, &error);
    dataset_drop(w, "caption_blank", "a:1", "");
    assert_false(dataset_finish(w, &summary, &error));
    assert_message_has(&error, "1 caption_blank");
    temporary_free(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_sample_comes_back_by_its_number),
        cmocka_unit_test(the_same_samples_give_the_same_bytes),
        cmocka_unit_test(a_whole_dataset_verifies),
        cmocka_unit_test(every_flipped_bit_of_every_file_is_found_and_named),
        cmocka_unit_test(damage_in_a_member_is_an_error_of_that_sample_alone),
        cmocka_unit_test(a_shard_that_shrinks_while_in_use_is_an_error),
        cmocka_unit_test(cuts_tails_and_strangers_are_told_apart),
        cmocka_unit_test(a_damaged_header_says_what_other_readers_lose),
        cmocka_unit_test(a_sidecar_of_another_shard_is_refused),
        cmocka_unit_test(swapped_captions_are_found),
        cmocka_unit_test(what_is_no_dataset_is_told_so),
        cmocka_unit_test(nothing_is_overwritten_without_force),
        cmocka_unit_test(a_dataset_stays_whole_until_another_takes_its_place),
        cmocka_unit_test(a_dataset_without_samples_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
