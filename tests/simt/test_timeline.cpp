/* One timeline of the host and of what ran on the stand-in's streams: lists that are written down, captured and started
 * as graphs show piece by piece, by a device's clock of its own, where the host waited for them. */
#include "tests/simt/runtime.h"
#include "tests/simt/support.h"
#include <unistd.h>
extern "C" {
#include "base/clock.h"
#include "kernels/cuda.h"
#include "kernels/cuda/host/activity.h"
#include "train/device_trace.h"
}
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

static constexpr uint64_t DEVICE_ZERO = 1700000000000000000u; // nanoseconds of the device's clock at the host's `zero`
static constexpr int STEPS = 4, CALLS = 5;

static struct Tool { // stands in for CUPTI
    Activities *activities;
    double zero;
    int pieces;
} tool;

static uint64_t device_time(double host) { return DEVICE_ZERO + static_cast<uint64_t>((host - tool.zero) * 1e9); }

static void ran(void *context, int stream, double begin, double end) {
    Activity a = {};
    (void)context;
    a.kind = ACTIVITY_KERNEL, a.name = "_Z4workv", a.stream = static_cast<uint32_t>(40 + stream);
    a.begin = device_time(begin), a.end = device_time(end);
    activities_add(tool.activities, &a);
    tool.pieces++;
}

static bool watch_begin(Backend *b) {
    (void)b;
    tool = {activities_new(), clock_seconds(), 0};
    runtime_watch(ran, nullptr);
    return true;
}

static void watch_end(Backend *b, void *context, void (*slice)(void *context, const DeviceSlice *)) {
    b->wait(b);
    runtime_watch(nullptr, nullptr);
    double now = clock_seconds();
    activities_tell(tool.activities, ClockPair{DEVICE_ZERO, tool.zero}, ClockPair{device_time(now), now}, context,
                    slice);
    activities_free(tool.activities);
}

static std::string text_of(const char *path) {
    std::string text;
    FILE *in = fopen(path, "r");
    assert_non_null(in);
    for (int c; (c = fgetc(in)) != EOF;) text += static_cast<char>(c);
    fclose(in);
    return text;
}

static int count_of(const std::string &text, const char *part) {
    int count = 0;
    for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) count++;
    return count;
}

static void steps(Backend *b, Trace *trace, float *x) {
    for (int step = 1; step <= STEPS; step++) {
        double begin = clock_seconds();
        float host[256] = {};
        backend_sequence_begin(b, "step");
        b->upload(b, x, host, sizeof host);
        for (int i = 0; i < CALLS; i++) b->scale(b, x, x, 0.5, 256, F32, false);
        b->download(b, host, x, sizeof host);
        backend_sequence_end(b);
        std::string name = "step " + std::to_string(step);
        trace_slice(trace, "compute", name.c_str(), begin, clock_seconds());
    }
}

static void what_ran_in_streams_is_on_one_timeline_with_the_host(void **) {
    char folder[] = "/tmp/timeline-XXXXXX";
    assert_non_null(mkdtemp(folder));
    std::string path = std::string(folder) + "/trace.json", said = std::string(folder) + "/log";
    Error error = {};
    FILE *out = fopen(said.c_str(), "w");
    Log *log = log_new(LOG_INFO, out);
    CudaOptions options = {};
    Backend *b = cuda_backend_new(&options, nullptr, &error);
    assert_non_null(b);
    float *x = static_cast<float *>(b->allocate(b, 1024));
    b->watch_begin = watch_begin, b->watch_end = watch_end;
    Trace *trace = trace_new(0);
    DeviceTrace *d = device_trace_begin(b, trace);
    steps(b, trace, x);
    device_trace_end(d, log);
    assert_true(tool.pieces >= STEPS * (CALLS + 1)); // graphs too show piece by piece
    assert_true(trace_write(trace, path.c_str(), &error));
    log_free(log);
    fclose(out);
    std::string drawn = text_of(path.c_str()), log_text = text_of(said.c_str());
    assert_int_equal(count_of(drawn, "\"name\": \"work\""), tool.pieces);
    assert_int_equal(count_of(drawn, "device busy, percent"), STEPS);
    assert_true(count_of(drawn, "device stream 0") >= 1);
    assert_true(count_of(log_text, "of 4 steps") == 1 && count_of(log_text, "the host was at 'step") >= 1);
    trace_free(trace);
    b->release(b, x, 1024);
    backend_free(b);
    unlink(path.c_str());
    unlink(said.c_str());
    rmdir(folder);
}

int main() {
    const struct CMUnitTest tests[] = {cmocka_unit_test(what_ran_in_streams_is_on_one_timeline_with_the_host)};
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
