/* Whole training steps of a small joint model on the CUDA backend, over the stand-in of CUDA's runtime: with sequences
 * each step is, from the third of its shape on, nothing but graphs, and its losses and parameters are to the bit those
 * of steps whose every call starts at once. So are the tokens of generation. */
#include "base/philox.h"
#include "fusion/generate.h"
#include "kernels/cuda/cuda_list.h"
#include "tests/fusion/tiny_joint.h"
#include "tests/simt/runtime.h"
#include "train/optimizer.h"
#include "train/step.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { STEPS = 6, MOST_STEPS = 8 };
enum { PAIRS = 1 << OBJECTIVE_CONTRASTIVE, CAPTIONS = 1 << OBJECTIVE_CAPTION, PICTURES = 1 << OBJECTIVE_MAE };

typedef struct Run {
    Backend *backend;
    Arena *memory;
    Joint *joint;
    Tape *tape;
    Gradients *gradients;
    StepGate *gate;
    StepPairs *pairs;
    Optimizer *optimizer;
    int pieces;
    StepLoss losses[MOST_STEPS];
    CudaListCounts counts[MOST_STEPS]; // behind each step
    float *parameters;                 // at the end
    int64_t parameter_count;
} Run;

typedef struct Plan { // what runs
    bool sequences;
    Dtype dtype;
    int steps, shapes, pieces;
    double learning_rate;
    bool same_batch;  // in all steps, of which two have the same number
    unsigned without; // objectives, a bit each
    RuntimeOrder order;
    int lanes;
} Plan;

static const OptimizerConfig rule = {.final_ratio = 1,
                                     .schedule = SCHEDULE_CONSTANT,
                                     .weight_decay = 0.1,
                                     .beta1 = 0.9,
                                     .beta2 = 0.99,
                                     .epsilon = 1e-8,
                                     .gradient_clip = 1};

static void open_run(Run *r, const Plan *plan) {
    Error error = {0};
    JointConfig config = tiny_config();
    OptimizerConfig optimizer = rule;
    config.vision.layers = config.text.layers = 1;
    config.vision.dropout = config.text.dropout = 0.1;
    for (int o = 0; o < OBJECTIVES; o++)
        if (plan->without >> o & 1) config.weight[o] = 0;
    config.lanes = plan->lanes;
    optimizer.learning_rate = plan->learning_rate;
    *r = (Run){.memory = arena_new(1 << 16), .pieces = plan->pieces};
    r->backend = cuda_backend_new(&(CudaOptions){.synchronous = !plan->sequences}, NULL, &error);
    if (!r->backend) fail_msg("%s", error.message);
    r->joint = joint_new(r->backend, &config, NULL, plan->dtype, 7, &error);
    if (!r->joint) fail_msg("%s", error.message);
    r->tape = tape_new(r->backend, true);
    r->gradients = gradients_new(joint_parameters(r->joint), r->tape, NULL);
    r->gate = step_gate_new(r->backend, plan->pieces, NULL, NULL);
    r->pairs = step_pairs_new(r->backend);
    r->optimizer = optimizer_new(r->backend, joint_parameters(r->joint), &optimizer, 100);
}

static void read_parameters(Run *r) {
    Parameters *p = joint_parameters(r->joint);
    parameters_meet(p);
    r->parameters = calloc((size_t)parameters_elements(p, false), sizeof *r->parameters);
    assert_non_null(r->parameters);
    for (int i = 0; i < parameters_count(p); i++) {
        const Parameter *item = parameters_at(p, i);
        int64_t n = tensor_count(&item->tensor);
        r->backend->download(r->backend, r->parameters + r->parameter_count, item->master, (size_t)n * sizeof(float));
        r->parameter_count += n;
    }
}

static void close_run(Run *r) {
    if (tape_error(r->tape)) fail_msg("%s", tape_error(r->tape));
    optimizer_free(r->optimizer);
    step_gate_free(r->gate);
    step_pairs_free(r->pairs);
    gradients_free(r->gradients);
    tape_free(r->tape);
    joint_free(r->joint);
    backend_free(r->backend);
    arena_free(r->memory);
}

// Pictures and words of step `number`; the second shape has fewer of the latter.
static Batch batch_of(Run *r, const Plan *plan, int number) {
    Batch b = tiny_batch(r->memory);
    int shape = number % plan->shapes, seed = plan->same_batch ? 0 : number;
    b.lm = tiny_rows(r->memory, 2, shape ? 9 : 12, (uint64_t)(1 + seed));
    for (int i = 0; i < TINY_IMAGES * TINY_SIDE * TINY_SIDE * 3; i++) b.pixels[i] = (uint8_t)(b.pixels[i] + seed);
    b.step = plan->same_batch ? number / 2 : number;
    if (plan->without & PAIRS) b.contrastive.rows = 0;
    if (plan->without & CAPTIONS) b.caption.rows = 0;
    if (plan->without & PICTURES) b.mae_images = 0;
    return b;
}

static StepUnderWay *start_step(Run *r, const Batch *batch, int number) {
    StepSetup setup = {.tape = r->tape,
                       .joint = r->joint,
                       .gradients = r->gradients,
                       .pieces = r->pieces,
                       .end = r->pieces,
                       .pairs = r->pairs,
                       .gate = r->gate,
                       .seed = 3};
    StepUnderWay *step = step_start(&setup, batch);
    assert_null(step_failed(step));
    optimizer_step_gated(r->optimizer, number + 1, step_gate_close(r->gate, r->gradients, rule.gradient_clip));
    step_send(step);
    return step;
}

// Steps one behind the other, each read when the next is under way.
static Run run_steps(Plan plan) {
    Run r;
    Error error;
    StepUnderWay *before = NULL;
    open_run(&r, &plan);
    for (int i = 0; i < plan.steps; i++) {
        ArenaMark mark = arena_mark(r.memory);
        Batch batch = batch_of(&r, &plan, i);
        StepUnderWay *step = start_step(&r, &batch, i);
        arena_rewind(r.memory, mark);
        r.counts[i] = cuda_list_counts(cuda_state(r.backend));
        if (before && !step_finish(before, &r.losses[i - 1], &error)) fail_msg("%s", error.message);
        before = step;
    }
    if (!step_finish(before, &r.losses[plan.steps - 1], &error)) fail_msg("%s", error.message);
    read_parameters(&r);
    close_run(&r);
    return r;
}

static void assert_equal_runs(const Run *a, const Run *b, int steps) {
    assert_memory_equal(a->losses, b->losses, (size_t)steps * sizeof a->losses[0]);
    assert_int_equal(a->parameter_count, b->parameter_count);
    assert_memory_equal(a->parameters, b->parameters, (size_t)a->parameter_count * sizeof(float));
    for (int i = 0; i < steps; i++) assert_true(a->losses[i].total > 0 && a->losses[i].norm > 0);
}

// From step `first` on there was nothing but graphs that were there. (Where the compiler of the kernels can clear what
// lies between members: kernels/cuda/language.h.)
static void assert_all_graphs(const Run *r, int first, int steps) {
#if !defined(__has_builtin)
    steps = first;
#elif !__has_builtin(__builtin_clear_padding)
    steps = first;
#endif
    for (int i = first; i < steps; i++) {
        assert_int_equal(r->counts[i].eager, r->counts[first - 1].eager);
        assert_int_equal(r->counts[i].captured, r->counts[first - 1].captured);
        assert_true(r->counts[i].launched > r->counts[i - 1].launched);
    }
}

static void check_steps(Plan plan, int graphs_from) {
    Run at_once = run_steps(plan);
    assert_int_equal(at_once.counts[plan.steps - 1].commands, 0);
    plan.sequences = true;
    runtime_set_order(plan.order, 17);
    Run r = run_steps(plan);
    runtime_set_order(RUNTIME_LATE, 1);
    assert_equal_runs(&r, &at_once, plan.steps);
    assert_all_graphs(&r, graphs_from, plan.steps);
    free(r.parameters);
    free(at_once.parameters);
}

static void steps_are_graphs_from_the_third_on_and_keep_their_bits(void **state) {
    (void)state;
    check_steps(
        (Plan){.dtype = F32, .steps = STEPS, .shapes = 1, .pieces = 1, .learning_rate = 1e-2, .order = RUNTIME_RANDOM},
        2);
}

// Memory that grew in the first step may lie otherwise in the second: then it takes one more. Features of pairs, the
// loss over all of them and each piece are graphs of their own.
static void steps_in_bf16_and_several_pieces_too(void **state) {
    (void)state;
    check_steps((Plan){.dtype = BF16,
                       .steps = 5,
                       .shapes = 1,
                       .pieces = 2,
                       .learning_rate = 1e-2,
                       .without = CAPTIONS,
                       .order = RUNTIME_OTHERS_FIRST},
                3);
}

static void two_shapes_in_turns_each_have_their_graphs(void **state) {
    (void)state;
    check_steps((Plan){.dtype = F32,
                       .steps = MOST_STEPS,
                       .shapes = 2,
                       .pieces = 1,
                       .learning_rate = 1e-2,
                       .without = PAIRS | CAPTIONS | PICTURES,
                       .order = RUNTIME_LATE},
                MOST_STEPS - 2);
}

static void dropout_differs_from_step_to_step_though_the_graph_is_the_same(void **state) {
    (void)state;
    Run r = run_steps((Plan){.sequences = true,
                             .dtype = F32,
                             .steps = STEPS,
                             .shapes = 1,
                             .pieces = 1,
                             .same_batch = true,
                             .without = PAIRS | CAPTIONS | PICTURES});
    assert_all_graphs(&r, 3, STEPS);
    for (int i = 0; i < STEPS; i++)
        for (int k = 0; k < i; k++) assert_true((r.losses[i].total == r.losses[k].total) == (i / 2 == k / 2));
    free(r.parameters);
}

static int64_t commands(const Run *r) { return cuda_list_counts(cuda_state(r->backend)).commands; }

// By the list of commands: the norm's sums over spans and over blocks, the verdict; then all parameters, whatever type
// operators read of them.
static void the_verdict_is_three_launches_and_the_update_one(void **state) {
    (void)state;
    for (int i = 0; i < 2; i++) {
        Run r;
        Plan plan = {.sequences = true, .dtype = i ? BF16 : F32, .pieces = 1, .shapes = 1, .learning_rate = 1e-2};
        open_run(&r, &plan);
        Batch batch = batch_of(&r, &plan, 0);
        Error error;
        StepLoss loss;
        StepUnderWay *step = start_step(&r, &batch, 0);
        assert_true(step_finish(step, &loss, &error));
        int64_t before = commands(&r);
        backend_sequence_begin(r.backend, "verdict");
        const Gate *gate = step_gate_close(r.gate, r.gradients, 1);
        backend_sequence_end(r.backend);
        int64_t judged = commands(&r);
        backend_sequence_begin(r.backend, "update");
        optimizer_step_gated(r.optimizer, 2, gate);
        backend_sequence_end(r.backend);
        assert_int_equal(judged - before, 3);
        assert_int_equal(commands(&r) - judged, 1);
        close_run(&r);
    }
}

// ---- generation ----

enum { TEXTS = 3, TOKENS = 14, LAYERS = 2 };

typedef struct Talk {
    bool sequences;
    Dtype dtype;
    double temperature;
    RuntimeOrder order;
    int batch, tokens;
    TokenIds said[TEXTS];
    CudaListCounts counts;
} Talk;

// Texts of different lengths.
static void talk(Talk *talk) {
    Error error = {0};
    JointConfig config = tiny_config();
    config.text.width = 32, config.text.layers = LAYERS, config.text.tied = false;
    config.has_vision = false;
    for (int o = 0; o < OBJECTIVES; o++) config.weight[o] = o == OBJECTIVE_LM;
    Backend *backend = cuda_backend_new(&(CudaOptions){.synchronous = !talk->sequences}, NULL, &error);
    if (!backend) fail_msg("%s", error.message);
    Joint *joint = joint_new(backend, &config, NULL, talk->dtype, 7, &error);
    if (!joint) fail_msg("%s", error.message);
    Tape *tape = tape_new(backend, false);
    static const int32_t words[] = {4, 9, 5, 11, 6, 7};
    Segment segments[TEXTS];
    Prompt prompts[TEXTS];
    for (int i = 0; i < TEXTS; i++) {
        segments[i] = (Segment){.image = -1, .ids = words + i, .count = 4 - i};
        prompts[i] = (Prompt){.segments = &segments[i], .count = 1, .number = (uint64_t)i};
    }
    GenerateOptions options = {.sampling = {.temperature = talk->temperature, .top_p = 0.9, .top_k = 12, .seed = 5},
                               .max_tokens = talk->tokens,
                               .batch = talk->batch};
    runtime_set_order(talk->order, 3);
    if (!generate_words(tape, joint, (SequenceIds){.pad = 0, .begin = 1, .end = -1}, prompts, TEXTS, &options,
                        talk->said, &error))
        fail_msg("%s", error.message);
    runtime_set_order(RUNTIME_LATE, 1);
    talk->counts = cuda_list_counts(cuda_state(backend));
    tape_free(tape);
    joint_free(joint);
    backend_free(backend);
}

static void assert_equal_texts(Talk *a, Talk *b) {
    for (int i = 0; i < TEXTS; i++) {
        assert_int_equal(a->said[i].count, a->tokens);
        assert_int_equal(b->said[i].count, b->tokens);
        int both = a->tokens < b->tokens ? a->tokens : b->tokens;
        assert_memory_equal(a->said[i].ids, b->said[i].ids, (size_t)both * sizeof(int32_t));
        token_ids_free(&a->said[i]);
        token_ids_free(&b->said[i]);
    }
}

static void tokens_keep_their_bits_as_graphs(void **state) {
    (void)state;
    static const RuntimeOrder orders[] = {RUNTIME_LATE, RUNTIME_OTHERS_FIRST, RUNTIME_RANDOM};
    for (int kind = 0; kind < 3; kind++) {
        Talk at_once = {
            .dtype = kind ? BF16 : F32, .temperature = kind % 2 ? 0 : 1.5, .batch = TEXTS, .tokens = TOKENS};
        Talk graphs = at_once;
        graphs.sequences = true, graphs.order = orders[kind];
        talk(&at_once);
        talk(&graphs);
        // The prompts, with the first word; tokens with a read behind them, and without: each started, then captured
        assert_int_equal(graphs.counts.launched + graphs.counts.captured + graphs.counts.eager, TOKENS);
        assert_true(graphs.counts.eager <= 4);
        assert_equal_texts(&at_once, &graphs);
    }
}

// What a token costs in launches: see docs/cuda.md.
static void a_token_is_few_launches(void **state) {
    (void)state;
    enum { EMBEDDING = 3, BLOCK = 5, END = 2, CHOICE = 2, LESS = 8, LESS_READS = 2 };
    Talk few = {.sequences = true, .dtype = BF16, .batch = 1, .tokens = TOKENS - LESS}, many = few;
    many.tokens = TOKENS;
    talk(&few);
    talk(&many);
    assert_equal_texts(&few, &many);
    int64_t token = EMBEDDING + LAYERS * BLOCK + END + CHOICE;
    assert_int_equal(many.counts.commands - few.counts.commands, TEXTS * (LESS * token + LESS_READS));
}

// Parts of the model beside one another, command by command and as graphs, in any order that their waits allow; the
// more lanes, the more of these.
static void lanes_change_no_bit(void **state) {
    (void)state;
    static const RuntimeOrder orders[] = {RUNTIME_OTHERS_FIRST, RUNTIME_RANDOM, RUNTIME_RANDOM};
    Plan plan = {.sequences = true, .dtype = BF16, .steps = 4, .shapes = 1, .pieces = 1, .learning_rate = 1e-2};
    Run one = run_steps(plan);
    int64_t commands = one.counts[plan.steps - 1].commands;
    for (plan.lanes = 2; plan.lanes <= BACKEND_LANES; plan.lanes++) {
        runtime_set_order(orders[plan.lanes - 2], (unsigned)plan.lanes);
        Run r = run_steps(plan);
        runtime_set_order(RUNTIME_LATE, 1);
        assert_equal_runs(&r, &one, plan.steps);
        assert_all_graphs(&r, 3, plan.steps);
        assert_true(r.counts[plan.steps - 1].commands > commands); // marks and waits
        commands = r.counts[plan.steps - 1].commands;
        free(r.parameters);
    }
    free(one.parameters);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_are_graphs_from_the_third_on_and_keep_their_bits),
        cmocka_unit_test(steps_in_bf16_and_several_pieces_too),
        cmocka_unit_test(two_shapes_in_turns_each_have_their_graphs),
        cmocka_unit_test(lanes_change_no_bit),
        cmocka_unit_test(dropout_differs_from_step_to_step_though_the_graph_is_the_same),
        cmocka_unit_test(the_verdict_is_three_launches_and_the_update_one),
        cmocka_unit_test(tokens_keep_their_bits_as_graphs),
        cmocka_unit_test(a_token_is_few_launches),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
