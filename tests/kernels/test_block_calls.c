/* What a block asks of memory, forward and backward: the calls of the backend, counted over the dry one. Sums are
 * formed by the norms that read them, equal gradients are not copied, gradients of weights add up in their products: a
 * pass more than that shows here. */
#include "kernels/dry.h"
#include "kernels/nn/block.h"
#include "tests/support/test.h"
#include <stdlib.h>
#include <string.h>

enum { BATCH = 2, LENGTH = 16, BLOCKS = 3, FORWARD = 0, BACKWARD = 1 };

static const BlockConfig GPT = {.width = 64,
                                .mlp_width = 256,
                                .heads = 4,
                                .kv_heads = 4,
                                .norm = NORM_LAYER,
                                .norm_epsilon = 1e-5,
                                .mlp = MLP_GELU_TANH,
                                .bias = true,
                                .residual_init_scale = 1};
static const BlockConfig LLAMA = {.width = 64,
                                  .mlp_width = 192,
                                  .heads = 4,
                                  .kv_heads = 2,
                                  .norm = NORM_RMS,
                                  .norm_epsilon = 1e-5,
                                  .mlp = MLP_SWIGLU,
                                  .rope = true,
                                  .rope_base = 10000,
                                  .residual_init_scale = 1};

typedef struct Calls { // of one block
    const char *kernel;
    int count[2]; // forward, backward
} Calls;
enum { MOST_KERNELS = 12 };

typedef struct Counted {
    const Calls *kernels;                // (MOST_KERNELS)
    int64_t of[2][MOST_KERNELS], all[2]; // forward, backward
} Counted;

static void count(const Backend *dry, Counted *c, int pass, int sign) {
    for (int i = 0; i < MOST_KERNELS && c->kernels[i].kernel; i++)
        c->of[pass][i] += sign * dry_calls(dry, c->kernels[i].kernel);
    c->all[pass] += sign * dry_calls(dry, NULL);
}

static Tensor *forward(Tape *t, const Block *blocks, int count, Recompute recompute) {
    int32_t positions[BATCH * LENGTH] = {0};
    float x[BATCH * LENGTH * 64] = {0};
    BlockContext context = {.causal = true, .training = true, .recompute = recompute};
    context.positions = tape_constant(t, I32, SHAPE(BATCH * LENGTH), positions);
    Residual r = residual_of(tape_arrival(t, BF16, SHAPE(BATCH, LENGTH, 64), x, true));
    for (int i = 0; i < count; i++) r = block_forward(t, &blocks[i], r, &context);
    return residual_sum(t, &r);
}

// Adds what passes over `blocks` blocks call, `sign` times. The second microbatch is counted: gradients are there.
static void count_passes(const BlockConfig *config, int blocks, Recompute recompute, bool fuses, Counted *c, int sign) {
    Error error = {0};
    Backend *dry = dry_backend_new();
    if (fuses) dry_fuse(dry);
    Parameters *p = parameters_new(dry, NULL);
    Block block[BLOCKS];
    for (int i = 0; i < blocks; i++) {
        char name[16];
        snprintf(name, sizeof name, "blocks.%d", i);
        block[i] = block_declare(p, name, config, i);
    }
    assert_done(parameters_finish(p, BF16, 1, &error), &error);
    parameters_begin_step(p);
    Tape *t = tape_new(dry, true);
    for (int microbatch = 0; microbatch < 2; microbatch++) {
        tape_reset(t);
        count(dry, c, FORWARD, -sign * microbatch);
        Tensor *out = forward(t, block, blocks, recompute);
        if (tape_error(t)) fail_msg("%s", tape_error(t));
        count(dry, c, FORWARD, sign * microbatch);
        uint16_t gradient[BATCH * LENGTH * 64] = {0};
        tape_seed(t, out, gradient);
        count(dry, c, BACKWARD, -sign * microbatch);
        tape_backward_seeded(t, ALL_GRADIENTS);
        count(dry, c, BACKWARD, sign * microbatch);
    }
    tape_free(t);
    parameters_free(p);
    backend_free(dry);
}

// Of the block between two others. fuses: on a backend with calls that do what others do apart.
static void expect_calls(const BlockConfig *config, Recompute recompute, bool fuses, const Calls *kernels) {
    Counted c = {.kernels = kernels};
    count_passes(config, BLOCKS, recompute, fuses, &c, 1);
    count_passes(config, BLOCKS - 1, recompute, fuses, &c, -1);
    for (int pass = FORWARD; pass <= BACKWARD; pass++) {
        int64_t all = 0;
        for (int i = 0; i < MOST_KERNELS && kernels[i].kernel; i++) {
            if (c.of[pass][i] != kernels[i].count[pass])
                fail_msg("%s is called %d times in a block's %s pass, not %d", kernels[i].kernel, (int)c.of[pass][i],
                         pass ? "backward" : "forward", kernels[i].count[pass]);
            all += c.of[pass][i];
        }
        if (c.all[pass] != all)
            fail_msg("a block's %s pass calls %d other kernels", pass ? "backward" : "forward",
                     (int)(c.all[pass] - all));
    }
}

static void a_gpt_block_makes_no_pass_too_many(void **state) {
    (void)state;
    const Calls kernels[MOST_KERNELS] = {{"matmul", {4, 8}},
                                         {"sum_columns", {0, 4}},
                                         {"add_norm_forward", {2, 0}},
                                         {"layernorm_backward_input", {0, 2}},
                                         {"layernorm_backward_weight", {0, 2}},
                                         {"gelu_forward", {1, 0}},
                                         {"gelu_backward", {0, 1}},
                                         {"attention_forward", {1, 0}},
                                         {"attention_backward", {0, 1}}};
    expect_calls(&GPT, RECOMPUTE_NONE, false, kernels);
}

// Where the backend can: all gradients of a norm in one pass, with the sums that the bias in front of it wants (which
// reach it by an addition of so many numbers); those of up's bias in that over the slope. One is left, that of qkv.
static void a_gpt_block_sums_gradients_up_where_they_are_written(void **state) {
    (void)state;
    BlockConfig config = GPT;
    const Calls kernels[MOST_KERNELS] = {{"matmul", {4, 8}},
                                         {"sum_columns", {0, 1}},
                                         {"add_in_place", {0, 2}},
                                         {"add_norm_forward", {2, 0}},
                                         {"norm_backward", {0, 2}},
                                         {"gelu_forward", {1, 0}},
                                         {"gelu_backward_sums", {0, 1}},
                                         {"attention_forward", {1, 0}},
                                         {"attention_backward", {0, 1}}};
    for (config.mlp = MLP_GELU_ERF; config.mlp <= MLP_GELU_QUICK; config.mlp++)
        expect_calls(&config, RECOMPUTE_NONE, true, kernels);
}

static void dropout_costs_a_block_no_pass(void **state) {
    (void)state;
    BlockConfig config = GPT;
    config.dropout = 0.1;
    const Calls kernels[MOST_KERNELS] = {{"matmul", {4, 8}},
                                         {"sum_columns", {0, 4}},
                                         {"add_norm_forward", {2, 0}},
                                         {"add_norm_backward", {0, 2}},
                                         {"layernorm_backward_weight", {0, 2}},
                                         {"gelu_forward", {1, 0}},
                                         {"gelu_backward", {0, 1}},
                                         {"attention_forward", {1, 0}},
                                         {"attention_backward", {0, 1}}};
    expect_calls(&config, RECOMPUTE_NONE, false, kernels);
}

static void a_llama_block_turns_queries_and_keys_where_they_lie(void **state) {
    (void)state;
    const Calls kernels[MOST_KERNELS] = {{"matmul", {4, 8}},
                                         {"add_norm_forward", {2, 0}},
                                         {"rmsnorm_backward_input", {0, 2}},
                                         {"rmsnorm_backward_weight", {0, 2}},
                                         {"swiglu_forward", {1, 0}},
                                         {"swiglu_backward", {0, 1}},
                                         {"rope", {1, 1}},
                                         {"attention_forward", {1, 0}},
                                         {"attention_backward", {0, 1}}};
    expect_calls(&LLAMA, RECOMPUTE_NONE, false, kernels);
}

static void full_recomputation_runs_all_but_the_last_product_again(void **state) {
    (void)state;
    const Calls kernels[MOST_KERNELS] = {{"matmul", {4, 8 + 3}},
                                         {"sum_columns", {0, 4}},
                                         {"layernorm_forward", {1, 1}},
                                         {"add_norm_forward", {1, 1}},
                                         {"add", {1, 0}},
                                         {"layernorm_backward_input", {0, 2}},
                                         {"layernorm_backward_weight", {0, 2}},
                                         {"gelu_forward", {1, 1}},
                                         {"gelu_backward", {0, 1}},
                                         {"attention_forward", {1, 1}},
                                         {"attention_backward", {0, 1}}};
    expect_calls(&GPT, RECOMPUTE_FULL, false, kernels);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_gpt_block_makes_no_pass_too_many),
        cmocka_unit_test(a_gpt_block_sums_gradients_up_where_they_are_written),
        cmocka_unit_test(dropout_costs_a_block_no_pass),
        cmocka_unit_test(a_llama_block_turns_queries_and_keys_where_they_lie),
        cmocka_unit_test(full_recomputation_runs_all_but_the_last_product_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
