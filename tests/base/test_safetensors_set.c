/* Several safetensors files with an index: read as one list, or refused by name. */
#include "base/json.h"
#include "base/safetensors_set.h"
#include "tests/support/test.h"
#include <stdlib.h>
#include <string.h>

enum { TENSORS = 5 };

static const float values[TENSORS][2] = {{1, 2}, {3, 4}, {5, 6}, {7, 8}, {9, 10}};
static const char *const names[TENSORS] = {"e", "a", "d", "b", "c"};
static const int file_of[TENSORS] = {2, 0, 1, 1, 0}; // file 3 of 4 holds one, the last none

static void tensors_new(SafeTensor out[TENSORS]) {
    for (int i = 0; i < TENSORS; i++) out[i] = (SafeTensor){names[i], "F32", 1, {2}, values[i], sizeof values[i]};
}

// Files of four writers; metadata: pairs for all of them.
static void write_set(const char *folder, const char *const *metadata, int pairs) {
    SafeTensor all[TENSORS], own[TENSORS];
    Error error = {0};
    Buffer index = {0};
    tensors_new(all);
    for (int f = 0; f < 4; f++) {
        char name[SAFETENSORS_FILE_NAME];
        int count = 0;
        for (int i = 0; i < TENSORS; i++)
            if (file_of[i] == f) own[count++] = all[i];
        safetensors_file_name(name, "model", f, 4);
        char *path = temporary_path(folder, name);
        if (count) assert_done(safetensors_write(path, own, count, metadata, pairs, &error), &error);
        free(path);
    }
    safetensors_index(&index, "model", all, file_of, TENSORS, 4);
    char *path = temporary_path(folder, "model.safetensors.index.json");
    temporary_write(path, index.data, index.size);
    buffer_free(&index);
    free(path);
}

static void assert_holds_all(const SafeTensorsSet *set) {
    assert_int_equal(set->all.count, TENSORS);
    for (int i = 0; i < TENSORS; i++) {
        const SafeTensor *t = safetensors_find(&set->all, names[i]);
        assert_non_null(t);
        assert_memory_equal(t->data, values[i], sizeof values[i]);
        assert_true(i == 0 || strcmp(set->all.tensors[i - 1].name, set->all.tensors[i].name) < 0);
    }
}

static void files_of_an_index_are_one_list(void **state) {
    (void)state;
    char *folder = temporary_new();
    SafeTensorsSet set;
    Error error = {0};
    assert_false(safetensors_set_exists(folder, "model"));
    write_set(folder, (const char *const[]){"note", "mine"}, 1);
    assert_true(safetensors_set_exists(folder, "model"));
    assert_done(safetensors_set_open(&set, folder, "model", &error), &error);
    assert_int_equal(set.count, 3); // none for who has no tensor
    assert_holds_all(&set);
    assert_string_equal(path_base(safetensors_set_path(&set)), "model.safetensors.index.json");
    assert_string_equal(safetensors_metadata(&set.all, "note"), "mine");
    for (int part = 0; part < 5; part++) assert_done(safetensors_set_verify(&set, part, 5, &error), &error);
    safetensors_set_close(&set);
    safetensors_set_close(&set);
    temporary_free(folder);
}

static void a_single_file_is_a_set_and_comes_first(void **state) {
    (void)state;
    char *folder = temporary_new(), *path = temporary_path(folder, "model.safetensors");
    SafeTensor all[TENSORS];
    SafeTensorsSet set;
    Error error = {0};
    assert_false(safetensors_set_open(&set, folder, "model", &error));
    assert_message_has(&error, "model.safetensors: cannot open");
    write_set(folder, NULL, 0);
    tensors_new(all);
    assert_done(safetensors_write(path, all, TENSORS, NULL, 0, &error), &error);
    assert_done(safetensors_set_open(&set, folder, "model", &error), &error);
    assert_int_equal(set.count, 1);
    assert_holds_all(&set);
    assert_string_equal(safetensors_set_path(&set), path);
    safetensors_set_close(&set);
    free(path);
    temporary_free(folder);
}

static void files_are_numbered_from_one(void **state) {
    (void)state;
    char name[SAFETENSORS_FILE_NAME];
    safetensors_file_name(name, "model", 0, 1);
    assert_string_equal(name, "model.safetensors");
    safetensors_file_name(name, "optimizer", 11, 128);
    assert_string_equal(name, "optimizer-00012-of-00128.safetensors");
}

static void the_index_is_as_others_write_it(void **state) {
    (void)state;
    SafeTensor all[TENSORS];
    Error error = {0};
    Buffer text = {0};
    tensors_new(all);
    safetensors_index(&text, "model", all, file_of, TENSORS, 4);
    json_t *index = json_parse(text.data, text.size, "index", &error);
    assert_non_null(index);
    assert_int_equal(json_get_int(json_object_get(index, "metadata"), "total_size", 0), sizeof values);
    const json_t *map = json_object_get(index, "weight_map");
    assert_int_equal(json_object_size(map), TENSORS);
    assert_string_equal(json_get_string(map, "d", ""), "model-00002-of-00004.safetensors");
    json_decref(index);
    buffer_free(&text);
}

// Damage that only the file of another checkpoint, or of another place, can be.
static void files_that_do_not_belong_together_are_refused(void **state) {
    (void)state;
    char *folder = temporary_new(), *second = temporary_path(folder, "model-00002-of-00004.safetensors");
    char *index = temporary_path(folder, "model.safetensors.index.json");
    SafeTensorsSet set;
    SafeTensor all[TENSORS], own[2];
    Error error = {0};
    tensors_new(all);
    own[0] = all[2], own[1] = all[3];
    write_set(folder, (const char *const[]){SAFETENSORS_STEP, "7"}, 1);
    assert_done(safetensors_write(second, own, 2, (const char *const[]){SAFETENSORS_STEP, "6"}, 1, &error), &error);
    assert_false(safetensors_set_open(&set, folder, "model", &error));
    assert_message_has(&error, "model-00002-of-00004.safetensors: is of step 6");
    assert_done(safetensors_write(second, own, 1, (const char *const[]){SAFETENSORS_STEP, "7"}, 1, &error), &error);
    assert_false(safetensors_set_open(&set, folder, "model", &error));
    assert_message_has(&error, "'b' is not in model-00002-of-00004.safetensors");
    own[1] = all[0];
    assert_done(safetensors_write(second, own, 2, (const char *const[]){SAFETENSORS_STEP, "7"}, 1, &error), &error);
    assert_false(safetensors_set_open(&set, folder, "model", &error));
    assert_message_has(&error, "holds 'e', which");
    temporary_write(index, "[]", 2);
    assert_false(safetensors_set_open(&set, folder, "model", &error));
    assert_message_has(&error, "weight_map");
    free(second);
    free(index);
    temporary_free(folder);
}

static void an_index_that_changed_behind_its_files_is_noticed(void **state) {
    (void)state;
    char *folder = temporary_new(), *index = temporary_path(folder, "model.safetensors.index.json");
    char hash[SAFETENSORS_HASH];
    SafeTensorsSet set;
    Error error = {0};
    Buffer text = {0};
    write_set(folder, NULL, 0);
    assert_done(file_read(index, &text, &error), &error);
    safetensors_hash_text(text.data, text.size, hash);
    write_set(folder, (const char *const[]){"model.safetensors.index.json", hash}, 1);
    char *total = strstr(text.data, "40");
    assert_non_null(total);
    for (int changed = 0; changed < 2; changed++) {
        *total = changed ? '5' : '4'; // what total_size says decides nothing
        temporary_write(index, text.data, text.size);
        assert_done(safetensors_set_open(&set, folder, "model", &error), &error);
        assert_int_equal(safetensors_set_verify(&set, 0, 1, &error), !changed);
        safetensors_set_close(&set);
    }
    assert_message_has(&error, "index.json: damaged");
    buffer_free(&text);
    free(index);
    temporary_free(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(files_of_an_index_are_one_list),
        cmocka_unit_test(a_single_file_is_a_set_and_comes_first),
        cmocka_unit_test(files_are_numbered_from_one),
        cmocka_unit_test(the_index_is_as_others_write_it),
        cmocka_unit_test(files_that_do_not_belong_together_are_refused),
        cmocka_unit_test(an_index_that_changed_behind_its_files_is_noticed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
