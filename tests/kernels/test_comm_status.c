/* Communication: what the watchdog, the trace and the metrics learn of the calls under way. */
#include "base/clock.h"
#include "base/trace.h"
#include "kernels/comm/comm.h"
#include "tests/support/ranks.h"
#include "tests/support/test.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void be_late(int rank, Comm *world, void *argument) {
    (void)argument;
    Comm *group = comm_split(world, 0, -rank, "data");
    int64_t one = 1, two = 2;
    comm_all_reduce(group, &one, 1, COMM_I64, COMM_SUM, COMM_FAST, "first");
    comm_barrier(world, "test");
    assert_null(comm_status(world, NULL).call);
    double before = clock_seconds(), waited = comm_waited(world);
    int64_t sent = comm_sent_bytes(world);
    CommRequest *request = NULL;
    if (rank != 1) {
        request = comm_start_all_reduce(group, &two, 1, COMM_I64, COMM_SUM, COMM_FAST, "second");
        CommStatus status;
        Buffer members = {0};
        while (!(status = comm_status(world, &members)).call) usleep(100);
        assert_string_equal(status.call, "all-reduce");
        assert_string_equal(status.what, "second");
        assert_string_equal(status.group, "data");
        assert_int_equal(status.number, 2);
        assert_int_equal(members.size, (size_t)comm_size(world) * sizeof(int32_t));
        for (int32_t r = 0; r < comm_size(world); r++)
            assert_memory_equal(members.data + r * (int)sizeof r, &(int32_t){comm_world_rank(group, r)}, sizeof r);
        buffer_free(&members);
        assert_true(status.since >= before && status.since <= clock_seconds());
    }
    comm_barrier(world, "the late one goes on");
    if (rank == 1) request = comm_start_all_reduce(group, &two, 1, COMM_I64, COMM_SUM, COMM_FAST, "second");
    comm_wait(request);
    assert_int_equal(two, 2 * comm_size(world));
    assert_true(comm_waited(world) > waited);
    assert_true(comm_sent_bytes(world) > sent);
    assert_null(comm_status(world, NULL).call);
    comm_free(group);
}

static void status_names_the_call_that_waits(void **state) {
    (void)state;
    for (int ranks = 2; ranks <= 4; ranks++) ranks_run(ranks, be_late, NULL);
}

typedef struct Asking {
    Comm *world;
    _Atomic bool stop;
} Asking;

static void *ask(void *context) {
    Asking *a = context;
    Buffer members = {0};
    while (!a->stop) {
        CommStatus status = comm_status(a->world, &members);
        if (status.call && !strcmp(status.group, "short"))
            assert_int_equal(members.size, (size_t)comm_size(a->world) * sizeof(int32_t));
    }
    buffer_free(&members);
    return NULL;
}

static void come_and_go(int rank, Comm *world, void *argument) {
    (void)argument;
    Asking asking = {.world = world};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, ask, &asking), 0);
    for (int i = 0; i < 50; i++) {
        Comm *group = comm_split(world, 0, rank, "short");
        comm_barrier(group, "test");
        comm_free(group);
    }
    asking.stop = true;
    pthread_join(thread, NULL);
}

static void status_is_told_while_groups_come_and_go(void **state) {
    (void)state;
    ranks_run(2, come_and_go, NULL);
}

static void trace_calls(int rank, Comm *world, void *argument) {
    const char *folder = argument;
    char name[32], *path, text[4096] = "";
    Error error = {0};
    Trace *trace = trace_new(rank);
    snprintf(name, sizeof name, "%d.json", rank);
    path = temporary_path(folder, name);
    comm_set_trace(world, trace);
    int64_t one = 1;
    comm_all_reduce(world, &one, 1, COMM_I64, COMM_SUM, COMM_FAST, "gradients");
    comm_set_trace(world, NULL);
    assert_done(trace_write(trace, path, &error), &error);
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    assert_true(fread(text, 1, sizeof text - 1, file) > 0);
    fclose(file);
    assert_int_equal(strstr(text, "all-reduce gradients (world)") != NULL, comm_size(world) > 1);
    trace_free(trace);
    free(path);
}

static void every_call_is_a_slice_of_the_trace(void **state) {
    (void)state;
    char *folder = temporary_new();
    for (int ranks = 1; ranks <= 3; ranks++) ranks_run(ranks, trace_calls, folder);
    temporary_free(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(status_names_the_call_that_waits),
        cmocka_unit_test(status_is_told_while_groups_come_and_go),
        cmocka_unit_test(every_call_is_a_slice_of_the_trace),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
