/* Fuzzes tapes: the bytes are a program over a few streams and say where it is cut into parts, which run on tapes of
 * their own in one memory, backwards at once or in halves. Losses and gradients are those of one tape over all, to the
 * bit; all memory comes back; and a second pass has the same places. */
#include "base/error.h"
#include "kernels/cpu/cpu.h"
#include "kernels/nn/parameters.h"
#include "kernels/ops.h"
#include "kernels/recompute.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { ROWS = 16, WIDTH = 64, COUNT = ROWS * WIDTH, STREAMS = 4, MOST_CALLS = 48, MOST_PARTS = 6 };
enum { NUMBERS = 1 + COUNT + 2 * WIDTH * WIDTH + 2 * WIDTH }; // loss, gradients of the input and of all parameters

typedef struct Model {
    Backend *backend;
    Parameters *parameters;
    Tensor *weight[2], *scale, *shift;
    float x[COUNT];
} Model;

typedef struct Call { // stream[to] = function(stream[left], stream[right])
    int to, left, right, function;
    bool cut; // before it
} Call;

typedef struct Program {
    Call calls[MOST_CALLS];
    int count, parts;
    bool halves, late; // the halves of weights come when all others are done
} Program;

typedef struct Part {
    Tape *tape;
    Tensor *in[STREAMS], *out[STREAMS];
} Part;

// ---- programs ----

static Program program_of(const uint8_t *data, size_t size) {
    Program p = {.parts = 1};
    if (!size) return p;
    p.halves = data[0] & 1, p.late = data[0] & 2;
    for (size_t i = 1; i + 1 < size && p.count < MOST_CALLS; i += 2) {
        Call c = {data[i] & 3, data[i] >> 2 & 3, data[i] >> 4 & 3, data[i + 1] & 15, data[i + 1] >= 240};
        c.cut = c.cut && p.count && p.parts < MOST_PARTS;
        p.parts += c.cut;
        p.calls[p.count++] = c;
    }
    return p;
}

static Tensor *block(Tape *t, const void *closure, Tensor *x) {
    const Model *m = *(const Model *const *)closure;
    Tensor *h = linear(t, layernorm(t, x, m->scale, m->shift, 1e-5), m->weight[0], NULL);
    return add(t, x, linear(t, gelu(t, h, GELU_TANH), m->weight[1], m->shift));
}

static Tensor *call(Tape *t, const Model *m, const Call *c, Tensor *x, Tensor *y) {
    switch (c->function) {
    case 0:
        return gelu(t, x, GELU_TANH);
    case 1:
        return add(t, x, y);
    case 2:
        return scale(t, mul(t, x, y), 0.5);
    case 3:
        return linear(t, x, m->weight[0], NULL);
    case 4:
        return linear(t, x, m->weight[1], m->shift);
    case 5:
        return layernorm(t, x, m->scale, m->shift, 1e-5);
    case 6:
        return rmsnorm(t, x, m->scale, 1e-5);
    case 7:
        return scale(t, x, -0.75);
    case 8:
        return tape_recompute(t, block, &m, sizeof m, x);
    case 9:
        return block(t, &m, x);
    case 10:
        return tape_reshape(t, tape_reshape(t, x, SHAPE(2, ROWS / 2, WIDTH)), SHAPE(ROWS, WIDTH));
    case 11:
        return tape_constant(t, F32, SHAPE(ROWS, WIDTH), m->x); // what was there wants no gradient any more
    case 12:
        return dropout(t, x, 0.25, 3, 1, 0);
    case 13:
        return add(t, x, m->shift); // repeats
    default:
        return scale(t, y, 1);
    }
}

// ---- parts ----

static void hand_on(Part *from, Part *to) {
    float host[COUNT];
    for (int i = 0; i < STREAMS; i++) {
        tape_read(from->tape, from->out[i], host);
        to->in[i] = tape_arrival(to->tape, F32, SHAPE(ROWS, WIDTH), host, from->out[i]->needs_grad);
    }
}

static void hand_back(Part *from, Part *to) {
    float host[COUNT];
    for (int i = 0; i < STREAMS; i++) {
        if (!tape_has_gradient(from->in[i])) continue;
        tape_read_gradient(from->tape, from->in[i], host);
        tape_seed(to->tape, to->out[i], host);
    }
}

static Tensor *forward(const Model *m, const Program *p, int parts, Part *part) {
    for (int i = 0; i < STREAMS; i++) part->in[i] = tape_arrival(part->tape, F32, SHAPE(ROWS, WIDTH), m->x, i == 0);
    memcpy(part->out, part->in, sizeof part->in);
    for (int i = 0; i < p->count; i++) {
        const Call *c = &p->calls[i];
        if (c->cut && parts > 1) {
            hand_on(part, part + 1);
            part++;
            memcpy(part->out, part->in, sizeof part->in);
        }
        part->out[c->to] = call(part->tape, m, c, part->out[c->left], part->out[c->right]);
        check(!tape_error(part->tape));
    }
    int32_t targets[ROWS];
    for (int i = 0; i < ROWS; i++) targets[i] = 3 * i;
    Tensor *words = tape_constant(part->tape, I32, SHAPE(ROWS), targets);
    Tensor *loss = sum(part->tape, linear_cross_entropy(part->tape, part->out[0], m->weight[0], words, NULL), 0.1);
    for (int i = 1; i < STREAMS; i++) loss = add(part->tape, loss, sum(part->tape, part->out[i], 0.01));
    return loss;
}

// Whatever is free holds NaN from here on.
static void spoil(TapeMemory *memory) {
    enum { BLOCKS = 400 };
    float bad[COUNT];
    Tape *t = tape_new_in(memory, false);
    for (int i = 0; i < COUNT; i++) bad[i] = NAN;
    for (int i = 0; i < BLOCKS; i++) {
        tape_constant(t, F32, SHAPE(ROWS, WIDTH), bad);
        tape_constant(t, F32, SHAPE(WIDTH), bad);
    }
    tape_free(t);
}

static void backward(const Program *p, int parts, TapeMemory *memory, Part *part, Tensor *loss) {
    bool halves = p->halves, late = halves && p->late;
    tape_seed(part[parts - 1].tape, loss, NULL);
    for (int i = parts - 1; i >= 0; i--) {
        tape_backward_seeded(part[i].tape, halves ? INPUT_GRADIENTS : ALL_GRADIENTS);
        if (i) hand_back(&part[i], &part[i - 1]);
        if (halves) spoil(memory);
        if (halves && !late) tape_backward_seeded(part[i].tape, WEIGHT_GRADIENTS);
    }
    for (int i = parts - 1; i >= 0 && late; i--) tape_backward_seeded(part[i].tape, WEIGHT_GRADIENTS);
}

// One step; everything that comes out of it. Returns a number made of where things lay.
static uint64_t step(const Model *m, const Program *p, int parts, TapeMemory *memory, Part *part, float *out) {
    uint64_t places = 0;
    memset(out, 0, NUMBERS * sizeof *out);
    parameters_begin_step(m->parameters);
    Tensor *loss = forward(m, p, parts, part);
    tape_read(part[parts - 1].tape, loss, out++);
    for (int i = 0; i < parts; i++)
        for (int k = 0; k < STREAMS; k++) places = places * 31 + (uintptr_t)part[i].out[k]->data;
    if (loss->needs_grad) backward(p, parts, memory, part, loss);
    if (tape_has_gradient(part->in[0])) tape_read_gradient(part->tape, part->in[0], out);
    out += COUNT;
    parameters_end_backward(m->parameters);
    for (int i = 0; i < parameters_count(m->parameters); i++) {
        const Tensor *x = &parameters_at(m->parameters, i)->tensor;
        memcpy(out, x->grad, (size_t)tensor_count(x) * sizeof *out);
        out += tensor_count(x);
    }
    for (int i = 0; i < parts; i++) tape_reset(part[i].tape);
    for (int i = 0; i < parameters_count(m->parameters); i++)
        check(parameters_at(m->parameters, i)->tensor.writers == 0);
    return places;
}

static void run(const Model *m, const Program *p, int parts, float *out, float *again) {
    Part part[MOST_PARTS] = {0};
    TapeMemory *memory = tape_memory_new(m->backend);
    for (int i = 0; i < parts; i++) part[i].tape = tape_new_in(memory, true);
    uint64_t places = step(m, p, parts, memory, part, out);
    int64_t allocations = tape_memory_system_allocations(memory);
    check(tape_memory_held(memory) == 0);
    check(step(m, p, parts, memory, part, again) == places && !memcmp(out, again, NUMBERS * sizeof *out));
    check(tape_memory_system_allocations(memory) == allocations && tape_memory_held(memory) == 0);
    for (int i = 0; i < parts; i++) tape_free(part[i].tape);
    tape_memory_free(memory);
}

// ---- the model ----

static Model model_new(void) {
    Error error = {0};
    Model m = {.backend = cpu_backend_new(1, NULL, NULL)};
    Parameters *p = m.parameters = parameters_new(m.backend, NULL);
    Init normal = {.kind = INIT_NORMAL, .value = 0.1}, one = {.kind = INIT_ONE};
    m.weight[0] = parameters_add(p, "weight.0", SHAPE(WIDTH, WIDTH), normal, true);
    m.weight[1] = parameters_add(p, "weight.1", SHAPE(WIDTH, WIDTH), normal, true);
    m.scale = parameters_add(p, "scale", SHAPE(WIDTH), one, false);
    m.shift = parameters_add(p, "shift", SHAPE(WIDTH), normal, false);
    check(parameters_finish(p, F32, 1, &error));
    for (int i = 0; i < COUNT; i++) m.x[i] = sinf((float)i);
    return m;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Program program = program_of(data, size), whole = program;
    Model m = model_new();
    float *numbers = malloc(3 * NUMBERS * sizeof *numbers);
    check(numbers);
    whole.halves = false;
    run(&m, &whole, 1, numbers, numbers + 2 * NUMBERS);
    run(&m, &program, program.parts, numbers + NUMBERS, numbers + 2 * NUMBERS);
    check(!memcmp(numbers, numbers + NUMBERS, NUMBERS * sizeof *numbers));
    free(numbers);
    parameters_free(m.parameters);
    backend_free(m.backend);
    return 0;
}
