/* Parameters: draws by name, layout, freezing, gradients of a step, files, parts of a pipeline, second copies. */
#include "kernels/cpu/cpu.h"
#include "kernels/nn/block.h"
#include "kernels/nn/buckets.h"
#include "kernels/nn/gradient_norm.h"
#include "tests/support/ranks.h"
#include "tests/support/test.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const Init normal = {.kind = INIT_NORMAL, .value = 0.5};

typedef struct Set {
    Backend *backend;
    Parameters *parameters;
} Set;

static Set set_new(void) {
    Set s = {.backend = cpu_backend_new(1, NULL, NULL)};
    s.parameters = parameters_new(s.backend, NULL);
    return s;
}

static void set_free(Set *s) {
    parameters_free(s->parameters);
    backend_free(s->backend);
}

static void finish(Set *s, Dtype compute) {
    Error error = {0};
    assert_done(parameters_finish(s->parameters, compute, 9, &error), &error);
}

static void a_draw_depends_on_seed_name_and_place_alone(void **state) {
    (void)state;
    Set a = set_new(), b = set_new();
    parameters_add(a.parameters, "wanted", SHAPE(7, 9), normal, true);
    parameters_add(b.parameters, "before", SHAPE(100), normal, false);
    parameters_add(b.parameters, "wanted", SHAPE(7, 9), normal, true);
    finish(&a, F32);
    finish(&b, BF16);
    const float *first = parameters_find(a.parameters, "wanted")->master;
    assert_memory_equal(first, parameters_find(b.parameters, "wanted")->master, 63 * sizeof(float));
    assert_memory_not_equal(first, parameters_find(b.parameters, "before")->master, 63 * sizeof(float));
    set_free(&a);
    set_free(&b);
}

static void draws_have_the_deviation_asked_for(void **state) {
    (void)state;
    enum { COUNT = 40000 };
    Set s = set_new();
    parameters_add(s.parameters, "normal", SHAPE(COUNT), normal, true);
    parameters_add(s.parameters, "uniform", SHAPE(COUNT), (Init){.kind = INIT_UNIFORM, .value = 2}, true);
    parameters_add(s.parameters, "constant", SHAPE(3), (Init){.kind = INIT_CONSTANT, .value = -1.5}, true);
    finish(&s, F32);
    double sum = 0, square = 0, most = 0, uniform = 0;
    const float *x = parameters_find(s.parameters, "normal")->master,
                *u = parameters_find(s.parameters, "uniform")->master;
    for (int i = 0; i < COUNT; i++) {
        sum += x[i];
        square += (double)x[i] * x[i];
        most = fmax(most, fabs(u[i]));
        uniform += (double)u[i] * u[i];
    }
    assert_true(fabs(sum / COUNT) < 0.01);
    assert_true(fabs(sqrt(square / COUNT) - 0.5) < 0.01);
    assert_true(most <= 2 && most > 1.99);
    assert_true(fabs(uniform / COUNT - 4.0 / 3) < 0.03);
    assert_true(parameters_find(s.parameters, "constant")->master[2] == -1.5f);
    set_free(&s);
}

static void trained_parameters_come_first_in_blocks_and_frozen_ones_last(void **state) {
    (void)state;
    Set s = set_new();
    parameters_add(s.parameters, "vector", SHAPE(5), normal, false);
    parameters_add(s.parameters, "frozen.matrix", SHAPE(3, 5), normal, true);
    parameters_add(s.parameters, "matrix", SHAPE(3, 5), normal, true);
    assert_int_equal(parameters_freeze(s.parameters, "frozen"), 1);
    finish(&s, F32);
    Parameter *matrix = parameters_find(s.parameters, "matrix"), *vector = parameters_find(s.parameters, "vector");
    Parameter *frozen = parameters_find(s.parameters, "frozen.matrix");
    assert_true(vector->offset == 0 && matrix->offset == PARAMETER_BLOCK && frozen->offset == 2 * PARAMETER_BLOCK);
    assert_null(frozen->tensor.grad);
    assert_false(frozen->tensor.needs_grad);
    assert_int_equal(parameters_elements(s.parameters, false), 35);
    assert_int_equal(parameters_elements(s.parameters, true), 20);
    set_free(&s);
}

// The backend of a device that likes tables of words padded; everything else is as without.
static void spare_rows_of_words_are_zeros_and_count_nowhere(void **state) {
    (void)state;
    Set padded = set_new(), plain = set_new();
    padded.backend->words_unit = 128;
    Set *sets[] = {&padded, &plain};
    Tensor *words[2];
    double norm[2];
    for (int i = 0; i < 2; i++) {
        Backend *b = sets[i]->backend;
        words[i] = parameters_add(sets[i]->parameters, "words", SHAPE(130, 24), normal, true);
        parameters_set_words(sets[i]->parameters, words[i]);
        parameters_add(sets[i]->parameters, "matrix", SHAPE(130, 24), normal, true);
        finish(sets[i], BF16);
        parameters_begin_step(sets[i]->parameters);
        b->convert(b, words[i]->grad, F32, words[i]->data, BF16, 130 * 24);
        words[i]->grad_written = true;
        parameters_end_backward(sets[i]->parameters);
        norm[i] = parameters_gradient_norm(sets[i]->parameters);
    }
    assert_true(words[0]->spare_rows == 126 && words[1]->spare_rows == 0);
    assert_memory_equal(words[0]->data, words[1]->data, 130 * 24 * sizeof(uint16_t));
    const uint16_t *data = words[0]->data;
    const float *gradient = words[0]->grad;
    for (int i = 130 * 24; i < 256 * 24; i++) assert_true(data[i] == 0 && gradient[i] == 0);
    assert_true(norm[0] == norm[1]);
    assert_int_equal(parameters_elements(padded.parameters, true), parameters_elements(plain.parameters, true));
    assert_int_equal(parameters_find(padded.parameters, "matrix")->offset, 256 * 24);
    for (int i = 0; i < 2; i++) set_free(sets[i]);
}

static void freezing_stops_at_a_dot(void **state) {
    (void)state;
    Set s = set_new();
    parameters_add(s.parameters, "blocks.1.weight", SHAPE(2), normal, true);
    parameters_add(s.parameters, "blocks.10.weight", SHAPE(2), normal, true);
    assert_int_equal(parameters_freeze(s.parameters, "blocks.1"), 1);
    assert_int_equal(parameters_freeze(s.parameters, "block"), 0);
    assert_int_equal(parameters_freeze(s.parameters, "blocks.10.weight"), 1);
    set_free(&s);
}

static void matrices_have_bf16_shadows_and_vectors_stay_f32(void **state) {
    (void)state;
    Set s = set_new();
    parameters_add(s.parameters, "matrix", SHAPE(3, 5), normal, true);
    parameters_add(s.parameters, "vector", SHAPE(5), normal, false);
    finish(&s, BF16);
    Parameter *matrix = parameters_find(s.parameters, "matrix"), *vector = parameters_find(s.parameters, "vector");
    assert_int_equal(matrix->tensor.dtype, BF16);
    assert_int_equal(vector->tensor.dtype, F32);
    assert_ptr_equal(vector->tensor.data, vector->master);
    matrix->master[4] = 3.14159f;
    parameters_refresh(s.parameters);
    const uint16_t *shadow = matrix->tensor.data;
    for (int i = 0; i < 15; i++) assert_int_equal(shadow[i], f32_to_bf16(matrix->master[i]));
    set_free(&s);
}

static void gradients_nobody_wrote_become_zero(void **state) {
    (void)state;
    Set s = set_new();
    parameters_add(s.parameters, "a", SHAPE(4), normal, true);
    parameters_add(s.parameters, "b", SHAPE(4), normal, true);
    finish(&s, F32);
    Tensor *a = &parameters_find(s.parameters, "a")->tensor, *b = &parameters_find(s.parameters, "b")->tensor;
    ((float *)a->grad)[1] = ((float *)b->grad)[1] = 5; // left over from the step before
    parameters_begin_step(s.parameters);
    a->grad_written = true;
    parameters_end_backward(s.parameters);
    assert_true(((float *)a->grad)[1] == 5 && ((float *)b->grad)[1] == 0);
    set_free(&s);
}

// ---- files ----

static void write_set(const Set *s, const char *path) {
    Error error = {0};
    Arena *memory = arena_new(1 << 12);
    SafeTensor *tensors;
    int count = parameters_export(s->parameters, memory, &tensors);
    assert_done(safetensors_write(path, tensors, count, NULL, 0, &error), &error);
    arena_free(memory);
}

static bool read_set(Set *s, const char *path, Error *error) {
    SafeTensors file = {0};
    assert_done(safetensors_open(&file, path, error), error);
    bool ok = parameters_import(s->parameters, &file, path, error);
    safetensors_close(&file);
    return ok;
}

static void parameters_survive_a_file(void **state) {
    (void)state;
    Error error = {0};
    char *folder = temporary_new(), *path = temporary_path(folder, "m.safetensors");
    Set a = set_new(), b = set_new();
    parameters_add(a.parameters, "matrix", SHAPE(3, 5), normal, true);
    parameters_add(a.parameters, "vector", SHAPE(5), normal, false);
    parameters_add(b.parameters, "vector", SHAPE(5), (Init){0}, false); // another order, another precision
    parameters_add(b.parameters, "matrix", SHAPE(3, 5), (Init){0}, true);
    finish(&a, F32);
    finish(&b, BF16);
    write_set(&a, path);
    assert_done(read_set(&b, path, &error), &error);
    const Parameter *from = parameters_find(a.parameters, "matrix"), *to = parameters_find(b.parameters, "matrix");
    assert_memory_equal(from->master, to->master, 15 * sizeof(float));
    assert_int_equal(((const uint16_t *)to->tensor.data)[14], f32_to_bf16(from->master[14]));
    set_free(&a);
    set_free(&b);
    free(path);
    temporary_free(folder);
}

static void a_file_of_another_model_is_refused_by_name(void **state) {
    (void)state;
    Error error = {0};
    char *folder = temporary_new(), *path = temporary_path(folder, "m.safetensors");
    Set a = set_new(), b = set_new();
    parameters_add(a.parameters, "same", SHAPE(3, 5), normal, true);
    parameters_add(a.parameters, "extra", SHAPE(2), normal, true);
    parameters_add(a.parameters, "shaped", SHAPE(3, 5), normal, true);
    parameters_add(b.parameters, "same", SHAPE(3, 5), (Init){0}, true);
    parameters_add(b.parameters, "shaped", SHAPE(5, 3), (Init){0}, true);
    parameters_add(b.parameters, "absent", SHAPE(2), (Init){0}, true);
    finish(&a, F32);
    finish(&b, F32);
    write_set(&a, path);
    assert_false(read_set(&b, path, &error));
    assert_message_has(&error, "1 missing (absent)");
    assert_message_has(&error, "1 of another shape or type (shaped)");
    assert_message_has(&error, "1 unexpected (extra)");
    assert_true(parameters_find(b.parameters, "same")->master[0] == 0); // nothing was taken
    set_free(&a);
    set_free(&b);
    free(path);
    temporary_free(folder);
}

// ---- parts of a model ----

static void parameters_elsewhere_have_a_name_and_a_shape_alone(void **state) {
    (void)state;
    Set s = set_new();
    parameters_add(s.parameters, "there.matrix", SHAPE(3, 5), normal, true);
    parameters_add(s.parameters, "here.matrix", SHAPE(7, 5), normal, true);
    parameters_add(s.parameters, "there.vector", SHAPE(2000), normal, true);
    parameters_place(s.parameters, 0, -1);
    parameters_place(s.parameters, 2, -1);
    assert_int_equal(parameters_freeze(s.parameters, "there.vector"), 1);
    finish(&s, BF16);
    const Parameter *there = parameters_find(s.parameters, "there.matrix");
    assert_true(there->number == 0 && there->bucket == -1 && there->global_shape[1] == 5);
    assert_null(there->tensor.data);
    assert_null(there->tensor.grad);
    assert_null(there->master);
    assert_false(there->tensor.needs_grad);
    assert_false(there->frozen); // over the whole model it is trained
    assert_true(parameters_find(s.parameters, "there.vector")->frozen);
    assert_int_equal(parameters_elements(s.parameters, false), 35);
    assert_int_equal(parameters_elements(s.parameters, true), 35);
    assert_int_equal(parameters_whole_elements(s.parameters, false), 2050);
    assert_int_equal(parameters_whole_elements(s.parameters, true), 50);
    assert_int_equal(parameters_states(s.parameters), PARAMETER_BLOCK);
    assert_true(parameters_memory(s.parameters).parameters == 6.0 * PARAMETER_BLOCK);
    parameters_begin_step(s.parameters);
    parameters_end_backward(s.parameters);
    assert_true(parameters_gradient_norm(s.parameters) == 0);
    set_free(&s);
}

static void a_bucket_holds_parameters_of_one_chunk(void **state) {
    (void)state;
    Set s = set_new();
    const int chunks[] = {1, 0, 1, -1, 0, 1}, buckets[] = {2, 0, 3, -1, 0, 4};
    for (int i = 0; i < 6; i++) {
        const char name[] = {(char)('a' + i), 0};
        parameters_add(s.parameters, name, SHAPE(4), normal, false);
        parameters_place(s.parameters, i, chunks[i]);
    }
    parameters_add_replica(s.parameters, "copy", &parameters_at(s.parameters, 2)->tensor); // of c: both are alone
    parameters_place(s.parameters, 6, 0);
    finish(&s, F32);
    for (int i = 0; i < 6; i++) {
        const Parameter *item = parameters_at(s.parameters, i);
        assert_int_equal(item->bucket, buckets[i]);
        if (item->bucket >= 0) assert_int_equal(bucket_at(s.parameters, item->bucket)->chunk, chunks[i]);
    }
    assert_int_equal(parameters_at(s.parameters, 6)->bucket, 1);
    assert_int_equal(buckets_count(s.parameters), 5);
    set_free(&s);
}

static void a_replica_starts_as_its_original_and_is_no_parameter_of_its_own(void **state) {
    (void)state;
    Error error = {0};
    char *folder = temporary_new(), *path = temporary_path(folder, "m.safetensors");
    Set a = set_new(), b = set_new();
    const Tensor *words = parameters_add(a.parameters, "words", SHAPE(3, 5), normal, true);
    parameters_add_replica(a.parameters, "head.words", words);
    parameters_add(a.parameters, "vector", SHAPE(5), normal, false);
    assert_int_equal(parameters_freeze(a.parameters, "head"), 0);
    assert_int_equal(parameters_freeze(a.parameters, "words"), 1);
    finish(&a, BF16);
    const Parameter *original = parameters_find(a.parameters, "words"), *copy = original->replica;
    assert_true(copy->is_replica && copy->replica == original && copy->decay && copy->frozen);
    assert_memory_equal(copy->master, original->master, 15 * sizeof(float));
    assert_memory_equal(copy->tensor.data, original->tensor.data, 15 * sizeof(uint16_t));
    assert_int_equal(parameters_whole_elements(a.parameters, false), 20);
    assert_int_equal(parameters_elements(a.parameters, false), 35);
    write_set(&a, path); // without the replica
    words = parameters_add(b.parameters, "words", SHAPE(3, 5), (Init){0}, true);
    parameters_add_replica(b.parameters, "another", words);
    parameters_add(b.parameters, "vector", SHAPE(5), (Init){0}, false);
    finish(&b, F32);
    assert_done(read_set(&b, path, &error), &error);
    assert_memory_equal(parameters_find(b.parameters, "another")->master, original->master, 15 * sizeof(float));
    set_free(&a);
    set_free(&b);
    free(path);
    temporary_free(folder);
}

// ---- the norm over a pipeline ----

enum { PARTS = 3, LENGTH = 3000 };

typedef struct NormCase {
    int data, stages, zero;
    double norm; // what came out, on all ranks
} NormCase;

static float gradient_at(int part, int64_t i) { return sinf((float)(part * LENGTH + i)) * (part == 1 ? 1e3f : 1e-2f); }

// Ranks stages * d + s. Part i of the model is on stage i * stages / PARTS, a copy of the first one on the last stage.
static void norm_rank(int rank, Comm *world, void *argument) {
    NormCase *c = argument;
    Error error = {0};
    int stage = rank % c->stages, count;
    Comm *data = comm_split(world, stage, rank, "data"),
         *pipeline = comm_split(world, rank / c->stages, rank, "pipeline");
    Parallel parallel = {.data = data, .pipeline = pipeline, .zero = c->zero};
    Backend *backend = cpu_backend_new(1, NULL, NULL);
    Parameters *p = parameters_new(backend, &parallel);
    for (int i = 0; i < PARTS; i++) {
        const char name[] = {(char)('a' + i), 0};
        parameters_add(p, name, SHAPE(LENGTH), normal, false);
    }
    parameters_add_replica(p, "copy", &parameters_at(p, 0)->tensor);
    for (int i = 0; i <= PARTS; i++) {
        int at = i < PARTS ? i * c->stages / PARTS : c->stages - 1;
        parameters_place(p, i, at == stage ? 0 : -1);
    }
    assert_done(parameters_finish(p, F32, 1, &error), &error);
    for (int i = 0; i < PARTS; i++) assert_int_equal(parameters_at(p, i)->stage, i * c->stages / PARTS);
    assert_int_equal(parameters_at(p, PARTS)->stage, c->stages - 1);
    const OwnedRange *ranges = parameters_owned(p, &count);
    for (int i = 0; i < count; i++) {
        int part = ranges[i].parameter->number % PARTS;
        for (int64_t k = 0; k < ranges[i].count; k++) ranges[i].gradient[k] = gradient_at(part, ranges[i].first + k);
    }
    double norm = parameters_gradient_norm(p);
    if (!rank) c->norm = norm;
    comm_barrier(world, "norm");
    assert_true(norm == c->norm); // on every rank
    parameters_free(p);
    backend_free(backend);
    comm_free(pipeline);
    comm_free(data);
}

static void the_norm_has_the_same_bits_on_every_pipeline(void **state) {
    (void)state;
    NormCase alone = {1, 1, 0, 0};
    double sum = 0;
    ranks_run(1, norm_rank, &alone);
    for (int i = 0; i < PARTS; i++)
        for (int k = 0; k < LENGTH; k++) sum += (double)gradient_at(i, k) * gradient_at(i, k);
    assert_true(fabs(alone.norm - sqrt(sum)) <= 1e-12 * sqrt(sum));
    for (int stages = 1; stages <= 4; stages++) { // the fourth has nothing
        for (int data = 1; data <= 2; data++) {
            for (int zero = 0; zero <= 1; zero++) {
                NormCase c = {data, stages, zero, 0};
                ranks_run(data * stages, norm_rank, &c);
                assert_true(c.norm == alone.norm);
            }
        }
    }
}

// ---- layers ----

static void projections_into_the_residual_stream_start_smaller(void **state) {
    (void)state;
    Set s = set_new();
    BlockConfig c = {
        .width = 64, .mlp_width = 256, .heads = 4, .kv_heads = 4, .residual_init_scale = 0.25, .init_std = 0.02};
    block_declare(s.parameters, "plain", &c, 0);
    c.init_std = 0;
    block_declare(s.parameters, "glorot", &c, 1);
    finish(&s, F32);
    assert_true(parameters_find(s.parameters, "plain.qkv.weight")->init.value == 0.02);
    assert_true(parameters_find(s.parameters, "plain.projection.weight")->init.value == 0.005);
    double up = parameters_find(s.parameters, "glorot.up.weight")->init.value;
    double down = parameters_find(s.parameters, "glorot.down.weight")->init.value;
    assert_true(fabs(up - sqrt(2.0 / 320)) < 1e-12 && fabs(down - 0.25 * up) < 1e-12);
    set_free(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_draw_depends_on_seed_name_and_place_alone),
        cmocka_unit_test(draws_have_the_deviation_asked_for),
        cmocka_unit_test(trained_parameters_come_first_in_blocks_and_frozen_ones_last),
        cmocka_unit_test(spare_rows_of_words_are_zeros_and_count_nowhere),
        cmocka_unit_test(freezing_stops_at_a_dot),
        cmocka_unit_test(matrices_have_bf16_shadows_and_vectors_stay_f32),
        cmocka_unit_test(gradients_nobody_wrote_become_zero),
        cmocka_unit_test(parameters_survive_a_file),
        cmocka_unit_test(a_file_of_another_model_is_refused_by_name),
        cmocka_unit_test(parameters_elsewhere_have_a_name_and_a_shape_alone),
        cmocka_unit_test(a_bucket_holds_parameters_of_one_chunk),
        cmocka_unit_test(a_replica_starts_as_its_original_and_is_no_parameter_of_its_own),
        cmocka_unit_test(the_norm_has_the_same_bits_on_every_pipeline),
        cmocka_unit_test(projections_into_the_residual_stream_start_smaller),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
