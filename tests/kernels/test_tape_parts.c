/* A model in parts: tapes that run a piece of it each and hand streams and gradients on. The bits of one tape over all,
 * however it is cut; memory that several tapes share, and what is held between the two halves of a backward pass. */
#include "kernels/cpu/cpu.h"
#include "kernels/nn/parameters.h"
#include "kernels/ops.h"
#include "kernels/recompute.h"
#include "tests/support/test.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 48, WIDTH = 96, SEGMENTS = 4, STREAMS = 5 };

typedef struct Model {
    Backend *backend;
    Parameters *parameters;
    Dtype dtype;
    Tensor *weight[SEGMENTS]; // the last is the first: tied
    Tensor *scale, *shift, *frozen;
    uint16_t bf16[ROWS * WIDTH];
    float x[ROWS * WIDTH];
    int32_t words[ROWS];
} Model;

static Model model_new(Dtype dtype) {
    Error error = {0};
    Model m = {.backend = cpu_backend_new(2, NULL, NULL), .dtype = dtype};
    Parameters *p = m.parameters = parameters_new(m.backend, NULL);
    Init normal = {.kind = INIT_NORMAL, .value = 0.1}, one = {.kind = INIT_ONE};
    static const char *const name[] = {"weight.0", "weight.1", "weight.2"};
    for (int i = 0; i < SEGMENTS - 1; i++) m.weight[i] = parameters_add(p, name[i], SHAPE(WIDTH, WIDTH), normal, true);
    m.weight[SEGMENTS - 1] = m.weight[0];
    m.scale = parameters_add(p, "scale", SHAPE(WIDTH), one, false);
    m.shift = parameters_add(p, "shift", SHAPE(WIDTH), normal, false);
    m.frozen = parameters_add(p, "frozen", SHAPE(WIDTH, WIDTH), normal, true);
    assert_int_equal(parameters_freeze(p, "frozen"), 1);
    assert_done(parameters_finish(p, dtype, 1, &error), &error);
    Rng rng = rng_for(2, PURPOSE_TEST, 0);
    for (int i = 0; i < ROWS; i++) m.words[i] = 5 * i % WIDTH;
    for (int i = 0; i < ROWS * WIDTH; i++) {
        m.x[i] = (float)rng_normal(&rng);
        m.bf16[i] = f32_to_bf16(m.x[i]);
    }
    return m;
}

static void model_free(Model *m) {
    parameters_free(m->parameters);
    backend_free(m->backend);
}

static const void *input(const Model *m) { return m->dtype == F32 ? (const void *)m->x : m->bf16; }

// ---- a graph in segments: streams are read and replaced; absent ones are NULL ----

static Tensor *block(Tape *t, const void *closure, Tensor *x) {
    const Model *m = *(const Model *const *)closure;
    Tensor *h = layernorm(t, x, m->scale, m->shift, 1e-5);
    return add(t, x, linear(t, gelu(t, linear(t, h, m->weight[1], NULL), GELU_TANH), m->weight[2], NULL));
}

// Several consumers in one segment and in several, a stream that only passes through, one that nobody reads, one that
// wants no gradient, views of streams, a recomputed function.
static void run_segment(Tape *t, const Model *m, int segment, Tensor **s) {
    if (segment == 0) {
        s[0] = gelu(t, linear(t, s[0], m->weight[0], NULL), GELU_TANH);
        s[1] = linear(t, s[0], m->weight[1], m->shift);
        s[2] = scale(t, linear(t, s[0], m->weight[2], NULL), 3); // nobody reads it
    } else if (segment == 1) {
        s[3] = linear(t, tape_reshape(t, s[4], SHAPE(ROWS, WIDTH)), m->frozen, NULL); // frozen, of no gradient
        s[0] = tape_recompute(t, block, &m, sizeof m, add(t, s[0], mul(t, s[0], s[3])));
        s[0] = add(t, s[0], s[0]);
    } else if (segment == 2) {
        s[0] = add(t, mul(t, s[0], tape_reshape(t, s[1], SHAPE(ROWS, WIDTH))), s[1]);
        s[4] = sum(t, gelu(t, linear(t, s[0], m->weight[0], NULL), GELU_ERF), 0.001);
    } else {
        Tensor *words = tape_constant(t, I32, SHAPE(ROWS), m->words);
        s[0] = tape_reshape(t, add(t, s[0], mul(t, s[1], s[1])), SHAPE(1, ROWS, WIDTH)); // weights read the view
        s[0] = tape_reshape(t, linear(t, s[0], m->weight[SEGMENTS - 1], NULL), SHAPE(ROWS, WIDTH));
        s[4] = add(t, s[4], sum(t, linear_cross_entropy(t, s[0], m->weight[1], words, NULL), 0.01));
        s[4] = add(t, s[4], sum(t, block(t, &m, s[0]), 0.01));
    }
}

// ---- cut into parts ----

typedef struct Cut {
    int parts, first[SEGMENTS + 1]; // part p runs segments first[p] .. first[p + 1] - 1
} Cut;

typedef struct Part {
    Tape *tape;
    Tensor *in[STREAMS], *out[STREAMS];
} Part;

// The streams from one tape to another, over host memory.
static void hand_on(Part *from, Part *to) {
    for (int i = 0; i < STREAMS; i++) {
        Tensor *x = from->out[i];
        to->in[i] = NULL;
        if (!x) continue;
        void *host = malloc(tensor_bytes(x));
        tape_read(from->tape, x, host);
        to->in[i] = tape_arrival(to->tape, x->dtype, x->rank, x->shape, host, x->needs_grad);
        free(host);
    }
}

static void hand_back(Part *from, Part *to) {
    for (int i = 0; i < STREAMS; i++) {
        Tensor *x = from->in[i];
        if (!x || !tape_has_gradient(x)) continue;
        void *host = malloc(tensor_bytes(x));
        tape_read_gradient(from->tape, x, host);
        assert_false(tape_has_gradient(x));
        tape_seed(to->tape, to->out[i], host);
        free(host);
    }
}

static void forward(const Model *m, const Cut *c, Part *part) {
    for (int p = 0; p < c->parts; p++) {
        Part *at = &part[p];
        if (p) {
            hand_on(&part[p - 1], at);
        } else {
            at->in[0] = tape_arrival(at->tape, m->dtype, SHAPE(ROWS, WIDTH), input(m), true);
            at->in[4] = tape_constant(at->tape, m->dtype, SHAPE(1, ROWS, WIDTH), input(m));
        }
        memcpy(at->out, at->in, sizeof at->in);
        for (int s = c->first[p]; s < c->first[p + 1]; s++) run_segment(at->tape, m, s, at->out);
        if (tape_error(at->tape)) fail_msg("%s", tape_error(at->tape));
    }
}

typedef enum { WHOLE, HALVES, HALVES_AT_THE_END } How;

// Whatever is free holds NaN from here on.
static void spoil(TapeMemory *memory) {
    enum { BLOCKS = 200 };
    float bad[ROWS * WIDTH];
    Tape *t = tape_new_in(memory, false);
    for (int i = 0; i < ROWS * WIDTH; i++) bad[i] = NAN;
    for (int i = 0; i < BLOCKS; i++) {
        tape_constant(t, F32, SHAPE(ROWS, WIDTH), bad);
        tape_constant(t, F32, SHAPE(WIDTH), bad);
    }
    tape_free(t);
}

static void backward(const Cut *c, TapeMemory *memory, Part *part, How how) {
    tape_seed(part[c->parts - 1].tape, part[c->parts - 1].out[4], NULL);
    for (int p = c->parts - 1; p >= 0; p--) {
        tape_backward_seeded(part[p].tape, how == WHOLE ? ALL_GRADIENTS : INPUT_GRADIENTS);
        if (p) hand_back(&part[p], &part[p - 1]);
        spoil(memory);
        if (how == HALVES) tape_backward_seeded(part[p].tape, WEIGHT_GRADIENTS);
    }
    for (int p = c->parts - 1; p >= 0 && how == HALVES_AT_THE_END; p--)
        tape_backward_seeded(part[p].tape, WEIGHT_GRADIENTS);
}

enum { NUMBERS = 1 + ROWS * WIDTH + 3 * WIDTH * WIDTH + 2 * WIDTH };

// Loss, gradient of x, gradients of weights.
static float *results(const Model *m, const Cut *c, How how) {
    Part part[SEGMENTS] = {0};
    float *all = calloc(NUMBERS, sizeof *all), *at = all + 1;
    TapeMemory *memory = tape_memory_new(m->backend);
    parameters_begin_step(m->parameters);
    for (int p = 0; p < c->parts; p++) part[p].tape = tape_new_in(memory, true);
    forward(m, c, part);
    tape_read(part[c->parts - 1].tape, part[c->parts - 1].out[4], all);
    backward(c, memory, part, how);
    tape_read_gradient(part[0].tape, part[0].in[0], at);
    at += ROWS * WIDTH;
    parameters_end_backward(m->parameters);
    for (int i = 0; i < parameters_count(m->parameters); i++) {
        const Tensor *p = &parameters_at(m->parameters, i)->tensor;
        if (!p->needs_grad) continue;
        assert_int_equal(p->writers, 0);
        memcpy(at, p->grad, (size_t)tensor_count(p) * sizeof *at);
        at += tensor_count(p);
    }
    assert_true(at - all <= NUMBERS);
    for (int p = 0; p < c->parts; p++) tape_free(part[p].tape);
    assert_int_equal(tape_memory_held(memory), 0);
    tape_memory_free(memory);
    return all;
}

// The cut number `number` of the 2^(SEGMENTS - 1), each between two segments or not.
static Cut cut_of(int number) {
    Cut c = {.parts = 1};
    for (int s = 1; s < SEGMENTS; s++)
        if (number >> (s - 1) & 1) c.first[c.parts++] = s;
    c.first[c.parts] = SEGMENTS;
    return c;
}

static void a_model_in_parts_has_the_bits_of_one_tape(void **state) {
    (void)state;
    for (int dtype = F32; dtype <= BF16; dtype++) {
        Model m = model_new((Dtype)dtype);
        Cut whole = cut_of(0);
        float *expected = results(&m, &whole, WHOLE);
        for (int i = 0; i < NUMBERS; i++) assert_true(isfinite(expected[i]));
        for (int number = 0; number < 1 << (SEGMENTS - 1); number++) {
            Cut c = cut_of(number);
            for (int how = WHOLE; how <= HALVES_AT_THE_END; how++) {
                float *all = results(&m, &c, (How)how);
                assert_memory_equal(all, expected, NUMBERS * sizeof *all);
                free(all);
            }
        }
        free(expected);
        model_free(&m);
    }
}

// ---- seeds ----

static void several_outputs_may_be_seeded_and_what_follows_adds_behind(void **state) {
    (void)state;
    Model m = model_new(F32);
    Tape *t = tape_new(m.backend, true);
    float seed[ROWS * WIDTH], gradient[ROWS * WIDTH];
    for (int i = 0; i < ROWS * WIDTH; i++) seed[i] = (float)i;
    Tensor *x = tape_arrival(t, F32, SHAPE(ROWS, WIDTH), m.x, true);
    Tensor *y = scale(t, x, 2), *z = scale(t, y, 4);
    Tensor *alone = scale(t, x, 100); // nobody seeds it
    assert_false(tape_has_gradient(x));
    tape_seed(t, z, seed);
    tape_seed(t, y, seed);
    tape_seed(t, x, seed); // an output that is an arrival
    tape_backward_seeded(t, ALL_GRADIENTS);
    assert_null(alone->grad);
    assert_true(tape_has_gradient(x));
    tape_read_gradient(t, x, gradient);
    for (int i = 0; i < ROWS * WIDTH; i++) assert_true(gradient[i] == seed[i] + 2 * (seed[i] + 4 * seed[i]));
    assert_false(tape_has_gradient(x));
    tape_free(t);
    model_free(&m);
}

static void what_wants_no_gradient_gets_none(void **state) {
    (void)state;
    Model m = model_new(F32);
    Tape *t = tape_new(m.backend, true);
    Tensor *x = tape_arrival(t, F32, SHAPE(ROWS, WIDTH), m.x, false);
    Tensor *y = linear(t, x, m.frozen, NULL);
    assert_int_equal(tape_nodes(t), 0);
    tape_seed(t, y, m.x);
    tape_seed(t, x, m.x);
    tape_backward_seeded(t, ALL_GRADIENTS);
    assert_false(tape_has_gradient(x) || tape_has_gradient(y));
    tape_reset(t);
    tape_set_recording(t, false);
    x = tape_arrival(t, F32, SHAPE(ROWS, WIDTH), m.x, true);
    tape_seed(t, linear(t, x, m.weight[0], NULL), m.x);
    tape_backward_seeded(t, ALL_GRADIENTS);
    assert_false(tape_has_gradient(x));
    tape_free(t);
    model_free(&m);
}

static void a_stream_without_elements_has_its_gradient_too(void **state) {
    (void)state;
    Model m = model_new(F32);
    Tape *t = tape_new(m.backend, true);
    parameters_begin_step(m.parameters);
    Tensor *x = tape_arrival(t, F32, SHAPE(0, WIDTH), m.x, true);
    tape_seed(t, linear(t, x, m.weight[0], NULL), m.x);
    tape_backward_seeded(t, ALL_GRADIENTS);
    assert_true(tape_has_gradient(x));
    tape_read_gradient(t, x, m.x);
    for (int i = 0; i < WIDTH * WIDTH; i++) assert_true(((float *)m.weight[0]->grad)[i] == 0);
    tape_free(t);
    model_free(&m);
}

// ---- memory ----

enum { LAYERS = 5, BLOCK = ROWS * WIDTH * 4 }; // BLOCK: bytes of an activation

static size_t rounded(size_t bytes) { return (bytes + 255) / 256 * 256; } // as blocks are

static Tensor *norm_and_product(Tape *t, const void *closure, Tensor *x) {
    const Model *m = *(const Model *const *)closure;
    Tensor *h = linear(t, layernorm(t, x, m->scale, m->shift, 1e-5), m->weight[0], NULL);
    return gelu(t, gelu(t, h, GELU_TANH), GELU_TANH);
}

// Inputs of products, gradients behind them; of norms the gradients of scale and shift alone, small as they are.
static void between_the_halves_only_what_weights_read_is_held(void **state) {
    (void)state;
    Model m = model_new(F32);
    const Model *closure = &m;
    size_t layer = 2 * BLOCK + 2 * rounded(WIDTH * sizeof(float)), statistics = 2 * rounded(ROWS * sizeof(float));
    for (int again = 0; again < 2; again++) {
        TapeMemory *memory = tape_memory_new(m.backend);
        Tape *t = tape_new_in(memory, true);
        parameters_begin_step(m.parameters);
        Tensor *x = tape_arrival(t, F32, SHAPE(ROWS, WIDTH), m.x, true), *h = x;
        for (int i = 0; i < LAYERS; i++)
            h = again ? tape_recompute(t, norm_and_product, &closure, sizeof closure, h)
                      : norm_and_product(t, &closure, h);
        Tensor *loss = sum(t, h, 1);
        size_t small = rounded(sizeof(float)); // the loss
        size_t whole = again ? (1 + LAYERS) * BLOCK : (1 + 4 * LAYERS) * BLOCK + LAYERS * statistics;
        assert_int_equal(tape_memory_held(memory), whole + small);
        tape_seed(t, loss, NULL);
        tape_backward_seeded(t, INPUT_GRADIENTS);
        float gradient[ROWS * WIDTH];
        tape_read_gradient(t, x, gradient);
        assert_int_equal(tape_memory_held(memory), small + LAYERS * layer);
        tape_backward_seeded(t, WEIGHT_GRADIENTS);
        assert_int_equal(tape_memory_held(memory), small);
        tape_reset(t);
        assert_int_equal(tape_memory_held(memory), 0);
        tape_free(t);
        tape_memory_free(memory);
    }
    model_free(&m);
}

typedef struct Live {
    Tape *tape;
    Tensor *x, *out;
    const void *place[4]; // of some tensors
} Live;

enum { TAPES = 4, MICROBATCHES = 9, STEPS = 3 };

static void begin(const Model *m, Live *l, int microbatch) {
    int64_t rows = 1 + 7 * microbatch % 41; // each has its own shape
    tape_reset(l->tape);
    l->x = tape_arrival(l->tape, F32, SHAPE(rows, WIDTH), m->x, true);
    Tensor *h = linear(l->tape, l->x, m->weight[0], NULL);
    Tensor *y = tape_recompute(l->tape, block, &m, sizeof m, block(l->tape, &m, gelu(l->tape, h, GELU_TANH)));
    l->out = sum(l->tape, y, 1);
    l->place[0] = l->x->data, l->place[1] = h->data, l->place[2] = y->data;
}

static void end(Live *l, Halves halves) {
    float gradient[ROWS * WIDTH];
    if (halves & INPUT_GRADIENTS) tape_seed(l->tape, l->out, NULL);
    tape_backward_seeded(l->tape, halves);
    if (halves & INPUT_GRADIENTS) {
        l->place[3] = l->x->grad;
        tape_read_gradient(l->tape, l->x, gradient);
    }
    if (halves & WEIGHT_GRADIENTS) tape_reset(l->tape);
}

// One forward, one backward with TAPES microbatches under way; in halves: weights LATE microbatches behind.
static void step_1f1b(const Model *m, Live *live, bool in_halves, const void *places[MICROBATCHES][4]) {
    enum { LATE = 1 };
    parameters_begin_step(m->parameters);
    for (int slot = 0; slot < MICROBATCHES + TAPES; slot++) {
        int late = in_halves ? LATE : 0, back = slot - (TAPES - 1 - late), weights = back - late;
        if (slot < MICROBATCHES) begin(m, &live[slot % TAPES], slot);
        if (back >= 0 && back < MICROBATCHES) {
            end(&live[back % TAPES], in_halves ? INPUT_GRADIENTS : ALL_GRADIENTS);
            memcpy(places[back], live[back % TAPES].place, sizeof places[back]);
        }
        if (in_halves && weights >= 0 && weights < MICROBATCHES) end(&live[weights % TAPES], WEIGHT_GRADIENTS);
    }
}

static void several_tapes_get_the_same_places_in_every_step_and_allocate_nothing(void **state) {
    (void)state;
    for (int in_halves = 0; in_halves < 2; in_halves++) {
        Model m = model_new(F32);
        TapeMemory *memory = tape_memory_new(m.backend);
        Live live[TAPES] = {0};
        const void *first[MICROBATCHES][4], *places[MICROBATCHES][4];
        int64_t allocations = 0;
        size_t peak = 0;
        for (int i = 0; i < TAPES; i++) live[i].tape = tape_new_in(memory, true);
        for (int step = 0; step < STEPS; step++) {
            step_1f1b(&m, live, in_halves, step ? places : first);
            assert_int_equal(tape_memory_held(memory), 0);
            int64_t sum = 0;
            for (int i = 0; i < TAPES; i++) sum += tape_system_allocations(live[i].tape);
            if (step == 0) allocations = sum, peak = tape_memory_peak(memory);
            assert_int_equal(sum, allocations);
            assert_int_equal(tape_memory_peak(memory), peak);
            if (step) assert_memory_equal(first, places, sizeof first);
        }
        for (int i = 0; i < TAPES; i++) tape_free(live[i].tape);
        tape_memory_free(memory);
        model_free(&m);
    }
}

static void a_tape_that_ends_early_gives_all_back(void **state) {
    (void)state;
    Model m = model_new(F32);
    TapeMemory *memory = tape_memory_new(m.backend);
    Live live[2] = {{.tape = tape_new_in(memory, true)}, {.tape = tape_new_in(memory, true)}};
    parameters_begin_step(m.parameters);
    for (int i = 0; i < 2; i++) begin(&m, &live[i], i + 1);
    size_t both = tape_memory_held(memory);
    tape_seed(live[0].tape, live[0].out, NULL);
    tape_backward_seeded(live[0].tape, INPUT_GRADIENTS);
    tape_reset(live[0].tape); // in the middle of a recomputed function, with gradients that nobody read
    size_t one = tape_memory_held(memory);
    assert_true(one > 0 && one < both);
    tape_free(live[0].tape);
    assert_int_equal(tape_memory_held(memory), one);
    tape_free(live[1].tape);
    assert_int_equal(tape_memory_held(memory), 0);
    tape_memory_free(memory);
    tape_memory_free(NULL);
    model_free(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_model_in_parts_has_the_bits_of_one_tape),
        cmocka_unit_test(several_outputs_may_be_seeded_and_what_follows_adds_behind),
        cmocka_unit_test(what_wants_no_gradient_gets_none),
        cmocka_unit_test(a_stream_without_elements_has_its_gradient_too),
        cmocka_unit_test(between_the_halves_only_what_weights_read_is_held),
        cmocka_unit_test(several_tapes_get_the_same_places_in_every_step_and_allocate_nothing),
        cmocka_unit_test(a_tape_that_ends_early_gives_all_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
