/* The logsumexp of a stream of numbers in one pass: a running maximum and the sum of exponentials below it (Milakov and
 * Gimelshein 2018), and how two of them become one. */
#pragma once
#include "kernels/cuda/functions.h"

struct Exponentials {
    float most, sum; // of exp(x - most); of nothing: -Inf, 0
};

__device__ __forceinline__ Exponentials no_exponentials() { return Exponentials{-INFINITY, 0}; }

// Adds those of N numbers. NaN reaches the sum.
template <class T, int N> __device__ __forceinline__ void take_in(Exponentials *e, const Floats<N> &x) {
    float most = e->most;
#pragma unroll
    for (int i = 0; i < N; i++) most = x.at[i] > most ? x.at[i] : most;
    if (most > e->most) {
        e->sum *= exp_of<T>(e->most - most);
        e->most = most;
    }
    if (most == -INFINITY) { // nothing but -Inf so far, which adds nothing; unless it is NaN
#pragma unroll
        for (int i = 0; i < N; i++) e->sum += x.at[i] == -INFINITY ? 0.0f : x.at[i];
        return;
    }
#pragma unroll
    for (int i = 0; i < N; i++) e->sum += exp_of<T>(x.at[i] - most);
}

__device__ __forceinline__ Exponentials joined(Exponentials a, Exponentials b) {
    float most = b.most > a.most ? b.most : a.most;
    if (most == -INFINITY) return Exponentials{most, a.sum + b.sum};
    return Exponentials{most, a.sum * expf(a.most - most) + b.sum * expf(b.most - most)};
}

// Over a block of THREADS, all of which must be here and get the result. `memory`: shared, 2 THREADS / WARP numbers.
template <int THREADS> __device__ __forceinline__ Exponentials block_joined(Exponentials e, float *memory) {
#pragma unroll
    for (int apart = WARP / 2; apart > 0; apart /= 2) {
        Exponentials other = {__shfl_xor_sync(ALL_LANES, e.most, apart), __shfl_xor_sync(ALL_LANES, e.sum, apart)};
        // the lower lane's first in both, so that both get the same bits
        e = lane_of_thread() & apart ? joined(other, e) : joined(e, other);
    }
    if (lane_of_thread() == 0) {
        memory[2 * warp_of_thread()] = e.most;
        memory[2 * warp_of_thread() + 1] = e.sum;
    }
    __syncthreads();
    e = Exponentials{memory[0], memory[1]};
    for (int w = 1; w < THREADS / WARP; w++) e = joined(e, Exponentials{memory[2 * w], memory[2 * w + 1]});
    __syncthreads();
    return e;
}
