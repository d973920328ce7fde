/* See bench_checkpoint.h. */
#include "train/bench_checkpoint.h"
#include "base/clock.h"
#include "base/philox.h"
#include "kernels/cpu/cpu.h"
#include "kernels/nn/gradient_norm.h"
#include "train/checkpoint.h"
#include <stdlib.h>

enum { WARM = 2, ALONE = 5, MOST_STEPS = 10000, MOST_OVERRIDES = 64 }; // steps; with no save under way

static const char *const gpt2[] = {"model.text.vocabulary=50257", "model.text.context=1024", "model.text.width=768",
                                   "model.text.layers=12", "model.text.heads=12"};
enum { GPT2_KEYS = sizeof gpt2 / sizeof *gpt2 };

typedef struct Bench {
    Arena *memory;
    JointConfig config;
    Backend *backend;
    Joint *joint;
    Optimizer *optimizer;
    Tape *tape;
    Saver *saver;
    Batch batch;
    TrainState state;
} Bench;

static Sequences random_row(const Bench *b, int tokens) {
    Sequences s = {.rows = 1, .length = tokens, .token_count = tokens, .target_count = tokens};
    s.tokens = arena_array(b->memory, int32_t, tokens);
    s.targets = arena_array(b->memory, int32_t, tokens);
    s.positions = arena_array(b->memory, int32_t, tokens);
    s.range = arena_array(b->memory, int32_t, 2 * tokens);
    s.image_rows = arena_array(b->memory, int32_t, tokens);
    s.ends = arena_array(b->memory, int32_t, 1);
    Rng rng = rng_for(1, PURPOSE_TEST, 0);
    for (int i = 0; i < tokens; i++) {
        s.tokens[i] = (int32_t)rng_below(&rng, (uint64_t)b->config.text.vocabulary);
        s.targets[i] = (int32_t)rng_below(&rng, (uint64_t)b->config.text.vocabulary);
        s.positions[i] = i;
        s.range[2 * i + 1] = i + 1;
        s.image_rows[i] = -1;
    }
    s.ends[0] = tokens - 1;
    return s;
}

static bool open_bench(Bench *b, const BenchCheckpointOptions *o, Log *log, Error *error) {
    const char *keys[MOST_OVERRIDES];
    int count = 0;
    b->memory = arena_new(1 << 16);
    for (int i = 0; i < GPT2_KEYS; i++) keys[count++] = gpt2[i];
    for (int i = 0; i < o->override_count && count < MOST_OVERRIDES; i++) keys[count++] = o->overrides[i];
    if (!config_read(&joint_schema, NULL, keys, count, &b->config, b->memory, error)) return false;
    const char *wrong = joint_check(&b->config, b->memory);
    if (!wrong && b->config.text.context < o->tokens) wrong = "more tokens in a step than model.text.context";
    if (wrong) return error_set(error, ERROR_USAGE, "%s", wrong);
    b->backend = cpu_backend_new(o->threads, NULL, log);
    b->joint = joint_new(b->backend, &b->config, NULL, F32, 1, error);
    if (!b->joint) return false;
    OptimizerConfig adamw = {.learning_rate = 1e-4,
                             .schedule = SCHEDULE_CONSTANT,
                             .weight_decay = 0.1,
                             .beta1 = 0.9,
                             .beta2 = 0.999,
                             .epsilon = 1e-8};
    b->optimizer = optimizer_new(b->backend, joint_parameters(b->joint), &adamw, MOST_STEPS);
    b->tape = tape_new(b->backend, true);
    b->batch.lm = random_row(b, o->tokens);
    CheckpointOptions options = {
        .run = o->out, .keep = 1, .joint = b->joint, .optimizer = b->optimizer, .backend = b->backend, .log = log};
    b->saver = saver_new(&options);
    checkpoint_prepare(b->saver);
    return true;
}

static void close_bench(Bench *b) {
    saver_free(b->saver);
    tape_free(b->tape);
    optimizer_free(b->optimizer);
    joint_free(b->joint);
    backend_free(b->backend);
    arena_free(b->memory);
}

static bool one_step(Bench *b, double *seconds, Error *error) {
    double start = clock_seconds();
    JointPass pass = {.training = true};
    tape_reset(b->tape);
    parameters_begin_step(joint_parameters(b->joint));
    JointLoss loss = joint_loss(b->tape, b->joint, &b->batch, &pass);
    if (loss.total) tape_backward(b->tape, loss.total, ALL_GRADIENTS);
    if (tape_error(b->tape)) return error_set(error, ERROR_FAILED, "%s", tape_error(b->tape));
    parameters_end_backward(joint_parameters(b->joint));
    double norm = parameters_gradient_norm(joint_parameters(b->joint));
    checkpoint_hold(b->saver);
    optimizer_step(b->optimizer, ++b->state.step, norm);
    *seconds = clock_seconds() - start;
    return true;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int count) {
    qsort(values, (size_t)count, sizeof *values, by_value);
    return count ? values[count / 2] : 0;
}

// Steps until a save that has just begun is complete; their times go behind times[*count].
static bool train_beside(Bench *b, double *times, int *count, Error *error) {
    bool ok = true;
    while (ok && checkpoint_under_way(b->saver) && *count < MOST_STEPS) {
        ok = one_step(b, &times[*count], error);
        ++*count;
        if (ok && checkpoint_written(b->saver)) ok = checkpoint_commit(b->saver, error);
    }
    return ok && checkpoint_finish(b->saver, error);
}

static int by_share(const void *a, const void *b) {
    const CheckpointTimes *x = a, *y = b;
    return (x->held * y->written > y->held * x->written) - (x->held * y->written < y->held * x->written);
}

bool bench_checkpoint(const BenchCheckpointOptions *o, BenchCheckpointResult *out, Log *log, Error *error) {
    Bench b = {0};
    double *times = calloc(MOST_STEPS, sizeof *times), alone[WARM + ALONE];
    CheckpointTimes *saves = calloc((size_t)o->saves, sizeof *saves);
    int beside = 0;
    double first = 0;
    check(times && saves && o->saves > 0);
    bool ok = open_bench(&b, o, log, error);
    for (int i = 0; ok && i < WARM + ALONE; i++) ok = one_step(&b, &alone[i], error);
    for (int i = -1; ok && i < o->saves; i++) {
        ok = checkpoint_start(b.saver, &b.state, error) && train_beside(&b, times, &beside, error);
        if (i < 0)
            first = checkpoint_times(b.saver).held;
        else
            saves[i] = checkpoint_times(b.saver);
    }
    if (ok) {
        qsort(saves, (size_t)o->saves, sizeof *saves, by_share);
        const CheckpointTimes *middle = &saves[o->saves / 2], *last = &saves[o->saves - 1];
        *out = (BenchCheckpointResult){.parameters = (double)parameters_elements(joint_parameters(b.joint), false),
                                       .bytes = middle->bytes,
                                       .held = middle->held,
                                       .written = middle->written,
                                       .worst = last->held / last->written,
                                       .first = first,
                                       .step = median(alone + WARM, ALONE),
                                       .step_beside = median(times, beside)};
    }
    close_bench(&b);
    free(times);
    free(saves);
    return ok;
}
