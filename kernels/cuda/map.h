/* Elementwise kernels from formulas: y[i] (+)= f(a[i], b[i]), in f32 whatever the types of the memory. A thread takes
 * 16 bytes of the widest array at a time; loads of a round come before its stores, so y may be a or b. With repeats, y
 * and a have `repeats` times the elements of b. Where an array does not lie at a multiple of 16 bytes: one element at a
 * time. */
#pragma once
#include "kernels/cuda/language.h"

enum { MAP_THREADS = 256, MAP_ROUNDS = 2, MAP_MANY_BLOCKS = 132 }; // rounds: of a thread, where there are many blocks

// A formula: INPUTS (0, 1 or 2), and operator()(a, b) const.

template <class F, bool ADD, int N, int ROUNDS, class Y, class A, class B>
static __global__ void __launch_bounds__(MAP_THREADS)
    map_kernel(F f, Y *y, const A *a, const B *b, int64_t n, int64_t repeats) {
    const int64_t first =
        static_cast<int64_t>(blockIdx.x) * (MAP_THREADS * N * ROUNDS) + static_cast<int>(threadIdx.x) * N;
    const int64_t whole = n - n % N, rest = whole + static_cast<int>(threadIdx.x);
    for (int64_t repeat = blockIdx.y; repeat < repeats; repeat += gridDim.y) {
        Y *to = y + repeat * n;
        const A *from = F::INPUTS > 0 ? a + repeat * n : a;
        Pack<A, N> pa[ROUNDS];
        Pack<B, N> pb[ROUNDS];
        Pack<Y, N> old[ROUNDS];
#pragma unroll
        for (int k = 0; k < ROUNDS; k++) {
            int64_t i = first + k * (MAP_THREADS * N);
            if (i >= whole) continue;
            if (F::INPUTS > 0) pa[k] = load_pack<N>(from + i);
            if (F::INPUTS > 1) pb[k] = load_pack<N>(b + i);
            if (ADD) old[k] = load_pack<N>(to + i);
        }
#pragma unroll
        for (int k = 0; k < ROUNDS; k++) {
            int64_t i = first + k * (MAP_THREADS * N);
            if (i >= whole) continue;
            Floats<N> out;
#pragma unroll
            for (int c = 0; c < N; c++) {
                float value = f(F::INPUTS > 0 ? to_float(pa[k].at[c]) : 0, F::INPUTS > 1 ? to_float(pb[k].at[c]) : 0);
                out.at[c] = ADD ? to_float(old[k].at[c]) + value : value;
            }
            store<N>(to + i, out);
        }
        if (N > 1 && blockIdx.x == gridDim.x - 1 && rest < n) {
            float value = f(F::INPUTS > 0 ? to_float(from[rest]) : 0, F::INPUTS > 1 ? to_float(b[rest]) : 0);
            from_float(to + rest, ADD ? to_float(to[rest]) + value : value);
        }
    }
}

template <bool ADD, int N, int ROUNDS, class F, class Y, class A, class B>
static void launch_map(const CudaQueue *q, F f, Y *y, const A *a, const B *b, int64_t n, int64_t repeats) {
    dim3 grid(static_cast<unsigned>(divide_up<int64_t>(n, MAP_THREADS * N * ROUNDS)),
              static_cast<unsigned>(smaller<int64_t>(repeats, 65535)));
    launch<map_kernel<F, ADD, N, ROUNDS, Y, A, B>>(grid, dim3(MAP_THREADS), 0, q, f, y, a, b, n, repeats);
}

// b: (n), a and y: (repeats, n). Arrays that the formula does not read may be NULL.
template <class F, class Y, class A, class B>
static void run_map(const CudaQueue *q, F f, Y *y, const A *a, const B *b, int64_t n, int64_t repeats, bool add) {
    constexpr int N = 16 / static_cast<int>(larger(sizeof(Y), larger(sizeof(A), sizeof(B))));
    if (n <= 0 || repeats <= 0) return;
    bool packs = packs_at(y, N) && packs_at(a, N) && packs_at(b, N) && (repeats == 1 || n % N == 0);
    bool many = repeats * divide_up<int64_t>(n, MAP_THREADS * N * MAP_ROUNDS) >= MAP_MANY_BLOCKS;
    with_bool(add, [&](auto adds) {
        constexpr bool ADD = decltype(adds)::value;
        if (packs && many)
            launch_map<ADD, N, MAP_ROUNDS>(q, f, y, a, b, n, repeats);
        else if (packs)
            launch_map<ADD, N, 1>(q, f, y, a, b, n, repeats);
        else
            launch_map<ADD, 1, 1>(q, f, y, a, b, n, repeats);
    });
}
