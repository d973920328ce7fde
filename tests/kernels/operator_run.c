/* See operator_run.h. */
#include "operator_run.h"
#include "base/error.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double STEP = 1e-5; // of differences

static Values values_new(Arena *memory, int64_t count) {
    return (Values){arena_allocate(memory, sizeof(double) * (size_t)(count + 1)), count};
}

static bool is_float(Dtype t) { return t == F32 || t == BF16; }

Values run_read(Arena *memory, Backend *b, const void *data, Dtype t, int64_t count) {
    Values v = values_new(memory, count);
    void *host = arena_allocate(memory, dtype_size(t) * (size_t)(count + 1));
    b->download(b, host, data, dtype_size(t) * (size_t)count);
    for (int64_t i = 0; i < count; i++)
        v.value[i] = t == F32    ? (double)((float *)host)[i]
                     : t == BF16 ? (double)bf16_to_f32(((uint16_t *)host)[i])
                     : t == I32  ? (double)((int32_t *)host)[i]
                                 : (double)((uint8_t *)host)[i];
    return v;
}

static void *encode(Arena *memory, Values v, Dtype t) {
    void *host = arena_allocate(memory, dtype_size(t) * (size_t)(v.count + 1));
    check(is_float(t));
    for (int64_t i = 0; i < v.count; i++) {
        if (t == F32)
            ((float *)host)[i] = (float)v.value[i];
        else
            ((uint16_t *)host)[i] = f32_to_bf16((float)v.value[i]);
    }
    return host;
}

static void write(Arena *memory, Backend *b, void *data, Dtype t, Values v) {
    b->upload(b, data, encode(memory, v, t), dtype_size(t) * (size_t)v.count);
}

static Example example_of(Tape *tape, Choice c) {
    return (Example){.tape = tape,
                     .rng = rng_for(c.seed, PURPOSE_TEST, hash_u64(c.op->name, strlen(c.op->name)) + c.variant),
                     .dtype = c.dtype,
                     .size = EXAMPLE_SMALL,
                     .variant = c.variant};
}

int run_variants(Tape *tape, const Operator *op) {
    Example e = example_of(tape, (Choice){.op = op, .dtype = F32});
    tape_reset(tape);
    op->example(&e);
    return e.variants;
}

static int64_t count_outputs(const Node *call) {
    return tensor_count(call->out) + (call->second ? tensor_count(call->second) : 0);
}

// Normal numbers that the output's type holds exactly.
static Values draw_cotangent(Arena *memory, const Tensor *out, int64_t count, uint64_t seed) {
    Values v = values_new(memory, count);
    Rng rng = rng_for(seed, PURPOSE_TEST, 1);
    for (int64_t i = 0; i < v.count; i++) {
        float value = (float)rng_normal(&rng);
        v.value[i] = (double)(out->dtype == BF16 ? bf16_to_f32(f32_to_bf16(value)) : value);
    }
    return v;
}

// Of two outputs, the second behind the first.
void run_read_output(Run *r) {
    const Tensor *both[] = {r->call->out, r->call->second};
    r->out = values_new(r->memory, count_outputs(r->call));
    for (int64_t i = 0, at = 0; i < 2 && both[i]; at += tensor_count(both[i++])) {
        Values one = run_read(r->memory, tape_backend(r->tape), both[i]->data, both[i]->dtype, tensor_count(both[i]));
        memcpy(r->out.value + at, one.value, sizeof(double) * (size_t)one.count);
    }
}

Run run_forward(Arena *memory, Tape *tape, Choice c) {
    Run r = {.choice = c, .tape = tape, .memory = memory};
    Example e = example_of(tape, c);
    tape_reset(tape);
    c.op->example(&e);
    if (!e.out) fprintf(stderr, "%s, variant %d: %s\n", c.op->name, c.variant, tape_error(tape));
    check(e.out);
    r.call = tape_last(tape);
    check(r.call && r.call->op == c.op && r.call->out == e.out);
    for (int i = 0; i < MAX_INPUTS; i++) {
        const Tensor *x = r.call->in[i];
        if (x) r.in[i] = run_read(memory, tape_backend(tape), x->data, x->dtype, tensor_count(x));
    }
    r.cotangent = draw_cotangent(memory, r.call->out, count_outputs(r.call), c.seed);
    run_read_output(&r);
    return r;
}

static Dtype gradient_type(const Tensor *x) { return x->is_parameter ? F32 : x->dtype; }

static void backward(Run *r, Values cotangent, Halves halves) {
    Tensor *both[] = {r->call->out, r->call->second};
    for (int64_t i = 0, at = 0; i < 2 && both[i] && (halves & INPUT_GRADIENTS); at += tensor_count(both[i++]))
        tape_seed(r->tape, both[i],
                  encode(r->memory, (Values){cotangent.value + at, tensor_count(both[i])}, both[i]->dtype));
    tape_backward_seeded(r->tape, halves);
    if (halves == INPUT_GRADIENTS) return;
    for (int i = 0; i < MAX_INPUTS; i++) {
        const Tensor *x = r->call->in[i];
        if (!x || !x->needs_grad) continue;
        check(x->grad && x->grad_written);
        r->gradient[i] = run_read(r->memory, tape_backend(r->tape), x->grad, gradient_type(x), tensor_count(x));
    }
}

void run_backward_half(Run *r, Halves halves) { backward(r, r->cotangent, halves); }

void run_backward(Run *r, bool in_halves) {
    if (in_halves) run_backward_half(r, INPUT_GRADIENTS);
    run_backward_half(r, in_halves ? WEIGHT_GRADIENTS : ALL_GRADIENTS);
}

void run_backward_from(Run *r, double everywhere) {
    Values v = values_new(r->memory, count_outputs(r->call));
    for (int64_t i = 0; i < v.count; i++) v.value[i] = everywhere;
    backward(r, v, ALL_GRADIENTS);
}

void run_preset_gradients(Run *r, Values preset[MAX_INPUTS]) {
    for (int i = 0; i < MAX_INPUTS; i++) {
        Tensor *x = r->call->in[i];
        if (!x || !x->needs_grad) continue;
        Dtype t = gradient_type(x);
        Tensor like = {.rank = x->rank, .dtype = t};
        memcpy(like.shape, x->shape, sizeof like.shape);
        preset[i] = draw_cotangent(r->memory, &like, tensor_count(&like), r->choice.seed + 1 + (uint64_t)i);
        if (!x->is_parameter) {
            tape_seed(r->tape, x, encode(r->memory, preset[i], t));
            continue;
        }
        write(r->memory, tape_backend(r->tape), x->grad, t, preset[i]);
        x->grad_written = true;
    }
}

void run_with_element(Run *r, int input, int64_t element, double value) {
    Tensor *x = r->call->in[input];
    r->in[input].value[element] = value;
    write(r->memory, tape_backend(r->tape), x->data, x->dtype, r->in[input]);
    r->call->op->forward(r->call);
    run_read_output(r);
}

static void apply_reference(const Run *r, double *out) {
    double *in[MAX_INPUTS];
    for (int i = 0; i < MAX_INPUTS; i++) in[i] = r->in[i].value;
    reference_of(r->choice.op)(r->call, in, out);
}

Values run_reference(const Run *r) {
    Values out = values_new(r->memory, count_outputs(r->call));
    apply_reference(r, out.value);
    return out;
}

static double loss(const Run *r, double *out) {
    double sum = 0;
    apply_reference(r, out);
    for (int64_t i = 0; i < r->cotangent.count; i++) sum += r->cotangent.value[i] * out[i];
    return sum;
}

double run_difference(const Run *r, int input, int64_t element, const double *direction) {
    ArenaMark mark = arena_mark(r->memory);
    Values x = r->in[input];
    double *kept = values_new(r->memory, x.count).value, *out = values_new(r->memory, r->cotangent.count).value,
           side[2];
    memcpy(kept, x.value, sizeof *kept * (size_t)x.count);
    for (int s = 0; s < 2; s++) {
        double step = s ? -STEP : STEP;
        for (int64_t i = 0; i < x.count; i++) x.value[i] = kept[i] + step * (direction ? direction[i] : i == element);
        side[s] = loss(r, out);
    }
    memcpy(x.value, kept, sizeof *kept * (size_t)x.count);
    arena_rewind(r->memory, mark);
    return (side[0] - side[1]) / (2 * STEP);
}
