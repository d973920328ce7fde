/* What is planned for a GPU (train/device_memory.h) against what the CUDA backend's own files come to hold, over a
 * stand-in of CUDA's runtime that counts: the same run, to the byte; work space that grew and states on the host too.
 */
#include "kernels/cuda/host/work_space.h"
#include "kernels/device.h"
#include "tests/simt/runtime.h"
#include "tests/support/test.h"
#include "train/device_fit.h"
#include "train/device_use.h"
#include "train/optimizer.h"
#include "train/step.h"
#include "train/step_gate.h"
#include "train/synthetic.h"

#define TEXT                                                                                                           \
    "device=cuda", "tokenizer=words", "data.0.path=text", "data.0.objectives=[lm]", "data.0.batch=4",                  \
        "model.text.context=32", "model.text.width=32", "model.text.layers=2", "model.text.heads=2"

#define PICTURES                                                                                                       \
    "model.vision.enabled=true", "model.vision.image_size=32", "model.vision.patch=8", "model.vision.width=32",        \
        "model.vision.layers=2", "model.vision.heads=2", "model.weight.caption=1", "model.weight.contrastive=1",       \
        "model.weight.mae=1", "data.1.path=pairs", "data.1.objectives=[caption, contrastive, mae]", "data.1.batch=3"

typedef struct Case {
    const char *const *settings;
    int count;
} Case;
#define CASE(...)                                                                                                      \
    (Case) {                                                                                                           \
        (const char *const[]){TEXT, __VA_ARGS__},                                                                      \
            (int)(sizeof((const char *const[]){TEXT, __VA_ARGS__}) / sizeof(char *))                                   \
    }

static double used(Backend *b) {
    size_t left, all;
    assert_true(b->memory(b, &left, &all));
    return (double)(all - left);
}

static double run(const TrainConfig *c, const Layout *l, Arena *memory) {
    Error error = {0};
    StepLoss loss;
    Backend *b = device_backend_new(&(DeviceOptions){.device = DEVICE_CUDA}, NULL, &error);
    if (!b) fail_msg("%s", error.message);
    Parallel alone = {.bucket_bytes = c->parallel.bucket, .offload = c->offload == OFFLOAD_STATES};
    Joint *joint = joint_new(b, &c->model, &alone, c->precision ? BF16 : F32, 1, &error);
    if (!joint) fail_msg("%s", error.message);
    Optimizer *optimizer = optimizer_new(b, joint_parameters(joint), &c->optimizer, 10);
    Tape *tape = tape_new(b, true);
    Gradients *gradients = gradients_new(joint_parameters(joint), tape, NULL);
    StepGate *gate = step_gate_new(b, l->pieces, NULL, NULL);
    StepUnderWay *before = NULL;
    Batch batch = synthetic_batch(c, 0, 1, memory);
    StepSetup setup = {
        .tape = tape, .joint = joint, .gradients = gradients, .pieces = l->pieces, .end = l->pieces, .gate = gate};
    for (int i = 0; i < 4; i++) { // the host is a step ahead
        StepUnderWay *work = step_start(&setup, &batch);
        optimizer_step_gated(optimizer, i + 1, step_gate_close(gate, gradients, 1));
        step_send(work);
        if (before) assert_done(step_finish(before, &loss, &error), &error);
        before = work;
    }
    assert_done(step_finish(before, &loss, &error), &error);
    double held = used(b);
    step_gate_free(gate);
    gradients_free(gradients);
    tape_free(tape);
    optimizer_free(optimizer);
    joint_free(joint);
    backend_free(b);
    return held;
}

static void assert_foretold(Case k) {
    Arena *memory = arena_new(1 << 20);
    TrainConfig c;
    Layout l;
    DeviceMemory m;
    Error error = {0};
    assert_done(train_config_read_planned(&c, NULL, k.settings, k.count, memory, &error), &error);
    assert_done(layout_resolve(&c, 1, &l, &error), &error);
    assert_done(device_memory_plan(&c, &l, device_limit(0), &m, &error), &error);
    double got = run(&c, &l, memory), planned = m.tensors;
    if (!(got == planned)) fail_msg("planned %.0f bytes, got %.0f", planned, got);
    arena_free(memory);
}

static void tensors_are_foretold_to_the_byte(void **state) {
    (void)state;
    assert_foretold(CASE("model.text.vocabulary=300"));
    assert_foretold(
        CASE("model.text.vocabulary=300", "precision=bf16", "train.microbatches=2", "train.recompute=full"));
}

// Logits of 128 rows over 70,000 words take more than there is at first.
static void work_space_that_grows_is_foretold(void **state) {
    (void)state;
    assert_true(work_logits(128, 70000, F32).bytes > WORK_SCRATCH_FIRST);
    assert_foretold(CASE("model.text.vocabulary=70000", "model.text.width=16", "model.text.layers=1"));
}

// Scalings, and numbers for them; no share of work space.
static void fp8_is_foretold_to_the_byte(void **state) {
    (void)state;
    assert_foretold(CASE("model.text.vocabulary=300", "precision=fp8"));
}

// Each lane has memory of its own; validation would have some more.
static void lanes_are_foretold_to_the_byte(void **state) {
    (void)state;
    assert_foretold(CASE("model.text.vocabulary=300", "train.microbatches=1", "train.lanes=1", PICTURES));
    assert_foretold(CASE("model.text.vocabulary=300", "train.microbatches=1", "train.lanes=3", PICTURES));
}

static void states_on_the_host_are_not_on_the_gpu(void **state) {
    (void)state;
    assert_foretold(CASE("model.text.vocabulary=3000", "precision=bf16", "train.offload=states"));
}

static bool start(size_t occupied, DeviceMemory *planned, Error *error) {
    static const char *const settings[] = {TEXT, "model.text.vocabulary=300", "train.recompute=none"};
    Arena *memory = arena_new(1 << 20);
    TrainConfig c;
    Layout l;
    runtime_occupy(occupied);
    Backend *b = device_backend_new(&(DeviceOptions){.device = DEVICE_CUDA}, NULL, error);
    if (!b) fail_msg("%s", error->message);
    assert_done(train_config_read_planned(&c, NULL, settings, sizeof settings / sizeof *settings, memory, error),
                error);
    assert_done(layout_resolve(&c, 1, &l, error), error);
    DeviceRoom room = {.backend = b, .local = 1, .gpus = 1, .memory = memory};
    bool ok = device_fit_start(&c, &l, &room, NULL, NULL, planned, error);
    backend_free(b);
    runtime_occupy(0);
    arena_free(memory);
    return ok;
}

// What is taken by CUDA and other processes is measured, not supposed; something is put aside for what comes later.
static void a_run_may_have_what_the_gpu_has_free(void **state) {
    (void)state;
    DeviceMemory planned;
    Error error = {0};
    assert_done(start((size_t)200 << 20, &planned, &error), &error);
    assert_true(planned.measured && planned.context == (200 << 20) + DEVICE_LATER_BYTES);
    assert_false(start((size_t)912 << 20, &planned, &error));
    assert_int_equal(error.kind, ERROR_USAGE);
    assert_message_has(&error, "1.02 for CUDA and other processes, as measured), 1.00 GiB are there");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tensors_are_foretold_to_the_byte), cmocka_unit_test(work_space_that_grows_is_foretold),
        cmocka_unit_test(fp8_is_foretold_to_the_byte),      cmocka_unit_test(a_run_may_have_what_the_gpu_has_free),
        cmocka_unit_test(lanes_are_foretold_to_the_byte),   cmocka_unit_test(states_on_the_host_are_not_on_the_gpu),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
