/* Kernels of fp8 against the formats in kernels/fp8.h, and the backend's products in fp8 against the CPU's. */
#include "tests/simt/support.h"
#include <cmath>
extern "C" {
#include "kernels/cuda.h"
#include "tests/simt/cublaslt.h"
}

struct State { // of one tensor
    Array memory, most;
    explicit State(double scale, double before = 0) : memory(F32, sizeof(Fp8Scaling) / 4), most(F32, 1) {
        Fp8Scaling s = {};
        s.scale = static_cast<float>(scale), s.inverse = 1 / s.scale;
        *memory.as<Fp8Scaling>() = s;
        most.put(0, before);
    }
    Fp8Side side(Fp8Kind kind, bool measure) const {
        return {memory.as<Fp8Scaling>(), measure ? most.f32() : nullptr, kind};
    }
};

static void quantised(const Case &c) {
    if (c.t != BF16) return;
    const int64_t shapes[][2] = {{1, 1}, {3, 5}, {64, 64}, {65, 130}, {16, 4096}, {200, 72}};
    for (const auto &shape : shapes) {
        const int64_t rows = shape[0], columns = shape[1], n = rows * columns;
        const Fp8Kind kind = c.add ? FP8_E5M2 : FP8_E4M3;
        Array x = Array(BF16, n, c.shift).normal(c.rng, 5), codes(U8, n, c.shift), turned(U8, n, c.shift);
        State state(16, 0.25);
        double most = 0.25;
        cuda_fp8_quantise(QUEUE, codes.as<uint8_t>(), x.as<uint16_t>(), rows, columns, false, state.side(kind, true));
        cuda_fp8_quantise(QUEUE, turned.as<uint8_t>(), x.as<uint16_t>(), rows, columns, true, state.side(kind, false));
        for (int64_t i = 0; i < n; i++) {
            const double want = fp8_encode(static_cast<float>(x.at(i) * 16), kind);
            most = std::fmax(most, std::fabs(x.at(i)));
            assert_true(codes.at(i) == want);
            assert_true(turned.at(i % columns * rows + i / columns) == want);
        }
        assert_true(state.most.at(0) == most);
        x.put(n / 2, NAN);
        cuda_fp8_quantise(QUEUE, turned.as<uint8_t>(), x.as<uint16_t>(), rows, columns, true, state.side(kind, true));
        assert_true(std::isnan(state.most.at(0)));
    }
}
static void matrices_are_rounded_as_they_lie_and_transposed(void **) { for_cases("quantise", quantised); }

static void scales_follow_on_the_device(void **) {
    const int64_t floats = sizeof(Fp8Scaling) / 4;
    Array memory(F32, FP8_SIDES * floats), most(F32, FP8_SIDES);
    Fp8Scaling want[FP8_SIDES] = {};
    for (int i = 0; i < FP8_SIDES; i++) want[i].scale = want[i].inverse = 1, memory.as<Fp8Scaling>()[i] = want[i];
    Rng rng = rng_for(1, PURPOSE_TEST, 0);
    for (int step = 0; step < 40; step++) {
        float sizes[FP8_SIDES];
        for (int i = 0; i < FP8_SIDES; i++) most.put(i, std::exp(5 * rng_normal(&rng))), sizes[i] = most.f32()[i];
        cuda_fp8_advance(QUEUE, memory.as<Fp8Scaling>(), most.f32(), step % 2);
        cpu()->fp8_advance(cpu(), want, sizes, step % 2);
        for (int64_t i = 0; i < FP8_SIDES * floats; i++)
            assert_true(memory.at(i) == reinterpret_cast<float *>(want)[i]);
        for (int i = 0; i < FP8_SIDES; i++) assert_true(most.at(i) == 0);
    }
}

// C = A B of each of the three products of a linear map.
static void products_in_fp8_agree(void **) {
    Error error = {};
    CudaOptions options = {};
    Backend *gpu = cuda_backend_new(&options, nullptr, &error);
    assert_non_null(gpu);
    Rng rng = rng_for(2, PURPOSE_TEST, 0);
    stand_in.mistakes = 0;
    for (int kind = 0; kind < 6; kind++) {
        const int64_t m = 32, n = 48, k = 16;
        const bool turn_a = kind % 3 == 2, turn_b = kind % 3 != 0, add = kind >= 3;
        Array a = Array(BF16, m * k).normal(&rng), b = Array(BF16, k * n).normal(&rng, 0.1);
        Array c = Array(add ? F32 : BF16, m * n).normal(&rng), want(c);
        State left(64), right(1024), left_too(64), right_too(1024);
        const Fp8Kind of_a = kind % 3 ? FP8_E5M2 : FP8_E4M3;
        Matmul p = {};
        p.m = m, p.n = n, p.k = k, p.batch = 1, p.a = a, p.b = b, p.c = c, p.c_row = n, p.in = BF16;
        p.out = c.dtype(), p.add = add;
        p.a_row = turn_a ? 1 : k, p.a_column = turn_a ? m : 1, p.b_row = turn_b ? n : 1, p.b_column = turn_b ? 1 : k;
        gpu->matmul_fp8(gpu, &p, left.side(of_a, true), right.side(FP8_E4M3, true));
        gpu->wait(gpu);
        p.c = want;
        cpu()->matmul_fp8(cpu(), &p, left_too.side(of_a, true), right_too.side(FP8_E4M3, true));
        expect_near(c, want, add ? 1e-5 : 1.0 / 128, 1e-5, "product in fp8");
        expect_bits(left.most, left_too.most, "largest of A");
        expect_bits(right.most, right_too.most, "largest of B");
    }
    if (stand_in.mistakes) fail_msg("%s", stand_in.mistake);
    backend_free(gpu);
}

int main() {
    const CMUnitTest tests[] = {
        cmocka_unit_test(matrices_are_rounded_as_they_lie_and_transposed),
        cmocka_unit_test(scales_follow_on_the_device),
        cmocka_unit_test(products_in_fp8_agree),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
