/* The stand-in of CUDA's runtime itself: work runs late, orders are what events say, captures follow CUDA's rules; and
 * planted mistakes of the host's side show in one of the orders. */
#include "tests/simt/runtime.h"
#include <cuda_runtime_api.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <cstring>
extern "C" {
#include <cmocka.h>
}

static constexpr size_t BYTES = 512;

static void must(cudaError_t status) { assert_int_equal(status, cudaSuccess); }

struct Rig { // two streams, an event, pinned and device memory
    cudaStream_t first = nullptr, second = nullptr;
    cudaEvent_t event = nullptr;
    unsigned char *from = nullptr, *to = nullptr, *device = nullptr, *other = nullptr;
    Rig() {
        must(cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking));
        must(cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking));
        must(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
        must(cudaHostAlloc(reinterpret_cast<void **>(&from), BYTES, cudaHostAllocDefault));
        must(cudaHostAlloc(reinterpret_cast<void **>(&to), BYTES, cudaHostAllocDefault));
        must(cudaMalloc(reinterpret_cast<void **>(&device), BYTES));
        must(cudaMalloc(reinterpret_cast<void **>(&other), BYTES));
        memset(from, 7, BYTES);
    }
    ~Rig() {
        cudaStreamDestroy(first), cudaStreamDestroy(second), cudaEventDestroy(event);
        cudaFreeHost(from), cudaFreeHost(to), cudaFree(device), cudaFree(other);
    }
    void send(cudaStream_t s) const { must(cudaMemcpyAsync(device, from, BYTES, cudaMemcpyHostToDevice, s)); }
    void receive(cudaStream_t s) const { must(cudaMemcpyAsync(to, device, BYTES, cudaMemcpyDeviceToHost, s)); }
    bool arrived() const { return to[0] == 7 && !memcmp(to, from, BYTES); }
};

// In how many of the orders (several seeds of the random one) `body` ends with what was sent.
static int right_orders(bool (*body)(const Rig &), int *orders) {
    int right = 0;
    *orders = 0;
    for (int order = 0; order < RUNTIME_ORDERS; order++) {
        for (uint64_t seed = 1; seed <= (order == RUNTIME_RANDOM ? 8 : 1); seed++, ++*orders) {
            runtime_set_order(static_cast<RuntimeOrder>(order), seed * 7919);
            Rig rig;
            right += body(rig);
        }
    }
    runtime_set_order(RUNTIME_LATE, 1);
    return right;
}
static void assert_right_in_all(bool (*body)(const Rig &)) {
    int orders, right = right_orders(body, &orders);
    assert_int_equal(right, orders);
}
static void assert_wrong_in_one(bool (*body)(const Rig &)) {
    int orders, right = right_orders(body, &orders);
    assert_true(right < orders);
}

static void work_waits_until_somebody_waits(void **) {
    Rig r;
    r.send(r.first), r.receive(r.first);
    assert_int_equal(runtime_waiting(), 2);
    assert_int_equal(r.to[0], 0xff);
    must(cudaStreamSynchronize(r.first));
    assert_true(r.arrived());
    assert_int_equal(runtime_waiting(), 0);
}

// ---- mistakes, and the same without them ----

static bool reuse(const Rig &r, bool wait) {
    unsigned char want[BYTES];
    memcpy(want, r.from, BYTES);
    r.send(r.first);
    must(cudaEventRecord(r.event, r.first));
    if (wait) must(cudaEventSynchronize(r.event));
    memset(r.from, 9, BYTES);
    r.receive(r.first);
    must(cudaStreamSynchronize(r.first));
    return !memcmp(r.to, want, BYTES);
}
static void host_memory_used_again_before_its_copy_ran_shows(void **) {
    assert_wrong_in_one([](const Rig &r) { return reuse(r, false); });
    assert_right_in_all([](const Rig &r) { return reuse(r, true); });
}

static bool across_streams(const Rig &r, bool event) {
    r.send(r.first);
    must(cudaEventRecord(r.event, r.first));
    if (event) must(cudaStreamWaitEvent(r.second, r.event, 0));
    r.receive(r.second);
    must(cudaStreamSynchronize(r.second));
    return r.arrived();
}
static void a_missing_event_between_streams_shows(void **) {
    assert_wrong_in_one([](const Rig &r) { return across_streams(r, false); });
    assert_right_in_all([](const Rig &r) { return across_streams(r, true); });
}

// What is overwritten while another stream still reads it.
static bool overwritten(const Rig &r, bool event) {
    r.send(r.first);
    must(cudaStreamSynchronize(r.first));
    r.receive(r.first);
    must(cudaEventRecord(r.event, r.first));
    if (event) must(cudaStreamWaitEvent(r.second, r.event, 0));
    must(cudaMemsetAsync(r.device, 1, BYTES, r.second));
    must(cudaStreamSynchronize(r.second));
    must(cudaStreamSynchronize(r.first));
    return r.arrived();
}
static void memory_overwritten_while_another_stream_reads_it_shows(void **) {
    assert_wrong_in_one([](const Rig &r) { return overwritten(r, false); });
    assert_right_in_all([](const Rig &r) { return overwritten(r, true); });
}

static bool read_back(const Rig &r, bool wait) {
    r.send(r.first), r.receive(r.first);
    must(cudaEventRecord(r.event, r.first));
    if (wait) must(cudaEventSynchronize(r.event));
    bool arrived = r.arrived();
    must(cudaStreamSynchronize(r.first));
    return arrived;
}
static void a_read_before_the_wait_shows(void **) {
    assert_wrong_in_one([](const Rig &r) { return read_back(r, false); });
    assert_right_in_all([](const Rig &r) { return read_back(r, true); });
}

static void memory_that_is_gone_or_not_pinned_is_found(void **) {
    Rig r;
    const char *text = runtime_faults(
        [](void *context) {
            const Rig *rig = static_cast<Rig *>(context);
            void *pinned;
            must(cudaHostAlloc(&pinned, BYTES, cudaHostAllocDefault));
            must(cudaMemcpyAsync(rig->device, pinned, BYTES, cudaMemcpyHostToDevice, rig->first));
            must(cudaFreeHost(pinned));
        },
        &r);
    assert_non_null(strstr(text, "not pinned memory (any more)"));
    text = runtime_faults(
        [](void *context) {
            const Rig *rig = static_cast<Rig *>(context);
            static char ordinary[BYTES];
            must(cudaMemcpyAsync(rig->device, ordinary, BYTES, cudaMemcpyHostToDevice, rig->first));
        },
        &r);
    assert_non_null(strstr(text, "not pinned memory"));
    text = runtime_faults(
        [](void *context) {
            const Rig *rig = static_cast<Rig *>(context);
            must(cudaMemsetAsync(rig->device, 0, BYTES + 1, rig->first));
        },
        &r);
    assert_non_null(strstr(text, "not device memory"));
}

// ---- captures ----

// first: zeroes `device`; second, behind it: copies it to `to`; `joined`: first comes behind second again.
static cudaError_t capture(const Rig &r, bool fork, bool joined, cudaGraph_t *graph) {
    must(cudaStreamBeginCapture(r.first, cudaStreamCaptureModeThreadLocal));
    must(cudaMemsetAsync(r.device, 0, BYTES, r.first));
    must(cudaEventRecord(r.event, r.first));
    if (fork) must(cudaStreamWaitEvent(r.second, r.event, 0));
    r.receive(fork ? r.second : r.first);
    must(cudaEventRecord(r.event, fork ? r.second : r.first));
    if (joined && fork) must(cudaStreamWaitEvent(r.first, r.event, 0));
    return cudaStreamEndCapture(r.first, graph);
}

static bool captured_runs(const Rig &r, bool fork) {
    cudaGraph_t graph;
    cudaGraphExec_t ready;
    must(capture(r, fork, true, &graph));
    must(cudaGraphInstantiate(&ready, graph, 0));
    must(cudaGraphDestroy(graph));
    bool right = runtime_waiting() == 0;
    for (int i = 0; i < 2; i++) {
        r.to[5] = 9;
        must(cudaGraphLaunch(ready, r.first));
        if (i == 1) must(cudaGraphExecDestroy(ready)); // what was launched goes on
        must(cudaStreamSynchronize(r.first));
        right = right && r.to[0] == 0 && r.to[5] == 0;
    }
    return right;
}
static void a_captured_graph_runs_when_it_is_launched_and_in_its_order(void **) {
    assert_right_in_all([](const Rig &r) { return captured_runs(r, false); });
    assert_right_in_all([](const Rig &r) { return captured_runs(r, true); });
}

static void a_stream_that_is_not_joined_ends_the_capture_in_an_error(void **) {
    Rig r;
    cudaGraph_t graph;
    assert_int_equal(capture(r, true, false, &graph), cudaErrorStreamCaptureUnjoined);
    assert_null(graph);
    must(cudaStreamSynchronize(r.second)); // it is an ordinary stream again
    assert_int_equal(cudaGetLastError(), cudaErrorStreamCaptureUnjoined);
}

static void assert_forbidden(const Rig &r, cudaError_t (*call)(const Rig &), cudaError_t error) {
    cudaGraph_t graph;
    must(cudaStreamBeginCapture(r.first, cudaStreamCaptureModeThreadLocal));
    assert_int_equal(call(r), error);
    assert_int_equal(cudaStreamEndCapture(r.first, &graph), cudaErrorStreamCaptureInvalidated);
    assert_null(graph);
    (void)cudaGetLastError();
}
static void what_cuda_forbids_while_capturing_is_an_error(void **) {
    Rig r;
    must(cudaEventRecord(r.event, r.second));
    assert_forbidden(
        r, [](const Rig &x) { return cudaStreamSynchronize(x.first); }, cudaErrorStreamCaptureUnsupported);
    assert_forbidden(
        r, [](const Rig &x) { return cudaStreamWaitEvent(x.first, x.event, 0); }, cudaErrorStreamCaptureIsolation);
    assert_forbidden(
        r,
        [](const Rig &) {
            void *memory;
            return cudaMalloc(&memory, 1);
        },
        cudaErrorStreamCaptureUnsupported);
    assert_forbidden(
        r,
        [](const Rig &x) {
            must(cudaEventRecord(x.event, x.first));
            return cudaEventSynchronize(x.event);
        },
        cudaErrorCapturedEvent);
}

int main() {
    const CMUnitTest tests[] = {
        cmocka_unit_test(work_waits_until_somebody_waits),
        cmocka_unit_test(host_memory_used_again_before_its_copy_ran_shows),
        cmocka_unit_test(a_missing_event_between_streams_shows),
        cmocka_unit_test(memory_overwritten_while_another_stream_reads_it_shows),
        cmocka_unit_test(a_read_before_the_wait_shows),
        cmocka_unit_test(memory_that_is_gone_or_not_pinned_is_found),
        cmocka_unit_test(a_captured_graph_runs_when_it_is_launched_and_in_its_order),
        cmocka_unit_test(a_stream_that_is_not_joined_ends_the_capture_in_an_error),
        cmocka_unit_test(what_cuda_forbids_while_capturing_is_an_error),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
