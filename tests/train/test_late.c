/* Runs in which the device judges steps and the host is a step ahead: on a backend that computes on the CPU, and whose
 * reads, as those of a GPU, are finished later. It stands in for the CUDA backend of this program. */
#include "base/files.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cuda.h"
#include "tests/train/tiny_compare.h"
#include "train/run_state.h"
#include "train/run_step.h"
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

typedef enum { NOWHERE, IN_A_LOSS, IN_A_GRADIENT } Place;

enum { MOST_UPDATES = 1024, MOST_RANKS = 4 };

static struct {  // what the next run does
    bool late;   // false: reads at once, as the CPU backend
    int sound;   // updates until NaN is planted, on one of the ranks
    Place place; // where from then on
    int stop_at; // the update in which the run is asked to stop; 0: none
} plan;

typedef struct Fake {   // a rank's
    Backend cpu;        // the functions behind ours
    int depth, updates; // sequences that are open; updates asked for
    int reads, most_reads;
    uint64_t state[MOST_UPDATES]; // of parameters and moments behind each update
} Fake;
static Fake fakes[MOST_RANKS];
static int opened;               // of them
static _Thread_local Fake *fake; // of the rank that is this thread
static volatile sig_atomic_t stop;

struct BackendRead {
    size_t bytes;
    char data[];
};

static bool planted(Place place) { return fake == fakes && plan.place == place && fake->updates >= plan.sound; }

static BackendRead *read_start(Backend *b, const void *device, size_t bytes) {
    BackendRead *read = malloc(sizeof *read + bytes);
    assert_non_null(read);
    read->bytes = bytes;
    b->download(b, read->data, device, bytes);
    if (++fake->reads > fake->most_reads) fake->most_reads = fake->reads;
    return read;
}

static void read_finish(Backend *b, BackendRead *read, void *host) {
    (void)b;
    if (!read) return;
    if (host) memcpy(host, read->data, read->bytes);
    fake->reads--;
    free(read);
}

static void sequence_begin(Backend *b, const char *name) {
    (void)b;
    assert_non_null(name);
    fake->depth++;
}

static void sequence_end(Backend *b) {
    (void)b;
    fake->depth--;
    assert_true(fake->depth >= 0);
}

static void sum_into(Backend *b, float *out, const void *x, int64_t n, double factor, Dtype t) {
    fake->cpu.sum_into(b, out, x, n, factor, t);
    if (planted(IN_A_LOSS)) *out = NAN;
}

static void sum_columns(Backend *b, float *out, const void *x, int64_t rows, int64_t width, Dtype t, bool add) {
    fake->cpu.sum_columns(b, out, x, rows, width, t, add);
    if (planted(IN_A_GRADIENT)) out[width / 2] = NAN;
}

static void adamw_parts(Backend *b, const AdamWPart *parts, int count, const AdamW *rule, const Gate *gate) {
    uint64_t state = 0;
    assert_true(!gate == !plan.late);
    fake->cpu.adamw_parts(b, parts, count, rule, gate);
    for (int i = 0; i < count; i++) {
        size_t bytes = (size_t)parts[i].n * sizeof(float);
        uint64_t all[] = {state, hash_u64(parts[i].parameter, bytes), hash_u64(parts[i].m, bytes),
                          hash_u64(parts[i].v, bytes)};
        state = hash_u64(all, sizeof all);
    }
    assert_true(fake->updates < MOST_UPDATES);
    fake->state[fake->updates++] = state;
    if (fake->updates == plan.stop_at) stop = SIGTERM;
}

static void destroy(Backend *b) {
    assert_int_equal(fake->depth, 0);
    assert_int_equal(fake->reads, 0);
    fake->cpu.destroy(b);
}

Backend *cuda_backend_new(const CudaOptions *options, Log *log, Error *error) {
    (void)options, (void)error;
    Backend *b = cpu_backend_new(2, NULL, log);
    int rank = __atomic_fetch_add(&opened, 1, __ATOMIC_RELAXED);
    assert_true(rank < MOST_RANKS);
    fake = &fakes[rank];
    fake->cpu = *b;
    b->destroy = destroy, b->sum_into = sum_into, b->sum_columns = sum_columns, b->adamw_parts = adamw_parts;
    b->sequence_begin = sequence_begin, b->sequence_end = sequence_end;
    if (plan.late) b->read_start = read_start, b->read_finish = read_finish;
    return b;
}

int cuda_count(Error *error) {
    (void)error;
    return 1;
}

void cuda_describe(int device, char *name, size_t name_size, char *pci, size_t pci_size) {
    (void)device;
    snprintf(name, name_size, "stand-in");
    snprintf(pci, pci_size, "%s", "");
}

bool cuda_module_built(void) { return false; }

// ---- runs ----

static void forget(void) {
    memset(fakes, 0, sizeof fakes);
    opened = 0;
    stop = 0;
}

// settings: up to 4 beside those of all runs, NULL at their end; NULL: none.
static bool run(const char *name, bool late, int sound, Place place, bool resume, const char *const *settings,
                TrainResult *result, Error *error) {
    const char *all[6] = {"device=cuda"};
    for (int i = 0; settings && settings[i]; i++) all[i + 1] = settings[i];
    forget();
    plan.late = late, plan.sound = sound, plan.place = place;
    return tiny_train(&shared, name, all, resume, &stop, result, error);
}

static void train(const char *name, bool late, const char *const *settings) {
    TrainResult result;
    Error error = {0};
    assert_done(run(name, late, 0, NOWHERE, false, settings, &result, &error), &error);
    assert_int_equal(result.step, 6);
    assert_int_equal(fakes[0].updates, 6);
}

static void the_host_is_a_step_ahead_and_says_the_same(void **state) {
    (void)state;
    train("early", false, NULL);
    train("late", true, NULL);
    assert_int_equal(fakes[0].most_reads, 2); // of two steps
    assert_same_records(&shared, "early", "late");
    assert_same_end(&shared, "early", "late");
}

static void in_several_pieces_and_with_validation_too(void **state) {
    (void)state;
    char text[300];
    snprintf(text, sizeof text, "data.2.validation=%s/text", shared.folder);
    const char *const pieces[] = {"train.microbatches=2", text, "validation.every=2", "validation.batches=2", NULL};
    train("early pieces", false, pieces);
    train("late pieces", true, pieces);
    assert_same_records(&shared, "early pieces", "late pieces");
    assert_same_end(&shared, "early pieces", "late pieces");
}

static void stops_and_goes_on(const char *whole, bool late_before, bool late_behind) {
    char name[64];
    TrainResult result;
    Error error = {0};
    snprintf(name, sizeof name, "stopped %d%d", late_before, late_behind);
    plan.stop_at = 4;
    assert_done(run(name, late_before, 0, NOWHERE, false, NULL, &result, &error), &error);
    assert_int_equal(result.interrupted, SIGTERM);
    assert_int_equal(result.step, 4);
    plan.stop_at = 0;
    assert_done(run(name, late_behind, 0, NOWHERE, true, NULL, &result, &error), &error);
    assert_same_records(&shared, whole, name);
    assert_same_end(&shared, whole, name);
}

static void a_stopped_run_goes_on_bit_for_bit_whoever_judges(void **state) {
    (void)state;
    train("whole", false, NULL);
    stops_and_goes_on("whole", true, true);
    stops_and_goes_on("whole", true, false);
    stops_and_goes_on("whole", false, true);
}

static void remove_run(const char *name) {
    Error error = {0};
    char *path = temporary_path(shared.folder, name);
    assert_done(folder_remove(path, &error), &error);
    free(path);
}

static int64_t count_records(const char *name) {
    json_t *records = tiny_records(&shared, name);
    int64_t count = (int64_t)json_array_size(records);
    json_decref(records);
    return count;
}

static void assert_ends_alike(const char *early, const char *late, Place place, const char *what) {
    TrainResult result[2];
    Error error[2] = {0};
    assert_false(run(early, false, 4, place, false, NULL, &result[0], &error[0]));
    assert_int_equal(fakes[0].updates, 4);
    uint64_t good = fakes[0].state[3];
    assert_false(run(late, true, 4, place, false, NULL, &result[1], &error[1]));
    assert_message_has(&error[0], what);
    assert_string_equal(error[0].message, error[1].message);
    assert_int_equal(error[0].kind, error[1].kind);
    for (int i = 0; i < 2; i++) assert_int_equal(result[i].step, 4);
    assert_int_equal(fakes[0].updates, 6); // of steps 5 and 6, which were on their way when the host saw it
    for (int i = 3; i < 6; i++) assert_true(fakes[0].state[i] == good);
    assert_int_equal(count_records(late), 4);
    assert_same_records(&shared, early, late);
}

static void a_loss_that_is_not_finite_updates_nothing_from_there_on_and_is_named(void **state) {
    (void)state;
    assert_ends_alike("early loss", "late loss", IN_A_LOSS, "step 5: the loss is not a finite number");
}

static void a_gradient_that_is_not_finite_updates_nothing_from_there_on_and_is_named(void **state) {
    (void)state;
    assert_ends_alike("early gradient", "late gradient", IN_A_GRADIENT,
                      "step 5: the gradient's norm is not a finite number");
}

// The last step of a run: nobody is started behind it.
static void the_last_step_is_looked_at_before_it_is_saved(void **state) {
    (void)state;
    TrainResult result;
    Error error = {0};
    assert_false(run("last", true, 5, IN_A_GRADIENT, false, NULL, &result, &error));
    assert_message_has(&error, "step 6");
    assert_int_equal(result.step, 5);
    assert_int_equal(count_records("last"), 5);
}

// ---- several ranks ----

static bool run_ranks(const char *name, int ranks, bool late, Place place, const char *const *settings, Error *error) {
    const char *all[12] = {"device=cuda", "threads=1", "train.microbatches=4", "parallel.bucket=8192",
                           "checkpoint.every=0"};
    TrainResult result;
    for (int i = 0; settings[i]; i++) all[i + 5] = settings[i];
    forget();
    plan.late = late, plan.sound = 2, plan.place = place;
    return tiny_train_ranks(&shared, name, all, false, ranks, NULL, &result, error);
}

typedef struct RanksCase {
    int ranks;
    const char *settings[5];
} RanksCase;

static void assert_ahead(const RanksCase *c) {
    Error error = {0};
    assert_done(run_ranks("soon", c->ranks, false, NOWHERE, c->settings, &error), &error);
    assert_done(run_ranks("ahead", c->ranks, true, NOWHERE, c->settings, &error), &error);
    for (int r = 0; r < c->ranks; r++) assert_int_equal(fakes[r].most_reads, 2); // of two steps
    assert_same_records(&shared, "soon", "ahead");
    assert_same_end(&shared, "soon", "ahead");
    remove_run("soon");
    remove_run("ahead");
}

static void on_several_ranks_the_host_is_a_step_ahead_and_says_the_same(void **state) {
    (void)state;
    static const RanksCase cases[] = {
        {2, {"train.reproducible=layout", "parallel.zero=3", NULL}},
        {4, {"train.reproducible=layout", "parallel.pipeline=2", "parallel.data=2", "parallel.zero=1", NULL}},
        {4, {"train.reproducible=layout", "parallel.tensor=2", "parallel.data=2", "parallel.zero=2", NULL}},
        {1, {"train.reproducible=layout", NULL}}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) assert_ahead(&cases[i]);
}

// Each rank adds what it holds at once: another order of the same squares.
static void norms_as_ranks_hold_them_are_those_by_parameters(void **state) {
    (void)state;
    static const RanksCase cases[] = {{4, {"parallel.tensor=2", "parallel.data=2", "parallel.zero=0", NULL}},
                                      {4, {"parallel.pipeline=2", "parallel.data=2", "parallel.zero=1", NULL}},
                                      {2, {"parallel.zero=2", NULL}}};
    Error error = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_done(run_ranks("soon", cases[i].ranks, false, NOWHERE, cases[i].settings, &error), &error);
        assert_done(run_ranks("ahead", cases[i].ranks, true, NOWHERE, cases[i].settings, &error), &error);
        assert_close_records(&shared, "soon", "ahead", 1e-6);
        remove_run("soon");
        remove_run("ahead");
    }
}

static void assert_all_end(const RanksCase *c, Place place, const char *what) {
    Error error = {0};
    assert_false(run_ranks("bad", c->ranks, true, place, c->settings, &error));
    assert_message_has(&error, what);
    assert_int_equal(count_records("bad"), 2);
    for (int r = 0; r < c->ranks; r++) {
        assert_true(fakes[r].updates > 2);
        for (int i = 2; i < fakes[r].updates; i++) assert_true(fakes[r].state[i] == fakes[r].state[1]);
    }
    remove_run("bad");
}

static void what_is_not_finite_on_one_rank_updates_nothing_on_any(void **state) {
    (void)state;
    static const RanksCase data = {2, {"parallel.zero=0", NULL}},
                           stages = {2, {"train.reproducible=layout", "parallel.pipeline=2", NULL}},
                           tensor = {2, {"train.reproducible=layout", "parallel.tensor=2", NULL}};
    assert_all_end(&data, IN_A_LOSS, "step 3: the loss is not a finite number");
    assert_all_end(&data, IN_A_GRADIENT, "step 3: the gradient's norm is not a finite number");
    assert_all_end(&stages, IN_A_GRADIENT, "step 3: the gradient's norm is not a finite number");
    assert_all_end(&tensor, IN_A_GRADIENT, "step 3: the gradient's norm is not a finite number");
}

// ---- a rank that cannot do its part ----

typedef struct Broken {
    Comm *world;
    bool ok;
    int64_t step;
    Error error;
} Broken;

// Steps of a run in which rank 1 cannot run its model from the third on.
static void *run_until_broken(void *context) {
    Broken *m = context;
    const char *const settings[] = {"device=cuda", "threads=1", "train.microbatches=2", "checkpoint.every=0"};
    char *config = temporary_path(shared.folder, "config.yaml"), *folder = temporary_path(shared.folder, "broken");
    TrainOptions options = {
        .config = config, .overrides = settings, .n_overrides = 4, .run = folder, .world = m->world};
    Log *log = log_new(LOG_ERROR, stderr);
    Run r;
    int stopped = 0;
    m->ok = run_open(&r, &options, log, &m->error);
    for (int i = 0; m->ok && i < 5; i++) {
        if (i == 2 && comm_rank(m->world) == 1)
            parameters_find(joint_parameters(r.joint), "text.tokens")->tensor.shape[1]--;
        m->ok = run_step(&r, &stopped, &m->error);
    }
    m->step = r.state.step;
    run_close(&r);
    log_free(log);
    free(config);
    free(folder);
    return NULL;
}

static void a_rank_that_cannot_do_its_part_ends_all_of_them_with_nothing_updated(void **state) {
    (void)state;
    enum { RANKS = 2 };
    Comm *ends[RANKS];
    Broken broken[RANKS] = {0};
    pthread_t threads[RANKS];
    Arena *memory = arena_new(1 << 16);
    TrainConfig config;
    tiny_config(&shared, NULL, memory, &config); // the file
    forget();
    plan.late = true, plan.place = NOWHERE;
    comm_threads_new(RANKS, ends);
    for (int i = 0; i < RANKS; i++) {
        broken[i].world = ends[i];
        assert_int_equal(pthread_create(&threads[i], NULL, run_until_broken, &broken[i]), 0);
    }
    for (int i = 0; i < RANKS; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < RANKS; i++) {
        comm_free(ends[i]);
        assert_false(broken[i].ok);
        assert_int_equal(broken[i].step, 2);
        assert_message_has(&broken[i].error, "rank 1: ");
        assert_int_equal(fakes[i].updates, 3);
        assert_true(fakes[i].state[2] == fakes[i].state[1] && fakes[i].state[1] != fakes[i].state[0]);
    }
    arena_free(memory);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_host_is_a_step_ahead_and_says_the_same),
        cmocka_unit_test(in_several_pieces_and_with_validation_too),
        cmocka_unit_test(a_stopped_run_goes_on_bit_for_bit_whoever_judges),
        cmocka_unit_test(a_loss_that_is_not_finite_updates_nothing_from_there_on_and_is_named),
        cmocka_unit_test(a_gradient_that_is_not_finite_updates_nothing_from_there_on_and_is_named),
        cmocka_unit_test(the_last_step_is_looked_at_before_it_is_saved),
        cmocka_unit_test(on_several_ranks_the_host_is_a_step_ahead_and_says_the_same),
        cmocka_unit_test(norms_as_ranks_hold_them_are_those_by_parameters),
        cmocka_unit_test(what_is_not_finite_on_one_rank_updates_nothing_on_any),
        cmocka_unit_test(a_rank_that_cannot_do_its_part_ends_all_of_them_with_nothing_updated),
    };
    return cmocka_run_group_tests(tests, open_shared, close_shared);
}
