/* Parameters and FLOP of published models, held against the numbers that their authors and the usual counters state.
 * The models are declared over a backend that computes nothing. */
#include "fusion/joint_parts.h"
#include "kernels/dry.h"
#include "tests/support/test.h"
#include <math.h>
#include <string.h>

enum { CLASSES = 1000, CONTEXT = 1024 };

static JointConfig nothing(void) {
    JointConfig c;
    Arena *memory = arena_new(1 << 12);
    config_defaults(&joint_schema, &c, memory);
    arena_free(memory); // nothing in it is kept below
    c.freeze = c.recompute_units = (StringList){0};
    c.recompute = RECOMPUTE_NONE;
    memset(c.weight, 0, sizeof c.weight);
    return c;
}

static JointCount count_of(const JointConfig *c) {
    Error error = {0};
    Backend *dry = dry_backend_new();
    Joint *joint = joint_new(dry, c, NULL, BF16, 1, &error);
    if (!joint) fail_msg("%s", error.message);
    JointCount n = joint_count(joint);
    assert_true(n.all == (double)parameters_whole_elements(joint_parameters(joint), false));
    joint_free(joint);
    backend_free(dry);
    return n;
}

static void assert_count(double got, double published) {
    if (!(got == published)) fail_msg("%.0f parameters, published are %.0f", got, published);
}

// Within `share` of what counters print to three digits.
static void assert_near(double got, double published, double share) {
    if (!(fabs(got / published - 1) <= share)) fail_msg("%.6g, published are %.6g", got, published);
}

// ---- text ----

static JointConfig gpt2(int64_t layers, int64_t width, int64_t heads) {
    JointConfig c = nothing();
    c.weight[OBJECTIVE_LM] = 1;
    c.text.vocabulary = 50257, c.text.context = CONTEXT;
    c.text.layers = layers, c.text.width = width, c.text.heads = heads;
    return c;
}

static JointConfig llama_7b(void) {
    JointConfig c = gpt2(32, 4096, 32);
    c.text.vocabulary = 32000, c.text.mlp_width = 11008;
    c.text.norm = NORM_RMS, c.text.mlp = MLP_SWIGLU;
    c.text.rope = true, c.text.tied = c.text.bias = false;
    return c;
}

static void language_models_have_the_parameters_they_were_published_with(void **state) {
    (void)state;
    static const struct {
        int64_t layers, width, heads;
        double published; // GPT-2's checkpoints; words and positions counted, the tied output not again
    } sizes[] = {
        {12, 768, 12, 124439808}, {24, 1024, 16, 354823168}, {36, 1280, 20, 774030080}, {48, 1600, 25, 1557611200}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        JointConfig c = gpt2(sizes[i].layers, sizes[i].width, sizes[i].heads);
        JointCount n = count_of(&c);
        assert_count(n.all, sizes[i].published);
        assert_count(n.text + n.words, sizes[i].published - (double)(CONTEXT * sizes[i].width)); // nanoGPT's N
    }
    JointConfig llama = llama_7b();
    JointCount n = count_of(&llama);
    assert_count(n.all, 6738415616.0); // words of input and output
    assert_count(n.text, 6738415616.0 - 2.0 * 32000 * 4096);
}

// A row of CONTEXT tokens, each sees those before it and is a target.
static Batch row_of_text(Arena *memory) {
    Batch b = {.lm = {.rows = 1, .length = CONTEXT, .target_count = CONTEXT}};
    b.lm.range = arena_array(memory, int32_t, 2 * CONTEXT);
    for (int i = 0; i < CONTEXT; i++) b.lm.range[2 * i + 1] = i + 1;
    return b;
}

static void tokens_cost_what_nanogpt_and_palm_count(void **state) {
    (void)state;
    Arena *memory = arena_new(1 << 16);
    JointConfig c = gpt2(12, 768, 12);
    JointCount n = count_of(&c);
    Batch b = row_of_text(memory);
    JointFlop f = joint_flop_by_count(&c, &n, &b);
    assert_true(joint_flop_sum(&f) / CONTEXT == 6.0 * 123653376 + 12.0 * 12 * 12 * 64 * CONTEXT); // estimate_mfu
    // The model itself: matrices alone, and of attention a little more than half.
    double matrices = 12 * 12 * 768.0 * 768 + 50257 * 768.0, pairs = (CONTEXT + 1) / 2.0;
    assert_near(joint_flop(&c, &b) / CONTEXT, 6 * matrices + 12 * 12 * 768 * pairs, 1e-12);
    arena_free(memory);
}

// ---- pictures ----

typedef struct Published {
    const char *name;
    int64_t patch, layers, width, heads;
    double parameters; // with a class token, learned positions and a classifier of 1,000 classes
    double gmacs;      // of a forward pass at 224 x 224, as fvcore counts it: a multiply and an add are one
} Published;
static const Published vits[] = {{"ViT-Ti/16", 16, 12, 192, 3, 5717416, 1.26},
                                 {"ViT-S/16", 16, 12, 384, 6, 22050664, 4.61},
                                 {"ViT-B/16", 16, 12, 768, 12, 86567656, 17.58},
                                 {"ViT-L/16", 16, 24, 1024, 16, 304326632, 61.60},
                                 {"ViT-H/14", 14, 32, 1280, 16, 632045800, 167.40}};

static JointConfig vit(const Published *p) {
    JointConfig c = nothing();
    c.weight[OBJECTIVE_MAE] = 1; // any objective that takes the trunk as it is
    c.has_vision = true;
    c.vision.image_size = 224, c.vision.patch = p->patch, c.vision.layers = p->layers, c.vision.width = p->width;
    c.vision.heads = p->heads, c.vision.class_token = true;
    return c;
}

static void trunks_have_the_parameters_and_flop_they_were_published_with(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof vits / sizeof *vits; i++) {
        JointConfig c = vit(&vits[i]);
        double width = (double)c.vision.width, positions = (double)vit_tokens(&c.vision) * width;
        assert_count(count_of(&c).vision + positions + CLASSES * (width + 1), vits[i].parameters);
        double macs = vit_flop(&c.vision, 1, vit_tokens(&c.vision)) / 2 + CLASSES * width;
        assert_near(macs, 1e9 * vits[i].gmacs, 6e-3); // norms are not counted here
    }
}

static void mae_sees_a_quarter_and_paints_the_rest(void **state) {
    (void)state;
    JointConfig c = vit(&vits[3]);
    c.vision.positions = POSITIONS_SINCOS;
    c.mae = (MaeConfig){.mask_ratio = 0.75, .decoder_width = 512, .decoder_layers = 8, .decoder_heads = 16};
    JointCount n = count_of(&c);
    assert_count(n.vision + n.mae, 329239296); // what is trained: positions are fixed
    assert_count(n.all, 329541888);
    int64_t seen = mae_kept(&c.mae, &c.vision) + 1;
    assert_int_equal(seen, 50);
    Batch b = {.mae_images = 1};
    JointFlop f = joint_flop_parts(&c, &b);
    assert_true(f.vision == 3 * vit_flop(&c.vision, 1, seen) && f.text == 0);
    // He et al. 2021, table 1c: 3.3 x the FLOP where the trunk sees mask tokens too.
    double all = 3 * vit_flop(&c.vision, 1, vit_tokens(&c.vision)) + f.heads;
    assert_near(all / joint_flop_sum(&f), 3.25, 0.01);
}

// ---- both ----

static JointConfig clip_b32(void) {
    JointConfig c = vit(&vits[2]);
    memset(c.weight, 0, sizeof c.weight);
    c.weight[OBJECTIVE_CONTRASTIVE] = 1;
    c.vision.patch = 32, c.vision.pooling = POOL_CLASS, c.vision.patch_bias = false, c.vision.pre_norm = true;
    c.text.vocabulary = 49408, c.text.context = 77, c.text.layers = 12, c.text.width = 512, c.text.heads = 8;
    c.embedding = 512;
    return c;
}

static void clip_has_the_parameters_and_flop_it_was_published_with(void **state) {
    (void)state;
    JointConfig c = clip_b32();
    assert_count(count_of(&c).all, 151277313);
    // open_clip's profile, which counts attention whole: 8.82 GFLOP for a picture, 5.96 for a text.
    assert_near(vit_flop(&c.vision, 1, vit_tokens(&c.vision)), 8.82e9, 5e-3);
    assert_near(text_flop(&c.text, 77, 77 * 77), 5.96e9, 5e-3);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(language_models_have_the_parameters_they_were_published_with),
        cmocka_unit_test(tokens_cost_what_nanogpt_and_palm_count),
        cmocka_unit_test(trunks_have_the_parameters_and_flop_they_were_published_with),
        cmocka_unit_test(mae_sees_a_quarter_and_paints_the_rest),
        cmocka_unit_test(clip_has_the_parameters_and_flop_it_was_published_with),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
