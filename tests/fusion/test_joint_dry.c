/* The joint model over the dry backend: the tensors, costs and peak of memory of a pass that computes, and those of a
 * model that no machine here could hold. */
#include "kernels/dry.h"
#include "kernels/tape.h"
#include "tests/support/test.h"
#include "tiny_joint.h"
#include <string.h>

typedef struct Pass {
    size_t forward, between, end, peak; // bytes
    int64_t nodes, allocations;
    Cost cost, replayed;
} Pass;

static Pass run(Backend *b, const JointConfig *c, Dtype dtype, bool in_halves) {
    Error error = {0};
    Pass p = {0};
    Arena *host = arena_new(1 << 16);
    Joint *joint = joint_new(b, c, NULL, dtype, 7, &error);
    if (!joint) fail_msg("%s", error.message);
    TapeMemory *memory = tape_memory_new(b);
    Tape *t = tape_new_in(memory, true);
    Batch batch = tiny_batch(host);
    JointPass pass = {.seed = 5, .training = true};
    parameters_begin_step(joint_parameters(joint));
    JointLoss loss = joint_loss(t, joint, &batch, &pass);
    if (tape_error(t)) fail_msg("%s", tape_error(t));
    p.forward = tape_memory_held(memory);
    p.nodes = tape_nodes(t);
    tape_backward(t, loss.total, in_halves ? INPUT_GRADIENTS : ALL_GRADIENTS);
    p.between = tape_memory_held(memory);
    if (in_halves) tape_backward(t, loss.total, WEIGHT_GRADIENTS);
    parameters_end_backward(joint_parameters(joint));
    p.end = tape_memory_held(memory);
    p.peak = tape_memory_peak(memory);
    p.allocations = tape_memory_system_allocations(memory);
    p.cost = tape_cost(t), p.replayed = tape_replayed(t);
    tape_free(t);
    tape_memory_free(memory);
    joint_free(joint);
    arena_free(host);
    return p;
}

static void a_dry_pass_is_that_of_one_that_computes(void **state) {
    (void)state;
    Backend *dry = dry_backend_new(), *cpu = cpu_backend_new(2, NULL, NULL);
    for (int i = 0; i < 12; i++) {
        JointConfig c = tiny_config();
        c.recompute = (Recompute)(i / 4);
        c.text.dropout = 0.1;
        if (i % 3 == 0) c.contrastive = CONTRASTIVE_SIGMOID;
        Pass real = run(cpu, &c, i & 1 ? BF16 : F32, i & 2), same = run(dry, &c, i & 1 ? BF16 : F32, i & 2);
        assert_memory_equal(&real, &same, sizeof real);
    }
    backend_free(dry);
    backend_free(cpu);
}

static void ten_billion_parameters_take_no_memory(void **state) {
    (void)state;
    Backend *dry = dry_backend_new();
    JointConfig c = tiny_config();
    c.text.width = 4096, c.text.layers = 40, c.text.heads = 32;
    c.vision.width = 1664, c.vision.layers = 48, c.vision.heads = 16;
    Pass plain = run(dry, &c, BF16, false);
    c.recompute = RECOMPUTE_FULL;
    Pass again = run(dry, &c, BF16, false);
    assert_true(plain.cost.flop > 1e12 && again.replayed.flop > 0.5 * plain.cost.flop);
    assert_true(plain.peak > (200 << 20) && again.peak < plain.peak);
    backend_free(dry);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_dry_pass_is_that_of_one_that_computes),
        cmocka_unit_test(ten_billion_parameters_take_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
