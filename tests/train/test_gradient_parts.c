/* Gradients of a model in parts, as stages of a pipeline form them: one tape for each microbatch and part, rows in the
 * order of every schedule. Norms, parameters and moments are, bit for bit, those of one process with one tape; so are
 * those of words of which two stages hold a copy. */
#include "kernels/cpu/cpu.h"
#include "kernels/ops.h"
#include "tests/support/ranks.h"
#include "tests/support/test.h"
#include "train/gradients.h"
#include "train/optimizer.h"
#include "train/schedules.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { VOCABULARY = 150, WIDTH = 24, HIDDEN = 90, PLACES = 6, STEPS = 2, PIECES = 8, PARTS = 4, ROOM = 1 << 15 };

static const OptimizerConfig adamw = {.learning_rate = 1e-2,
                                      .schedule = SCHEDULE_CONSTANT,
                                      .weight_decay = 0.1,
                                      .beta1 = 0.9,
                                      .beta2 = 0.99,
                                      .epsilon = 1e-8,
                                      .gradient_clip = 0.5};

typedef struct Case {
    PipelineKind kind;
    int stages, data, zero; // stages 0: one process, one tape a piece, all in one part
    bool ordered, one_copy; // one_copy: the head reads the embedded words themselves
    Dtype compute;
    int silent; // the part that nothing comes to in any piece; -1: none
} Case;

typedef struct Result { // of all parameters, one behind the other
    float master[ROOM], m[ROOM], v[ROOM], read[ROOM];
    double norm[STEPS];
} Result;

// ---- the model: words, a layer, a frozen part, a head ----

typedef struct Model {
    const Case *c;
    PipelineShape shape;
    int stage, first_piece, pieces; // of this data rank
    Comm *data, *pipeline;
    Backend *backend;
    Parameters *parameters;
    Gradients *gradients;
    Optimizer *optimizer;
    Tensor *words, *up, *bias, *down, *spare, *frozen, *projection, *head, *unused;
    Tape *tapes[PARTS][PIECES];    // by chunk and microbatch
    Tensor *losses[PARTS][PIECES]; // NULL: the part has nothing in this piece
} Model;

static int chunk_of(const Model *m, int part) {
    int stage, chunk;
    if (!m->c->stages) return 0;
    pipeline_place(&m->shape, part, &stage, &chunk);
    return stage == m->stage ? chunk : -1;
}

static Tensor *declare(Model *m, int part, const char *name, int rank, const int64_t *shape) {
    Tensor *t = parameters_add(m->parameters, name, rank, shape, (Init){.kind = INIT_NORMAL, .value = 0.2}, rank > 1);
    parameters_place(m->parameters, parameters_count(m->parameters) - 1, chunk_of(m, part));
    return t;
}

static void declare_model(Model *m) {
    m->words = declare(m, 0, "words", SHAPE(VOCABULARY, WIDTH));
    if (!m->c->one_copy) {
        m->head = parameters_add_replica(m->parameters, "head.words", m->words);
        parameters_place(m->parameters, 1, chunk_of(m, PARTS - 1));
    }
    m->unused = declare(m, 0, "unused", SHAPE(10, 10));
    m->up = declare(m, 1, "layer.up", SHAPE(HIDDEN, WIDTH));
    m->bias = declare(m, 1, "layer.bias", SHAPE(HIDDEN));
    m->down = declare(m, 1, "layer.down", SHAPE(WIDTH, HIDDEN));
    m->spare = declare(m, 1, "layer.spare", SHAPE(WIDTH, HIDDEN));
    m->frozen = declare(m, 2, "frozen", SHAPE(WIDTH, WIDTH));
    m->projection = declare(m, 3, "projection", SHAPE(WIDTH, WIDTH));
    if (m->c->one_copy) m->head = m->words;
    assert_int_equal(parameters_freeze(m->parameters, "frozen"), 1);
}

// A part's loss in a piece, from its own parameters and numbers of its own; NULL: it has nothing there.
static Tensor *loss_of(Tape *t, const Model *m, int part, int step, int piece) {
    int32_t ids[PLACES], targets[PLACES];
    float values[PLACES * WIDTH];
    Rng rng = rng_for((uint64_t)step, PURPOSE_TEST, (uint64_t)(piece * PARTS + part));
    if (part == m->c->silent || (part == 1 && piece % 4 == 3)) return NULL;
    for (int i = 0; i < PLACES; i++) {
        ids[i] = (int32_t)(rng_u64(&rng) % VOCABULARY);
        targets[i] = (int32_t)(rng_u64(&rng) % VOCABULARY);
    }
    for (int i = 0; i < PLACES * WIDTH; i++) values[i] = (float)(rng_u64(&rng) % 2001) * 1e-3f - 1;
    Tensor *x = tape_constant(t, F32, SHAPE(PLACES, WIDTH), values);
    if (m->c->compute == BF16) {
        uint16_t halves[PLACES * WIDTH];
        for (int i = 0; i < PLACES * WIDTH; i++) halves[i] = f32_to_bf16(values[i]);
        x = tape_constant(t, BF16, SHAPE(PLACES, WIDTH), halves);
    }
    Tensor *y = NULL;
    if (part == 0) y = gelu(t, embedding(t, tape_constant(t, I32, SHAPE(PLACES), ids), m->words), GELU_TANH);
    if (part == 1) {
        Tensor *h = gelu(t, linear(t, x, m->up, m->bias), GELU_TANH), *spare = linear(t, h, m->spare, NULL);
        y = linear(t, h, m->down, NULL);
        if (piece % 2) y = add(t, y, spare); // else nothing comes to it
    }
    if (part == 2) y = linear(t, x, m->frozen, NULL);
    if (part == 3)
        y = linear_cross_entropy(t, gelu(t, linear(t, x, m->projection, NULL), GELU_TANH), m->head,
                                 tape_constant(t, I32, SHAPE(PLACES), targets), NULL);
    return sum(t, y, 1.0 / (PLACES * PIECES));
}

static void model_open(Model *m, const Case *c, int rank, Comm *world) {
    Error error = {0};
    int stages = c->stages ? c->stages : 1;
    *m = (Model){.c = c, .stage = rank % stages, .pieces = PIECES / c->data};
    m->shape = (PipelineShape){c->kind, stages, m->pieces, PARTS / stages};
    m->first_piece = rank / stages * m->pieces;
    if (c->stages) assert_done(pipeline_shape_valid(&m->shape, &error), &error);
    m->data = comm_split(world, m->stage, rank, "data");
    m->pipeline = comm_split(world, rank / stages, rank, "pipeline");
    m->backend = cpu_backend_new(1, NULL, NULL);
    Parallel parallel = {
        .data = m->data, .pipeline = m->pipeline, .zero = c->zero, .bucket_bytes = 16 << 10, .ordered = c->ordered};
    m->parameters = parameters_new(m->backend, &parallel);
    declare_model(m);
    assert_done(parameters_finish(m->parameters, c->compute, 5, &error), &error);
    m->gradients = gradients_new(m->parameters, NULL, NULL);
    m->optimizer = optimizer_new(m->backend, m->parameters, &adamw, STEPS);
    for (int k = 0; k < PARTS; k++) {
        for (int i = 0; i < m->pieces; i++) {
            m->tapes[k][i] = tape_new(m->backend, true);
            gradients_follow(m->gradients, m->tapes[k][i]);
        }
    }
}

static void model_close(Model *m) {
    for (int k = 0; k < PARTS; k++)
        for (int i = 0; i < m->pieces; i++) tape_free(m->tapes[k][i]);
    optimizer_free(m->optimizer);
    gradients_free(m->gradients);
    parameters_free(m->parameters);
    backend_free(m->backend);
    comm_free(m->pipeline);
    comm_free(m->data);
}

// ---- a step ----

static void run_alone(Model *m, int step) {
    for (int i = 0; i < m->pieces; i++) {
        Tape *t = m->tapes[0][0];
        Tensor *loss = NULL;
        tape_reset(t);
        gradients_begin_piece(m->gradients, i);
        for (int part = 0; part < PARTS; part++) {
            Tensor *term = loss_of(t, m, part, step, m->first_piece + i);
            loss = loss && term ? add(t, loss, term) : term ? term : loss;
        }
        if (loss) tape_backward(t, loss, ALL_GRADIENTS);
        if (tape_error(t)) fail_msg("%s", tape_error(t));
        gradients_end_piece(m->gradients);
    }
}

static void run_slot(Model *m, const Slot *slot, int step) {
    static const Halves halves[WORKS] = {[WORK_INPUT_GRADIENT] = INPUT_GRADIENTS,
                                         [WORK_WEIGHT_GRADIENT] = WEIGHT_GRADIENTS,
                                         [WORK_BOTH_GRADIENTS] = ALL_GRADIENTS};
    Tape *t = m->tapes[slot->chunk][slot->microbatch];
    Tensor **loss = &m->losses[slot->chunk][slot->microbatch];
    if (slot->work == WORK_FORWARD) {
        tape_reset(t);
        *loss = loss_of(t, m, pipeline_part(&m->shape, m->stage, slot->chunk), step, m->first_piece + slot->microbatch);
        return;
    }
    bool weights = slot->work != WORK_INPUT_GRADIENT;
    if (weights) gradients_begin_part(m->gradients, slot->chunk, slot->microbatch);
    if (*loss) tape_backward(t, *loss, halves[slot->work]);
    if (tape_error(t)) fail_msg("%s", tape_error(t));
    if (weights) gradients_end_part(m->gradients);
}

static void run_rows(Model *m, int step) {
    int count = pipeline_rows(&m->shape, m->stage, NULL);
    Slot *rows = calloc((size_t)count, sizeof *rows);
    assert_non_null(rows);
    pipeline_rows(&m->shape, m->stage, rows);
    for (int i = 0; i < count; i++) run_slot(m, &rows[i], step);
    free(rows);
}

// ---- what came out ----

static int64_t place_of(Parameters *p, int number) {
    int64_t place = 0;
    for (int i = 0; i < number; i++) place += tensor_count(&parameters_at(p, i)->tensor);
    return place;
}

static void collect_result(const Model *m, Result *out) {
    StateRange *ranges;
    Arena *memory = arena_new(1 << 12);
    parameters_meet(m->parameters);
    int count = optimizer_ranges(m->optimizer, memory, &ranges);
    for (int i = 0; i < count; i++) {
        const StateRange *r = &ranges[i];
        float *to = r->kind == STATE_MASTER ? out->master : r->kind == STATE_M ? out->m : out->v;
        if (r->everywhere && comm_rank(m->data)) continue;
        memcpy(to + place_of(m->parameters, r->parameter) + r->first, r->data, (size_t)r->count * sizeof *to);
    }
    for (int i = 0; i < parameters_count(m->parameters) && !comm_rank(m->data); i++) {
        const Tensor *t = &parameters_at(m->parameters, i)->tensor;
        float *to = out->read + place_of(m->parameters, i);
        assert_int_equal(t->data == NULL, parameters_at(m->parameters, i)->chunk < 0);
        if (t->data) m->backend->convert(m->backend, to, F32, t->data, t->dtype, tensor_count(t));
    }
    arena_free(memory);
}

typedef struct Run {
    const Case *c;
    Result *result;
} Run;

static void run_rank(int rank, Comm *world, void *argument) {
    const Run *run = argument;
    Model m;
    model_open(&m, run->c, rank, world);
    for (int step = 0; step < STEPS; step++) {
        gradients_begin_step(m.gradients, m.pieces);
        if (run->c->stages)
            run_rows(&m, step);
        else
            run_alone(&m, step);
        double norm = gradients_norm(m.gradients);
        if (!rank) run->result->norm[step] = norm;
        comm_barrier(world, "norm");
        assert_true(norm == run->result->norm[step]); // on every rank
        optimizer_step(m.optimizer, step + 1, norm);
    }
    collect_result(&m, run->result);
    model_close(&m);
}

static Result *run_case(const Case *c) {
    Run run = {c, calloc(1, sizeof(Result))};
    assert_non_null(run.result);
    ranks_run(c->data * (c->stages ? c->stages : 1), run_rank, &run);
    return run.result;
}

static void expect_equal(const Case *c, const Result *want) {
    Result *got = run_case(c);
    for (int i = 0; i < STEPS; i++)
        if (!(got->norm[i] == want->norm[i]))
            fail_msg("%s, %d stages x %d, stage %d: norm %d is %.17g, not %.17g", pipeline_names[c->kind], c->stages,
                     c->data, c->zero, i, got->norm[i], want->norm[i]);
    assert_memory_equal(got, want, sizeof *got);
    free(got);
}

static Case alone_of(Case c) {
    c.stages = c.zero = 0;
    c.data = 1;
    return c;
}

static void expect_pipelines_equal(Case c, int most_data) {
    const struct {
        PipelineKind kind;
        int stages;
    } cuts[] = {{PIPELINE_INTERLEAVED, 1}, {PIPELINE_INTERLEAVED, 2}, {PIPELINE_ZB_V, 2}, {PIPELINE_GPIPE, 4},
                {PIPELINE_1F1B, 4},        {PIPELINE_ZB_H1, 4},       {PIPELINE_ZB_H2, 4}};
    Case alone = alone_of(c);
    Result *want = run_case(&alone);
    assert_true(want->norm[0] > 0.5); // so that it is clipped
    for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
        c.kind = cuts[i].kind;
        c.stages = cuts[i].stages;
        for (c.data = 1; c.data <= most_data; c.data *= 2)
            for (c.zero = 0; c.zero <= (c.data > 1); c.zero++) expect_equal(&c, want);
    }
    free(want);
}

static const Case plain = {.compute = F32, .silent = -1, .ordered = true, .data = 1};

static void parts_on_any_stages_give_the_bits_of_one_process(void **state) {
    (void)state;
    expect_pipelines_equal(plain, 2);
}

static void so_do_they_in_bf16(void **state) {
    (void)state;
    Case c = plain;
    c.compute = BF16;
    expect_pipelines_equal(c, 2);
}

static void so_do_they_where_a_part_gets_no_gradient_at_all(void **state) {
    (void)state;
    Case c = plain;
    for (c.silent = 0; c.silent < PARTS; c.silent++) {
        Case alone = alone_of(c), two = c;
        Result *want = run_case(&alone);
        two.stages = two.data = 2;
        two.zero = 1;
        for (int i = 0; i < 2; i++) {
            two.kind = i ? PIPELINE_ZB_V : PIPELINE_INTERLEAVED;
            expect_equal(&two, want);
        }
        free(want);
    }
}

static void sums_in_place_take_pieces_in_one_order_too(void **state) {
    (void)state;
    Case c = plain;
    c.ordered = false;
    expect_pipelines_equal(c, 1);
}

// What a copy adds is what a second use of the same words adds.
static void copies_are_equal_and_get_the_gradients_of_both(void **state) {
    (void)state;
    Case c = plain, one = plain;
    c.kind = PIPELINE_ZB_V;
    c.stages = 2;
    c.data = 2;
    c.zero = 1;
    one.one_copy = true;
    enum { WORDS = VOCABULARY * WIDTH };
    Result *two = run_case(&c), *tied = run_case(&one);
    const float *const kinds[] = {two->master, two->m, two->v, two->read};
    for (int i = 0; i < 4; i++) assert_memory_equal(kinds[i], kinds[i] + WORDS, WORDS * sizeof(float));
    for (int i = 0; i < STEPS; i++) assert_true(fabs(two->norm[i] - tied->norm[i]) <= 1e-5 * tied->norm[i]);
    for (int i = 0; i < WORDS; i++) assert_true(fabsf(two->m[i] - tied->m[i]) <= 1e-6f);
    free(two);
    free(tied);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parts_on_any_stages_give_the_bits_of_one_process),
        cmocka_unit_test(so_do_they_in_bf16),
        cmocka_unit_test(so_do_they_where_a_part_gets_no_gradient_at_all),
        cmocka_unit_test(sums_in_place_take_pieces_in_one_order_too),
        cmocka_unit_test(copies_are_equal_and_get_the_gradients_of_both),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
