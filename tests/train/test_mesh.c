/* Which rank does what: every rank has one place, groups are lines of the mesh, and sizes that do not fit are refused
 * with those that would. */
#include "tests/support/ranks.h"
#include "tests/support/test.h"
#include "train/layout.h"
#include <string.h>

enum { RANKS = 8 };

static void sizes_that_divide_leave_the_rest_to_data(void **state) {
    (void)state;
    Error error = {0};
    int free_data[MESH_AXES] = {0, 1, 1, 2}, stages[MESH_AXES] = {0, 2, 1, 2}, given[MESH_AXES] = {4, 1, 1, 2}, alone[MESH_AXES] = {0, 1, 1, 1};
    assert_done(mesh_resolve(free_data, 8, &error), &error);
    assert_int_equal(free_data[MESH_DATA], 4);
    assert_done(mesh_resolve(stages, 8, &error), &error);
    assert_int_equal(stages[MESH_DATA], 2);
    assert_done(mesh_resolve(given, 8, &error), &error);
    assert_done(mesh_resolve(alone, 1, &error), &error);
    assert_int_equal(alone[MESH_DATA], 1);
}

static void assert_refused(int data, int pipeline, int expert, int tensor, int ranks, const char *part) {
    Error error = {0};
    int size[MESH_AXES] = {data, pipeline, expert, tensor};
    assert_false(mesh_resolve(size, ranks, &error));
    assert_int_equal(error.kind, ERROR_USAGE);
    assert_message_has(&error, part);
}

static void sizes_that_do_not_divide_are_refused_with_those_that_would(void **state) {
    (void)state;
    assert_refused(0, 1, 1, 4, 6, "parallel.tensor 4: start a multiple of 4");
    assert_refused(4, 1, 1, 2, 6, "set parallel.data to 3");
    assert_refused(0, 3, 1, 1, 4, "4 processes cannot be shared out with parallel.pipeline 3: start a multiple of 3");
    assert_refused(0, 2, 1, 2, 6, "parallel.pipeline 2 x parallel.tensor 2: start a multiple of 4");
    assert_refused(3, 2, 1, 1, 4, "parallel.data 3 x parallel.pipeline 2 asks for 6 processes");
    assert_refused(0, 1, 3, 1, 3, "parallel.expert is 3; only 1");
}

static void every_rank_has_a_place_of_its_own_and_tensor_ranks_are_neighbours(void **state) {
    (void)state;
    const int size[MESH_AXES] = {2, 2, 1, 2};
    for (int rank = 0; rank < RANKS; rank++) {
        int place[MESH_AXES];
        mesh_place(size, rank, place);
        assert_int_equal(
            ((place[MESH_DATA] * 2 + place[MESH_PIPELINE]) * 1 + place[MESH_EXPERT]) * 2 + place[MESH_TENSOR], rank);
    }
}

static void open_mesh(int rank, Comm *world, void *nothing) {
    (void)nothing;
    const int size[MESH_AXES] = {4, 1, 1, 2};
    Mesh mesh;
    Error error = {0};
    int64_t sum[MESH_AXES]; // of the world ranks of a group
    assert_done(mesh_open(&mesh, world, size, &error), &error);
    for (int a = 0; a < MESH_AXES; a++) {
        sum[a] = rank;
        comm_all_reduce(mesh.axis[a], &sum[a], 1, COMM_I64, COMM_SUM, COMM_FAST, "test");
        assert_int_equal(comm_size(mesh.axis[a]), size[a]);
        assert_int_equal(comm_rank(mesh.axis[a]), mesh.place[a]);
    }
    assert_int_equal(mesh.place[MESH_DATA], rank / 2);
    assert_int_equal(mesh.place[MESH_TENSOR], rank % 2);
    assert_int_equal(sum[MESH_TENSOR], 2 * (rank / 2 * 2) + 1);
    assert_int_equal(sum[MESH_DATA], 0 + 2 + 4 + 6 + 4 * (rank % 2));
    mesh_close(&mesh);
}

static void groups_are_the_lines_of_the_mesh(void **state) {
    (void)state;
    ranks_run(RANKS, open_mesh, NULL);
}

static void the_table_names_every_rank_and_host(void **state) {
    (void)state;
    const int size[MESH_AXES] = {2, 1, 1, 2}, many[MESH_AXES] = {100, 1, 1, 2};
    const char *const hosts[] = {"alpha", "alpha", "beta", "beta"};
    Buffer text = {0};
    mesh_describe(size, hosts, &text);
    assert_non_null(strstr(text.data, "     3  beta          1         0         0         1"));
    buffer_clear(&text);
    mesh_describe(many, NULL, &text);
    assert_non_null(strstr(text.data, "and 136 more"));
    buffer_free(&text);
}

// ---- pieces ----

static TrainConfig config(int64_t microbatches, int64_t tensor, Reproducible reproducible) {
    TrainConfig c = {.microbatches = microbatches, .reproducible = reproducible};
    for (int a = 0; a < MESH_AXES; a++) c.parallel.size[a] = 1;
    c.parallel.size[MESH_DATA] = 0;
    c.parallel.size[MESH_TENSOR] = tensor;
    return c;
}

static void every_data_rank_has_as_many_pieces(void **state) {
    (void)state;
    Layout l;
    Error error = {0};
    TrainConfig c = config(4, 1, REPRODUCIBLE_RUN);
    assert_done(layout_resolve(&c, 3, &l, &error), &error);
    assert_int_equal(l.pieces, 6);
    for (int d = 0; d <= 3; d++) assert_int_equal(layout_first(&l, d), 2 * d);
}

static void assert_layout_refused(int64_t microbatches, int ranks, const char *part) {
    Layout l;
    Error error = {0};
    TrainConfig c = config(microbatches, 1, REPRODUCIBLE_LAYOUT);
    assert_false(layout_resolve(&c, ranks, &l, &error));
    assert_int_equal(error.kind, ERROR_USAGE);
    assert_message_has(&error, part);
}

static void a_layout_without_one_tree_of_pieces_is_refused(void **state) {
    (void)state;
    Layout l;
    Error error = {0};
    TrainConfig c = config(8, 2, REPRODUCIBLE_LAYOUT);
    assert_layout_refused(8, 3, "2 or 4 would work");
    assert_layout_refused(1, 2, "2 or 4 would work");
    assert_layout_refused(6, 2, "8 or 16 would work");
    assert_done(layout_resolve(&c, 8, &l, &error), &error);
    assert_int_equal(l.pieces, 8);
}

static void tensor_degrees_that_fit_ranks_and_model_are_named(void **state) {
    (void)state;
    Layout l;
    Error error = {0};
    TrainConfig c = config(8, 4, REPRODUCIBLE_RUN);
    c.model.text = (TextConfig){.vocabulary = 100, .width = 24, .heads = 6, .layers = 1};
    c.model.weight[OBJECTIVE_LM] = 1;
    assert_false(layout_resolve(&c, 10, &l, &error));
    assert_int_equal(error.kind, ERROR_USAGE);
    assert_message_has(&error, "parallel.tensor to one of 1, 2");
    assert_null(strstr(error.message, "5"));         // divides the processes, not the heads
    assert_false(layout_resolve(&c, 4, &l, &error)); // divides the processes, not the heads
    assert_message_has(&error, "heads");
}

static void data_ranks_without_any_row_are_counted(void **state) {
    (void)state;
    Layout l;
    Error error = {0};
    SourceConfig sources[] = {{.objectives = 1 << OBJECTIVE_LM, .batch = 2},
                              {.objectives = 1 << OBJECTIVE_MAE, .batch = 3}};
    TrainConfig c = config(8, 1, REPRODUCIBLE_RUN);
    c.data = (ConfigList){sources, 2};
    assert_done(layout_resolve(&c, 2, &l, &error), &error);
    assert_int_equal(layout_idle(&c, &l), 0);
    assert_done(layout_resolve(&c, 8, &l, &error), &error);
    assert_int_equal(layout_idle(&c, &l), 4); // rows of two stand on ranks 3 and 7, of three on 2, 5 and 7
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_that_divide_leave_the_rest_to_data),
        cmocka_unit_test(sizes_that_do_not_divide_are_refused_with_those_that_would),
        cmocka_unit_test(every_rank_has_a_place_of_its_own_and_tensor_ranks_are_neighbours),
        cmocka_unit_test(groups_are_the_lines_of_the_mesh),
        cmocka_unit_test(the_table_names_every_rank_and_host),
        cmocka_unit_test(every_data_rank_has_as_many_pieces),
        cmocka_unit_test(a_layout_without_one_tree_of_pieces_is_refused),
        cmocka_unit_test(tensor_degrees_that_fit_ranks_and_model_are_named),
        cmocka_unit_test(data_ranks_without_any_row_are_counted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
