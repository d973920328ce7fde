/* Optimizer states on the host, over the stand-in of CUDA's runtime in every order it knows: streamed through a window
 * they come out to the bit as where they lie on the device. */
#include "tests/simt/runtime.h"
#include <cstring>
#include <functional>
#include <setjmp.h>
#include <stdarg.h>
#include <vector>
extern "C" {
#include "base/philox.h"
#include "kernels/cuda/cuda_list.h"
#include <cmocka.h>
}

static constexpr int PARTS = 5, STEPS = 4;
static constexpr int64_t COUNT[PARTS] = {700, 64, 1, 1500, 333}; // elements of the parts; the last three have shadows
static bool has_shadow(int part) { return part >= 2; }
static constexpr size_t WINDOW = 6 * 512 * sizeof(float); // halves of 512 elements: parts are cut, and share them

static std::vector<float> drawn(uint64_t seed, int64_t n) {
    std::vector<float> x(static_cast<size_t>(n));
    Rng rng = rng_for(seed, PURPOSE_TEST, 0);
    for (float &v : x) v = static_cast<float>(rng_normal(&rng));
    return x;
}
static size_t bytes_of(int part) { return static_cast<size_t>(COUNT[part]) * sizeof(float); }

struct Run { // of an optimizer whose states are on the host, or not
    Backend *b;
    bool host;
    AdamWPart parts[PARTS];
    void *window;
    Gate *gate;

    float *states(int part, bool apart) const {
        return static_cast<float *>(apart ? backend_allocate_host(b, bytes_of(part)) : b->allocate(b, bytes_of(part)));
    }
    explicit Run(bool on_host) : host(on_host) {
        CudaOptions options = {};
        Error error = {};
        b = cuda_backend_new(&options, nullptr, &error);
        if (!b) fail_msg("%s", error.message);
        window = b->allocate(b, WINDOW);
        gate = static_cast<Gate *>(b->allocate(b, sizeof *gate));
        Gate open = {1, 0.7f, 0};
        b->upload(b, gate, &open, sizeof open);
        for (int i = 0; i < PARTS; i++) {
            std::vector<float> x = drawn(static_cast<uint64_t>(i), COUNT[i]);
            AdamWPart &p = parts[i];
            p = AdamWPart{states(i, host && has_shadow(i)),
                          states(i, host),
                          states(i, host),
                          nullptr,
                          nullptr,
                          COUNT[i],
                          i % 2 == 0};
            if (has_shadow(i)) p.shadow = static_cast<uint16_t *>(b->allocate(b, bytes_of(i) / 2));
            p.gradient = states(i, false);
            b->upload(b, p.parameter, x.data(), bytes_of(i));
            if (!host) b->zero(b, p.m, bytes_of(i)), b->zero(b, p.v, bytes_of(i));
        }
    }
    ~Run() {
        for (int i = 0; i < PARTS && host; i++) {
            backend_release_host(b, parts[i].m, bytes_of(i));
            backend_release_host(b, parts[i].v, bytes_of(i));
            if (has_shadow(i)) backend_release_host(b, parts[i].parameter, bytes_of(i));
        }
        backend_free(b);
    }
    void step(int number, bool in_sequence) {
        AdamW rule = {1e-2, 0.9, 0.99, 1e-8, 0.1, 1, 1.0 / (number + 1), 1.0 / (number + 2)};
        if (in_sequence) backend_sequence_begin(b, "step");
        for (int i = 0; i < PARTS; i++) {
            std::vector<float> g = drawn(static_cast<uint64_t>(100 * number + i), COUNT[i]);
            b->upload(b, const_cast<float *>(parts[i].gradient), g.data(), bytes_of(i));
        }
        if (host)
            b->adamw_streamed(b, parts, PARTS, &rule, gate, window, WINDOW);
        else
            b->adamw_parts(b, parts, PARTS, &rule, gate);
        if (in_sequence) backend_sequence_end(b);
    }
    std::vector<char> all() {
        std::vector<char> out;
        for (const AdamWPart &p : parts) {
            size_t bytes = static_cast<size_t>(p.n) * sizeof(float);
            for (const float *x : {p.parameter, p.m, p.v}) {
                out.resize(out.size() + bytes);
                b->download(b, out.data() + out.size() - bytes, x, bytes);
            }
            if (!p.shadow) continue;
            out.resize(out.size() + bytes / 2);
            b->download(b, out.data() + out.size() - bytes / 2, p.shadow, bytes / 2);
        }
        return out;
    }
};

static std::vector<char> after_steps(bool host, bool in_sequence) {
    Run run(host);
    for (int i = 0; i < STEPS; i++) run.step(i, in_sequence);
    return run.all();
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

static void states_on_the_host_are_updated_to_the_same_bits(void **) {
    std::vector<char> want = after_steps(false, false);
    for (bool in_sequence : {false, true}) {
        in_all_orders([&] {
            std::vector<char> got = after_steps(true, in_sequence);
            assert_int_equal(got.size(), want.size());
            assert_memory_equal(got.data(), want.data(), want.size());
        });
    }
}

static void a_gate_that_failed_leaves_them_as_they_were(void **) {
    in_all_orders([] {
        Run run(true);
        run.step(0, true);
        std::vector<char> before = run.all();
        Gate failed = {1, 1, 1};
        run.b->upload(run.b, run.gate, &failed, sizeof failed);
        run.step(1, true);
        std::vector<char> after = run.all();
        assert_memory_equal(after.data(), before.data(), before.size());
    });
}

static void host_memory_starts_with_zeros(void **) {
    Run run(true);
    std::vector<float> m(static_cast<size_t>(COUNT[0]), 1);
    run.b->download(run.b, m.data(), run.parts[0].m, bytes_of(0));
    for (float x : m) assert_true(x == 0);
}

int main() {
    const CMUnitTest tests[] = {
        cmocka_unit_test(states_on_the_host_are_updated_to_the_same_bits),
        cmocka_unit_test(a_gate_that_failed_leaves_them_as_they_were),
        cmocka_unit_test(host_memory_starts_with_zeros),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
