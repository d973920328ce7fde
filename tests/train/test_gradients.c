/* Gradients, norm and update over data ranks that are threads: every stage and share of pieces gives the parameters and
 * moments of one rank, to the bit where sums are ordered. */
#include "kernels/cpu/cpu.h"
#include "kernels/nn/buckets.h"
#include "kernels/ops.h"
#include "kernels/recompute.h"
#include "tests/support/ranks.h"
#include "tests/support/test.h"
#include "train/gradients.h"
#include "train/optimizer.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { VOCABULARY = 150, WIDTH = 24, HIDDEN = 90, PLACES = 6, BLOCKS = 2, STEPS = 3, MOST_PIECES = 8 };

static const OptimizerConfig adamw = {.learning_rate = 1e-2,
                                      .schedule = SCHEDULE_CONSTANT,
                                      .weight_decay = 0.1,
                                      .beta1 = 0.9,
                                      .beta2 = 0.99,
                                      .epsilon = 1e-8,
                                      .gradient_clip = 0.5};

typedef struct Case {
    int ranks, stage, pieces; // pieces: over all ranks
    bool ordered, recompute;
    Dtype compute;
    int empty;    // a piece that holds nothing; -1: none
    bool twice;   // each step is begun, and done again
    bool uneven;  // pieces use different parts of the model; of memory: some of it is elsewhere
    int nan_rank; // whose gradient becomes NaN in the last step; -1: none
} Case;

// What came out: of all parameters, one behind the other.
typedef struct Result {
    int64_t count;
    float *master, *m, *v, *read; // (count) read: what operators would read, of rank 0
    double norm[STEPS];
    int64_t gathers[STEPS], unforeseen[STEPS]; // up to each step, on rank 0
} Result;

// ---- a small model ----

typedef struct Layer {
    Tensor *scale, *shift, *up, *bias, *down;
} Layer;

typedef struct Model {
    Backend *backend;
    Parameters *parameters;
    Tape *tape;
    Gradients *gradients;
    Optimizer *optimizer;
    Tensor *table, *frozen, *outside;
    Layer layers[BLOCKS];
} Model;

static Tensor *declare(Parameters *p, const char *prefix, int number, const char *name, int rank, const int64_t *shape,
                       double deviation) {
    char full[64];
    snprintf(full, sizeof full, "%s.%d.%s", prefix, number, name);
    Init init = {.kind = deviation > 0 ? INIT_NORMAL : INIT_ONE, .value = deviation};
    return parameters_add(p, full, rank, shape, init, rank > 1);
}

static void declare_model(Model *m) {
    Parameters *p = m->parameters;
    m->table = declare(p, "tokens", 0, "weight", SHAPE(VOCABULARY, WIDTH), 0.3);
    for (int i = 0; i < BLOCKS; i++)
        m->layers[i] = (Layer){declare(p, "blocks", i, "scale", SHAPE(WIDTH), 0),
                               declare(p, "blocks", i, "shift", SHAPE(WIDTH), 0.1),
                               declare(p, "blocks", i, "up", SHAPE(HIDDEN, WIDTH), 0.2),
                               declare(p, "blocks", i, "bias", SHAPE(HIDDEN), 0.1),
                               declare(p, "blocks", i, "down", SHAPE(WIDTH, HIDDEN), 0.2)};
    declare(p, "unused", 0, "weight", SHAPE(30, 50), 0.2);
    m->frozen = declare(p, "frozen", 0, "weight", SHAPE(WIDTH, WIDTH), 0.2);
    m->outside = declare(p, "outside", 0, "value", SHAPE(1), 0);
    assert_int_equal(parameters_freeze(p, "frozen"), 1);
}

static void model_open(Model *m, const Case *c, Comm *world) {
    Error error = {0};
    Parallel parallel = {.data = world, .zero = c->stage, .bucket_bytes = 16 << 10, .ordered = c->ordered};
    m->backend = cpu_backend_new(1, NULL, NULL);
    m->parameters = parameters_new(m->backend, &parallel);
    declare_model(m);
    assert_done(parameters_finish(m->parameters, c->compute, 5, &error), &error);
    m->tape = tape_new(m->backend, true);
    m->gradients = gradients_new(m->parameters, m->tape, NULL);
    m->optimizer = optimizer_new(m->backend, m->parameters, &adamw, STEPS);
}

static void model_close(Model *m) {
    optimizer_free(m->optimizer);
    gradients_free(m->gradients);
    tape_free(m->tape);
    parameters_free(m->parameters);
    backend_free(m->backend);
}

static Tensor *layer_forward(Tape *t, const void *closure, Tensor *x) {
    const Layer *l = closure;
    Tensor *h = layernorm(t, x, l->scale, l->shift, 1e-5);
    return add(t, x, linear(t, gelu(t, linear(t, h, l->up, l->bias), GELU_TANH), l->down, NULL));
}

// outside: the gradient of a parameter that no bucket's order foresees.
static Tensor *loss_of(Model *m, const Case *c, int step, int piece, float outside) {
    Tape *t = m->tape;
    int32_t ids[PLACES], targets[PLACES];
    Rng rng = rng_for((uint64_t)step, PURPOSE_TEST, (uint64_t)piece);
    for (int i = 0; i < PLACES; i++) {
        ids[i] = (int32_t)(rng_u64(&rng) % VOCABULARY);
        targets[i] = (int32_t)(rng_u64(&rng) % VOCABULARY);
    }
    tape_reset(t);
    Tensor *h = embedding(t, tape_constant(t, I32, SHAPE(PLACES), ids), m->table);
    for (int i = 0; i < BLOCKS; i++) {
        const Layer *l = &m->layers[c->uneven && piece % 3 == 1 ? BLOCKS - 1 - i : i];
        if (c->uneven && piece % 3 == 2 && i == 0) continue;
        h = c->recompute ? tape_recompute(t, layer_forward, l, sizeof *l, h) : layer_forward(t, l, h);
    }
    if (!c->uneven || piece % 2) h = linear(t, h, m->frozen, NULL);
    Tensor *loss = linear_cross_entropy(t, h, m->table, tape_constant(t, I32, SHAPE(PLACES), targets), NULL);
    return add(t, sum(t, loss, 1.0 / (PLACES * c->pieces)), sum(t, m->outside, (double)outside));
}

static void run_pieces(Model *m, const Case *c, int rank, int step) {
    int own = c->pieces / c->ranks, first = own * rank;
    gradients_begin_step(m->gradients, own);
    for (int i = 0; i < own; i++) {
        float outside = rank == c->nan_rank && step == STEPS - 1 ? NAN : 0.01f * (float)(first + i + 1);
        gradients_begin_piece(m->gradients, i);
        if (first + i != c->empty) tape_backward(m->tape, loss_of(m, c, step, first + i, outside), ALL_GRADIENTS);
        if (tape_error(m->tape)) fail_msg("%s", tape_error(m->tape));
        gradients_end_piece(m->gradients);
    }
}

static double run_step(Model *m, const Case *c, int rank, int step) {
    if (c->twice) run_pieces(m, c, rank, step);
    run_pieces(m, c, rank, step);
    double norm = gradients_norm(m->gradients);
    if (isfinite(norm)) optimizer_step(m->optimizer, step + 1, norm);
    return norm;
}

// ---- what came out ----

static void result_new(Result *r) {
    enum { ROOM = 1 << 14 };
    *r = (Result){.count = ROOM};
    r->master = calloc(4 * ROOM, sizeof(float));
    assert_non_null(r->master);
    r->m = r->master + ROOM, r->v = r->m + ROOM, r->read = r->v + ROOM;
}

static int64_t place_of(Parameters *p, int number) {
    int64_t place = 0;
    for (int i = 0; i < number; i++) place += tensor_count(&parameters_at(p, i)->tensor);
    return place;
}

static void collect_result(const Model *m, const Case *c, int rank, Result *out) {
    StateRange *ranges;
    Arena *memory = arena_new(1 << 12);
    parameters_meet(m->parameters);
    int count = optimizer_ranges(m->optimizer, memory, &ranges);
    for (int i = 0; i < count; i++) {
        const StateRange *r = &ranges[i];
        float *to = r->kind == STATE_MASTER ? out->master : r->kind == STATE_M ? out->m : out->v;
        if (r->everywhere && rank) continue;
        memcpy(to + place_of(m->parameters, r->parameter) + r->first, r->data, (size_t)r->count * sizeof *to);
    }
    for (int i = 0; i < parameters_count(m->parameters) && !rank && c->stage < 3; i++) {
        const Tensor *t = &parameters_at(m->parameters, i)->tensor;
        m->backend->convert(m->backend, out->read + place_of(m->parameters, i), F32, t->data, t->dtype,
                            tensor_count(t));
    }
    arena_free(memory);
}

typedef struct Run {
    const Case *c;
    Result *result;
} Run;

static void run_rank(int rank, Comm *world, void *argument) {
    const Run *run = argument;
    Model m = {0};
    model_open(&m, run->c, world);
    for (int step = 0; step < STEPS; step++) {
        double norm = run_step(&m, run->c, rank, step);
        if (!rank) run->result->norm[step] = norm;
        if (!rank) parameters_gathered(m.parameters, &run->result->gathers[step], &run->result->unforeseen[step]);
        if (run->c->nan_rank >= 0 && step == STEPS - 1) assert_false(isfinite(norm)); // on every rank
    }
    collect_result(&m, run->c, rank, run->result);
    model_close(&m);
}

static void run_case(const Case *c, Result *out) {
    Run run = {c, out};
    result_new(out);
    ranks_run(c->ranks, run_rank, &run);
}

static void expect_equal(const Case *c, const Result *got, const Result *want) {
    size_t bytes = (size_t)want->count * sizeof(float);
    for (int i = 0; i < STEPS; i++)
        if (!(got->norm[i] == want->norm[i]))
            fail_msg("%d ranks, stage %d: norm %d is %.17g, not %.17g", c->ranks, c->stage, i, got->norm[i],
                     want->norm[i]);
    assert_memory_equal(got->master, want->master, bytes);
    assert_memory_equal(got->m, want->m, bytes);
    assert_memory_equal(got->v, want->v, bytes);
    if (c->stage < 3) assert_memory_equal(got->read, want->read, bytes);
}

static void expect_layouts_equal(Case c) {
    Result want, got;
    c.ordered = true;
    c.ranks = 1;
    c.stage = 0;
    run_case(&c, &want);
    assert_true(want.norm[0] > 0.5); // so that it is clipped
    for (c.ranks = 1; c.ranks <= c.pieces; c.ranks *= 2) {
        for (c.stage = 0; c.stage <= 3; c.stage++) {
            run_case(&c, &got);
            expect_equal(&c, &got, &want);
            free(got.master);
        }
    }
    free(want.master);
}

static const Case plain = {.pieces = MOST_PIECES, .compute = F32, .empty = -1, .nan_rank = -1};

static void ordered_sums_give_the_same_bits_on_every_layout(void **state) {
    (void)state;
    Case c = plain;
    for (c.pieces = 1; c.pieces <= MOST_PIECES; c.pieces *= 2) expect_layouts_equal(c);
}

static void so_do_they_in_bf16(void **state) {
    (void)state;
    Case c = plain;
    c.compute = BF16;
    expect_layouts_equal(c);
}

static void so_do_they_where_a_piece_holds_nothing(void **state) {
    (void)state;
    Case c = plain;
    c.empty = 5;
    expect_layouts_equal(c);
}

static void so_do_they_where_blocks_are_recomputed(void **state) {
    (void)state;
    Case c = plain;
    Result once, again;
    c.recompute = true;
    expect_layouts_equal(c);
    c.ranks = 2;
    c.stage = 2;
    run_case(&c, &again);
    c.recompute = false;
    run_case(&c, &once);
    assert_memory_equal(once.master, again.master, (size_t)once.count * sizeof(float));
    free(once.master);
    free(again.master);
}

static void so_do_they_where_pieces_use_different_parts(void **state) {
    (void)state;
    Case c = plain;
    c.uneven = true;
    c.empty = 2;
    expect_layouts_equal(c);
}

static void so_do_they_where_a_step_is_done_again(void **state) {
    (void)state;
    Case c = plain;
    Result want, got;
    c.ordered = true;
    c.ranks = 2;
    run_case(&c, &want);
    c.twice = true;
    for (c.stage = 0; c.stage <= 3; c.stage++) {
        run_case(&c, &got);
        expect_equal(&c, &got, &want);
        free(got.master);
    }
    free(want.master);
}

static void what_is_used_is_foreseen_after_one_step(void **state) {
    (void)state;
    Case c = plain;
    Result got;
    c.ranks = 2;
    c.stage = 3;
    run_case(&c, &got);
    assert_int_equal(got.unforeseen[0], got.gathers[0]); // nothing is known yet
    assert_int_equal(got.unforeseen[STEPS - 1], got.unforeseen[0]);
    assert_true(got.gathers[STEPS - 1] > got.gathers[0]);
    free(got.master);
}

// ---- tensor ranks ----

// Ranks 2 d + t: data rank d, tensor rank t. Each brings (d + 1) (t + 1) times a pattern as gradients of a parameter
// that is whole (the same on tensor ranks: t counts as 0), of one that is partial and of one that is split.
static void tensor_rank(int rank, Comm *world, void *argument) {
    enum { SIDE = 40, PARAMETERS = 3, COUNT = SIDE * SIDE };
    const Case *c = argument;
    Error error = {0};
    Comm *data = comm_split(world, rank % 2, rank / 2, "data"),
         *tensor = comm_split(world, rank / 2, rank % 2, "tensor");
    Parallel parallel = {.data = data, .tensor = tensor, .zero = c->stage, .bucket_bytes = 1 << 20, .ordered = true};
    Model m = {
        .backend = cpu_backend_new(1, NULL, NULL),
    };
    Parameters *p = m.parameters = parameters_new(m.backend, &parallel);
    Init none = {.kind = INIT_ZERO};
    Tensor *weights[PARAMETERS] = {parameters_add(p, "whole", SHAPE(SIDE, SIDE), none, true),
                                   parameters_add(p, "partial", SHAPE(SIDE, SIDE), none, true),
                                   parameters_add_split(p, "split", SHAPE(SIDE, SIDE), none, true,
                                                        (Split){.dimension = 0, .segments = 1, .size = {SIDE}})};
    parameters_set_partial(p, weights[1]);
    assert_done(parameters_finish(p, F32, 1, &error), &error);
    m.tape = tape_new(m.backend, true);
    m.gradients = gradients_new(p, m.tape, NULL);
    gradients_begin_step(m.gradients, 1);
    gradients_begin_piece(m.gradients, 0);
    Tensor *loss = NULL;
    for (int i = 0; i < PARAMETERS; i++) {
        int factor = (rank / 2 + 1) * (i ? rank % 2 + 1 : 1); // summed over data: 3, over tensor: 3
        Tensor *term = sum(m.tape, weights[i], rank == c->nan_rank && !i ? (double)NAN : (double)factor);
        loss = loss ? add(m.tape, loss, term) : term;
    }
    tape_backward(m.tape, loss, ALL_GRADIENTS);
    gradients_end_piece(m.gradients);
    // 3 everywhere, 9 everywhere, and half of the rows each: 3, 6
    const int squares = 9 * COUNT + 81 * COUNT + (9 + 36) * (COUNT / 2);
    double want = sqrt(squares), norm = gradients_norm(m.gradients);
    assert_true(c->nan_rank < 0 ? fabs(norm - want) <= 1e-9 * want : !isfinite(norm)); // on every rank
    int count;
    const OwnedRange *ranges = parameters_owned(p, &count);
    for (int i = 0; i < count && c->nan_rank < 0; i++) {
        float each = ranges[i].parameter->number == 0 ? 3 : ranges[i].parameter->number == 1 ? 9 : rank % 2 ? 6 : 3;
        for (int64_t k = 0; k < ranges[i].count; k++) assert_true(ranges[i].gradient[k] == each);
    }
    gradients_free(m.gradients);
    tape_free(m.tape);
    parameters_free(p);
    backend_free(m.backend);
    comm_free(tensor);
    comm_free(data);
}

static void parts_of_gradients_are_summed_over_tensor_ranks(void **state) {
    (void)state;
    for (int stage = 0; stage <= 3; stage++) {
        ranks_run(4, tensor_rank, &(Case){.stage = stage, .nan_rank = -1});
        ranks_run(4, tensor_rank, &(Case){.stage = stage, .nan_rank = 3});
    }
}

static void fast_sums_are_close(void **state) {
    (void)state;
    Case c = plain;
    Result want, got;
    c.pieces = 6;
    c.ranks = 1;
    run_case(&c, &want);
    for (c.ranks = 1; c.ranks <= 3; c.ranks++) {
        for (c.stage = 0; c.stage <= 3; c.stage++) {
            run_case(&c, &got);
            for (int i = 0; i < STEPS; i++) assert_true(fabs(got.norm[i] - want.norm[i]) <= 1e-5 * want.norm[i]);
            for (int64_t i = 0; i < want.count; i++) {
                assert_true(fabsf(got.m[i] - want.m[i]) <= 1e-5f);
                assert_true(fabsf(got.v[i] - want.v[i]) <= 1e-5f);
            }
            free(got.master);
        }
    }
    free(want.master);
}

static void a_bad_number_on_one_rank_shows_in_the_norm_of_all(void **state) {
    (void)state;
    Case c = plain;
    Result got;
    c.ranks = 4;
    c.nan_rank = 2;
    for (c.stage = 0; c.stage <= 3; c.stage++) {
        run_case(&c, &got);
        free(got.master);
    }
}

// ---- memory ----

static void memory_rank(int rank, Comm *world, void *argument) {
    (void)rank;
    const Case *c = argument;
    enum { SIDE = 256, MATRICES = 8 };
    Error error = {0};
    Model m = {.backend = cpu_backend_new(1, NULL, NULL)};
    Parallel parallel = {.data = world, .zero = c->stage, .bucket_bytes = 1 << 20};
    m.parameters = parameters_new(m.backend, &parallel);
    for (int i = 0; i < MATRICES; i++) {
        declare(m.parameters, i ? "trained" : "frozen", i, "weight", SHAPE(SIDE, SIDE), 0.1);
        declare(m.parameters, "trained", i, "bias", SHAPE(SIDE), 0.1);
        if (c->uneven && i % 2) parameters_place(m.parameters, 2 * i, -1);
    }
    assert_int_equal(parameters_freeze(m.parameters, "frozen"), 1);
    assert_done(parameters_finish(m.parameters, c->compute, 5, &error), &error);
    double all = (double)parameters_elements(m.parameters, false),
           trained = (double)parameters_elements(m.parameters, true);
    ParameterMemory got = parameters_memory(m.parameters),
                    want = parameters_formula(all, trained, c->compute, c->stage, c->ranks);
    double states = 8 * (double)parameters_states(m.parameters);
    assert_true(fabs(got.parameters - want.parameters) <= 0.05 * want.parameters);
    assert_true(fabs(got.gradients - want.gradients) <= 0.05 * want.gradients);
    assert_true(fabs(states - want.states) <= 0.05 * want.states);
    parameters_free(m.parameters);
    backend_free(m.backend);
}

static void memory_is_what_the_formula_says(void **state) {
    (void)state;
    for (int part = 0; part < 2; part++) { // the whole model, some of it
        for (int stage = 0; stage <= 3; stage++) {
            Case c = {.ranks = 4, .stage = stage, .compute = F32, .uneven = part};
            ranks_run(c.ranks, memory_rank, &c);
            c.compute = BF16;
            ranks_run(c.ranks, memory_rank, &c);
        }
    }
    ParameterMemory f = parameters_formula(1, 1, BF16, 3, 2);
    assert_true(f.parameters + f.gradients + f.states == 9);
    f = parameters_formula(1, 1, F32, 0, 2);
    assert_true(f.parameters + f.gradients + f.states == 16);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ordered_sums_give_the_same_bits_on_every_layout),
        cmocka_unit_test(so_do_they_in_bf16),
        cmocka_unit_test(so_do_they_where_a_piece_holds_nothing),
        cmocka_unit_test(so_do_they_where_blocks_are_recomputed),
        cmocka_unit_test(so_do_they_where_pieces_use_different_parts),
        cmocka_unit_test(so_do_they_where_a_step_is_done_again),
        cmocka_unit_test(what_is_used_is_foreseen_after_one_step),
        cmocka_unit_test(parts_of_gradients_are_summed_over_tensor_ranks),
        cmocka_unit_test(fast_sums_are_close),
        cmocka_unit_test(a_bad_number_on_one_rank_shows_in_the_norm_of_all),
        cmocka_unit_test(memory_is_what_the_formula_says),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
