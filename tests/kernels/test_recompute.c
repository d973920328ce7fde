/* Recomputation: the bits of a plain pass in less memory, whole and in halves, through shared parameters, constants
 * and dropout; what a replay runs and what it leaves out. */
#include "kernels/cpu/cpu.h"
#include "kernels/nn/parameters.h"
#include "base/buffer.h"
#include "kernels/ops.h"
#include "kernels/recompute.h"
#include "tests/support/test.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 48, WIDTH = 96, WIDE = 4 * WIDTH, COUNT = ROWS * WIDTH, LAYERS = 6 };

typedef struct Layer {
    Tensor *scale, *shift, *up, *up_bias, *down;
    uint64_t site;
} Layer;

typedef struct Model {
    Backend *backend;
    Parameters *parameters;
    Layer layer[LAYERS]; // the last two share their matrices
    Tape *tape;
    float x[COUNT];
} Model;

static Model model_new(const char *frozen) {
    Error error = {0};
    Model m = {.backend = cpu_backend_new(2, NULL, NULL)};
    Parameters *p = m.parameters = parameters_new(m.backend, NULL);
    m.tape = tape_new(m.backend, true);
    Init normal = {.kind = INIT_NORMAL, .value = 0.1}, one = {.kind = INIT_ONE};
    for (int i = 0; i < LAYERS; i++) {
        Layer *l = &m.layer[i];
        char name[5][32];
        const char *const part[] = {"scale", "shift", "up", "bias", "down"};
        for (int k = 0; k < 5; k++) snprintf(name[k], sizeof name[k], "layer.%d.%s", i, part[k]);
        *l = (Layer){.site = (uint64_t)i};
        l->scale = parameters_add(p, name[0], SHAPE(WIDTH), one, false);
        l->shift = parameters_add(p, name[1], SHAPE(WIDTH), normal, false);
        l->up = i == LAYERS - 1 ? m.layer[i - 1].up : parameters_add(p, name[2], SHAPE(WIDE, WIDTH), normal, true);
        l->up_bias = parameters_add(p, name[3], SHAPE(WIDE), normal, false);
        l->down = i == LAYERS - 1 ? m.layer[i - 1].down : parameters_add(p, name[4], SHAPE(WIDTH, WIDE), normal, true);
    }
    if (frozen) assert_true(parameters_freeze(p, frozen) > 0);
    assert_done(parameters_finish(p, F32, 1, &error), &error);
    Rng rng = rng_for(2, PURPOSE_TEST, 0);
    for (int i = 0; i < COUNT; i++) m.x[i] = (float)rng_normal(&rng);
    return m;
}

static void model_free(Model *m) {
    tape_free(m->tape);
    parameters_free(m->parameters);
    backend_free(m->backend);
}

// (N, C) -> (N, C): residual, norm, a constant made here, a view, an MLP, dropout
static Tensor *layer_forward(Tape *t, const void *closure, Tensor *x) {
    const Layer *l = closure;
    float half[WIDTH];
    for (int i = 0; i < WIDTH; i++) half[i] = 0.5f;
    Tensor *h = layernorm(t, x, l->scale, l->shift, 1e-5);
    h = add(t, h, tape_constant(t, F32, SHAPE(WIDTH), half));
    h = h ? tape_reshape(t, h, SHAPE(2, ROWS / 2, WIDTH)) : NULL;
    h = linear(t, gelu(t, linear(t, h, l->up, l->up_bias), GELU_TANH), l->down, NULL);
    h = dropout(t, h, 0.1, 7, l->site, 0);
    return add(t, x, h ? tape_reshape(t, h, SHAPE(ROWS, WIDTH)) : NULL);
}

// One function of two layers: recomputed functions inside it are plain calls.
static Tensor *two_layers(Tape *t, const void *closure, Tensor *x) {
    const Layer *l = closure;
    x = tape_recompute(t, layer_forward, l, sizeof *l, x);
    return tape_recompute(t, layer_forward, l + 1, sizeof *l, x);
}

typedef enum { PLAIN, REPLAYED, IN_PAIRS } How;

static Tensor *forward(Model *m, How how, Tensor **x) {
    Tape *t = m->tape;
    tape_reset(t);
    parameters_begin_step(m->parameters);
    *x = tape_constant(t, F32, SHAPE(ROWS, WIDTH), m->x);
    (*x)->needs_grad = true;
    Tensor *h = *x;
    for (int i = 0; i < LAYERS; i++)
        if (how == PLAIN)
            h = layer_forward(t, &m->layer[i], h);
        else if (how == REPLAYED)
            h = tape_recompute(t, layer_forward, &m->layer[i], sizeof(Layer), h);
        else if (i % 2 == 0)
            h = tape_recompute(t, two_layers, &m->layer[i], 2 * sizeof(Layer), h);
    return sum(t, mul(t, h, h), 0.01);
}

// The loss, the gradient of x and all parameters' gradients, one behind the other.
static float *results(Model *m, const Tensor *loss, const Tensor *x, size_t *bytes) {
    Buffer all = {0};
    parameters_end_backward(m->parameters);
    buffer_append(&all, loss->data, sizeof(float));
    buffer_append(&all, x->grad, tensor_bytes(x));
    for (int i = 0; i < parameters_count(m->parameters); i++) {
        const Tensor *p = &parameters_at(m->parameters, i)->tensor;
        if (p->grad) buffer_append(&all, p->grad, (size_t)tensor_count(p) * sizeof(float));
    }
    *bytes = all.size;
    return (float *)(void *)all.data;
}

static float *step(Model *m, How how, bool in_halves, size_t *bytes) {
    Tensor *x, *loss = forward(m, how, &x);
    if (tape_error(m->tape)) fail_msg("%s", tape_error(m->tape));
    if (in_halves) {
        tape_backward(m->tape, loss, INPUT_GRADIENTS);
        for (int i = 0; i < parameters_count(m->parameters); i++)
            assert_false(parameters_at(m->parameters, i)->tensor.grad_written);
        float *between = tape_tensor(m->tape, F32, SHAPE(4 * ROWS, WIDTH))->data; // what is free is used by others
        for (int i = 0; i < 4 * COUNT; i++) between[i] = NAN;
        tape_backward(m->tape, loss, WEIGHT_GRADIENTS);
    } else {
        tape_backward(m->tape, loss, ALL_GRADIENTS);
    }
    return results(m, loss, x, bytes);
}

static void a_replayed_pass_has_the_bits_of_a_plain_one_whole_and_in_halves(void **state) {
    (void)state;
    static const char *const frozen[] = {NULL, "layer.0", "layer.2", "layer.4.up", "layer"};
    for (size_t f = 0; f < sizeof frozen / sizeof *frozen; f++) {
        size_t bytes, other;
        Model m = model_new(frozen[f]);
        float *plain = step(&m, PLAIN, false, &bytes);
        assert_true(isfinite(plain[0]));
        for (int how = REPLAYED; how <= IN_PAIRS; how++) {
            for (int in_halves = 0; in_halves < 2; in_halves++) {
                float *replayed = step(&m, (How)how, in_halves, &other);
                assert_int_equal(bytes, other);
                assert_memory_equal(plain, replayed, bytes);
                free(replayed);
            }
        }
        free(plain);
        model_free(&m);
    }
}

static void only_the_outputs_of_recomputed_functions_are_held(void **state) {
    (void)state;
    size_t peak[2], bytes;
    for (int how = PLAIN; how <= REPLAYED; how++) {
        Model m = model_new(NULL);
        free(step(&m, (How)how, false, &bytes));
        peak[how] = tape_peak(m.tape);
        model_free(&m);
    }
    size_t layer = (size_t)(3 + 2 * 4 + 3) * COUNT * sizeof(float); // bytes that a plain layer holds
    assert_true(peak[REPLAYED] < peak[PLAIN]);
    assert_true(peak[PLAIN] - peak[REPLAYED] > (LAYERS - 2) * layer * 3 / 4);
}

static void memory_goes_back_where_nothing_is_recorded(void **state) {
    (void)state;
    size_t peak[2];
    float loss[2];
    for (int how = PLAIN; how <= REPLAYED; how++) {
        Model m = model_new(NULL);
        tape_set_recording(m.tape, false);
        Tensor *x, *out = forward(&m, (How)how, &x);
        assert_non_null(out);
        assert_int_equal(tape_nodes(m.tape), 0);
        tape_read(m.tape, out, &loss[how]);
        peak[how] = tape_peak(m.tape);
        model_free(&m);
    }
    assert_true(peak[REPLAYED] < peak[PLAIN] / 2);
    assert_memory_equal(&loss[0], &loss[1], sizeof *loss);
}

static void a_second_step_has_the_same_addresses_and_allocates_nothing(void **state) {
    (void)state;
    Model m = model_new(NULL);
    const void *gradient = NULL, *data = NULL;
    int64_t allocations = 0;
    for (int i = 0; i < 3; i++) {
        Tensor *x, *loss = forward(&m, REPLAYED, &x);
        tape_backward(m.tape, loss, ALL_GRADIENTS);
        if (i == 0) gradient = x->grad, data = loss->data, allocations = tape_system_allocations(m.tape);
        assert_ptr_equal(gradient, x->grad);
        assert_ptr_equal(data, loss->data);
    }
    assert_int_equal(tape_system_allocations(m.tape), allocations);
    model_free(&m);
}

static void a_replay_runs_what_gradients_read_and_counts_it(void **state) {
    (void)state;
    Tensor *x;
    Model m = model_new(NULL);
    tape_backward(m.tape, forward(&m, PLAIN, &x), ALL_GRADIENTS);
    Cost plain = tape_cost(m.tape);
    assert_true(tape_replayed(m.tape).flop == 0);
    Tensor *loss = forward(&m, REPLAYED, &x);
    assert_int_equal(tape_nodes(m.tape), LAYERS + 2);
    assert_true(tape_cost(m.tape).flop == plain.flop);
    tape_backward(m.tape, loss, ALL_GRADIENTS);
    Cost cost = tape_cost(m.tape), replayed = tape_replayed(m.tape);
    assert_true(cost.backward_flop == plain.backward_flop && cost.flop == plain.flop + replayed.flop);
    double up = 2.0 * ROWS * WIDTH * WIDE; // the product that runs again; down, dropout and the sum do not
    assert_true(replayed.flop > LAYERS * up && replayed.flop < 1.3 * LAYERS * up);
    assert_int_equal(tape_nodes(m.tape), LAYERS + 2);
    model_free(&m);
}

static void where_no_gradient_is_wanted_nothing_runs_again(void **state) {
    (void)state;
    Model m = model_new("layer");
    Tensor *x = tape_constant(m.tape, F32, SHAPE(ROWS, WIDTH), m.x);
    Tensor *h = tape_recompute(m.tape, layer_forward, &m.layer[0], sizeof(Layer), x);
    assert_false(h->needs_grad);
    assert_int_equal(tape_nodes(m.tape), 0);
    model_free(&m);
}

static void what_is_not_finite_is_found_inside(void **state) {
    (void)state;
    Model m = model_new(NULL);
    tape_check_finite(m.tape, true);
    Tensor *x, *loss = forward(&m, REPLAYED, &x);
    assert_null(tape_not_finite(m.tape));

    m.x[7] = NAN;
    m.layer[2].up_bias->data = m.x; // a bias that is bad by the second run
    tape_backward(m.tape, loss, ALL_GRADIENTS);
    assert_non_null(tape_not_finite(m.tape));
    assert_non_null(strstr(tape_not_finite(m.tape), "the output of linear (of layer.2.up)"));
    tape_check_finite(m.tape, true);
    assert_non_null(forward(&m, REPLAYED, &x));
    assert_non_null(strstr(tape_not_finite(m.tape), "the output of layernorm (of layer.0.scale)"));
    model_free(&m);
}

typedef struct Told {
    const Model *model;
    int uses, first, complete[4 * LAYERS + 8]; // complete: times, by parameter
} Told;

static void told_use(void *context, const Node *n) {
    (void)n;
    ((Told *)context)->uses++;
}
static void told_gradient(void *context, Tensor *parameter) {
    (void)parameter;
    ((Told *)context)->first++;
}
static void told_complete(void *context, Tensor *parameter) {
    Told *t = context;
    assert_true(parameter->grad_written && parameter->writers == 0);
    for (int i = 0; i < parameters_count(t->model->parameters); i++)
        t->complete[i] += &parameters_at(t->model->parameters, i)->tensor == parameter;
}

static void hooks_hear_of_parameters_inside_as_of_others(void **state) {
    (void)state;
    enum { PARAMETERS = 5 * LAYERS - 2 };
    Model m = model_new(NULL);
    Tensor *x;
    assert_int_equal(parameters_count(m.parameters), PARAMETERS);
    for (int how = PLAIN; how <= IN_PAIRS; how++) {
        for (int in_halves = 0; in_halves < 2; in_halves++) {
            Told told = {.model = &m};
            size_t bytes;
            tape_set_hooks(
                m.tape,
                &(TapeHooks){.context = &told, .use = told_use, .gradient = told_gradient, .complete = told_complete});
            free(step(&m, (How)how, in_halves, &bytes));
            assert_int_equal(told.first, PARAMETERS);
            for (int i = 0; i < PARAMETERS; i++) assert_int_equal(told.complete[i], 1);
            // forward and backward; again norm and up, and down where a second layer reads its output; another half,
            // without the norm, whose gradients are formed with the first
            int again = how == PLAIN ? 0 : how == REPLAYED ? 2 * LAYERS : 5 * LAYERS / 2;
            assert_int_equal(told.uses, 6 * LAYERS + again + (in_halves ? 2 * LAYERS : 0));
        }
    }
    tape_set_hooks(m.tape, NULL);
    tape_backward(m.tape, forward(&m, REPLAYED, &x), INPUT_GRADIENTS); // left there half done, then not even begun
    forward(&m, REPLAYED, &x);
    tape_reset(m.tape);
    for (int i = 0; i < PARAMETERS; i++) assert_int_equal(parameters_at(m.parameters, i)->tensor.writers, 0);
    model_free(&m);
}

static void what_the_loss_does_not_need_is_complete_without_running_again(void **state) {
    (void)state;
    Model m = model_new(NULL);
    Told told = {.model = &m};
    tape_set_hooks(m.tape, &(TapeHooks){.context = &told, .use = told_use, .gradient = told_gradient});
    Tensor *x = tape_constant(m.tape, F32, SHAPE(ROWS, WIDTH), m.x);
    Tensor *h = tape_recompute(m.tape, layer_forward, &m.layer[0], sizeof(Layer), x);
    assert_non_null(tape_recompute(m.tape, layer_forward, &m.layer[1], sizeof(Layer), h));
    tape_backward(m.tape, sum(m.tape, h, 1), ALL_GRADIENTS);
    assert_int_equal(m.layer[1].up->writers, 0);
    assert_int_equal(told.first, 5);
    model_free(&m);
}

// A view of memory that something dropped had before.
static Tensor *view_of_reused(Tape *t, const void *closure, Tensor *x) {
    (void)closure;
    Tensor *dropped = gelu(t, x, GELU_TANH), *between = add(t, x, dropped);
    tape_drop(t, dropped);
    return tape_reshape(t, gelu(t, between, GELU_TANH), SHAPE(WIDTH, ROWS));
}

static void a_view_of_memory_that_was_dropped_before_is_held(void **state) {
    (void)state;
    enum { CALLS = 3 };
    float *gradient[2], loss[2];
    Model m = model_new(NULL);
    for (int how = PLAIN; how <= REPLAYED; how++) {
        tape_reset(m.tape);
        Tensor *x = tape_constant(m.tape, F32, SHAPE(ROWS, WIDTH), m.x), *h = x;
        x->needs_grad = true;
        for (int i = 0; i < CALLS; i++)
            h = how == PLAIN ? view_of_reused(m.tape, NULL, h) : tape_recompute(m.tape, view_of_reused, NULL, 0, h);
        Tensor *out = sum(m.tape, mul(m.tape, h, h), 0.01);
        tape_backward(m.tape, out, ALL_GRADIENTS);
        tape_read(m.tape, out, &loss[how]);
        gradient[how] = malloc(tensor_bytes(x));
        memcpy(gradient[how], x->grad, tensor_bytes(x));
    }
    assert_true(isfinite(loss[PLAIN]));
    assert_memory_equal(&loss[PLAIN], &loss[REPLAYED], sizeof *loss);
    assert_memory_equal(gradient[PLAIN], gradient[REPLAYED], COUNT * sizeof(float));
    for (int i = 0; i < 2; i++) free(gradient[i]);
    model_free(&m);
}

static Tensor *ill_shaped(Tape *t, const void *closure, Tensor *x) {
    const Layer *l = closure;
    return linear(t, linear(t, x, l->up, NULL), l->up, NULL);
}

static void an_error_inside_is_the_tapes_error(void **state) {
    (void)state;
    Model m = model_new(NULL);
    Tensor *x = tape_constant(m.tape, F32, SHAPE(ROWS, WIDTH), m.x);
    assert_null(tape_recompute(m.tape, ill_shaped, &m.layer[0], sizeof(Layer), x));
    assert_non_null(strstr(tape_error(m.tape), "of layer.0.up"));
    assert_null(tape_recompute(m.tape, layer_forward, &m.layer[0], sizeof(Layer), x));
    tape_reset(m.tape);
    x = tape_constant(m.tape, F32, SHAPE(ROWS, WIDTH), m.x);
    assert_non_null(tape_recompute(m.tape, layer_forward, &m.layer[0], sizeof(Layer), x));
    assert_null(tape_recompute(m.tape, layer_forward, &m.layer[0], sizeof(Layer), NULL));
    model_free(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_replayed_pass_has_the_bits_of_a_plain_one_whole_and_in_halves),
        cmocka_unit_test(only_the_outputs_of_recomputed_functions_are_held),
        cmocka_unit_test(memory_goes_back_where_nothing_is_recorded),
        cmocka_unit_test(a_second_step_has_the_same_addresses_and_allocates_nothing),
        cmocka_unit_test(a_replay_runs_what_gradients_read_and_counts_it),
        cmocka_unit_test(where_no_gradient_is_wanted_nothing_runs_again),
        cmocka_unit_test(what_is_not_finite_is_found_inside),
        cmocka_unit_test(hooks_hear_of_parameters_inside_as_of_others),
        cmocka_unit_test(what_the_loss_does_not_need_is_complete_without_running_again),
        cmocka_unit_test(a_view_of_memory_that_was_dropped_before_is_held),
        cmocka_unit_test(an_error_inside_is_the_tapes_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
