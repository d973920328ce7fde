/* Links between GPUs (cuda_link.c) on ranks that are processes, each with the stand-in of CUDA's runtime, whose streams
 * run late and out of order, over a stand-in for NCCL: every call has the host's bits, one by one and in graphs.
 * Started by tests/support/tcprun.sh. */
#include "tests/simt/nccl_stand_in.h"
#include "tests/simt/runtime.h"
#include <cstdlib>
#include <cstring>
#include <setjmp.h>
#include <stdarg.h>
#include <string>
#include <unistd.h>
extern "C" {
#include "kernels/comm/watch.h"
#include "kernels/cuda/cuda_list.h"
#include "tests/kernels/device_calls.h"
#include "tests/support/test.h"
#include "tests/train/staged.h"
}

static Comm *world;

static void take_library(const char *name) {
    setenv("BIFOCAL_NCCL", (std::string(LIBRARY_FOLDER "/") + name).c_str(), 1);
}

static Backend *open_gpu() {
    Error error = {};
    CudaOptions options = {};
    Backend *b = cuda_backend_new(&options, nullptr, &error);
    if (!b) fail_msg("%s", error.message);
    return b;
}

static void link_ranks(Comm *group, Backend *b) {
    Error error = {};
    if (!comm_device_open(group, b, &error)) fail_msg("%s", error.message);
    assert_string_equal(comm_device_why(group), "");
    assert_int_equal(comm_device_route(group), ROUTE_LINKED);
}

static void linked_calls_have_the_hosts_bits_in_every_order_of_streams(void **) {
    take_library("libnccl_good.so");
    for (int order = 0; order < RUNTIME_ORDERS; order++) {
        Backend *b = open_gpu();
        runtime_set_order(static_cast<RuntimeOrder>(order), 11 + static_cast<uint64_t>(comm_rank(world)));
        link_ranks(world, b);
        if (order == RUNTIME_RANDOM) device_calls_check(b, world, 1);
        device_calls_check_many(b, world, 2);
        device_calls_check_sequences(b, world, 3);
        CudaListCounts counts = cuda_list_counts(cuda_state(b));
        assert_true(counts.eager > 0 && counts.captured > 0 && counts.launched > 0);
        comm_device_close(world);
        backend_free(b);
    }
}

static void groups_have_links_of_their_own(void **) {
    Backend *b = open_gpu();
    runtime_set_order(RUNTIME_LATE, 1);
    Comm *pair = comm_split(world, comm_rank(world) / 2, comm_rank(world), "pair");
    link_ranks(world, b);
    if (comm_size(pair) > 1) link_ranks(pair, b);
    for (uint64_t seed = 1; seed < 3; seed++) {
        device_calls_check_many(b, world, seed);
        if (comm_size(pair) > 1) device_calls_check_many(b, pair, seed);
    }
    comm_device_close(pair);
    comm_device_close(world);
    comm_free(pair);
    backend_free(b);
}

// Whole steps of small pipelines: what crosses a boundary goes from device to device, rows are graphs from the second
// step of their shape on, and the bits are those of one rank.
static void stages_exchange_by_device_and_keep_the_bits_of_one_rank(void **) {
    Staged how = {};
    take_library("libnccl_good.so");
    how.config = staged_config();
    how.config.vision.layers = how.config.text.layers = 1;
    how.rows = {.lm = 4, .caption = 4, .pairs = 4, .mae = 4};
    how.pieces = comm_size(world) == 4 ? 4 : 2;
    how.ordered = true;
    how.steps = 3;
    how.open = open_gpu;
    runtime_set_order(RUNTIME_LATE, 1);
    Comm *alone = comm_self_new();
    StagedOutcome *one = comm_rank(world) == 0 ? staged_join(&how, alone) : nullptr;
    how.kind = comm_size(world) == 2 ? PIPELINE_INTERLEAVED : comm_size(world) == 3 ? PIPELINE_ZB_V : PIPELINE_ZB_H1;
    how.chunks = comm_size(world) == 4 ? 1 : 2;
    how.data = comm_size(world) == 4 ? 2 : 1;
    how.stages = comm_size(world) / how.data;
    runtime_set_order(RUNTIME_RANDOM, 5 + static_cast<uint64_t>(comm_rank(world)));
    StagedOutcome *part = staged_join(&how, world);
    assert_staged_part(world, one, part);
    staged_free(part);
    staged_free(one);
    comm_free(alone);
}

static void sum(Backend *b, void *data) {
    backend_sequence_begin(b, "step");
    comm_wait(comm_device_start_all_reduce(b, world, data, 8, COMM_F32, COMM_SUM, COMM_ORDERED, "test"));
    backend_sequence_end(b);
}

static void what_a_device_waits_in_is_told_in_graphs_too(void **) {
    Backend *b = open_gpu();
    void *data = b->allocate(b, 256);
    b->zero(b, data, 256);
    link_ranks(world, b);
    for (int i = 0; i < 4; i++) {
        bool early = comm_rank(world) == 0;
        CommStatus status = {};
        if (early) sum(b, data);
        while (early && !(status = comm_status(world, nullptr)).device) runtime_go_on();
        if (early) {
            assert_string_equal(status.call, "all-reduce");
            assert_string_equal(status.what, "test");
            assert_string_equal(status.group, "world");
            assert_int_equal(status.number, i + 1);
            assert_int_equal(status.peer, -1);
        }
        comm_barrier(world, "the others come");
        if (!early) sum(b, data);
        b->wait(b);
        assert_null(comm_status(world, nullptr).call);
    }
    CudaListCounts counts = cuda_list_counts(cuda_state(b));
    assert_true(counts.captured > 0 && counts.launched > 0);
    comm_device_close(world);
    b->release(b, data, 256);
    backend_free(b);
}

// Rank 0 sends, and nobody receives: the watchdog ends both, and says what of whom waits for whom. Never returns.
static void hang() {
    Error error = {};
    Watch *watch;
    Log *log = log_new(LOG_INFO, stderr);
    take_library("libnccl_good.so");
    Backend *b = open_gpu();
    void *data = b->allocate(b, 256);
    if (!comm_device_open(world, b, &error) || !watch_open(&watch, world, log, &error)) {
        log_error(log, "%s", error.message);
        exit(1);
    }
    watch_limit(watch, 0.5);
    if (comm_rank(world) == 0) comm_wait(comm_device_start_send(b, world, data, 256, 1, 0, "microbatches"));
    b->wait(b);
    sleep(30);
}

static void what_nccl_finds_wrong_is_told(void **) {
    Backend *b = open_gpu();
    char why[256] = "";
    link_ranks(world, b);
    assert_false(comm_device_fault(world, why, sizeof why));
    stand_in_has_failed = true;
    assert_true(comm_device_fault(world, why, sizeof why));
    assert_non_null(strstr(why, "NCCL in group world failed on rank"));
    assert_non_null(strstr(why, "a remote process has ended"));
    comm_device_abort(world);
    assert_false(stand_in_has_failed);
    comm_device_close(world);
    backend_free(b);
}

static void expect_refusal(const char *library, const char *words) {
    Backend *b = open_gpu();
    Error error = {};
    take_library(library);
    assert_false(comm_device_open(world, b, &error));
    if (!strstr(error.message, words)) fail_msg("'%s' does not say '%s'", error.message, words);
    backend_free(b);
}

static void an_nccl_that_does_not_go_with_this_cuda_is_refused(void **) {
    expect_refusal("libnccl_other.so", "NCCL 2.28.9 was built for CUDA 11.8, this program for CUDA 13.0");
    expect_refusal("libnccl_old.so", "NCCL 2.10.3 is too old: 2.18 is the oldest that works");
}

static void without_nccl_calls_are_staged(void **) {
    static const char *const names[] = {"off", "there_is_no_such_library.so"}, *const words[] = {"=off", "no NCCL: "};
    for (int i = 0; i < 2; i++) {
        Backend *b = open_gpu();
        Error error = {};
        setenv("BIFOCAL_NCCL", names[i], 1);
        assert_true(comm_device_open(world, b, &error));
        assert_int_equal(comm_device_route(world), ROUTE_STAGED);
        assert_non_null(strstr(comm_device_why(world), words[i]));
        device_calls_check_many(b, world, 4);
        device_calls_check_sequences(b, world, 5);
        comm_device_close(world);
        backend_free(b);
    }
}

int main(int count, char **words) { // words: "hang", or a pattern of the tests that are wanted
    Error error = {};
    bool hangs = count > 1 && !strcmp(words[1], "hang");
    if (count > 1) cmocka_set_test_filter(words[1]);
    world = comm_world_new(nullptr, &error);
    if (!world || comm_size(world) == 1) {
        fprintf(stderr, "start several: tests/support/tcprun.sh N PROGRAM; %s\n", error.message);
        return 77;
    }
    if (hangs) hang();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(linked_calls_have_the_hosts_bits_in_every_order_of_streams),
        cmocka_unit_test(groups_have_links_of_their_own),
        cmocka_unit_test(stages_exchange_by_device_and_keep_the_bits_of_one_rank),
        cmocka_unit_test(what_a_device_waits_in_is_told_in_graphs_too),
        cmocka_unit_test(what_nccl_finds_wrong_is_told),
        cmocka_unit_test(an_nccl_that_does_not_go_with_this_cuda_is_refused),
        cmocka_unit_test(without_nccl_calls_are_staged),
    };
    int failed = cmocka_run_group_tests(tests, nullptr, nullptr);
    if (!failed) comm_free(world);
    return failed;
}
