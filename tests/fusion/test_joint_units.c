/* The joint model as a list of units: what is in it, what crosses each boundary, and that a pass cut anywhere, over any
 * batch, gives the losses and gradients of the whole one to the bit. */
#include "fusion/joint_parts.h"
#include "tests/fusion/cut_joint.h"
#include "tests/support/ranks.h"
#include "tests/support/test.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const JointPass TRAINING = {.seed = 5, .training = true};

// ---- models and batches ----

static JointConfig like_gpt2(void) {
    JointConfig c = tiny_config();
    c.text.heads = c.vision.heads = c.mae.decoder_heads = 4;
    c.text.dropout = c.vision.dropout = 0.1;
    return c;
}

static JointConfig like_llama(void) {
    JointConfig c = like_gpt2();
    c.text.width = 32;
    c.text.kv_heads = 2;
    c.text.norm = NORM_RMS;
    c.text.mlp = MLP_SWIGLU;
    c.text.rope = true;
    c.text.bias = c.text.tied = false;
    c.vision.pooling = POOL_ATTENTION;
    c.vision.positions = POSITIONS_SINCOS;
    c.vision.pre_norm = true;
    c.contrastive = CONTRASTIVE_SIGMOID;
    c.connector = CONNECTOR_LINEAR;
    return c;
}

typedef enum { // of a batch
    WHOLE,
    NO_PICTURES, // plain text alone
    NO_CAPTIONS,
    NO_PAIRS,
    NO_SLOTS, // captions without pictures, and no pairs: nobody looks
    PAIRS_AND_NO_SLOTS,
    NOTHING,
    HOLDINGS
} Holding;

static void forget_slots(Batch *b) {
    for (int i = 0; i < b->caption.rows * b->caption.length; i++) {
        b->caption.image_rows[i] = -1;
        if (b->caption.tokens[i] == TOKEN_NONE) b->caption.tokens[i] = 1;
    }
}

// Pictures have numbers that do not follow each other, as in a piece of a step.
static Batch batch_of(Arena *memory, Holding what) {
    static const uint64_t numbers[TINY_IMAGES] = {2, 3, 7, 12};
    if (what == NOTHING) return (Batch){.step = 3, .side = TINY_SIDE};
    Batch b = tiny_batch(memory);
    b.step = 3;
    b.image_numbers = numbers;
    b.first_row[OBJECTIVE_LM] = 5, b.first_row[OBJECTIVE_MAE] = 2;
    if (what == NO_PICTURES || what == NO_CAPTIONS) b.caption = (Sequences){0};
    if (what == NO_PICTURES || what == NO_PAIRS || what == NO_SLOTS) b.contrastive = (Sequences){0};
    if (what == NO_SLOTS || what == PAIRS_AND_NO_SLOTS) forget_slots(&b);
    if (what == NO_PICTURES) b.images = b.mae_images = 0;
    return b;
}

typedef struct Model {
    Backend *backend;
    Joint *joint;
    Arena *memory; // of its batches
} Model;

// chunk: joint_new_part
static Model model_open(const JointConfig *c, const Parallel *parallel, const int *chunk, Dtype dtype) {
    Error error = {0};
    Model m = {.backend = cpu_backend_new(1, NULL, NULL), .memory = arena_new(1 << 16)};
    m.joint = joint_new_part(m.backend, c, parallel, chunk, dtype, 7, &error);
    assert_done(m.joint != NULL, &error);
    return m;
}

static void model_close(Model *m) {
    joint_free(m->joint);
    backend_free(m->backend);
    arena_free(m->memory);
}

// ---- the list ----

static const char *streams_text(unsigned bits, char out[128]) {
    out[0] = 0;
    for (int s = 0; s < JOINT_STREAMS; s++)
        if (bits >> s & 1)
            snprintf(out + strlen(out), 128 - strlen(out), "%s%s", *out ? ", " : "", joint_stream_names[s]);
    return out;
}

typedef struct Listed {
    const char *name, *before; // what crosses the boundary in front of it
} Listed;

static void expect_list(const JointConfig *c, const Listed *want, int count) {
    static JointUnit units[MOST_UNITS];
    char text[128];
    assert_int_equal(joint_units(c, NULL), count);
    assert_int_equal(joint_units(c, units), count);
    for (int u = 0; u < count; u++) {
        assert_string_equal(units[u].name, want[u].name);
        assert_string_equal(streams_text(joint_boundary(units, count, u), text), want[u].before);
    }
    assert_int_equal(joint_boundary(units, count, count), 0);
}

static void units_stand_in_the_order_of_a_microbatch(void **state) {
    (void)state;
    static const Listed all[] = {
        {"vision.patches", ""},
        {"vision.blocks.0", "trunk, mae"},
        {"vision.blocks.1", "trunk, mae"},
        {"vision.norm", "trunk, mae"},
        {"vision.pooling", "trunk, mae"},
        {"connector", "trunk, mae, image features"},
        {"mae.embed", "mae, image features, image tokens"},
        {"mae.blocks.0", "mae, image features, image tokens"},
        {"mae.head", "mae, image features, image tokens"},
        {"text.embed", "image features, image tokens"},
        {"text.blocks.0", "image features, lm, caption, pairs"},
        {"text.blocks.1", "image features, lm, caption, pairs"},
        {"text.head", "image features, lm, caption, pairs"},
    };
    static const Listed text[] = {
        {"text.embed", ""}, {"text.blocks.0", "lm"}, {"text.blocks.1", "lm"}, {"text.head", "lm"}};
    static const Listed painting[] = {{"vision.patches", ""}, {"vision.blocks.0", "mae"}, {"vision.blocks.1", "mae"},
                                      {"vision.norm", "mae"}, {"mae.embed", "mae"},       {"mae.blocks.0", "mae"},
                                      {"mae.head", "mae"}};
    JointConfig c = tiny_config();
    expect_list(&c, all, sizeof all / sizeof *all);
    memset(c.weight, 0, sizeof c.weight);
    c.weight[OBJECTIVE_MAE] = 1;
    expect_list(&c, painting, sizeof painting / sizeof *painting);
    c.weight[OBJECTIVE_MAE] = 0, c.weight[OBJECTIVE_LM] = 1, c.has_vision = false;
    expect_list(&c, text, sizeof text / sizeof *text);
}

static void the_deepest_model_fits_the_list(void **state) {
    (void)state;
    JointConfig c = tiny_config();
    c.vision.layers = c.text.layers = c.mae.decoder_layers = 2048;
    assert_in_range(joint_units(&c, NULL), 3 * 2048, MOST_UNITS);
}

// A pass in which every unit is a part of its own, over a model that knows which parameters are each part's.
typedef struct Owners {
    Parameters *parameters;
    int unit, used;
} Owners;

static void expect_own(void *context, const Node *n) {
    Owners *o = context;
    for (int i = 0; i < MAX_INPUTS; i++) {
        if (!n->in[i] || !n->in[i]->is_parameter) continue;
        const Parameter *p = parameters_find(o->parameters, n->in[i]->name);
        assert_non_null(p);
        if (p->chunk != o->unit) fail_msg("%s is used by unit %d and belongs to %d", n->in[i]->name, o->unit, p->chunk);
        o->used++;
    }
}

static void every_unit_uses_its_own_parameters_alone(void **state) {
    (void)state;
    JointConfig configs[] = {like_gpt2(), like_llama()};
    for (int k = 0; k < 2; k++) {
        int chunk[64], units = joint_units(&configs[k], NULL);
        for (int u = 0; u < units; u++) chunk[u] = u;
        Model m = model_open(&configs[k], NULL, chunk, F32);
        Owners owners = {.parameters = joint_parameters(m.joint)};
        Batch batch = batch_of(m.memory, WHOLE);
        JointStreams streams = {0};
        JointLoss loss = {0};
        Tape *tape = tape_new(m.backend, true);
        tape_set_hooks(tape, &(TapeHooks){.context = &owners, .use = expect_own});
        for (owners.unit = 0; owners.unit < units; owners.unit++) {
            int before = owners.used;
            joint_run(tape, m.joint, &batch, &TRAINING, owners.unit, owners.unit + 1, &streams, &loss);
            assert_true(owners.used > before);
        }
        for (int o = 0; o < OBJECTIVES; o++) assert_non_null(loss.mean[o]);
        tape_free(tape);
        model_close(&m);
    }
}

static void parameters_that_are_not_a_models_have_no_unit(void **state) {
    (void)state;
    static JointUnit units[MOST_UNITS];
    JointConfig c = tiny_config();
    int count = joint_units(&c, units);
    assert_int_equal(joint_unit_of(units, count, "visions.norm.scale"), -1);
    assert_int_equal(joint_unit_of(units, count, "vision.blocks.7.up.bias"), -1);
    assert_int_equal(joint_unit_of(units, count, "text.tokens"), 9);
    assert_int_equal(joint_unit_of(units, count, "text.tokens@head"), 12);
    c.weight[OBJECTIVE_CONTRASTIVE] = 0; // the trunk's pool is declared all the same, and nobody uses it
    count = joint_units(&c, units);
    assert_string_equal(units[joint_unit_of(units, count, "vision.pool.query")].name, "vision.norm");
}

// ---- cut anywhere ----

typedef struct Numbers { // of a pass: the means of the objectives, then all gradients
    float *of;
    size_t bytes;
} Numbers;

static Numbers numbers_of(Joint *joint, const float mean[OBJECTIVES]) {
    Parameters *p = joint_parameters(joint);
    Numbers n = {.bytes = (size_t)(OBJECTIVES + parameters_elements(p, true)) * sizeof(float)};
    float *to = n.of = calloc(1, n.bytes);
    assert_non_null(n.of);
    memcpy(to, mean, OBJECTIVES * sizeof *to);
    to += OBJECTIVES;
    for (int i = 0; i < parameters_count(p); i++) {
        const Tensor *t = &parameters_at(p, i)->tensor;
        if (!t->grad) continue;
        memcpy(to, t->grad, (size_t)tensor_count(t) * sizeof *to);
        to += tensor_count(t);
    }
    return n;
}

static Numbers run_whole(const Model *m, const Batch *batch, const JointPass *pass) {
    Tape *tape = tape_new(m->backend, true);
    float mean[OBJECTIVES] = {0};
    parameters_begin_step(joint_parameters(m->joint));
    JointLoss loss = joint_loss(tape, m->joint, batch, pass);
    if (tape_error(tape)) fail_msg("%s", tape_error(tape));
    for (int o = 0; o < OBJECTIVES; o++) {
        if (loss.mean[o]) tape_read(tape, loss.mean[o], &mean[o]);
        assert_true((loss.mean[o] != NULL) == (mean[o] > 0 && mean[o] < 100));
    }
    if (loss.total) tape_backward(tape, loss.total, ALL_GRADIENTS);
    parameters_end_backward(joint_parameters(m->joint));
    tape_free(tape);
    return numbers_of(m->joint, mean);
}

static void expect_cut(const Model *m, const Batch *batch, const JointPass *pass, int parts, const int *first,
                       CutMode mode, const Numbers *want) {
    float mean[OBJECTIVES];
    cut_run(m->joint, m->backend, batch, pass, parts, first, mode, mean);
    Numbers got = numbers_of(m->joint, mean);
    assert_int_equal(got.bytes, want->bytes);
    for (size_t i = 0; i < got.bytes / sizeof(float); i++)
        if (!(got.of[i] == want->of[i]))
            fail_msg("%d parts, the second from unit %d: number %zu is %.9g, not %.9g", parts, first[1], i,
                     (double)got.of[i], (double)want->of[i]);
    assert_memory_equal(got.of, want->of, got.bytes);
    free(got.of);
}

// At every boundary, then at all of them, whole and with weight gradients behind all others.
static void cut_everywhere(const Model *m, const Batch *batch, const JointPass *pass) {
    int units = m->joint->unit_count, each[64];
    Numbers want = run_whole(m, batch, pass);
    for (int cut = 1; cut < units; cut++) expect_cut(m, batch, pass, 2, (const int[]){0, cut, units}, CUT_WHOLE, &want);
    for (int u = 0; u <= units; u++) each[u] = u;
    expect_cut(m, batch, pass, units, each, CUT_WHOLE, &want);
    expect_cut(m, batch, pass, units, each, CUT_HALVES, &want);
    free(want.of);
}

static void cut_model(const JointConfig *c, const Parallel *parallel, Dtype dtype, Holding what) {
    Model m = model_open(c, parallel, NULL, dtype);
    Batch batch = batch_of(m.memory, what);
    cut_everywhere(&m, &batch, &TRAINING);
    model_close(&m);
}

static void a_pass_cut_anywhere_has_the_same_bits(void **state) {
    (void)state;
    const Recompute recompute[] = {RECOMPUTE_NONE, RECOMPUTE_FULL};
    for (int k = 0; k < 4; k++) {
        JointConfig gpt2 = like_gpt2(), llama = like_llama();
        gpt2.recompute = recompute[k / 2], llama.recompute = recompute[1 - k / 2];
        cut_model(&gpt2, NULL, k % 2 ? BF16 : F32, WHOLE);
        cut_model(&llama, NULL, k % 2 ? BF16 : F32, WHOLE);
    }
}

static void a_microbatch_may_lack_anything(void **state) {
    (void)state;
    JointConfig c = like_gpt2();
    for (int what = WHOLE + 1; what < HOLDINGS; what++) cut_model(&c, NULL, F32, (Holding)what);
}

static void frozen_parts_cost_no_boundary_its_bits(void **state) {
    (void)state;
    static const char *const frozen[] = {"vision", "text", "vision.blocks.0", "connector"};
    for (size_t i = 0; i < sizeof frozen / sizeof *frozen; i++) {
        const char *prefix = frozen[i];
        JointConfig c = like_gpt2();
        c.freeze = (StringList){&prefix, 1};
        cut_model(&c, NULL, F32, WHOLE);
    }
}

static void a_part_alone_may_have_any_objective(void **state) {
    (void)state;
    for (int o = 0; o < OBJECTIVES; o++) {
        JointConfig c = like_llama();
        memset(c.weight, 0, sizeof c.weight);
        c.weight[o] = 0.5;
        cut_model(&c, NULL, F32, WHOLE);
    }
}

static void tied_words_with_a_replica_are_cut_alike(void **state) {
    (void)state;
    JointConfig c = like_gpt2();
    Parallel ordered = {.ordered = true};
    cut_model(&c, &ordered, BF16, WHOLE);
}

static void cut_rank(int rank, Comm *world, void *context) {
    (void)rank;
    JointConfig *c = context;
    Parallel parallel = {.tensor = world, .sequence = true};
    cut_model(c, &parallel, F32, WHOLE);
    cut_model(c, &parallel, F32, NO_CAPTIONS);
}

static void rows_that_are_shared_out_are_cut_alike(void **state) {
    (void)state;
    JointConfig gpt2 = like_gpt2(), llama = like_llama();
    llama.recompute = RECOMPUTE_FULL;
    ranks_run(2, cut_rank, &gpt2);
    ranks_run(2, cut_rank, &llama);
}

// ---- parts on two ranks ----

typedef struct TwoRanks {
    JointConfig config;
    int cut;
    Batch batch;
    Model whole; // one process, its gradients formed
    CutMessage forward, backward, end;
} TwoRanks;

static void expect_part(const TwoRanks *w, Joint *part) {
    Parameters *p = joint_parameters(part), *whole = joint_parameters(w->whole.joint);
    assert_int_equal(parameters_count(p), parameters_count(whole));
    for (int i = 0; i < parameters_count(p); i++) {
        const Parameter *item = parameters_at(p, i), *want = parameters_at(whole, i);
        const Tensor *t = &item->tensor;
        assert_string_equal(t->name, want->tensor.name);
        assert_true(tensor_count(t) == tensor_count(&want->tensor) && item->is_replica == want->is_replica);
        assert_true((item->chunk < 0) == (t->data == NULL));
        if (item->chunk < 0 || item->frozen) continue;
        assert_memory_equal(t->data, want->tensor.data, tensor_bytes(t));
        assert_memory_equal(t->grad, want->tensor.grad, (size_t)tensor_count(t) * sizeof(float));
    }
}

static void run_part(int rank, Comm *pipeline, void *context) {
    TwoRanks *w = context;
    Parallel parallel = {.pipeline = pipeline};
    int chunk[64], units = w->whole.joint->unit_count;
    for (int u = 0; u < units; u++) chunk[u] = (u < w->cut) == (rank == 0) ? 0 : -1;
    Model m = model_open(&w->config, &parallel, chunk, F32);
    Tape *tape = tape_new(m.backend, true);
    CutPart part = {.joint = m.joint, .batch = &w->batch, .pass = &TRAINING, .tape = tape};
    part.first = rank ? w->cut : 0, part.end = rank ? units : w->cut;
    parameters_begin_step(joint_parameters(m.joint));
    if (rank == 0) cut_forward(&part, NULL, &w->forward);
    comm_barrier(pipeline, "forward");
    if (rank == 1) cut_forward(&part, &w->forward, &w->end);
    if (rank == 1) cut_backward(&part, NULL, &w->backward, ALL_GRADIENTS);
    comm_barrier(pipeline, "backward");
    if (rank == 0) cut_backward(&part, &w->backward, NULL, ALL_GRADIENTS);
    parameters_end_backward(joint_parameters(m.joint));
    expect_part(w, m.joint);
    tape_free(tape);
    model_close(&m);
}

// Each rank has memory for its own part alone; words that are tied over the cut have a second copy.
static void a_part_of_the_model_on_each_rank_forms_its_gradients(void **state) {
    (void)state;
    Arena *memory = arena_new(1 << 16);
    TwoRanks w = {.config = like_gpt2(), .batch = batch_of(memory, WHOLE)};
    static JointUnit units[MOST_UNITS];
    int count = joint_units(&w.config, units), embed = joint_unit_of(units, count, "text.tokens");
    for (w.cut = 1; w.cut < count; w.cut++) {
        Parallel replica = {.ordered = w.cut > embed};
        w.whole = model_open(&w.config, &replica, NULL, F32);
        assert_int_equal(parameters_find(joint_parameters(w.whole.joint), "text.tokens@head") != NULL, w.cut > embed);
        free(run_whole(&w.whole, &w.batch, &TRAINING).of);
        ranks_run(2, run_part, &w);
        cut_message_free(&w.forward);
        cut_message_free(&w.backward);
        cut_message_free(&w.end);
        model_close(&w.whole);
    }
    arena_free(memory);
}

// ---- pairs ----

enum { EMBEDDING = 12, FEATURES = TINY_IMAGES * EMBEDDING }; // (R, E)

// The loss over pairs formed elsewhere: its gradients come with the pass and are played back in the last unit.
static void gradients_of_features_are_played_back_through_any_cut(void **state) {
    (void)state;
    for (int k = 0; k < 2; k++) {
        JointConfig c = k ? like_llama() : like_gpt2();
        Model m = model_open(&c, NULL, NULL, F32);
        Batch batch = batch_of(m.memory, WHOLE);
        float gradient[2 * FEATURES];
        for (int i = 0; i < 2 * FEATURES; i++) gradient[i] = 0.01f * (float)(i % 17 - 8);
        JointPass pass = TRAINING;
        pass.image_gradient = gradient, pass.text_gradient = gradient + FEATURES;
        pass.scale_gradient = (float[]){0.5f}, pass.bias_gradient = (float[]){-0.25f};
        cut_everywhere(&m, &batch, &pass);
        model_close(&m);
    }
}

typedef struct Features {
    float image[FEATURES], text[FEATURES];
} Features;

static Features features_of(const Model *m, const Batch *batch) {
    Features f = {0};
    Tensor *image, *text;
    Tape *tape = tape_new(m->backend, false);
    assert_int_equal(joint_config(m->joint)->embedding, EMBEDDING);
    joint_pair_features(tape, m->joint, batch, &TRAINING, &image, &text);
    if (!image || !text) fail_msg("%s", tape_error(tape));
    tape_read(tape, image, f.image);
    tape_read(tape, text, f.text);
    tape_free(tape);
    return f;
}

// Through parts [0, cut) and [cut, end).
static Features cut_features(const Model *m, const Batch *batch, int cut) {
    Features f;
    CutMessage between = {0}, end = {0};
    JointPass pass = TRAINING;
    pass.features_only = true;
    Tape *tape[2] = {tape_new(m->backend, false), tape_new(m->backend, false)};
    CutPart first = {.joint = m->joint, .batch = batch, .pass = &pass, .end = cut, .tape = tape[0]}, second = first;
    second.first = cut, second.end = m->joint->unit_count, second.tape = tape[1];
    cut_forward(&first, NULL, &between);
    cut_forward(&second, &between, &end);
    for (int s = 0; s < JOINT_STREAMS; s++)
        assert_int_equal(end.data[s] != NULL, s == STREAM_IMAGE_FEATURES || s == STREAM_TEXT_FEATURES);
    memcpy(f.image, end.data[STREAM_IMAGE_FEATURES], sizeof f.image);
    memcpy(f.text, end.data[STREAM_TEXT_FEATURES], sizeof f.text);
    assert_true(!first.loss.total && !second.loss.total);
    cut_message_free(&between);
    cut_message_free(&end);
    tape_free(tape[0]);
    tape_free(tape[1]);
    return f;
}

static void features_of_pairs_pass_any_cut(void **state) {
    (void)state;
    JointConfig c = like_gpt2();
    Model m = model_open(&c, NULL, NULL, BF16);
    Batch batch = batch_of(m.memory, WHOLE);
    Features want = features_of(&m, &batch);
    for (int cut = 1; cut < m.joint->unit_count; cut++) {
        Features got = cut_features(&m, &batch, cut);
        assert_memory_equal(&got, &want, sizeof got);
    }
    model_close(&m);
}

// Whatever stands beside a picture in its microbatch, its dropout is that of its number in the step.
static void draws_of_a_picture_follow_its_number(void **state) {
    (void)state;
    enum { PICTURE = 2, BYTES = TINY_SIDE * TINY_SIDE * 3, SIZE = EMBEDDING * sizeof(float) };
    JointConfig c = like_gpt2();
    Model m = model_open(&c, NULL, NULL, F32);
    Batch all = batch_of(m.memory, WHOLE), one = all;
    one.images = one.mae_images = one.contrastive.rows = 1;
    one.caption = one.lm = (Sequences){0};
    one.pixels += PICTURE * BYTES;
    one.image_numbers += PICTURE;
    Features together = features_of(&m, &all), alone = features_of(&m, &one);
    assert_memory_equal(alone.image, together.image + PICTURE * EMBEDDING, SIZE);
    one.image_numbers--; // another picture's draws
    Features other = features_of(&m, &one);
    assert_memory_not_equal(other.image, alone.image, SIZE);
    model_close(&m);
}

static void a_mirrored_picture_is_seen_as_its_mirror_image(void **state) {
    (void)state;
    enum { PICTURE = 1, LINE = TINY_SIDE * 3, SIZE = EMBEDDING * TINY_IMAGES * sizeof(float) };
    JointConfig c = like_gpt2();
    Model m = model_open(&c, NULL, NULL, F32);
    Batch b = batch_of(m.memory, WHOLE);
    uint8_t mirrored[TINY_IMAGES] = {[PICTURE] = 1}, *picture = b.pixels + PICTURE * TINY_SIDE * LINE, line[LINE];
    Features plain = features_of(&m, &b);
    b.mirrored = mirrored;
    Features told = features_of(&m, &b);
    b.mirrored = NULL;
    for (int y = 0; y < TINY_SIDE; y++) {
        memcpy(line, picture + y * LINE, LINE);
        for (int x = 0; x < TINY_SIDE; x++) memcpy(picture + y * LINE + 3 * x, line + LINE - 3 - 3 * x, 3);
    }
    Features turned = features_of(&m, &b);
    assert_memory_equal(told.image, turned.image, SIZE);
    assert_memory_not_equal(told.image, plain.image, SIZE);
    model_close(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(units_stand_in_the_order_of_a_microbatch),
        cmocka_unit_test(the_deepest_model_fits_the_list),
        cmocka_unit_test(every_unit_uses_its_own_parameters_alone),
        cmocka_unit_test(parameters_that_are_not_a_models_have_no_unit),
        cmocka_unit_test(a_pass_cut_anywhere_has_the_same_bits),
        cmocka_unit_test(a_microbatch_may_lack_anything),
        cmocka_unit_test(frozen_parts_cost_no_boundary_its_bits),
        cmocka_unit_test(a_part_alone_may_have_any_objective),
        cmocka_unit_test(tied_words_with_a_replica_are_cut_alike),
        cmocka_unit_test(rows_that_are_shared_out_are_cut_alike),
        cmocka_unit_test(a_part_of_the_model_on_each_rank_forms_its_gradients),
        cmocka_unit_test(gradients_of_features_are_played_back_through_any_cut),
        cmocka_unit_test(features_of_pairs_pass_any_cut),
        cmocka_unit_test(draws_of_a_picture_follow_its_number),
        cmocka_unit_test(a_mirrored_picture_is_seen_as_its_mirror_image),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
