/* What a plan says that a run holds on a GPU, against the same run on a CPU backend whose memory lies in regions as a
 * GPU's does; what fits into a limit, and what is said where nothing does. */
#include "kernels/cpu/cpu.h"
#include "kernels/cuda/host/regions.h"
#include "kernels/cuda/host/work_space.h"
#include "kernels/device.h"
#include "kernels/dry.h"
#include "kernels/dry_gpu.h"
#include "tests/support/test.h"
#include "train/device_fit.h"
#include "train/lane_balance.h"
#include "train/optimizer.h"
#include "train/recompute_plan.h"
#include "train/step.h"
#include "train/synthetic.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static Arena *arena;

static int open_arena(void **state) {
    (void)state;
    arena = arena_new(1 << 20);
    return 0;
}
static int close_arena(void **state) {
    (void)state;
    arena_free(arena);
    return 0;
}

// ---- a CPU whose memory lies in regions ----

enum { ADDRESSES = 1 << 30 }; // bytes that a region may grow to

static bool reserve(void *context, size_t bytes, uintptr_t *address) {
    (void)context;
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    *address = (uintptr_t)memory;
    return memory != MAP_FAILED;
}
static void unreserve(void *context, uintptr_t address, size_t bytes) {
    (void)context;
    munmap((void *)address, bytes); // NOLINT(performance-no-int-to-ptr)
}
static bool back(void *context, uintptr_t address, size_t bytes, uint64_t *piece) {
    (void)context, (void)address, (void)bytes;
    *piece = 0;
    return true;
}
static void unback(void *context, uintptr_t address, size_t bytes, uint64_t piece) {
    (void)context, (void)address, (void)bytes, (void)piece;
}

typedef struct RegionCpu {
    Backend backend; // first
    Backend *cpu;
    Regions *regions;
} RegionCpu;

static void *allocate(void *backend, size_t bytes) { return regions_allocate(((RegionCpu *)backend)->regions, bytes); }
static bool extend(void *backend, void *memory, size_t bytes, size_t more) {
    return regions_extend(((RegionCpu *)backend)->regions, memory, bytes, more);
}
static void release(void *backend, void *memory, size_t bytes) {
    (void)bytes;
    regions_release(((RegionCpu *)backend)->regions, memory);
}

// As a GPU has it, so that the same memory is held.
static void cross_entropy_both(Backend *b, float *lse, float *picked, void *dx, float *dw, const void *x, const void *w,
                               const int32_t *targets, const float *weight, int64_t n, int64_t width, Vocabulary v,
                               Dtype t) {
    float *ones = malloc(((size_t)n + 1) * sizeof *ones);
    assert_non_null(ones);
    for (int64_t i = 0; i < n; i++) ones[i] = 1;
    b->cross_entropy_forward(b, lse, picked, x, w, targets, n, width, v, t);
    b->cross_entropy_backward(b, dx, false, dw, false, ones, lse, x, w, targets, weight, n, width, v, t);
    free(ones);
}

static void region_cpu_open(RegionCpu *r) {
    RegionDriver driver = {NULL, WORK_GRANULARITY, reserve, unreserve, back, unback};
    r->cpu = cpu_backend_new(2, NULL, NULL);
    r->backend = *r->cpu;
    r->backend.allocate = allocate, r->backend.extend = extend, r->backend.release = release;
    r->backend.cross_entropy_both = cross_entropy_both;
    r->regions = regions_new(&driver, ADDRESSES);
}
static void region_cpu_close(RegionCpu *r) {
    regions_free(r->regions);
    backend_free(r->cpu);
}

// ---- a run ----

#define MODEL                                                                                                          \
    "device=cuda", "tokenizer=words", "model.text.vocabulary=3072", "model.text.context=96", "model.text.width=96",    \
        "model.text.layers=3", "model.text.heads=3", "model.vision.image_size=64", "model.vision.patch=8",             \
        "model.vision.width=96", "model.vision.layers=2", "model.vision.heads=3", "model.vision.enabled=true",         \
        "model.weight.caption=1", "model.weight.contrastive=1", "model.weight.mae=1", "data.0.path=text",              \
        "data.0.objectives=[lm]", "data.0.batch=12", "data.0.validation=held"
#define PICTURES "data.1.path=pairs", "data.1.objectives=[caption, contrastive, mae]", "data.1.batch=9"
static const char *const base[] = {MODEL, PICTURES};
enum { BASE = sizeof base / sizeof *base, MOST_SETTINGS = BASE + 8 };

static TrainConfig config_of(const char *const *more, int count) {
    const char *settings[MOST_SETTINGS];
    TrainConfig c;
    Error error = {0};
    for (int i = 0; i < BASE; i++) settings[i] = base[i];
    for (int i = 0; i < count; i++) settings[BASE + i] = more[i];
    assert_done(train_config_read_planned(&c, NULL, settings, BASE + count, arena, &error), &error);
    return c;
}
#define CONFIG(...)                                                                                                    \
    config_of((const char *const[]){__VA_ARGS__}, (int)(sizeof((const char *const[]){__VA_ARGS__}) / sizeof(char *)))

static Layout layout_of(const TrainConfig *c, int ranks) {
    Layout l;
    Error error = {0};
    assert_done(layout_resolve(c, ranks, &l, &error), &error);
    return l;
}

static DeviceMemory plan_of(const TrainConfig *c, double limit) {
    Layout l = layout_of(c, 1);
    DeviceMemory m;
    Error error = {0};
    assert_done(device_memory_plan(c, &l, device_limit(limit), &m, &error), &error);
    return m;
}

static double total_of(const TrainConfig *c, double limit) {
    DeviceMemory m = plan_of(c, limit);
    return device_memory_total(&m);
}

// Two steps and a validation, as run.c does them. Bytes that regions hold in the end, beside the block of verdicts.
static double run(const TrainConfig *c) {
    RegionCpu device;
    Error error = {0};
    StepLoss loss;
    Layout l = layout_of(c, 1);
    region_cpu_open(&device);
    Backend *b = &device.backend;
    Parallel alone = {.ordered = c->reproducible == REPRODUCIBLE_LAYOUT, .bucket_bytes = c->parallel.bucket};
    Joint *joint = joint_new(b, &c->model, &alone, c->precision ? BF16 : F32, 1, &error);
    if (!joint) fail_msg("%s", error.message);
    Optimizer *optimizer = optimizer_new(b, joint_parameters(joint), &c->optimizer, 10);
    Tape *tape = tape_new(b, true), *inference = tape_new(b, false);
    Gradients *gradients = gradients_new(joint_parameters(joint), tape, NULL);
    Batch batch = synthetic_batch(c, 0, 1, arena);
    StepGate *gate = step_gate_new(b, l.pieces, NULL, NULL);
    StepSetup setup = {tape, joint, gradients, .pieces = l.pieces, .end = l.pieces, .gate = gate, .seed = 1};
    for (int i = 0; i < 2; i++) {
        StepUnderWay *step = step_start(&setup, &batch);
        optimizer_step_gated(optimizer, i + 1, step_gate_close(gate, gradients, 1));
        step_send(step);
        assert_done(step_finish(step, &loss, &error), &error);
    }
    step_gate_free(gate);
    setup.tape = inference, setup.gate = NULL;
    assert_done(step_run(&setup, &batch, &loss, &error), &error);
    double held = (double)regions_held(device.regions);
    gradients_free(gradients);
    tape_free(tape);
    tape_free(inference);
    optimizer_free(optimizer);
    joint_free(joint);
    region_cpu_close(&device);
    return held;
}

// ---- tests ----

static void assert_foretold(const TrainConfig *c) {
    DeviceMemory m = plan_of(c, 0);
    double got = run(c), planned = m.tensors - m.scratch - m.products - m.sent;
    if (!(got == planned)) fail_msg("planned %.0f bytes of tensors, got %.0f", planned, got);
}

static void a_plan_is_what_a_run_holds_to_the_byte(void **state) {
    (void)state;
    TrainConfig plain = CONFIG("train.microbatches=1");
    assert_foretold(&plain);
    TrainConfig half = CONFIG("precision=bf16", "train.recompute=selective");
    assert_foretold(&half);
}

static void pieces_of_several_shapes_are_foretold_too(void **state) {
    (void)state;
    TrainConfig pieces = CONFIG("train.microbatches=5"); // of 9 pictures and 12 rows
    assert_foretold(&pieces);
    TrainConfig ordered = CONFIG("train.microbatches=4", "train.reproducible=layout", "precision=bf16",
                                 "train.recompute=full", "model.text.dropout=0.1");
    assert_foretold(&ordered);
}

// Near the limit memory grows by what is needed alone.
static void less_room_than_a_run_would_take_may_do(void **state) {
    (void)state;
    TrainConfig c = CONFIG("train.microbatches=1", "data.0.batch=200");
    double wanted = total_of(&c, 0);
    assert_true(plan_of(&c, wanted).fits);
    assert_true(total_of(&c, wanted - 1) < wanted);
    assert_false(plan_of(&c, 0.9 * wanted).fits);
}

static void the_largest_microbatch_that_fits_is_found(void **state) {
    (void)state;
    TrainConfig c = CONFIG("train.microbatches=1", "precision=bf16", "data.0.batch=240");
    Layout l = layout_of(&c, 1);
    Error error = {0};
    int pieces;
    c.microbatches = 4;
    double limit = total_of(&c, 0);
    c.microbatches = 3;
    assert_false(plan_of(&c, limit).fits);
    c.microbatches = 1;
    assert_done(device_fit_pieces(&c, 1, device_limit(limit), &pieces, &error), &error);
    assert_int_equal(pieces, 4);
    assert_false(device_fit_check(&c, &l, device_limit(limit), NULL, &error));
    assert_message_has(&error, "does not fit into the GPU's memory");
    assert_message_has(&error, "of 60 samples: train.microbatches=4");
    assert_false(device_fit_check(&c, &l, device_limit(8e8), NULL, &error));
    assert_message_has(&error, "not even single samples do");
    assert_done(device_fit_check(&c, &l, device_limit(80e9), NULL, &error), &error);
}

static RecomputePlan choice_of(TrainConfig *c, double limit) {
    Layout l = layout_of(c, 1);
    RecomputePlan p;
    Error error = {0};
    c->model.recompute = RECOMPUTE_AUTO;
    assert_done(recompute_plan(c, &l, device_limit(limit), arena, &p, &error), &error);
    DeviceMemory again = plan_of(c, limit); // the config has the choice
    assert_true(again.tensors == p.memory.tensors && again.fits == p.memory.fits);
    return p;
}

static void recomputation_is_the_least_that_fits(void **state) {
    (void)state;
    TrainConfig c = CONFIG("model.text.layers=12");
    double none = total_of(&c, 0);
    c.model.recompute = RECOMPUTE_FULL;
    double full = total_of(&c, 0);
    RecomputePlan p = choice_of(&c, none);
    assert_true(p.chosen == 0 && c.model.recompute == RECOMPUTE_NONE && p.memory.fits);
    p = choice_of(&c, full);
    assert_true(p.chosen == p.blocks && c.model.recompute == RECOMPUTE_FULL && p.memory.fits);
    assert_int_equal(c.model.recompute_units.count, 0);
    p = choice_of(&c, 0.9 * full);
    assert_true(c.model.recompute == RECOMPUTE_FULL && !p.memory.fits);
}

// Every number of blocks in each of two stacks, beside what was chosen.
static void no_cheaper_choice_of_blocks_fits(void **state) {
    (void)state;
    TrainConfig c = CONFIG("model.text.layers=4", "train.microbatches=1");
    double none = total_of(&c, 0);
    c.model.recompute = RECOMPUTE_FULL;
    double full = total_of(&c, 0);
    for (int i = 1; i < 4; i++) {
        double limit = full + (none - full) * i / 4;
        RecomputePlan p = choice_of(&c, limit);
        assert_true(p.memory.fits && p.chosen > 0 && p.chosen < p.blocks);
        assert_true(p.memory.seconds > p.without);
        StringList kept = c.model.recompute_units;
        assert_int_equal(kept.count, p.chosen);
        for (int less = 0; less < kept.count; less++) { // not one of them is in vain
            const char *others[64];
            int n = 0;
            for (int k = 0; k < kept.count; k++)
                if (k != less) others[n++] = kept.items[k];
            c.model.recompute_units = (StringList){others, n};
            Recompute mode = c.model.recompute;
            if (!n) c.model.recompute = RECOMPUTE_NONE;
            bool fits = plan_of(&c, limit).fits;
            // the first blocks of a stack are as good as any, so a stack without its last one is the least
            bool last = less + 1 == kept.count || strncmp(kept.items[less], kept.items[less + 1], 4) != 0;
            if (last) assert_false(fits);
            c.model.recompute = mode;
        }
        c.model.recompute_units = (StringList){0};
    }
}

// Each lane has work space and its own peak; where that is too much there are fewer, before anything is computed again.
static void lanes_are_as_many_as_fit(void **state) {
    (void)state;
    Error error = {0};
    DeviceMemory m[4] = {{0}};
    TrainConfig c = CONFIG("train.recompute=auto");
    Layout l = layout_of(&c, 1);
    for (int lanes = 1; lanes <= 3; lanes++) {
        c.model.recompute = RECOMPUTE_NONE, c.model.lanes = lanes;
        m[lanes] = plan_of(&c, 0);
        assert_true(m[lanes].scratch == lanes * (double)WORK_SCRATCH_FIRST);
        assert_true(m[lanes].products == lanes * (double)WORK_PRODUCTS);
        assert_true(m[lanes].activations + m[lanes].validation > m[lanes - 1].activations + m[lanes - 1].validation);
    }
    for (int lanes = 1; lanes <= 3; lanes++) {
        c.model.recompute = RECOMPUTE_AUTO, c.model.lanes = 0;
        assert_done(device_fit_lanes(&c, &l, device_limit(device_memory_total(&m[lanes])), &error), &error);
        assert_int_equal(c.model.lanes, lanes);
    }
}

// ---- balance of lanes ----

typedef struct BalanceCase {
    double work[3]; // seconds
    LaneSource source[2];
    int multiple;
    LaneBalance balance;
    int64_t batch[2];
} BalanceCase;

static void lanes_that_wait_get_as_much_work_as_the_longest(void **state) {
    (void)state;
    enum { PICTURES_AND_TEXTS = 1 | 4, ROWS = 2, ALL = 7 }; // lanes, bits
    static const BalanceCase cases[] = {
        {{10, 4, 3}, {{PICTURES_AND_TEXTS, 40}, {ROWS, 16}}, 8, LANES_WAIT, {40, 40}},
        {{5, 12, 3}, {{PICTURES_AND_TEXTS, 40}, {ROWS, 16}}, 8, LANES_WAIT, {96, 16}},
        {{3, 12, 5}, {{PICTURES_AND_TEXTS, 40}, {ROWS, 16}}, 8, LANES_WAIT, {96, 16}},
        {{10, 4, 3}, {{PICTURES_AND_TEXTS, 40}, {ROWS, 18}}, 4, LANES_WAIT, {40, 44}}, // 45
        {{10, 5, 3}, {{PICTURES_AND_TEXTS, 40}, {ROWS, 3}}, 8, LANES_WAIT, {40, 6}},   // fewer than pieces
        {{10, 9, 9.5}, {{PICTURES_AND_TEXTS, 40}, {ROWS, 16}}, 8, LANES_BALANCED, {40, 16}},
        {{10, 9, 3}, {{PICTURES_AND_TEXTS, 40}, {ROWS, 16}}, 8, LANES_TIED, {40, 16}},
        {{10, 4, 3}, {{PICTURES_AND_TEXTS, 40}, {ALL, 16}}, 8, LANES_TIED, {40, 16}},
        {{5, 12, 3}, {{PICTURES_AND_TEXTS, 0}, {ROWS, 16}}, 8, LANES_TIED, {0, 16}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const BalanceCase *c = &cases[i];
        int64_t batch[2];
        assert_int_equal(lane_balance(c->work, 3, c->source, 2, c->multiple, batch), c->balance);
        assert_memory_equal(batch, c->batch, sizeof batch);
    }
}

// All work is in a lane or behind them, and rows proposed for the second bring it to the first.
static void proposed_batches_balance_a_step(void **state) {
    (void)state;
    Error error = {0};
    LaneTimes t, then;
    LaneSource sources[2] = {{2, 2048}, {1 | 4, 8192}};
    int64_t batch[2];
    char setting[64];
    TrainConfig c = CONFIG("precision=bf16", "train.lanes=3", "data.0.batch=2048", "data.1.batch=8192");
    Layout l = layout_of(&c, 1);
    assert_done(lane_times(&c, &l, gpu_kind("h100"), &t, &error), &error);
    assert_int_equal(t.lanes, 3);
    assert_true(fabs((t.work[0] + t.work[1] + t.work[2] + t.behind) / t.alone - 1) <= 1e-9);
    assert_true(t.chain < t.alone && t.chain >= t.work[0] + t.behind && t.floor > 0 && t.floor < t.alone);
    assert_int_equal(lane_balance(t.work, 3, sources, 2, 1, batch), LANES_WAIT);
    snprintf(setting, sizeof setting, "data.0.batch=%d", (int)batch[0]);
    c = CONFIG("precision=bf16", "train.lanes=3", setting, "data.1.batch=8192");
    assert_done(lane_times(&c, &l, gpu_kind("h100"), &then, &error), &error);
    assert_true(fabs(then.work[1] / then.work[0] - 1) <= 0.1);
}

// The largest product: of the second map's weight, over all rows. (One head: attention takes less.)
static void rounding_to_fp8_takes_work_space(void **state) {
    (void)state;
    TrainConfig c = CONFIG("precision=fp8", "model.text.vocabulary=128", "sequence.lm=96", "data.0.batch=2048",
                           "data.1.batch=1", "train.microbatches=1", "model.text.heads=1");
    const int64_t rows = 2048 * 96, granularity = WORK_GRANULARITY;
    double wanted = (double)(work_fp8(96, rows) + work_fp8(4 * 96, rows)), held = plan_of(&c, 0).scratch;
    assert_true(held >= wanted && held < wanted + 2 * (double)granularity);
    c = CONFIG("precision=bf16", "model.text.vocabulary=128", "sequence.lm=96", "data.0.batch=2048", "data.1.batch=1",
               "train.microbatches=1", "model.text.heads=1");
    assert_true(plan_of(&c, 0).scratch < wanted);
}

static void shards_take_their_part(void **state) {
    (void)state;
    TrainConfig c = CONFIG("train.microbatches=4");
    DeviceMemory m[4];
    Error error = {0};
    for (int zero = 0; zero < 4; zero++) {
        c.parallel.zero = zero;
        Layout l = layout_of(&c, 4);
        assert_done(device_memory_plan(&c, &l, device_limit(0), &m[zero], &error), &error);
    }
    assert_true(m[1].moments < m[0].moments && m[2].gradients < m[1].gradients && m[3].values < m[2].values);
}

// ---- passes over memory ----

static DryKernel kernel_of(const Backend *b, const char *name) {
    DryKernel k;
    for (int i = 0; dry_kernel(b, i, &k); i++)
        if (!strcmp(k.name, name)) return k;
    fail_msg("no kernel %s", name);
    return k;
}

// A whole step of all objectives. Divisors by counts over the whole step, weights of objectives and clipping go with
// the kernels that form gradients: what is scaled by itself are single numbers, but for the gradients that a loss over
// words formed before its factor was known, which take it on their way to where they are added.
static void counts_weights_and_clipping_take_no_pass_of_their_own_and_one_launch_updates_all(void **state) {
    (void)state;
    TrainConfig c = CONFIG("precision=bf16");
    Error error = {0};
    Backend *b = dry_gpu_new(0);
    Joint *joint = joint_new(b, &c.model, NULL, BF16, 1, &error);
    assert_done(joint, &error);
    Optimizer *optimizer = optimizer_new(b, joint_parameters(joint), &c.optimizer, 10);
    Tape *tape = tape_new(b, true);
    Gradients *gradients = gradients_new(joint_parameters(joint), tape, NULL);
    StepGate *gate = step_gate_new(b, 1, NULL, NULL);
    StepSetup setup = {.tape = tape, .joint = joint, .gradients = gradients, .pieces = 1, .end = 1, .gate = gate};
    Batch batch = synthetic_batch_dry(&c, 0, 1, arena);
    dry_set_rates(b, &(DryRates){.bf16 = 1, .f32 = 1, .fp8 = 1, .bandwidth = 1});
    StepUnderWay *step = step_start(&setup, &batch);
    optimizer_step_gated(optimizer, 1, step_gate_close(gate, gradients, 1));
    step_send(step);
    assert_int_equal(kernel_of(b, "adamw_parts").calls, 1);
    assert_int_equal(kernel_of(b, "gate").calls, 1);
    assert_int_equal(kernel_of(b, "sum_squares").calls, 1);
    assert_int_equal(kernel_of(b, "sum_doubles").calls, 0);
    static const char *const single[] = {"scale", "mul", "fill"};
    for (int i = 0; i < 3; i++) {
        DryKernel k = kernel_of(b, single[i]);
        if (!(k.bytes <= 16.0 * (double)k.calls)) fail_msg("%s: %.0f bytes in %d calls", k.name, k.bytes, (int)k.calls);
    }
    assert_int_equal(kernel_of(b, "scale_by").calls, 4); // of tokens and of their words' table, of lm and captions
    step_finish(step, NULL, NULL);
    step_gate_free(gate);
    gradients_free(gradients);
    tape_free(tape);
    optimizer_free(optimizer);
    joint_free(joint);
    backend_free(b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_plan_is_what_a_run_holds_to_the_byte),
        cmocka_unit_test(pieces_of_several_shapes_are_foretold_too),
        cmocka_unit_test(less_room_than_a_run_would_take_may_do),
        cmocka_unit_test(the_largest_microbatch_that_fits_is_found),
        cmocka_unit_test(recomputation_is_the_least_that_fits),
        cmocka_unit_test(no_cheaper_choice_of_blocks_fits),
        cmocka_unit_test(lanes_are_as_many_as_fit),
        cmocka_unit_test(lanes_that_wait_get_as_much_work_as_the_longest),
        cmocka_unit_test(proposed_batches_balance_a_step),
        cmocka_unit_test(rounding_to_fp8_takes_work_space),
        cmocka_unit_test(shards_take_their_part),
        cmocka_unit_test(counts_weights_and_clipping_take_no_pass_of_their_own_and_one_launch_updates_all),
    };
    return cmocka_run_group_tests(tests, open_arena, close_arena);
}
