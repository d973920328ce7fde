/* The dry backend: every kernel is there, a pass over it has the shapes, costs and peaks of one that computes, and its
 * memory is never touched. (Of the joint model: tests/fusion/test_joint_dry.c.) */
#include "base/philox.h"
#include "kernels/cpu/cpu.h"
#include "kernels/dry.h"
#include "kernels/example.h"
#include "kernels/nn/parameters.h"
#include "kernels/ops.h"
#include "kernels/recompute.h"
#include "tests/support/test.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static void a_dry_backend_has_every_function_that_the_cpu_has(void **state) {
    (void)state;
    Backend *dry = dry_backend_new(), *cpu = cpu_backend_new(1, NULL, NULL);
    const char *d = (const char *)dry, *c = (const char *)cpu;
    void (*none)(void) = NULL;
    for (size_t at = offsetof(Backend, destroy); at < sizeof *cpu; at += sizeof none)
        if (memcmp(c + at, &none, sizeof none)) assert_memory_not_equal(d + at, &none, sizeof none);
    assert_true(dry->dry && !cpu->dry);
    backend_free(dry);
    backend_free(cpu);
}

// ---- one operator ----

typedef struct Sizes {
    size_t forward, backward, peak;
    Cost cost;
    int64_t shape[MAX_RANK];
    int rank;
} Sizes;

static Sizes sizes_of(Backend *b, const Operator *op, int variant, Dtype dtype, int *variants) {
    Sizes s = {0};
    TapeMemory *memory = tape_memory_new(b);
    Tape *t = tape_new_in(memory, true);
    Example e = {.tape = t, .rng = rng_for(4, PURPOSE_TEST, (uint64_t)variant), .dtype = dtype, .variant = variant};
    op->example(&e);
    assert_non_null(e.out);
    float *gradient = calloc((size_t)tensor_count(e.out) + 1, sizeof *gradient);
    s.forward = tape_memory_held(memory);
    s.rank = e.out->rank;
    memcpy(s.shape, e.out->shape, sizeof s.shape);
    tape_backward_from(t, e.out, gradient, ALL_GRADIENTS);
    s.backward = tape_memory_held(memory);
    s.peak = tape_memory_peak(memory);
    s.cost = tape_cost(t);
    *variants = e.variants;
    free(gradient);
    tape_free(t);
    tape_memory_free(memory);
    return s;
}

static void every_operator_takes_dry_what_it_takes(void **state) {
    (void)state;
    Backend *dry = dry_backend_new(), *cpu = cpu_backend_new(1, NULL, NULL);
    for (int i = 0; operator_list[i]; i++) {
        for (int dtype = F32; dtype <= BF16; dtype++) {
            int variants = 1;
            for (int v = 0; v < variants || v == 0; v++) {
                Sizes real = sizes_of(cpu, operator_list[i], v, (Dtype)dtype, &variants);
                Sizes same = sizes_of(dry, operator_list[i], v, (Dtype)dtype, &variants);
                assert_memory_equal(&real, &same, sizeof real);
            }
        }
    }
    backend_free(dry);
    backend_free(cpu);
}

// ---- a pass ----

enum { ROWS = 64, WIDTH = 96, LAYERS = 7 };

typedef struct Model {
    Tensor *scale, *up, *down;
} Model;

static Tensor *layer(Tape *t, const void *closure, Tensor *x) {
    const Model *m = closure;
    Tensor *h = rmsnorm(t, x, m->scale, 1e-5);
    return add(t, x, linear(t, gelu(t, linear(t, h, m->up, NULL), GELU_TANH), m->down, NULL));
}

static int64_t step(Backend *b, Dtype dtype, int rows, int width, bool again, bool in_halves, size_t peaks[4]) {
    Error error = {0};
    Model m;
    Parameters *p = parameters_new(b, NULL);
    Init normal = {.kind = INIT_NORMAL, .value = 0.1};
    m.scale = parameters_add(p, "scale", SHAPE(width), normal, false);
    m.up = parameters_add(p, "up", SHAPE(4 * width, width), normal, true);
    m.down = parameters_add(p, "down", SHAPE(width, 4 * width), normal, true);
    assert_done(parameters_finish(p, dtype, 1, &error), &error);
    parameters_begin_step(p);
    TapeMemory *memory = tape_memory_new(b);
    Tape *t = tape_new_in(memory, true);
    float *zeros = calloc((size_t)rows * (size_t)width, sizeof *zeros);
    Tensor *x = tape_arrival(t, dtype, SHAPE(rows, width), zeros, true), *h = x;
    for (int i = 0; i < LAYERS; i++) h = again ? tape_recompute(t, layer, &m, sizeof m, h) : layer(t, &m, h);
    Tensor *loss = sum(t, h, 1);
    peaks[0] = tape_memory_peak(memory);
    tape_seed(t, loss, NULL);
    tape_backward_seeded(t, in_halves ? INPUT_GRADIENTS : ALL_GRADIENTS);
    tape_read_gradient(t, x, zeros);
    peaks[1] = tape_memory_held(memory);
    if (in_halves) tape_backward_seeded(t, WEIGHT_GRADIENTS);
    peaks[2] = tape_memory_held(memory);
    peaks[3] = tape_memory_peak(memory);
    int64_t allocations = tape_memory_system_allocations(memory);
    assert_true(tape_cost(t).flop > 2.0 * LAYERS * rows * 8 * width * width);
    free(zeros);
    tape_free(t);
    tape_memory_free(memory);
    parameters_free(p);
    return allocations;
}

static void a_dry_pass_has_the_peaks_of_one_that_computes(void **state) {
    (void)state;
    Backend *dry = dry_backend_new(), *cpu = cpu_backend_new(2, NULL, NULL);
    for (int i = 0; i < 8; i++) {
        size_t real[4], same[4];
        Dtype dtype = i & 1 ? BF16 : F32;
        int64_t chunks = step(cpu, dtype, ROWS, WIDTH, i & 2, i & 4, real);
        assert_int_equal(step(dry, dtype, ROWS, WIDTH, i & 2, i & 4, same), chunks);
        assert_memory_equal(real, same, sizeof real);
    }
    backend_free(dry);
    backend_free(cpu);
}

static void a_pass_beyond_any_machine_takes_no_memory(void **state) {
    (void)state;
    enum { WIDE = 1 << 17, FEW = 256 };
    size_t peaks[4];
    Backend *dry = dry_backend_new();
    step(dry, BF16, FEW, WIDE, false, true, peaks); // weights of 1 TiB
    size_t activation = (size_t)FEW * WIDE * 2;
    assert_true(peaks[0] > LAYERS * 11 * activation && peaks[0] < (LAYERS * 12 + 2) * activation);
    size_t between = 10 * activation + WIDE * sizeof(float); // inputs of products, gradients behind them, that of scale
    assert_true(peaks[1] == peaks[2] + LAYERS * between);
    backend_free(dry);
}

// ---- memory ----

static void what_is_read_from_it_is_zeros(void **state) {
    (void)state;
    Backend *b = dry_backend_new();
    unsigned char host[100];
    void *memory = b->allocate(b, (size_t)1 << 40);
    memset(host, 7, sizeof host);
    b->upload(b, memory, host, sizeof host);
    b->download(b, host, memory, sizeof host);
    for (size_t i = 0; i < sizeof host; i++) assert_int_equal(host[i], 0);
    assert_int_equal(b->first_nonfinite(b, memory, 100, F32), -1);
    assert_null(b->fault(b));
    b->release(b, memory, (size_t)1 << 40);
    b->release(b, b->allocate(b, 0), 0);
    b->release(b, NULL, 0);
    backend_free(b);
}

static void memory_that_cannot_be_is_refused(void **state) {
    (void)state;
    Backend *b = dry_backend_new();
    assert_null(b->allocate(b, (size_t)1 << 60));
    backend_free(b);
}

// ---- the clock ----

static double product_seconds(Backend *b, int64_t m, int64_t n, int64_t k) {
    double before = dry_seconds(b);
    Matmul product = {.m = m, .n = n, .k = k, .batch = 2, .in = BF16, .out = F32};
    b->matmul(b, &product);
    return dry_seconds(b) - before;
}

static void set_rates(Backend *b, double flops, double bandwidth) {
    dry_set_rates(b, &(DryRates){.bf16 = flops, .f32 = flops, .bandwidth = bandwidth});
}

static void its_clock_goes_by_arithmetic_or_by_memory_whichever_takes_longer(void **state) {
    (void)state;
    Backend *b = dry_backend_new();
    assert_true(product_seconds(b, 10, 20, 30) == 0); // it stands still
    set_rates(b, 100, 1e30);
    assert_true(fabs(product_seconds(b, 10, 20, 30) - 2 * 2 * 10 * 20 * 30 / 100.0) <= 1e-9);
    set_rates(b, 1e30, 50);
    assert_true(dry_seconds(b) == 0);
    assert_true(fabs(product_seconds(b, 10, 20, 30) - 2 * (2 * (10 + 20) * 30 + 4 * 10 * 20) / 50.0) <= 1e-9);
    backend_free(b);
}

// Of matrix products and attention; all other operators go by memory.
static void its_clock_agrees_with_what_operators_say(void **state) {
    (void)state;
    const Operator *const ops[] = {&op_linear, &op_batched_matmul, &op_attention, &op_patch_embedding};
    Backend *b = dry_backend_new();
    for (int i = 0; i < 4; i++) {
        int variants = 1;
        set_rates(b, 1, 1e30);
        Sizes s = sizes_of(b, ops[i], 0, F32, &variants);
        assert_true(fabs(dry_seconds(b) / (s.cost.flop + s.cost.backward_flop) - 1) <= 1e-9);
    }
    backend_free(b);
}

// ---- lanes ----

static void work(Backend *b, int64_t seconds) { (void)product_seconds(b, 1, 1, seconds); } // 4 FLOP each

static void assert_lane(const Backend *b, int lane, double now, double busy, int whom, double waited) {
    DryLane l = dry_lane(b, lane);
    assert_true(fabs(l.now - now) <= 1e-9 && fabs(l.busy - busy) <= 1e-9 && fabs(l.waited[whom] - waited) <= 1e-9);
}

//   lane 0:  3 s             1 s, waits 1 s for lane 1,      4 s
//   lane 1:  1 s, waits 2 s       2 s
static void each_lane_has_a_clock_and_waits_for_marks_of_others(void **state) {
    (void)state;
    Backend *b = dry_backend_new();
    dry_open_lanes(b);
    set_rates(b, 4, 1e30);
    work(b, 3);
    LaneMark first = *b->here;
    b->lane(b, 1);
    work(b, 1);
    LaneMark early = *b->here;
    b->lane(b, 0);
    b->lane_wait(b, 0, early); // long past
    assert_lane(b, 0, 3, 3, 1, 0);
    b->lane(b, 1);
    b->lane_wait(b, 1, first);
    assert_lane(b, 1, 3, 1, 0, 2);
    work(b, 2);
    b->lane(b, 0);
    work(b, 1);
    b->lanes_meet(b);
    work(b, 4);
    assert_lane(b, 0, 9, 8, 1, 1);
    assert_lane(b, 1, 5, 3, 0, 2);
    assert_lane(b, 2, 5, 0, 1, 5);
    assert_true(fabs(dry_seconds(b) - 11) <= 1e-9 && fabs(dry_floor(b) - 11) <= 1e-9);
    set_rates(b, 4, 1e30);
    assert_lane(b, 0, 0, 0, 1, 0);
    backend_free(b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_dry_backend_has_every_function_that_the_cpu_has),
        cmocka_unit_test(every_operator_takes_dry_what_it_takes),
        cmocka_unit_test(a_dry_pass_has_the_peaks_of_one_that_computes),
        cmocka_unit_test(a_pass_beyond_any_machine_takes_no_memory),
        cmocka_unit_test(what_is_read_from_it_is_zeros),
        cmocka_unit_test(memory_that_cannot_be_is_refused),
        cmocka_unit_test(its_clock_goes_by_arithmetic_or_by_memory_whichever_takes_longer),
        cmocka_unit_test(its_clock_agrees_with_what_operators_say),
        cmocka_unit_test(each_lane_has_a_clock_and_waits_for_marks_of_others),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
