/* The tape: gradients through shared inputs and views, the two halves of a backward pass, memory that is used again,
 * and errors. What single operators do is in test_operators.c. */
#include "kernels/cpu/cpu.h"
#include "kernels/nn/parameters.h"
#include "kernels/ops.h"
#include "tests/support/test.h"
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ROWS = 48, WIDTH = 96, COUNT = ROWS * WIDTH, STEPS = 3 }; // an activation: 18 KiB, more than what is kept

typedef struct Model {
    Backend *backend;
    Parameters *parameters;
    Tensor *weight, *bias;
    Tape *tape;
    float x[COUNT];
} Model;

static Model model_new(void) {
    Error error = {0};
    Model m = {.backend = cpu_backend_new(2, NULL, NULL)};
    m.parameters = parameters_new(m.backend, NULL);
    m.tape = tape_new(m.backend, true);
    Init normal = {.kind = INIT_NORMAL, .value = 0.1};
    m.weight = parameters_add(m.parameters, "layer.weight", SHAPE(WIDTH, WIDTH), normal, true);
    m.bias = parameters_add(m.parameters, "layer.bias", SHAPE(WIDTH), normal, false);
    assert_done(parameters_finish(m.parameters, F32, 1, &error), &error);
    Rng rng = rng_for(2, PURPOSE_TEST, 0);
    for (int i = 0; i < COUNT; i++) m.x[i] = (float)rng_normal(&rng);
    return m;
}

static void model_free(Model *m) {
    tape_free(m->tape);
    parameters_free(m->parameters);
    backend_free(m->backend);
}

// A fresh pass over x: inputs that are used twice (once with themselves), views of activations, sums whose gradient is
// handed on, and a weight that serves two layers. Returns the loss; *x: the input, which wants a gradient.
static Tensor *forward(Model *m, Tensor **x) {
    Tape *t = m->tape;
    tape_reset(t);
    parameters_begin_step(m->parameters);
    *x = tape_constant(t, F32, SHAPE(ROWS, WIDTH), m->x);
    (*x)->needs_grad = true;
    Tensor *h = linear(t, *x, m->weight, m->bias);
    Tensor *view = tape_reshape(t, h, SHAPE(2, ROWS / 2, WIDTH));
    Tensor *r = add(t, view, gelu(t, view, GELU_TANH));
    Tensor *s = add(t, add(t, r, r), mul(t, r, r));
    Tensor *y = add(t, tape_reshape(t, s, SHAPE(ROWS, WIDTH)), *x);
    return sum(t, gelu(t, linear(t, y, m->weight, NULL), GELU_ERF), 0.01);
}

typedef struct Gradients {
    float x[COUNT], weight[WIDTH * WIDTH], bias[WIDTH];
} Gradients;

static void read_gradients(const Model *m, const Tensor *x, Gradients *out) {
    memcpy(out->x, x->grad, sizeof out->x);
    memcpy(out->weight, m->weight->grad, sizeof out->weight);
    memcpy(out->bias, m->bias->grad, sizeof out->bias);
}

static void the_weight_half_may_come_later_and_changes_no_bit(void **state) {
    (void)state;
    static Gradients whole, halves;
    Model m = model_new();
    Tensor *x, *loss = forward(&m, &x);
    tape_backward(m.tape, loss, ALL_GRADIENTS);
    read_gradients(&m, x, &whole);
    loss = forward(&m, &x);
    tape_backward(m.tape, loss, INPUT_GRADIENTS);
    assert_false(m.weight->grad_written);
    float *between = tape_tensor(m.tape, F32, SHAPE(ROWS, WIDTH))->data; // what the first half gave back is used again
    for (int i = 0; i < COUNT; i++) between[i] = NAN;
    tape_backward(m.tape, loss, WEIGHT_GRADIENTS);
    read_gradients(&m, x, &halves);
    assert_memory_equal(&whole, &halves, sizeof whole);
    model_free(&m);
}

static double loss_at(Model *m, const float *direction, float step) {
    Tensor *x, *loss;
    float kept[COUNT];
    memcpy(kept, m->x, sizeof kept);
    for (int i = 0; i < COUNT; i++) m->x[i] += step * direction[i];
    loss = forward(m, &x);
    memcpy(m->x, kept, sizeof kept);
    return (double)*(float *)loss->data;
}

static void gradients_through_shared_inputs_and_views_are_those_of_differences(void **state) {
    (void)state;
    Model m = model_new();
    float direction[COUNT];
    double along = 0;
    Tensor *x, *loss = forward(&m, &x);
    tape_backward(m.tape, loss, ALL_GRADIENTS);
    for (int i = 0; i < COUNT; i++) { // uphill, so that the difference is large
        direction[i] = ((float *)x->grad)[i] > 0 ? 1.0f : -1.0f;
        along += (double)(direction[i] * ((float *)x->grad)[i]);
    }
    double difference = (loss_at(&m, direction, 1e-3f) - loss_at(&m, direction, -1e-3f)) / 2e-3;
    assert_true(along > 0 && fabs(difference - along) <= 2e-3 * along);
    model_free(&m);
}

static void an_identical_step_has_the_same_addresses_and_allocates_nothing(void **state) {
    (void)state;
    Model m = model_new();
    const void *gradient[STEPS], *data[STEPS];
    int64_t allocations = 0;
    size_t peak = 0;
    for (int step = 0; step < STEPS; step++) {
        Tensor *x, *loss = forward(&m, &x);
        tape_backward(m.tape, loss, ALL_GRADIENTS);
        gradient[step] = x->grad, data[step] = loss->data;
        assert_true(isfinite(*(float *)loss->data)); // small outputs stay readable
        if (step == 0) allocations = tape_system_allocations(m.tape), peak = tape_peak(m.tape);
        assert_ptr_equal(gradient[step], gradient[0]);
        assert_ptr_equal(data[step], data[0]);
    }
    assert_int_equal(tape_system_allocations(m.tape), allocations);
    assert_int_equal(tape_peak(m.tape), peak);
    model_free(&m);
}

static void a_backward_pass_needs_little_more_than_the_forward_pass(void **state) {
    (void)state;
    enum { LAYERS = 40 };
    Model m = model_new();
    Tensor *x = tape_constant(m.tape, F32, SHAPE(ROWS, WIDTH), m.x), *h = x;
    x->needs_grad = true;
    for (int i = 0; i < LAYERS; i++) h = gelu(m.tape, h, GELU_TANH);
    Tensor *loss = sum(m.tape, h, 1);
    size_t before = tape_peak(m.tape);
    assert_int_equal(tape_nodes(m.tape), LAYERS + 1);
    tape_backward(m.tape, loss, ALL_GRADIENTS);
    assert_true(tape_peak(m.tape) <= before + 3 * COUNT * sizeof(float));
    model_free(&m);
}

static void dropped_memory_is_used_again_at_once(void **state) {
    (void)state;
    static Gradients kept, dropped;
    Model m = model_new();
    for (int drop = 0; drop < 2; drop++) {
        tape_reset(m.tape);
        parameters_begin_step(m.parameters);
        Tensor *x = tape_constant(m.tape, F32, SHAPE(ROWS, WIDTH), m.x);
        x->needs_grad = true;
        Tensor *h = linear(m.tape, x, m.weight, m.bias), *y = scale(m.tape, h, 3); // neither reads h backward
        const void *place = h->data;
        if (drop) tape_drop(m.tape, h);
        Tensor *z = add(m.tape, y, x);
        assert_int_equal(z->data == place, drop);
        tape_backward(m.tape, sum(m.tape, gelu(m.tape, z, GELU_ERF), 1), ALL_GRADIENTS);
        read_gradients(&m, x, drop ? &dropped : &kept);
    }
    assert_memory_equal(&dropped, &kept, sizeof kept);
    tape_drop(m.tape, NULL);
    model_free(&m);
}

static void nothing_is_recorded_where_no_gradient_is_wanted(void **state) {
    (void)state;
    Model m = model_new();
    Tensor *x = tape_constant(m.tape, F32, SHAPE(ROWS, WIDTH), m.x);
    assert_false(gelu(m.tape, x, GELU_ERF)->needs_grad);
    assert_int_equal(tape_nodes(m.tape), 0);
    assert_true(linear(m.tape, x, m.weight, NULL)->needs_grad);
    assert_int_equal(tape_nodes(m.tape), 1);
    tape_reset(m.tape);
    tape_set_recording(m.tape, false);
    x = tape_constant(m.tape, F32, SHAPE(ROWS, WIDTH), m.x);
    assert_false(linear(m.tape, x, m.weight, NULL)->needs_grad);
    assert_int_equal(tape_nodes(m.tape), 0);
    model_free(&m);
}

static void the_first_error_stays_until_the_reset(void **state) {
    (void)state;
    Model m = model_new();
    Tensor *x = tape_constant(m.tape, F32, SHAPE(ROWS, WIDTH - 1), m.x);
    Tensor *h = linear(m.tape, x, m.weight, NULL);
    assert_null(h);
    assert_null(gelu(m.tape, h, GELU_ERF));
    assert_null(tape_reshape(m.tape, h, SHAPE(1)));
    assert_non_null(strstr(tape_error(m.tape), "linear: x (.., C) and weight (F, C) must share C"));
    assert_non_null(strstr(tape_error(m.tape), "layer.weight"));
    tape_reset(m.tape);
    assert_null(tape_error(m.tape));
    x = tape_constant(m.tape, F32, SHAPE(ROWS, WIDTH), m.x);
    assert_null(tape_reshape(m.tape, x, SHAPE(ROWS, WIDTH + 1)));
    assert_non_null(strstr(tape_error(m.tape), "reshape"));
    model_free(&m);
}

static void what_is_not_finite_is_found_where_it_appears(void **state) {
    (void)state;
    Model m = model_new();
    Tensor *x;
    tape_check_finite(m.tape, true);
    assert_non_null(forward(&m, &x));
    assert_null(tape_not_finite(m.tape));
    m.x[5] = INFINITY;
    assert_non_null(forward(&m, &x));
    assert_non_null(strstr(tape_not_finite(m.tape), "the output of linear (of layer.weight)"));
    m.x[5] = 0;
    tape_check_finite(m.tape, true);
    assert_null(tape_not_finite(m.tape));
    Tensor *loss = forward(&m, &x);
    float bad = NAN;
    tape_backward_from(m.tape, loss, &bad, ALL_GRADIENTS);
    assert_null(tape_error(m.tape));
    assert_non_null(strstr(tape_not_finite(m.tape), "an input gradient of sum"));
    model_free(&m);
}

static void tensors_without_elements_pass_through(void **state) {
    (void)state;
    Model m = model_new();
    Tensor *x = tape_constant(m.tape, F32, SHAPE(0, WIDTH), m.x);
    x->needs_grad = true;
    parameters_begin_step(m.parameters);
    Tensor *h = add(m.tape, x, gelu(m.tape, linear(m.tape, x, m.weight, m.bias), GELU_ERF));
    Tensor *loss = sum(m.tape, h, 1);
    assert_non_null(loss);
    assert_true(*(float *)loss->data == 0);
    tape_backward(m.tape, loss, ALL_GRADIENTS);
    for (int i = 0; i < WIDTH * WIDTH; i++) assert_true(((float *)m.weight->grad)[i] == 0);
    for (int i = 0; i < WIDTH; i++) assert_true(((float *)m.bias->grad)[i] == 0);
    model_free(&m);
}

// ---- indices beyond their range ----

static void gather_beyond(Model *m, Tensor *x, Tensor *index) { gather_rows(m->tape, x, index); }
static void embed_beyond(Model *m, Tensor *x, Tensor *index) { embedding(m->tape, index, x); }
static void place_beyond(Model *m, Tensor *x, Tensor *index) { scatter_rows(m->tape, NULL, x, index, ROWS); }
static void target_beyond(Model *m, Tensor *x, Tensor *index) { linear_cross_entropy(m->tape, x, x, index, NULL); }

static bool aborts(void (*call)(Model *, Tensor *, Tensor *)) {
    int status = 0;
    pid_t child = fork();
    if (child == 0) {
        struct rlimit none = {0, 0};
        setrlimit(RLIMIT_CORE, &none);
        signal(SIGABRT, SIG_DFL); // cmocka reports aborts by itself
        if (!freopen("/dev/null", "w", stderr)) _exit(1);
        Model m = model_new();
        int32_t index[ROWS] = {0};
        index[7] = ROWS;
        call(&m, tape_constant(m.tape, F32, SHAPE(ROWS, WIDTH), m.x), tape_constant(m.tape, I32, SHAPE(ROWS), index));
        _exit(0);
    }
    return waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}

static void an_index_beyond_its_range_stops_the_program(void **state) {
    (void)state;
    assert_true(aborts(gather_beyond));
    assert_true(aborts(embed_beyond));
    assert_true(aborts(place_beyond));
    assert_true(aborts(target_beyond));
}

// ---- hooks ----

typedef struct Told { // "<" backward, "u" use, "w"/"b" a first write of weight or bias, "W"/"B" weight or bias is complete
    char text[64];
    int count;
    const Model *model;
} Told;

static void tell(Told *t, char letter) {
    if (t->count < (int)sizeof t->text - 1) t->text[t->count++] = letter;
}
static void told_backward(void *context) { tell(context, '<'); }
static void told_use(void *context, const Node *n) {
    tell(context, 'u');
    assert_true(n->in[1]->is_parameter);
}
static void told_gradient(void *context, Tensor *parameter) {
    tell(context, parameter == ((Told *)context)->model->weight ? 'w' : 'b');
}
static void told_complete(void *context, Tensor *parameter) {
    tell(context, parameter == ((Told *)context)->model->weight ? 'W' : 'B');
    assert_true(parameter->grad_written);
}

static void hooks_hear_of_uses_first_writes_and_the_last(void **state) {
    (void)state;
    Model m = model_new();
    Told told = {.model = &m};
    Tensor *x;
    tape_set_hooks(m.tape, &(TapeHooks){&told, told_backward, told_use, told_gradient, told_complete});
    tape_backward(m.tape, forward(&m, &x), ALL_GRADIENTS); // two layers share the weight, the first has a bias
    assert_string_equal(told.text, "uu<uwubWB");
    told = (Told){.model = &m};
    Tensor *loss = forward(&m, &x);
    assert_int_equal(m.weight->writers, 2);
    tape_backward(m.tape, loss, INPUT_GRADIENTS);
    assert_string_equal(told.text, "uu<uu");
    tape_backward(m.tape, loss, WEIGHT_GRADIENTS);
    assert_string_equal(told.text, "uu<uu<uwubWB");
    forward(&m, &x);
    tape_reset(m.tape); // what was never run is forgotten
    assert_int_equal(m.weight->writers, 0);
    assert_int_equal(m.bias->writers, 0);
    model_free(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_weight_half_may_come_later_and_changes_no_bit),
        cmocka_unit_test(gradients_through_shared_inputs_and_views_are_those_of_differences),
        cmocka_unit_test(an_identical_step_has_the_same_addresses_and_allocates_nothing),
        cmocka_unit_test(a_backward_pass_needs_little_more_than_the_forward_pass),
        cmocka_unit_test(dropped_memory_is_used_again_at_once),
        cmocka_unit_test(nothing_is_recorded_where_no_gradient_is_wanted),
        cmocka_unit_test(the_first_error_stays_until_the_reset),
        cmocka_unit_test(what_is_not_finite_is_found_where_it_appears),
        cmocka_unit_test(tensors_without_elements_pass_through),
        cmocka_unit_test(an_index_beyond_its_range_stops_the_program),
        cmocka_unit_test(hooks_hear_of_uses_first_writes_and_the_last),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
