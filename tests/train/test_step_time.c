/* The time of a step on a cluster that is not there: what it is made of adds up, and follows the rates. */
#include "train/step_time.h"
#include "tests/train/tiny_run.h"
#include <math.h>

static Arena *arena;

static int open_both(void **state) {
    arena = arena_new(1 << 20);
    return open_shared(state);
}
static int close_both(void **state) {
    arena_free(arena);
    return close_shared(state);
}

// Slow enough that arithmetic, messages and latency all show.
static const Cluster cluster = {.rates = {.flops = 1e9, .bandwidth = 1e9},
                                .peak = 2e9,
                                .memory = 80e9,
                                .inside = 1e9,
                                .outside = 1e8,
                                .latency = 1e-6,
                                .node = 4};

typedef struct Planned {
    TrainConfig config;
    Layout layout;
    StepTime time;
} Planned;

static Planned *planned(const Cluster *c, int ranks, const char *const *settings) {
    Error error = {0};
    Planned *p = arena_array(arena, Planned, 1);
    tiny_config(&shared, settings, arena, &p->config);
    assert_done(layout_resolve(&p->config, ranks, &p->layout, &error), &error);
    assert_done(step_time(&p->config, &p->layout, c, arena, &p->time, &error), &error);
    return p;
}

#define PLANNED(c, ranks, ...) planned(c, ranks, (const char *const[]){"train.microbatches=8", __VA_ARGS__, NULL})

static void near(double got, double want) {
    if (!(fabs(got - want) <= 1e-9 * fabs(want))) fail_msg("%.17g is not %.17g", got, want);
}

static void one_device_takes_what_its_units_take(void **state) {
    (void)state;
    const StepTime *t = &PLANNED(&cluster, 1, "seed=1")->time;
    const UnitCosts *c = &t->plan.costs;
    double rows = 0, features = 0;
    for (int u = 0; u < c->units; u++)
        for (int i = 0; i < c->pieces; i++) {
            UnitTime unit = unit_time(c, u, i);
            rows += unit.forward + unit.input + unit.weight;
            features += unit.features;
        }
    near(t->rows.total, rows);
    near(t->features, features);
    near(t->exchange, 28 * t->loads[0].trained / cluster.rates.bandwidth);
    near(t->total, rows + features + t->exchange);
    assert_true(t->sent == 0 && t->message == 0 && t->rows.bubble < 1e-12);
}

static void stages_take_what_the_schedule_says_and_messages_cost(void **state) {
    (void)state;
    Cluster quick = cluster;
    quick.inside = quick.outside = 1e30, quick.latency = 0;
    const StepTime *free_of_cost = &PLANNED(&quick, 2, "parallel.pipeline=2", "parallel.schedule=1f1b")->time;
    const StepTime *t = &PLANNED(&cluster, 2, "parallel.pipeline=2", "parallel.schedule=1f1b")->time;
    near(free_of_cost->rows.total + free_of_cost->features, free_of_cost->plan.total);
    assert_true(t->message > 0 && t->message == free_of_cost->message);
    double send = t->message / cluster.inside + cluster.latency;
    assert_true(t->rows.total > free_of_cost->rows.total + 1.99 * send); // there and back, at the least
    assert_true(t->sent >= 8 * 2 * t->message && t->peaks[0].live == 2 && t->peaks[1].live == 1);
    const Planned *one = PLANNED(&cluster, 1, "seed=1");
    const TextConfig *text = &one->config.model.text; // its words are tied: the head has a copy
    near(t->loads[0].trained + t->loads[1].trained,
         one->time.loads[0].trained + (double)(text->vocabulary * text->width));
}

static void what_data_ranks_exchange_follows_the_network(void **state) {
    (void)state;
    const StepTime *whole = &PLANNED(&cluster, 4, "parallel.data=4")->time;
    const StepTime *shared_out = &PLANNED(&cluster, 4, "parallel.data=4", "parallel.zero=1")->time;
    const StepTime *nodes = &PLANNED(&cluster, 8, "parallel.data=8")->time;
    double weights = whole->loads[0].trained, calls = ceil(4 * weights / 26214400);
    near(whole->loads[0].gradients, 2 * 4 * weights * 3 / 4 / 1e9 + 2 * 2 * calls * 1e-6);
    near(nodes->loads[0].gradients, 2 * 4 * weights * 7 / 8 / 1e8 + 2 * 3 * calls * 1e-6); // out of the node
    near(shared_out->loads[0].gradients, whole->loads[0].gradients); // f32: a reduction and a gathering
    near(shared_out->loads[0].update, whole->loads[0].update / 4);
    assert_true(shared_out->memory < whole->memory);
}

static void tensor_ranks_share_parameters_and_pay_for_sums(void **state) {
    (void)state;
    const StepTime *alone = &PLANNED(&cluster, 1, "seed=1")->time;
    const StepTime *two = &PLANNED(&cluster, 2, "parallel.tensor=2", "parallel.sequence=true")->time;
    near(two->loads[0].trained, alone->loads[0].trained / 2);
    assert_true(alone->loads[0].tensor == 0 && two->loads[0].tensor > 0 && two->sent > 0);
    double own = two->loads[0].rows - two->loads[0].tensor; // what is outside the blocks each rank does whole
    assert_true(own > alone->loads[0].rows / 2 && own < 0.75 * alone->loads[0].rows);
}

// Inside a stack each tensor rank sends the rows that it has.
static void boundaries_of_shared_rows_are_shared_out(void **state) {
    (void)state;
    const char split[] = "parallel.split=text.blocks.1", deep[] = "model.text.layers=2", two[] = "parallel.tensor=2",
               stages[] = "parallel.pipeline=2";
    double whole = PLANNED(&cluster, 4, two, stages, deep, split)->time.message;
    double shared_out = PLANNED(&cluster, 4, two, stages, deep, split, "parallel.sequence=true")->time.message;
    assert_true(shared_out < 0.75 * whole && shared_out >= whole / 2); // features of pictures are with every rank
}

static void states_on_the_host_come_and_go_in_each_update(void **state) {
    (void)state;
    Cluster far = cluster;
    far.host = 1e8;
    const StepTime *here = &PLANNED(&far, 1, "precision=bf16")->time;
    const StepTime *there = &PLANNED(&far, 1, "precision=bf16", "train.offload=states")->time;
    near(here->loads[0].update, 30 * here->loads[0].trained / 1e9);
    near(there->loads[0].update, 12 * there->loads[0].trained / 1e8);
    near(here->memory - there->memory, 12 * here->loads[0].trained);
}

static void utilisation_counts_the_models_own_work(void **state) {
    (void)state;
    const Planned *p = PLANNED(&cluster, 4, "parallel.pipeline=2"), *q = PLANNED(&cluster, 4, "train.recompute=full");
    near(p->time.flop, q->time.flop);
    near(step_utilisation(&p->time, &p->layout, &cluster), p->time.flop / (p->time.total * 4 * 2e9));
    assert_true(step_utilisation(&p->time, &p->layout, &cluster) < 0.5); // products reach half of the peak here
}

static void pictures_of_two_pieces_count_once(void **state) {
    (void)state;
    const char *const pieces[] = {"train.microbatches=1", "train.microbatches=3", "train.microbatches=8"};
    for (int i = 0; i < 3; i++) near(PLANNED(&cluster, 1, pieces[i])->time.images, 5 + 3);
}

static void what_does_not_fit_is_refused(void **state) {
    (void)state;
    Planned p;
    Error error = {0};
    static const char *const settings[] = {"train.microbatches=8", "parallel.pipeline=2",
                                           "parallel.stage_memory=100000", NULL};
    tiny_config(&shared, settings, arena, &p.config);
    assert_done(layout_resolve(&p.config, 2, &p.layout, &error), &error);
    assert_false(step_time(&p.config, &p.layout, &cluster, arena, &p.time, &error));
    assert_int_equal(error.kind, ERROR_USAGE);
    assert_message_has(&error, "2 stages");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_device_takes_what_its_units_take),
        cmocka_unit_test(stages_take_what_the_schedule_says_and_messages_cost),
        cmocka_unit_test(what_data_ranks_exchange_follows_the_network),
        cmocka_unit_test(tensor_ranks_share_parameters_and_pay_for_sums),
        cmocka_unit_test(boundaries_of_shared_rows_are_shared_out),
        cmocka_unit_test(states_on_the_host_come_and_go_in_each_update),
        cmocka_unit_test(utilisation_counts_the_models_own_work),
        cmocka_unit_test(pictures_of_two_pieces_count_once),
        cmocka_unit_test(what_does_not_fit_is_refused),
    };
    return cmocka_run_group_tests(tests, open_both, close_both);
}
