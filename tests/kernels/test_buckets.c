/* How parameters are cut into buckets and shared out over ranks, and the buffers that buckets come and go in. */
#include "kernels/cpu/cpu.h"
#include "kernels/dry.h"
#include "kernels/nn/buckets.h"
#include "kernels/nn/buffers.h"
#include "tests/support/ranks.h"
#include "tests/support/test.h"
#include <stdlib.h>
#include <string.h>

enum { BLOCK_BYTES = 4 * PARAMETER_BLOCK, ROOM = 1 << 16 };

static const Init normal = {.kind = INIT_NORMAL, .value = 0.5};

static Parameters *parameters_of(Backend *backend, Comm *data, int stage) {
    Parallel parallel = {.data = data, .zero = stage, .bucket_bytes = 4 * BLOCK_BYTES};
    return parameters_new(backend, &parallel);
}

static Parameter *added(Parameters *p, const char *name) { return parameters_find(p, name); }

static void consecutive_parameters_share_a_bucket_and_a_large_one_is_alone(void **state) {
    (void)state;
    Error error = {0};
    Backend *backend = cpu_backend_new(1, NULL, NULL);
    Parameters *p = parameters_of(backend, NULL, 0);
    parameters_add(p, "a", SHAPE(100), normal, false);
    Tensor *partial = parameters_add(p, "partial", SHAPE(1025), normal, false);
    parameters_add(p, "frozen", SHAPE(10), normal, false);
    parameters_add(p, "large", SHAPE(9 * PARAMETER_BLOCK), normal, false);
    parameters_add(p, "b", SHAPE(3 * PARAMETER_BLOCK), normal, false);
    parameters_add(p, "c", SHAPE(PARAMETER_BLOCK), normal, false);
    parameters_add(p, "d", SHAPE(1), normal, false);
    parameters_set_partial(p, partial);
    assert_int_equal(parameters_freeze(p, "frozen"), 1);
    assert_done(parameters_finish(p, F32, 1, &error), &error);
    const char *const names[] = {"a", "partial", "large", "b", "c", "d", "frozen"};
    const int bucket[] = {0, 0, 1, 2, 2, 3, 4};
    const int64_t block[] = {2, 0, 3, 12, 15, 16, 17}; // partial ones stand first
    for (int i = 0; i < 7; i++) {
        assert_int_equal(added(p, names[i])->bucket, bucket[i]);
        assert_int_equal(added(p, names[i])->offset, block[i] * PARAMETER_BLOCK);
    }
    assert_int_equal(buckets_count(p), 5);
    assert_int_equal(bucket_at(p, 0)->partial_blocks, 2);
    assert_int_equal(bucket_at(p, 1)->blocks, 9);
    assert_true(bucket_at(p, 4)->frozen && !bucket_at(p, 3)->frozen);
    parameters_free(p);
    backend_free(backend);
}

// Memory that held other gradients since has its ends zeroed again.
static void only_what_nobody_wrote_is_zeroed(void **state) {
    (void)state;
    Error error = {0};
    Backend *dry = dry_backend_new();
    Parameters *p = parameters_of(dry, NULL, 0);
    Tensor *written = parameters_add(p, "written", SHAPE(100), normal, false);
    Tensor *words = parameters_add(p, "words", SHAPE(7, 90), normal, true);
    parameters_add(p, "left", SHAPE(50), normal, false);
    assert_done(parameters_finish(p, F32, 1, &error), &error);
    Bucket *b = bucket_at(p, 0);
    const int zeroed[] = {2, 3}; // "left" and the spare rows of the words; in other memory "written" too
    words->spare_rows = 3;
    for (int i = 0; i < 2; i++) {
        int64_t before = dry_calls(dry, "zero");
        bucket_begin_backward(b);
        written->grad_written = words->grad_written = true;
        bucket_end_backward(p, b);
        assert_int_equal(dry_calls(dry, "zero") - before, zeroed[i]);
        bucket_set_gradients(b, b->gradients);
    }
    parameters_free(p);
    backend_free(dry);
}

// ---- shared out ----

typedef struct Sharing {
    int stage;
    Dtype compute;
    const SafeTensors *file; // to be loaded; NULL: none
    int owners[ROOM];        // of each element of the flat buffers
    float masters[ROOM];
} Sharing;

static void declare(Parameters *p) {
    parameters_add(p, "table", SHAPE(77, 90), normal, true);
    parameters_add(p, "still", SHAPE(50, 50), normal, true);
    parameters_add(p, "scale", SHAPE(90), normal, false);
    parameters_add(p, "map", SHAPE(90, 90), normal, true);
    parameters_freeze(p, "still");
}

static void sharing_rank(int rank, Comm *world, void *argument) {
    Sharing *s = argument;
    Error error = {0};
    int count;
    (void)rank;
    Backend *backend = cpu_backend_new(1, NULL, NULL);
    Parameters *p = parameters_of(backend, world, s->stage);
    declare(p);
    assert_done(parameters_finish(p, s->compute, 3, &error), &error);
    if (s->file) assert_done(parameters_import(p, s->file, "file", &error), &error);
    const OwnedRange *ranges = parameters_owned(p, &count);
    for (int i = 0; i < count; i++) {
        int64_t at = ranges[i].parameter->offset + ranges[i].first;
        for (int64_t k = 0; k < ranges[i].count; k++) {
            __atomic_fetch_add(&s->owners[at + k], 1, __ATOMIC_RELAXED);
            s->masters[at + k] = ranges[i].master[k];
            if (ranges[i].shadow) assert_int_equal(ranges[i].shadow[k], f32_to_bf16(ranges[i].master[k]));
            assert_int_equal(ranges[i].gradient == NULL, ranges[i].parameter->frozen);
        }
    }
    comm_barrier(world, "masters");
    for (int i = 0; i < parameters_count(p) && s->stage < 3; i++) { // what operators read is whole on every rank
        const Parameter *item = parameters_at(p, i);
        for (int64_t k = 0; k < tensor_count(&item->tensor); k++) {
            float master = s->masters[item->offset + k];
            if (item->tensor.dtype == F32)
                assert_true(((const float *)item->tensor.data)[k] == master);
            else
                assert_int_equal(((const uint16_t *)item->tensor.data)[k], f32_to_bf16(master));
        }
    }
    parameters_free(p);
    backend_free(backend);
}

// The same parameters on one rank: (count of the flat buffers) masters by their place there.
static void expect_as_alone(const Sharing *s, Parameters *alone) {
    for (int i = 0; i < parameters_count(alone); i++) {
        const Parameter *item = parameters_at(alone, i);
        int64_t count = tensor_count(&item->tensor);
        assert_memory_equal(s->masters + item->offset, item->master, (size_t)count * sizeof(float));
        for (int64_t k = 0; k < count; k++) assert_int_equal(s->owners[item->offset + k], 1);
    }
}

static void ranks_own_each_element_once_and_draw_what_one_rank_draws(void **state) {
    (void)state;
    static Sharing s;
    Error error = {0};
    Backend *backend = cpu_backend_new(1, NULL, NULL);
    for (int bf16 = 0; bf16 < 2; bf16++) {
        Parameters *alone = parameters_of(backend, NULL, 0);
        declare(alone);
        assert_done(parameters_finish(alone, bf16 ? BF16 : F32, 3, &error), &error);
        for (int stage = 1; stage <= 3; stage++) {
            for (int ranks = 2; ranks <= 5; ranks++) {
                s = (Sharing){.stage = stage, .compute = bf16 ? BF16 : F32};
                ranks_run(ranks, sharing_rank, &s);
                expect_as_alone(&s, alone);
            }
        }
        parameters_free(alone);
    }
    backend_free(backend);
}

static void ranks_take_what_they_own_from_a_file(void **state) {
    (void)state;
    static Sharing s;
    Error error = {0};
    SafeTensor *tensors;
    SafeTensors file = {0};
    Arena *memory = arena_new(1 << 16);
    char *folder = temporary_new(), *path = temporary_path(folder, "model.safetensors");
    Backend *backend = cpu_backend_new(1, NULL, NULL);
    Parameters *alone = parameters_of(backend, NULL, 0);
    declare(alone);
    assert_done(parameters_finish(alone, F32, 8, &error), &error); // another seed than the ranks draw with
    int count = parameters_export(alone, memory, &tensors);
    assert_done(safetensors_write(path, tensors, count, NULL, 0, &error), &error);
    assert_done(safetensors_open(&file, path, &error), &error);
    for (int stage = 1; stage <= 3; stage++) {
        s = (Sharing){.stage = stage, .compute = F32, .file = &file};
        ranks_run(3, sharing_rank, &s);
        expect_as_alone(&s, alone);
    }
    safetensors_close(&file);
    parameters_free(alone);
    backend_free(backend);
    arena_free(memory);
    free(path);
    temporary_free(folder);
}

// ---- buffers ----

static void buffers_are_used_again_by_what_they_fit(void **state) {
    (void)state;
    static char own[1000];
    Backend *backend = cpu_backend_new(1, NULL, NULL);
    Buffers *b = buffers_new(backend);
    void *small = buffers_take(b, 1000), *large = buffers_take(b, 9000);
    assert_ptr_not_equal(small, large);
    assert_null(buffers_take(b, 0));
    assert_int_equal(buffers_bytes(b), 10000);
    buffers_give(b, small);
    buffers_give(b, large);
    buffers_give(b, NULL);
    assert_ptr_equal(buffers_take(b, 900), small);
    assert_ptr_not_equal(buffers_take(b, 900), large); // which stays free for what needs it
    assert_ptr_equal(buffers_take(b, 8000), large);
    buffers_adopt(b, own, sizeof own);
    buffers_give(b, own);
    assert_ptr_equal(buffers_take(b, 1000), own);
    assert_int_equal(buffers_bytes(b), 10900);
    buffers_free(b);
    buffers_free(NULL);
    backend_free(backend);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(consecutive_parameters_share_a_bucket_and_a_large_one_is_alone),
        cmocka_unit_test(only_what_nobody_wrote_is_zeroed),
        cmocka_unit_test(ranks_own_each_element_once_and_draw_what_one_rank_draws),
        cmocka_unit_test(ranks_take_what_they_own_from_a_file),
        cmocka_unit_test(buffers_are_used_again_by_what_they_fit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
