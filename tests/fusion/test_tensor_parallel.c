/* The joint model over tensor ranks that are threads: losses and every gradient, brought together, against those of one
 * rank, with dropout on and all four objectives; what ranks hold alike has the same bits on all. */
#include "kernels/nn/tensor_parallel.h"
#include "tests/fusion/tiny_joint.h"
#include "tests/support/ranks.h"
#include "tests/support/test.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_RANKS = 4 };

// f32: relative to a loss, and to the largest element of a parameter's gradient: four times what was measured.
static const double LOSS_BOUND = 1e-6, GRADIENT_BOUND = 5e-6;

typedef struct Layout {
    int ranks;
    bool sequence;
    bool halves; // gradients of activations first, then those of parameters
} Layout;

static const Layout layouts[] = {
    {.ranks = 2}, {.ranks = 2, .sequence = true}, {.ranks = 4}, {.ranks = 4, .sequence = true}};
enum { LAYOUTS = sizeof layouts / sizeof *layouts };

typedef struct World { // one step of a model over ranks
    JointConfig config;
    Layout layout;
    Dtype dtype;
    const Batch *batch;
    float mean[MOST_RANKS][OBJECTIVES];
    int count;               // parameters
    char **names;            // (count)
    float **gradient;        // (count), each the whole tensor
    int64_t *elements;       // (count) of the whole
    int64_t held;            // elements of all parameters on rank 0
    int differing;           // elements of what is held alike that are not the same on another rank
    size_t peak[MOST_RANKS]; // bytes of the tape
    double flop[MOST_RANKS]; // forward and backward
} World;

static int64_t whole_count(const Parameter *p) {
    int64_t n = 1;
    for (int i = 0; i < p->tensor.rank; i++) n *= p->global_shape[i];
    return n;
}

static Tiny open_rank(const World *w, Comm *tensor) {
    Error error = {0};
    Parallel parallel = {.tensor = tensor, .sequence = w->layout.sequence};
    Tiny m = {.backend = cpu_backend_new(1, NULL, NULL)};
    m.joint = joint_new(m.backend, &w->config, &parallel, w->dtype, 7, &error);
    if (!m.joint) check_failed(error.message, __FILE__, __LINE__);
    m.tape = tape_new(m.backend, true);
    return m;
}

// Sums over ranks what each has a part of.
static void complete(Comm *tensor, Parameter *p) {
    if (p->partial && !p->frozen)
        comm_all_reduce(tensor, p->tensor.grad, tensor_count(&p->tensor), COMM_F32, COMM_SUM, COMM_ORDERED, "parts");
}

static void step(World *w, Tiny *m, Comm *tensor) {
    Parameters *p = joint_parameters(m->joint);
    JointPass pass = {.seed = 5, .training = true};
    int rank = comm_rank(tensor);
    parameters_begin_step(p);
    JointLoss loss = joint_loss(m->tape, m->joint, w->batch, &pass);
    if (tape_error(m->tape)) check_failed(tape_error(m->tape), __FILE__, __LINE__);
    for (int o = 0; o < OBJECTIVES; o++)
        if (loss.mean[o]) tape_read(m->tape, loss.mean[o], &w->mean[rank][o]);
    tape_backward(m->tape, loss.total, w->layout.halves ? INPUT_GRADIENTS : ALL_GRADIENTS);
    if (w->layout.halves) tape_backward(m->tape, loss.total, WEIGHT_GRADIENTS);
    parameters_end_backward(p);
    for (int i = 0; i < parameters_count(p); i++) complete(tensor, parameters_at(p, i));
    w->peak[rank] = tape_peak(m->tape);
    w->flop[rank] = tape_cost(m->tape).flop + tape_cost(m->tape).backward_flop;
}

// Room for the gradients of all ranks, NAN until one brings them.
static void make_room(World *w, Parameters *p) {
    w->count = parameters_count(p);
    w->held = parameters_elements(p, false);
    w->names = calloc((size_t)w->count, sizeof *w->names);
    w->gradient = calloc((size_t)w->count, sizeof *w->gradient);
    w->elements = calloc((size_t)w->count, sizeof *w->elements);
    check(w->names && w->gradient && w->elements);
    for (int i = 0; i < w->count; i++) {
        const Parameter *item = parameters_at(p, i);
        w->names[i] = strdup(item->tensor.name);
        w->elements[i] = whole_count(item);
        w->gradient[i] = calloc((size_t)w->elements[i], sizeof(float));
        check(w->names[i] && w->gradient[i]);
        for (int64_t k = 0; k < w->elements[i] && !item->frozen; k++) w->gradient[i][k] = NAN;
    }
}

// A rank's gradients to their places in the whole; what ranks hold alike must be there already, bit for bit.
static void bring_together(World *w, Parameters *p, int rank) {
    for (int i = 0; i < w->count; i++) {
        const Parameter *item = parameters_at(p, i);
        const float *own = item->tensor.grad;
        int64_t local = tensor_count(&item->tensor), global, run;
        for (int64_t at = 0; own && at < local; at += run) {
            parameter_run(item, parameters_parallel(p), at, &global, &run);
            float *to = w->gradient[i] + global;
            size_t bytes = (size_t)run * sizeof *to;
            if (rank && !item->split.segments) w->differing += memcmp(to, own + at, bytes) != 0;
            memcpy(to, own + at, bytes);
        }
    }
}

static void run_rank(int rank, Comm *tensor, void *context) {
    World *w = context;
    Tiny m = open_rank(w, tensor);
    Parameters *p = joint_parameters(m.joint);
    step(w, &m, tensor);
    if (rank == 0) make_room(w, p);
    for (int turn = 0; turn < w->layout.ranks; turn++) {
        comm_barrier(tensor, "turn");
        if (turn == rank) bring_together(w, p, rank);
    }
    tape_free(m.tape);
    joint_free(m.joint);
    backend_free(m.backend);
}

static World *world_run(const JointConfig *config, Layout layout, Dtype dtype, const Batch *batch) {
    World *w = calloc(1, sizeof *w);
    assert_non_null(w);
    w->config = *config, w->layout = layout, w->dtype = dtype, w->batch = batch;
    ranks_run(layout.ranks, run_rank, w);
    return w;
}

static void world_free(World *w) {
    for (int i = 0; i < w->count; i++) {
        free(w->gradient[i]);
        free(w->names[i]);
    }
    free(w->gradient);
    free(w->elements);
    free(w->names);
    free(w);
}

// ---- models ----

static JointConfig like_gpt2(void) {
    JointConfig c = tiny_config();
    c.text.heads = c.vision.heads = c.mae.decoder_heads = 4;
    c.text.dropout = c.vision.dropout = 0.1;
    return c;
}

// Grouped keys, rotary positions, gates; the trunk pools by its class token and has a norm in front.
static JointConfig like_llama(void) {
    JointConfig c = like_gpt2();
    c.text.width = 32;
    c.text.heads = 8;
    c.text.kv_heads = 4;
    c.text.norm = NORM_RMS;
    c.text.mlp = MLP_SWIGLU;
    c.text.mlp_width = 36;
    c.text.rope = true;
    c.text.bias = c.text.tied = false;
    c.vision.pooling = POOL_CLASS;
    c.vision.positions = POSITIONS_SINCOS;
    c.vision.pre_norm = true;
    c.contrastive = CONTRASTIVE_SIGMOID;
    return c;
}

// ---- comparisons ----

// Largest difference of an element, relative to the tensor's largest; NAN where any is not finite.
static double distance(const float *got, const float *want, int64_t count) {
    double most = 0, apart = 0;
    for (int64_t i = 0; i < count; i++) {
        double d = fabs((double)got[i] - (double)want[i]), size = fabs((double)want[i]);
        if (!isfinite(d)) return (double)NAN;
        apart = d > apart ? d : apart;
        most = size > most ? size : most;
    }
    return apart == 0 ? 0 : apart / most;
}

static void expect_same_everywhere(const World *w) {
    assert_int_equal(w->differing, 0);
    for (int r = 1; r < w->layout.ranks; r++) assert_memory_equal(w->mean[r], w->mean[0], sizeof w->mean[0]);
}

static void expect_close(const World *got, const World *want, double loss_bound, double gradient_bound) {
    for (int o = 0; o < OBJECTIVES; o++) {
        double a = (double)got->mean[0][o], b = (double)want->mean[0][o];
        if (!(fabs(a - b) <= loss_bound * fabs(b))) fail_msg("%s: %.9g, not %.9g", objective_names[o], a, b);
    }
    assert_int_equal(got->count, want->count);
    for (int i = 0; i < got->count; i++) {
        double d = distance(got->gradient[i], want->gradient[i], want->elements[i]);
        if (!(d <= gradient_bound))
            fail_msg("%s over %d ranks%s: off by %g of its largest element", got->names[i], got->layout.ranks,
                     got->layout.sequence ? " with rows shared out" : "", d);
    }
}

static void check_layouts(const JointConfig *config, Dtype dtype, const Batch *batch, double loss_bound,
                          double gradient_bound) {
    World *alone = world_run(config, (Layout){.ranks = 1}, dtype, batch);
    for (int i = 0; i < LAYOUTS; i++) {
        World *w = world_run(config, layouts[i], dtype, batch);
        expect_same_everywhere(w);
        expect_close(w, alone, loss_bound, gradient_bound);
        world_free(w);
    }
    world_free(alone);
}

static void losses_and_gradients_do_not_depend_on_the_layout(void **state) {
    (void)state;
    Arena *memory = arena_new(1 << 16);
    Batch batch = tiny_batch(memory);
    JointConfig gpt2 = like_gpt2(), llama = like_llama();
    check_layouts(&gpt2, F32, &batch, LOSS_BOUND, GRADIENT_BOUND);
    check_layouts(&llama, F32, &batch, LOSS_BOUND, GRADIENT_BOUND);
    arena_free(memory);
}

static void a_rank_may_have_no_rows(void **state) {
    (void)state;
    Arena *memory = arena_new(1 << 16);
    Batch batch = {.lm = tiny_rows(memory, 1, 3, 1)};
    JointConfig gpt2 = like_gpt2();
    check_layouts(&gpt2, F32, &batch, LOSS_BOUND, GRADIENT_BOUND);
    arena_free(memory);
}

static void bf16_stays_near(void **state) {
    (void)state;
    Arena *memory = arena_new(1 << 16);
    Batch batch = tiny_batch(memory);
    JointConfig gpt2 = like_gpt2();
    check_layouts(&gpt2, BF16, &batch, 0.025, 0.14);
    arena_free(memory);
}

static void expect_same_bits(const World *a, const World *b) {
    assert_memory_equal(a->mean[0], b->mean[0], sizeof a->mean[0]);
    for (int i = 0; i < a->count; i++)
        assert_memory_equal(a->gradient[i], b->gradient[i], sizeof(float) * (size_t)a->elements[i]);
}

static void frozen_parts_stay_out_on_every_layout(void **state) {
    (void)state;
    static const char *const frozen[] = {"vision.blocks.0", "text.blocks.1", "text.norm", "mae.blocks"};
    Arena *memory = arena_new(1 << 16);
    Batch batch = tiny_batch(memory);
    JointConfig c = like_gpt2();
    c.freeze = (StringList){(const char **)frozen, 4};
    check_layouts(&c, F32, &batch, LOSS_BOUND, GRADIENT_BOUND);
    arena_free(memory);
}

static void the_halves_of_a_backward_pass_give_the_bits_of_the_whole(void **state) {
    (void)state;
    Arena *memory = arena_new(1 << 16);
    Batch batch = tiny_batch(memory);
    JointConfig c = like_llama();
    for (int sequence = 0; sequence < 2; sequence++) {
        World *whole = world_run(&c, (Layout){.ranks = 2, .sequence = sequence}, F32, &batch);
        World *halves = world_run(&c, (Layout){.ranks = 2, .sequence = sequence, .halves = true}, F32, &batch);
        expect_same_bits(halves, whole);
        world_free(halves);
        world_free(whole);
    }
    arena_free(memory);
}

static void recomputation_changes_no_bit(void **state) {
    (void)state;
    Arena *memory = arena_new(1 << 16);
    Batch batch = tiny_batch(memory);
    for (int sequence = 0; sequence < 2; sequence++) {
        JointConfig c = like_llama();
        World *kept = world_run(&c, (Layout){.ranks = 2, .sequence = sequence}, F32, &batch);
        for (c.recompute = RECOMPUTE_SELECTIVE; c.recompute <= RECOMPUTE_FULL; c.recompute++) {
            World *again = world_run(&c, (Layout){.ranks = 2, .sequence = sequence}, F32, &batch);
            expect_same_bits(again, kept);
            world_free(again);
        }
        world_free(kept);
    }
    arena_free(memory);
}

// Of text alone, so that what is outside the stack (the embedding, the whole output) is small beside it.
static void activations_shrink_with_the_ranks(void **state) {
    (void)state;
    Arena *memory = arena_new(1 << 16);
    Batch batch = {.lm = tiny_rows(memory, 4, 64, 1)};
    JointConfig c = like_gpt2();
    c.text.width = 64;
    c.text.layers = 6;
    World *alone = world_run(&c, (Layout){.ranks = 1}, F32, &batch);
    World *split = world_run(&c, (Layout){.ranks = 4}, F32, &batch),
          *shared = world_run(&c, (Layout){.ranks = 4, .sequence = true}, F32, &batch);
    double whole = (double)alone->peak[0], layers = (double)split->peak[0] / whole,
           rows = (double)shared->peak[0] / whole;
    assert_true(layers < 0.6); // norms, dropout and the residual stream stay whole
    assert_true(rows < 0.33);  // a quarter, and what is outside the stack
    world_free(shared);
    world_free(split);
    world_free(alone);
    arena_free(memory);
}

static void work_is_shared_out(void **state) {
    (void)state;
    Arena *memory = arena_new(1 << 16);
    Batch batch = {.lm = tiny_rows(memory, 4, 64, 1)};
    JointConfig c = like_gpt2();
    c.text.width = 64;
    World *alone = world_run(&c, (Layout){.ranks = 1}, F32, &batch);
    World *split = world_run(&c, (Layout){.ranks = 4}, F32, &batch);
    World *shared = world_run(&c, (Layout){.ranks = 4, .sequence = true}, F32, &batch);
    for (int r = 0; r < 4; r++) { // a quarter of the products, and what every rank does alike
        assert_true(split->flop[r] < 0.27 * alone->flop[0] && split->flop[r] > 0.24 * alone->flop[0]);
        assert_true(shared->flop[r] < 0.255 * alone->flop[0] && shared->flop[r] > 0.24 * alone->flop[0]);
    }
    world_free(shared);
    world_free(split);
    world_free(alone);
    arena_free(memory);
}

static void memory_is_estimated_from_below_on_every_layout(void **state) {
    (void)state;
    Arena *memory = arena_new(1 << 16);
    Batch batch = tiny_batch(memory);
    JointConfig c = like_gpt2();
    JointSizes sizes = {batch.images, batch.mae_images,
                        batch.lm.rows * batch.lm.length + batch.caption.rows * batch.caption.length +
                            batch.contrastive.rows * batch.contrastive.length};
    for (int i = 0; i < LAYOUTS; i++)
        for (c.recompute = RECOMPUTE_NONE; c.recompute <= RECOMPUTE_FULL; c.recompute++) {
            World *w = world_run(&c, layouts[i], F32, &batch);
            ParallelSizes spread = {.tensor = w->layout.ranks, .data = 1, .sequence = w->layout.sequence};
            JointMemory least = joint_memory(&c, &sizes, F32, &spread);
            double held = 16 * (double)w->held, peak = (double)w->peak[0];
            assert_true(least.model <= held && least.model > 0.6 * held);
            assert_true(least.activations <= peak && least.activations > 0.1 * peak);
            world_free(w);
        }
    arena_free(memory);
}

static void degrees_that_do_not_divide_are_refused_before_anything_is_allocated(void **state) {
    (void)state;
    Arena *memory = arena_new(1 << 12);
    Error error = {0};
    Comm *ends[3];
    JointConfig gpt2 = like_gpt2(), llama = like_llama();
    assert_null(joint_check_parallel(&gpt2, 1, memory));
    assert_null(joint_check_parallel(&llama, 4, memory));
    assert_string_equal(joint_check_parallel(&gpt2, 3, memory),
                        "parallel.tensor 3: model.vision (heads, mlp_width) does not divide by it; 1, 2 or 4 would do "
                        "for this model");
    llama.text.kv_heads = 2;
    assert_string_equal(joint_check_parallel(&llama, 4, memory),
                        "parallel.tensor 4: model.text (heads, kv_heads, mlp_width) does not divide by it; 1 or 2 "
                        "would do for this model");
    gpt2.text.vocabulary = 3;
    assert_string_equal(joint_check_parallel(&gpt2, 4, memory),
                        "parallel.tensor 4: model.text.vocabulary 3 has fewer words than that");
    Backend *backend = cpu_backend_new(1, NULL, NULL);
    comm_threads_new(3, ends);
    assert_null(joint_new(backend, &gpt2, &(Parallel){.tensor = ends[0]}, F32, 7, &error));
    assert_message_has(&error, "1, 2 or 4 would do");
    for (int r = 0; r < 3; r++) comm_free(ends[r]);
    backend_free(backend);
    arena_free(memory);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(losses_and_gradients_do_not_depend_on_the_layout),
        cmocka_unit_test(a_rank_may_have_no_rows),
        cmocka_unit_test(bf16_stays_near),
        cmocka_unit_test(frozen_parts_stay_out_on_every_layout),
        cmocka_unit_test(the_halves_of_a_backward_pass_give_the_bits_of_the_whole),
        cmocka_unit_test(recomputation_changes_no_bit),
        cmocka_unit_test(activations_shrink_with_the_ranks),
        cmocka_unit_test(work_is_shared_out),
        cmocka_unit_test(memory_is_estimated_from_below_on_every_layout),
        cmocka_unit_test(degrees_that_do_not_divide_are_refused_before_anything_is_allocated),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
