/* Calls on memory that the host cannot touch (tests/modules/apart_module.cpp), staged, and over links that a test
 * makes: on ranks that are threads. */
#include "kernels/comm/comm_device.h"
#include "kernels/comm/device_link.h"
#include "kernels/cuda.h"
#include "tests/kernels/device_calls.h"
#include "tests/support/ranks.h"
#include "tests/support/test.h"
#include <stdlib.h>
#include <string.h>

static Backend *open_apart(void) {
    Error error = {0};
    Backend *b = cuda_backend_new(&(CudaOptions){.device = 0}, NULL, &error);
    if (!b) fail_msg("%s", error.message);
    return b;
}

// ---- staged ----

static void call_all(int rank, Comm *world, void *argument) {
    (void)rank, (void)argument;
    Error error = {0};
    Backend *b = open_apart();
    assert_true(comm_device_open(world, b, &error));
    assert_int_equal(comm_device_route(world), ROUTE_STAGED);
    assert_string_equal(comm_device_why(world), "backend cuda has nothing to link with");
    device_calls_check(b, world, 1);
    device_calls_check_many(b, world, 2);
    device_calls_check_sequences(b, world, 3);
    comm_device_close(world);
    backend_free(b);
}

static void staged_calls_have_the_hosts_bits(void **state) {
    (void)state;
    for (int ranks = 2; ranks <= 4; ranks++) ranks_run(ranks, call_all, NULL);
}

static void alone_calls_copy_on_the_device(void **state) {
    (void)state;
    Error error = {0};
    Backend *b = open_apart();
    float in[4] = {1, 2, 3, 4}, out[4] = {0};
    void *x = b->allocate(b, sizeof in), *y = b->allocate(b, sizeof in);
    assert_true(comm_device_open(NULL, b, &error));
    b->upload(b, x, in, sizeof in);
    comm_device_all_gather(b, NULL, y, x, 4, sizeof *in, "test");
    b->download(b, out, y, sizeof out);
    assert_memory_equal(in, out, sizeof in);
    comm_device_reduce_scatter(b, NULL, y, x, 4, 1, COMM_F32, COMM_ORDERED, "test");
    comm_device_all_reduce(b, NULL, y, 4, COMM_F32, COMM_SUM, COMM_ORDERED, "test");
    b->download(b, out, y, sizeof out);
    assert_memory_equal(in, out, sizeof in);
    b->release(b, x, sizeof in);
    b->release(b, y, sizeof in);
    backend_free(b);
}

// ---- which way ----

typedef struct Answers { // of the ranks' backends
    DeviceIdentity identity[4];
    bool id_fails, link_fails; // on rank 0; on the last
    const char *why;           // expected; NULL: they are linked
    const char *error;
} Answers;

typedef struct Probe { // a backend that is asked for links alone
    Backend backend;
    const Answers *answers;
    int rank;
    bool faulty, aborted, closed;
    DeviceLink link;
} Probe;

static void identify(Backend *b, DeviceIdentity *out) {
    const Probe *p = b->state;
    *out = p->answers->identity[p->rank];
}

static bool new_id(Backend *b, DeviceLinkId *id, Error *error) {
    const Probe *p = b->state;
    snprintf(id->bytes, sizeof id->bytes, "here");
    return !p->answers->id_fails || error_set(error, ERROR_FAILED, "no place");
}

static const char *fault(DeviceLink *link) { return ((Probe *)link->state)->faulty ? "a wire is loose" : NULL; }
static void abort_link(DeviceLink *link) { ((Probe *)link->state)->aborted = true; }
static void close_link(DeviceLink *link) { ((Probe *)link->state)->closed = true; }

static DeviceLink *open_link(Backend *b, DeviceLinkKind kind, const DeviceLinkId *id, int rank, int size, const char *name, Error *error) {
    Probe *p = b->state;
    assert_int_equal(kind, LINK_COLLECTIVE);
    assert_string_equal(id->bytes, "here");
    assert_string_equal(name, "world");
    if (p->answers->link_fails && rank == size - 1) return error_set(error, ERROR_FAILED, "no wire"), NULL;
    p->link = (DeviceLink){.state = p, .fault = fault, .abort = abort_link, .close = close_link};
    return &p->link;
}

static const DeviceLinks LINKS = {identify, new_id, open_link};

static void choose(int rank, Comm *world, void *argument) {
    Probe p = {.backend = {.name = "probe", .apart = true, .links = &LINKS}, .answers = argument, .rank = rank};
    Error error = {0};
    char why[64] = "";
    p.backend.state = &p;
    bool ok = comm_device_open(world, &p.backend, &error);
    if (p.answers->error) {
        assert_false(ok);
        if (!strstr(error.message, p.answers->error))
            fail_msg("'%s' does not say '%s'", error.message, p.answers->error);
        assert_int_equal(comm_device_route(world), ROUTE_HOST);
        return;
    }
    assert_true(ok);
    assert_string_equal(comm_device_why(world), p.answers->why ? p.answers->why : "");
    assert_int_equal(comm_device_route(world), p.answers->why ? ROUTE_STAGED : ROUTE_LINKED);
    assert_false(comm_device_fault(world, why, sizeof why));
    p.faulty = true;
    assert_int_equal(comm_device_fault(world, why, sizeof why), !p.answers->why);
    assert_string_equal(why, p.answers->why ? "" : "a wire is loose");
    comm_device_abort(world);
    comm_device_close(world);
    assert_int_equal(p.aborted, !p.answers->why);
    assert_int_equal(p.closed, !p.answers->why);
    assert_false(comm_device_fault(world, why, sizeof why));
}

#define RANK(n, ...)                                                                                                   \
    { .can_link = true, .version = 22809, .device = {1 + (n)}, __VA_ARGS__ }

static void ranks_are_linked_where_all_of_them_can_be(void **state) {
    (void)state;
    Answers good = {.identity = {RANK(0), RANK(1), RANK(2)}};
    ranks_run(3, choose, &good);
    Answers without = {.identity = {RANK(0), {.why_not = "no NCCL: not found"}, RANK(2)}, .why = "no NCCL: not found"};
    ranks_run(3, choose, &without);
    Answers shared = {.identity = {RANK(0), RANK(1), RANK(1)}, .why = "ranks 1 and 2 of the group share a GPU"};
    ranks_run(3, choose, &shared);
    Answers other = {.identity = {RANK(0), RANK(1), RANK(2)},
                     .why = "ranks 0 and 2 of the group have NCCL of different "
                            "versions (22809, 22100)"};
    other.identity[2].version = 22100;
    ranks_run(3, choose, &other);
}

static void what_does_not_go_together_is_an_error_on_every_rank(void **state) {
    (void)state;
    Answers wrong = {.identity = {RANK(0), RANK(1)}, .error = "NCCL was built for another CUDA"};
    wrong.identity[1].wrong = true;
    snprintf(wrong.identity[1].why_not, sizeof wrong.identity[1].why_not, "%s", wrong.error);
    ranks_run(2, choose, &wrong);
    Answers nowhere = {.identity = {RANK(0), RANK(1)}, .id_fails = true, .error = "o"}; // "no place", "could not"
    ranks_run(2, choose, &nowhere);
    Answers broken = {.identity = {RANK(0), RANK(1)}, .link_fails = true, .error = "o"};
    ranks_run(2, choose, &broken);
}

static void memory_of_the_host_needs_no_opening(void **state) {
    (void)state;
    Backend host = {.name = "host"};
    Error error = {0};
    Comm *alone = comm_self_new();
    assert_true(comm_device_open(alone, &host, &error)); // nothing to open
    assert_int_equal(comm_device_route(alone), ROUTE_HOST);
    comm_device_close(alone);
    comm_free(alone);
}

int main(void) {
    char *path = temporary_path(MODULE_FOLDER, "libcuda_module_apart.so");
    setenv("BIFOCAL_CUDA_MODULE", path, 1);
    free(path);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(staged_calls_have_the_hosts_bits),
        cmocka_unit_test(alone_calls_copy_on_the_device),
        cmocka_unit_test(ranks_are_linked_where_all_of_them_can_be),
        cmocka_unit_test(what_does_not_go_together_is_an_error_on_every_rank),
        cmocka_unit_test(memory_of_the_host_needs_no_opening),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
