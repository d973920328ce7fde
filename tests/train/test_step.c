/* The contrastive loss of a step that is cut into pieces: that of the one large batch, with its gradients. */
#include "base/philox.h"
#include "kernels/cpu/cpu.h"
#include "tests/support/test.h"
#include "train/step.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PAIRS = 13, LENGTH = 7, SIDE = 16, VOCABULARY = 19 };

static JointConfig config_of(ContrastiveKind kind) {
    JointConfig c;
    Arena *memory = arena_new(1 << 12);
    config_defaults(&joint_schema, &c, memory);
    arena_free(memory); // nothing in it is kept below
    c.freeze = (StringList){0};
    c.has_vision = true;
    c.vision.image_size = SIDE, c.vision.patch = 4, c.vision.width = 16, c.vision.layers = 1, c.vision.heads = 2;
    c.text.vocabulary = VOCABULARY, c.text.context = 16, c.text.width = 16, c.text.layers = 1, c.text.heads = 2;
    c.contrastive = kind;
    c.embedding = 8;
    memset(c.weight, 0, sizeof c.weight);
    c.weight[OBJECTIVE_CONTRASTIVE] = 0.6;
    return c;
}

static uint32_t draw(uint64_t site, uint64_t below) {
    Rng rng = rng_for(11, PURPOSE_TEST, site);
    return (uint32_t)rng_below(&rng, below);
}

// Rows of random tokens, each sees what came before.
static Sequences texts_of(Arena *memory) {
    int64_t positions = PAIRS * LENGTH;
    Sequences s = {.rows = PAIRS, .length = LENGTH};
    s.tokens = arena_array(memory, int32_t, positions);
    s.targets = arena_array(memory, int32_t, positions);
    s.positions = arena_array(memory, int32_t, positions);
    s.range = arena_array(memory, int32_t, 2 * positions);
    s.image_rows = arena_array(memory, int32_t, positions);
    s.ends = arena_array(memory, int32_t, PAIRS);
    for (int64_t i = 0; i < positions; i++) {
        s.tokens[i] = (int32_t)draw((uint64_t)i, VOCABULARY);
        s.targets[i] = TOKEN_NONE;
        s.positions[i] = (int32_t)(i % LENGTH);
        s.range[2 * i + 1] = s.positions[i] + 1;
        s.image_rows[i] = -1;
    }
    for (int r = 0; r < PAIRS; r++) s.ends[r] = LENGTH - 1;
    return s;
}

static Batch batch_of(Arena *memory) {
    Batch b = {.images = PAIRS, .side = SIDE, .contrastive = texts_of(memory)};
    size_t bytes = (size_t)PAIRS * SIDE * SIDE * 3;
    b.pixels = arena_allocate(memory, bytes);
    for (size_t i = 0; i < bytes; i++) b.pixels[i] = (uint8_t)draw(1000 + i, 256);
    b.contrastive_image = arena_array(memory, int32_t, PAIRS);
    b.image_keys = arena_array(memory, uint64_t, PAIRS);
    for (int i = 0; i < PAIRS; i++) {
        b.contrastive_image[i] = i;
        b.image_keys[i] = (uint64_t)i;
    }
    return b;
}

typedef struct Outcome {
    StepLoss loss;
    float *gradients; // of all parameters, one behind the other
    int64_t count;
    float scale, bias; // the gradients of the logits' scale and bias
} Outcome;

// Of one number; 0 where there is none.
static float gradient_of(Parameters *parameters, const char *name, bool recording) {
    Parameter *p = recording ? parameters_find(parameters, name) : NULL;
    return p ? *(float *)p->tensor.grad : 0;
}

static Outcome step_in(ContrastiveKind kind, int pieces, bool recording) {
    Arena *memory = arena_new(1 << 16);
    JointConfig config = config_of(kind);
    Error error = {0};
    Backend *backend = cpu_backend_new(2, NULL, NULL);
    Joint *joint = joint_new(backend, &config, NULL, F32, 5, &error);
    assert_done(joint, &error);
    Tape *tape = tape_new(backend, recording);
    Batch batch = batch_of(memory);
    Gradients *gradients = recording ? gradients_new(joint_parameters(joint), tape, NULL) : NULL;
    StepSetup setup = {
        .tape = tape, .joint = joint, .gradients = gradients, .pieces = pieces, .end = pieces, .seed = 5};
    Outcome o = {0};
    assert_done(step_run(&setup, &batch, &o.loss, &error), &error);
    Parameters *parameters = joint_parameters(joint);
    o.gradients = calloc((size_t)parameters_elements(parameters, false), sizeof *o.gradients);
    assert_non_null(o.gradients);
    for (int i = 0; i < parameters_count(parameters) && recording; i++) {
        const Tensor *x = &parameters_at(parameters, i)->tensor;
        memcpy(o.gradients + o.count, x->grad, (size_t)tensor_count(x) * sizeof(float));
        o.count += tensor_count(x);
    }
    gradients_free(gradients);
    o.scale = gradient_of(parameters, "contrastive.log_scale", recording);
    o.bias = gradient_of(parameters, "contrastive.bias", recording);
    tape_free(tape);
    joint_free(joint);
    backend_free(backend);
    arena_free(memory);
    return o;
}

static void check_pieces(ContrastiveKind kind, int pieces) {
    Outcome whole = step_in(kind, 1, true), cut = step_in(kind, pieces, true), alone = step_in(kind, pieces, false);
    assert_true(fabs(whole.loss.total - cut.loss.total) < 1e-5 * whole.loss.total);
    assert_true(cut.loss.total == alone.loss.total);
    assert_true(whole.count > 0 && whole.count == cut.count);
    double largest = 0, off = 0;
    for (int64_t i = 0; i < whole.count; i++) {
        largest = fmax(largest, fabsf(whole.gradients[i]));
        double d = fabs((double)whole.gradients[i] - cut.gradients[i]);
        if (!(d <= off)) off = d;
    }
    assert_true(largest > 0 && off < 2e-5 * largest);
    assert_true(whole.scale != 0 && fabsf(whole.scale - cut.scale) < 1e-4f * fabsf(whole.scale));
    assert_true((whole.bias != 0) == (kind == CONTRASTIVE_SIGMOID));
    assert_true(fabsf(whole.bias - cut.bias) <= 1e-4f * fabsf(whole.bias));
    free(whole.gradients);
    free(cut.gradients);
    free(alone.gradients);
}

static void accumulation_has_the_softmax_loss_and_gradients_of_the_large_batch(void **state) {
    (void)state;
    check_pieces(CONTRASTIVE_SOFTMAX, 4);
}

static void accumulation_has_the_sigmoid_loss_and_gradients_of_the_large_batch(void **state) {
    (void)state;
    check_pieces(CONTRASTIVE_SIGMOID, 4);
}

static void more_pieces_than_pairs_leave_some_without(void **state) {
    (void)state;
    check_pieces(CONTRASTIVE_SOFTMAX, 16);
    check_pieces(CONTRASTIVE_SIGMOID, 16);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(accumulation_has_the_softmax_loss_and_gradients_of_the_large_batch),
        cmocka_unit_test(accumulation_has_the_sigmoid_loss_and_gradients_of_the_large_batch),
        cmocka_unit_test(more_pieces_than_pairs_leave_some_without),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
