/* The CUDA backend's sequences over the stand-in of CUDA's runtime, in every order it knows: a list of work gives the
 * same bits started at once, command by command and as a graph, whatever the host sends along or reads behind it. */
#include "tests/simt/runtime.h"
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cuda_runtime_api.h>
#include <algorithm>
#include <functional>
#include <map>
#include <setjmp.h>
#include <stdarg.h>
#include <string>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>
extern "C" {
#include "base/philox.h"
#include "kernels/cuda/cuda_list.h"
#include <cmocka.h>
}

static constexpr int64_t N = 3001; // elements
typedef std::vector<float> Numbers;

struct Gpu {
    Log *log;
    Backend *b;
    explicit Gpu(bool synchronous = false, FILE *stream = nullptr) {
        CudaOptions options = {0, synchronous};
        Error error = {};
        log = stream ? log_new(LOG_INFO, stream) : nullptr;
        b = cuda_backend_new(&options, log, &error);
        if (!b) fail_msg("%s", error.message);
    }
    ~Gpu() { backend_free(b), log_free(log); }
    CudaState *state() const { return cuda_state(b); }
    CudaListCounts counts() const { return cuda_list_counts(state()); }
    template <class T = float> T *memory(int64_t n = N) const {
        return static_cast<T *>(b->allocate(b, static_cast<size_t>(n) * sizeof(T)));
    }
    Numbers read(const float *x, int64_t n = N) const {
        Numbers out(static_cast<size_t>(n));
        b->download(b, out.data(), x, out.size() * sizeof(float));
        return out;
    }
};

static Numbers drawn(uint64_t seed, int64_t n = N) {
    Numbers x(static_cast<size_t>(n));
    Rng rng = rng_for(seed, PURPOSE_TEST, 0);
    for (float &v : x) v = static_cast<float>(rng_normal(&rng));
    return x;
}

struct Step { // what a step works on; sizes may be smaller than N
    float *x, *y, *sum;
    explicit Step(const Gpu &g) : x(g.memory()), y(g.memory()), sum(g.memory(1)) {}
    // Differs from step to step in what the host gives: the numbers and the factor.
    void run(const Gpu &g, int number, int64_t n = N) const {
        Backend *b = g.b;
        Numbers given = drawn(static_cast<uint64_t>(number), n);
        size_t bytes = given.size() * sizeof(float);
        b->upload(b, x, given.data(), bytes);
        std::fill(given.begin(), given.end(), -1.0f); // the caller's memory is its own again
        b->scale(b, y, x, 1.5, n, F32, false);
        b->gelu_forward(b, x, y, n, 0, F32);
        b->sum_into(b, sum, x, n, 1.0 / (number + 1), F32);
        b->fill(b, y, sum, number, n, F32, true);
        b->copy(b, x, y, bytes / 2);
        b->zero(b, y, sizeof(float));
    }
};

// What `number` gives when everything starts at once.
static const Numbers &at_once(int number, int64_t n = N) {
    static std::map<std::pair<int, int64_t>, Numbers> known;
    Numbers &out = known[{number, n}];
    if (!out.empty()) return out;
    Gpu g;
    Step step(g);
    step.run(g, number, n);
    Numbers x = g.read(step.x, n);
    out = g.read(step.y, n);
    out.insert(out.end(), x.begin(), x.end());
    return out;
}
static void assert_same(const Numbers &got, const Numbers &want) {
    assert_int_equal(got.size(), want.size());
    assert_memory_equal(got.data(), want.data(), got.size() * sizeof(float));
}
static void assert_gives(const Gpu &g, const Step &step, int number, int64_t n = N) {
    Numbers out = g.read(step.y, n), x = g.read(step.x, n);
    out.insert(out.end(), x.begin(), x.end());
    assert_same(out, at_once(number, n));
}

static void in_all_orders(const std::function<void()> &body) {
    for (int order = 0; order < RUNTIME_ORDERS; order++) {
        for (uint64_t seed = 1; seed <= (order == RUNTIME_RANDOM ? 3 : 1); seed++) {
            runtime_set_order(static_cast<RuntimeOrder>(order), seed * 104729);
            body();
        }
    }
    runtime_set_order(RUNTIME_LATE, 1);
}

static void sequence(const Gpu &g, const std::function<void()> &body) {
    backend_sequence_begin(g.b, "step");
    body();
    backend_sequence_end(g.b);
}
static void assert_counts(const Gpu &g, int64_t eager, int64_t captured, int64_t launched) {
    CudaListCounts c = g.counts();
    assert_int_equal(c.eager, eager);
    assert_int_equal(c.captured, captured);
    assert_int_equal(c.launched, launched);
}

static void a_list_that_comes_again_becomes_a_graph_and_what_differs_reaches_it(void **) {
    in_all_orders([] {
        Gpu g;
        Step step(g);
        for (int number = 0; number < 5; number++) {
            sequence(g, [&] { step.run(g, number); });
            if (number % 2) continue; // the host runs ahead
            assert_gives(g, step, number);
        }
        assert_counts(g, 1, 1, 3);
    });
}

static void nothing_of_a_sequence_starts_before_its_end_or_a_wait(void **) {
    Gpu g;
    Step step(g);
    backend_sequence_begin(g.b, "step");
    runtime_finish();
    step.run(g, 1);
    assert_int_equal(runtime_waiting(), 0);
    g.b->wait(g.b);
    assert_counts(g, 1, 0, 0);
    backend_sequence_end(g.b);
    assert_counts(g, 1, 0, 0); // nothing was left
    assert_gives(g, step, 1);
}

static void shapes_that_take_turns_each_get_their_graph(void **) {
    in_all_orders([] {
        Gpu g;
        Step step(g);
        for (int number = 0; number < 8; number++) {
            int64_t n = number % 2 ? N : N / 3;
            sequence(g, [&] { step.run(g, number, n); });
            assert_gives(g, step, number, n);
        }
        assert_counts(g, 2, 2, 4);
    });
}

static void a_download_within_a_sequence_cuts_the_list_and_sees_what_came_before(void **) {
    in_all_orders([] {
        Gpu g;
        Step step(g);
        for (int number = 0; number < 4; number++) {
            sequence(g, [&] {
                step.run(g, number);
                assert_gives(g, step, number);
                step.run(g, number + 100);
            });
            assert_gives(g, step, number + 100);
        }
        assert_counts(g, 1, 1, 6); // both halves are the same list
    });
}

static void uploads_of_many_megabytes_arrive_in_lists_that_grow(void **) {
    in_all_orders([] {
        Gpu g;
        int64_t sizes[] = {1000, 1500000, 700000, 1500000, 1500000};
        float *small = g.memory(7), *large = g.memory(1500000);
        for (int i = 0; i < 5; i++) {
            Numbers first = drawn(7, 7), given = drawn(static_cast<uint64_t>(i), sizes[i]);
            sequence(g, [&] {
                g.b->upload(g.b, small, first.data(), 7 * sizeof(float));
                g.b->upload(g.b, large, given.data(), given.size() * sizeof(float));
            });
            assert_same(g.read(small, 7), first);
            assert_same(g.read(large, sizes[i]), given);
        }
    });
}

// ---- reads ----

static void reads_of_a_step_arrive_while_later_ones_run(void **) {
    in_all_orders([] {
        Gpu g;
        Step step(g);
        BackendRead *sums[6], *all[6];
        float sum;
        Numbers y(N), want;
        for (int number = 0; number < 6; number++) {
            sequence(g, [&] {
                step.run(g, number);
                sums[number] = backend_read_start(g.b, step.sum, sizeof sum);
                all[number] = backend_read_start(g.b, step.y, N * sizeof(float));
                g.b->zero(g.b, step.y, N * sizeof(float)); // behind the read
            });
            if (number == 0) continue;
            backend_read_finish(g.b, sums[number - 1], &sum);
            backend_read_finish(g.b, all[number - 1], number == 3 ? nullptr : y.data()); // nobody wants that one
            want = at_once(number - 1);
            want.resize(N);
            if (number != 3) assert_same(y, want);
            assert_true(sum == sum);
        }
        backend_read_finish(g.b, all[5], y.data());
        backend_read_finish(g.b, sums[5], nullptr);
        want = at_once(5);
        want.resize(N);
        assert_same(y, want);
        assert_counts(g, 1, 1, 4);
    });
}

static void the_host_may_run_many_steps_ahead(void **) {
    in_all_orders([] {
        enum { STEPS = 7 };
        Gpu g;
        Step step(g);
        BackendRead *reads[STEPS];
        for (int number = 0; number < STEPS; number++)
            sequence(g, [&] {
                step.run(g, number);
                backend_read_finish(g.b, backend_read_start(g.b, step.x, N * sizeof(float)), nullptr);
                reads[number] = backend_read_start(g.b, step.y, N * sizeof(float));
            });
        for (int number = 0; number < STEPS; number++) {
            Numbers y(N), want = at_once(number);
            want.resize(N);
            backend_read_finish(g.b, reads[number], y.data());
            assert_same(y, want);
        }
    });
}

static void a_read_that_is_wanted_within_its_sequence_starts_the_list(void **) {
    in_all_orders([] {
        Gpu g;
        Step step(g);
        Numbers y(N), want = at_once(3);
        want.resize(N);
        backend_sequence_begin(g.b, "step");
        step.run(g, 3);
        BackendRead *read = backend_read_start(g.b, step.y, N * sizeof(float));
        backend_read_finish(g.b, read, y.data());
        backend_sequence_end(g.b);
        assert_same(y, want);
        sequence(g, [&] { backend_read_finish(g.b, backend_read_start(g.b, step.x, N * sizeof(float)), nullptr); });
        step.run(g, 4);
        read = backend_read_start(g.b, step.y, N * sizeof(float)); // outside of sequences
        g.b->zero(g.b, step.y, N * sizeof(float));
        backend_read_finish(g.b, read, y.data());
        want = at_once(4);
        want.resize(N);
        assert_same(y, want);
    });
}

// ---- lanes ----

struct Put { // dst[i] = src[i] by a copy, `bytes` of them
    CudaState *state;
    void *to;
    const void *from;
    size_t bytes;
};
static void start_put(const void *arguments, CudaStream stream) {
    const Put *p = static_cast<const Put *>(arguments);
    cuda_must(p->state, cudaMemcpyAsync(p->to, p->from, p->bytes, cudaMemcpyDeviceToDevice, stream), "put");
}

// x -> y in the first lane, y -> z in the second, then z -> w in the first.
static void across_lanes(const Gpu &g, float *const at[4]) {
    CudaState *s = g.state();
    size_t bytes = N * sizeof(float);
    auto put = [&](int lane, int to) {
        Put p = {s, at[to], at[to - 1], bytes};
        cuda_list_call_on(s, lane, start_put, &p, sizeof p);
    };
    put(0, 1);
    cuda_list_wait(s, 1, cuda_list_mark(s, 0));
    put(1, 2);
    cuda_list_wait(s, 0, cuda_list_mark(s, 1));
    put(0, 3);
}

static void lanes_run_beside_one_another_but_for_their_marks(void **) {
    in_all_orders([] {
        Gpu g;
        float *at[4] = {g.memory(), g.memory(), g.memory(), g.memory()};
        for (int number = 0; number < 5; number++) {
            Numbers given = drawn(static_cast<uint64_t>(number));
            for (int i = 1; i < 4; i++) g.b->zero(g.b, at[i], N * sizeof(float));
            auto body = [&] {
                g.b->upload(g.b, at[0], given.data(), N * sizeof(float));
                across_lanes(g, at);
            };
            if (number == 2)
                body(); // at once
            else
                sequence(g, body);
            assert_same(g.read(at[3]), given);
        }
        assert_counts(g, 1, 1, 2);
    });
}

static void a_lane_without_marks_begins_behind_the_list_before_and_ends_ahead_of_the_next(void **) {
    in_all_orders([] {
        Gpu g;
        CudaState *s = g.state();
        float *x = g.memory(), *y = g.memory();
        for (int number = 0; number < 4; number++) {
            Numbers given = drawn(static_cast<uint64_t>(number));
            sequence(g, [&] { g.b->upload(g.b, x, given.data(), N * sizeof(float)); });
            sequence(g, [&] {
                Put p = {s, y, x, N * sizeof(float)};
                cuda_list_call_on(s, 3, start_put, &p, sizeof p);
            });
            sequence(g, [&] { g.b->zero(g.b, x, N * sizeof(float)); });
            assert_same(g.read(y), given);
        }
        assert_counts(g, 3, 3, 6);
    });
}

static void marks_stay_good_when_their_list_has_ended_or_many_came_behind(void **) {
    in_all_orders([] {
        Gpu g;
        CudaState *s = g.state();
        float *x = g.memory(), *y = g.memory();
        Numbers given = drawn(1);
        g.b->upload(g.b, x, given.data(), N * sizeof(float));
        LaneMark sent = cuda_list_mark(s, 0), behind;
        for (int i = 0; i < 100; i++) (void)cuda_list_mark(s, 0);
        cuda_list_wait(s, 1, sent);
        Put p = {s, y, x, N * sizeof(float)};
        cuda_list_call_on(s, 1, start_put, &p, sizeof p);
        sequence(g, [&] { // begins behind the other lane
            g.b->zero(g.b, x, N * sizeof(float));
            behind = cuda_list_mark(s, 0);
        });
        Numbers got = g.read(y);
        assert_same(got, given);
        cuda_list_wait(s, 2, behind);
        Put back = {s, y, x, N * sizeof(float)};
        cuda_list_call_on(s, 2, start_put, &back, sizeof back);
        cuda_list_wait(s, 0, cuda_list_mark(s, 2));
        assert_same(g.read(y), Numbers(N, 0.0f));
    });
}

// ---- what goes wrong ----

static std::string text_of(FILE *f) {
    std::string text;
    rewind(f);
    for (int c; (c = fgetc(f)) != EOF;) text += static_cast<char>(c);
    return text;
}

static void a_list_without_a_graph_is_started_command_by_command_for_good(void **) {
    FILE *out = tmpfile();
    assert_non_null(out);
    {
        Gpu g(false, out);
        Step step(g);
        runtime_fail(RUNTIME_INSTANTIATE, 1);
        for (int number = 0; number < 4; number++) {
            sequence(g, [&] { step.run(g, number); });
            assert_gives(g, step, number);
        }
        assert_counts(g, 4, 0, 0);
        assert_null(g.b->fault(g.b));
    }
    std::string text = text_of(out);
    size_t line = text.find("sequence step: no CUDA graph of 8 commands");
    assert_true(line != std::string::npos && text.find("no CUDA graph", line + 20) == std::string::npos);
    assert_true(text.find("4 lists of work started command by command, 0 captured, 0 as a graph") != std::string::npos);
    (void)fclose(out);
}

// What a capture forbids: the list goes on without a graph.
static void start_wait(const void *arguments, CudaStream stream) {
    cuda_must(*static_cast<CudaState *const *>(arguments), cudaStreamSynchronize(stream), "a wait");
}
static void a_call_that_waits_keeps_its_list_from_becoming_a_graph(void **) {
    Gpu g;
    Step step(g);
    CudaState *s = g.state();
    for (int number = 0; number < 4; number++) {
        sequence(g, [&] {
            step.run(g, number);
            cuda_list_call(s, start_wait, &s, sizeof s);
        });
        assert_gives(g, step, number);
    }
    assert_counts(g, 4, 0, 0);
    assert_null(g.b->fault(g.b));
}

static void released_memory_takes_the_graphs_along(void **) {
    in_all_orders([] {
        Gpu g;
        Step step(g);
        float *other = g.memory();
        for (int number = 0; number < 6; number++) {
            sequence(g, [&] {
                step.run(g, number);
                if (number != 3) return;
                g.b->copy(g.b, other, step.y, N * sizeof(float)); // still to come
                g.b->release(g.b, other, N * sizeof(float));
            });
            assert_gives(g, step, number);
        }
        assert_counts(g, 2, 2, 2);
    });
}

static void with_a_wait_behind_every_kernel_there_are_no_sequences(void **) {
    Gpu g(true);
    Step step(g);
    for (int number = 0; number < 3; number++) {
        sequence(g, [&] { step.run(g, number); });
        assert_gives(g, step, number);
    }
    assert_counts(g, 0, 0, 0);
}

static void a_graph_that_does_not_start_names_the_sequence_and_the_last_operator(void **) {
    FILE *out = tmpfile();
    assert_non_null(out);
    pid_t child = fork();
    if (child == 0) {
        Gpu g(false, out);
        Step step(g);
        for (int number = 0; number < 3; number++) {
            if (number == 2) runtime_fail(RUNTIME_GRAPH_LAUNCH, 1);
            sequence(g, [&] { step.run(g, number); });
            g.b->wait(g.b);
            (void)fflush(out);
        }
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    assert_true(text_of(out).find("the graph of sequence step, whose last operator is zero") != std::string::npos);
    (void)fclose(out);
}

int main() {
    const CMUnitTest tests[] = {
        cmocka_unit_test(a_list_that_comes_again_becomes_a_graph_and_what_differs_reaches_it),
        cmocka_unit_test(nothing_of_a_sequence_starts_before_its_end_or_a_wait),
        cmocka_unit_test(shapes_that_take_turns_each_get_their_graph),
        cmocka_unit_test(a_download_within_a_sequence_cuts_the_list_and_sees_what_came_before),
        cmocka_unit_test(uploads_of_many_megabytes_arrive_in_lists_that_grow),
        cmocka_unit_test(reads_of_a_step_arrive_while_later_ones_run),
        cmocka_unit_test(the_host_may_run_many_steps_ahead),
        cmocka_unit_test(a_read_that_is_wanted_within_its_sequence_starts_the_list),
        cmocka_unit_test(lanes_run_beside_one_another_but_for_their_marks),
        cmocka_unit_test(a_lane_without_marks_begins_behind_the_list_before_and_ends_ahead_of_the_next),
        cmocka_unit_test(marks_stay_good_when_their_list_has_ended_or_many_came_behind),
        cmocka_unit_test(a_list_without_a_graph_is_started_command_by_command_for_good),
        cmocka_unit_test(a_call_that_waits_keeps_its_list_from_becoming_a_graph),
        cmocka_unit_test(released_memory_takes_the_graphs_along),
        cmocka_unit_test(with_a_wait_behind_every_kernel_there_are_no_sequences),
        cmocka_unit_test(a_graph_that_does_not_start_names_the_sequence_and_the_last_operator),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
