/* Runs in which the device judges steps and the host is a step ahead: on a backend that computes on the CPU, and whose
 * reads, as those of a GPU, are finished later. It stands in for the CUDA backend of this program. */
#include "kernels/cpu/cpu.h"
#include "kernels/cuda.h"
#include "tests/train/tiny_compare.h"
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

typedef enum { NOWHERE, IN_A_LOSS, IN_A_GRADIENT } Place;

enum { MOST_UPDATES = 16 };

static struct {         // what the next run does
    bool late;          // false: reads at once, as the CPU backend
    int sound;          // updates until NaN is planted
    Place place;        // where from then on
    int stop_at;        // the update in which the run is asked to stop; 0: none
    Backend cpu;        // the functions behind ours
    int depth, updates; // sequences that are open; updates asked for
    int reads, most_reads;
    uint64_t state[MOST_UPDATES]; // of parameters and moments behind each update
} fake;
static volatile sig_atomic_t stop;

struct BackendRead {
    size_t bytes;
    char data[];
};

static bool planted(Place place) { return fake.place == place && fake.updates >= fake.sound; }

static BackendRead *read_start(Backend *b, const void *device, size_t bytes) {
    BackendRead *read = malloc(sizeof *read + bytes);
    assert_non_null(read);
    read->bytes = bytes;
    b->download(b, read->data, device, bytes);
    if (++fake.reads > fake.most_reads) fake.most_reads = fake.reads;
    return read;
}

static void read_finish(Backend *b, BackendRead *read, void *host) {
    (void)b;
    if (!read) return;
    if (host) memcpy(host, read->data, read->bytes);
    fake.reads--;
    free(read);
}

static void sequence_begin(Backend *b, const char *name) {
    (void)b;
    assert_non_null(name);
    fake.depth++;
}

static void sequence_end(Backend *b) {
    (void)b;
    fake.depth--;
    assert_true(fake.depth >= 0);
}

static void sum_into(Backend *b, float *out, const void *x, int64_t n, double factor, Dtype t) {
    fake.cpu.sum_into(b, out, x, n, factor, t);
    if (planted(IN_A_LOSS)) *out = NAN;
}

static void sum_columns(Backend *b, float *out, const void *x, int64_t rows, int64_t width, Dtype t, bool add) {
    fake.cpu.sum_columns(b, out, x, rows, width, t, add);
    if (planted(IN_A_GRADIENT)) out[width / 2] = NAN;
}

static void adamw_parts(Backend *b, const AdamWPart *parts, int count, const AdamW *rule, const Gate *gate) {
    uint64_t state = 0;
    assert_true(!gate == !fake.late);
    fake.cpu.adamw_parts(b, parts, count, rule, gate);
    for (int i = 0; i < count; i++) {
        size_t bytes = (size_t)parts[i].n * sizeof(float);
        uint64_t all[] = {state, hash_u64(parts[i].parameter, bytes), hash_u64(parts[i].m, bytes),
                          hash_u64(parts[i].v, bytes)};
        state = hash_u64(all, sizeof all);
    }
    assert_true(fake.updates < MOST_UPDATES);
    fake.state[fake.updates++] = state;
    if (fake.updates == fake.stop_at) stop = SIGTERM;
}

static void destroy(Backend *b) {
    assert_int_equal(fake.depth, 0);
    assert_int_equal(fake.reads, 0);
    fake.cpu.destroy(b);
}

Backend *cuda_backend_new(const CudaOptions *options, Log *log, Error *error) {
    (void)options, (void)error;
    Backend *b = cpu_backend_new(2, NULL, log);
    fake.cpu = *b;
    b->destroy = destroy, b->sum_into = sum_into, b->sum_columns = sum_columns, b->adamw_parts = adamw_parts;
    b->sequence_begin = sequence_begin, b->sequence_end = sequence_end;
    if (fake.late) b->read_start = read_start, b->read_finish = read_finish;
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

static TinyRun shared;

static int open_shared(void **state) {
    (void)state;
    tiny_run_open(&shared, 1);
    return 0;
}
static int close_shared(void **state) {
    (void)state;
    tiny_run_close(&shared);
    return 0;
}

// settings: up to 4 beside those of all runs, NULL at their end; NULL: none.
static bool run(const char *name, bool late, int sound, Place place, bool resume, const char *const *settings,
                TrainResult *result, Error *error) {
    const char *all[6] = {"device=cuda"};
    for (int i = 0; settings && settings[i]; i++) all[i + 1] = settings[i];
    int stop_at = fake.stop_at;
    memset(&fake, 0, sizeof fake);
    fake.late = late, fake.sound = sound, fake.place = place, fake.stop_at = stop_at;
    stop = 0;
    return tiny_train(&shared, name, all, resume, &stop, result, error);
}

static void train(const char *name, bool late, const char *const *settings) {
    TrainResult result;
    Error error = {0};
    assert_done(run(name, late, 0, NOWHERE, false, settings, &result, &error), &error);
    assert_int_equal(result.step, 6);
    assert_int_equal(fake.updates, 6);
}

static void the_host_is_a_step_ahead_and_says_the_same(void **state) {
    (void)state;
    train("early", false, NULL);
    train("late", true, NULL);
    assert_int_equal(fake.most_reads, 2); // of two steps
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
    fake.stop_at = 4;
    assert_done(run(name, late_before, 0, NOWHERE, false, NULL, &result, &error), &error);
    assert_int_equal(result.interrupted, SIGTERM);
    assert_int_equal(result.step, 4);
    fake.stop_at = 0;
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
    assert_int_equal(fake.updates, 4);
    uint64_t good = fake.state[3];
    assert_false(run(late, true, 4, place, false, NULL, &result[1], &error[1]));
    assert_message_has(&error[0], what);
    assert_string_equal(error[0].message, error[1].message);
    assert_int_equal(error[0].kind, error[1].kind);
    for (int i = 0; i < 2; i++) assert_int_equal(result[i].step, 4);
    assert_int_equal(fake.updates, 6); // of steps 5 and 6, which were on their way when the host saw it
    for (int i = 3; i < 6; i++) assert_true(fake.state[i] == good);
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

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_host_is_a_step_ahead_and_says_the_same),
        cmocka_unit_test(in_several_pieces_and_with_validation_too),
        cmocka_unit_test(a_stopped_run_goes_on_bit_for_bit_whoever_judges),
        cmocka_unit_test(a_loss_that_is_not_finite_updates_nothing_from_there_on_and_is_named),
        cmocka_unit_test(a_gradient_that_is_not_finite_updates_nothing_from_there_on_and_is_named),
        cmocka_unit_test(the_last_step_is_looked_at_before_it_is_saved),
    };
    return cmocka_run_group_tests(tests, open_shared, close_shared);
}
