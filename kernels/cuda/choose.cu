/* The next word of each row of logits. A block looks at a row, whose numbers go round its threads; each keeps the first
 * of its largest, and they agree on the first of all. */
#include "kernels/cuda/language.h"

enum { CHOOSE_THREADS = 1024, LOADS = 4 }; // of a thread under way

struct Best {
    float value;
    int32_t at; // -1: nothing yet
    int32_t nan;
};

static __device__ __forceinline__ void take(Best *b, float value, int32_t at) {
    if (value != value) b->nan = 1;
    if (b->at < 0 || value > b->value || (value == b->value && at < b->at)) b->value = value, b->at = at;
}

static __device__ __forceinline__ Best warp_best(Best b) {
#pragma unroll
    for (int apart = WARP / 2; apart > 0; apart /= 2) {
        Best other = {__shfl_xor_sync(ALL_LANES, b.value, apart), __shfl_xor_sync(ALL_LANES, b.at, apart),
                      __shfl_xor_sync(ALL_LANES, b.nan, apart)};
        if (other.at >= 0) take(&b, other.value, other.at);
        b.nan |= other.nan;
    }
    return b;
}

template <class T>
static __global__ void __launch_bounds__(CHOOSE_THREADS) argmax_kernel(int32_t *ids, const T *x, int64_t width) {
    SHARED(float, values, CHOOSE_THREADS / WARP);
    SHARED(int32_t, places, CHOOSE_THREADS / WARP);
    SHARED(int32_t, nans, CHOOSE_THREADS / WARP);
    const T *row = x + static_cast<int64_t>(blockIdx.x) * width;
    Best best = {-INFINITY, -1, 0};
    for (int64_t first = threadIdx.x; first < width; first += LOADS * CHOOSE_THREADS) {
        float value[LOADS];
#pragma unroll
        for (int k = 0; k < LOADS; k++)
            if (first + k * CHOOSE_THREADS < width) value[k] = to_float(row[first + k * CHOOSE_THREADS]);
#pragma unroll
        for (int k = 0; k < LOADS; k++)
            if (first + k * CHOOSE_THREADS < width)
                take(&best, value[k], static_cast<int32_t>(first + k * CHOOSE_THREADS));
    }
    best = warp_best(best);
    if (lane_of_thread() == 0) {
        values[warp_of_thread()] = best.value;
        places[warp_of_thread()] = best.at;
        nans[warp_of_thread()] = best.nan;
    }
    __syncthreads();
    if (warp_of_thread() > 0) return;
    best = warp_best(Best{values[lane_of_thread()], places[lane_of_thread()], nans[lane_of_thread()]});
    bool finite = best.value > -INFINITY && best.value < INFINITY;
    if (lane_of_thread() == 0) ids[blockIdx.x] = best.nan || !finite ? -1 : best.at;
}

void cuda_argmax_rows(const CudaQueue *q, int32_t *ids, const void *x, int64_t rows, int64_t width, Dtype t) {
    if (rows <= 0) return;
    with_type(t, [&](auto zero) {
        typedef decltype(zero) T;
        launch<argmax_kernel<T>>(dim3(static_cast<unsigned>(rows)), dim3(CHOOSE_THREADS), 0, q, ids,
                                 static_cast<const T *>(x), width);
    });
}
