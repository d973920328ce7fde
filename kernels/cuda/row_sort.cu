/* A least-significant-digit radix sort, 8 bits a pass (Satish et al. 2009): blocks count the digits of their tiles, one
 * block turns the counts into places, blocks move their items there. Within a tile each warp takes items in order and
 * ranks equal digits by a match over its lanes, so that the sort is stable and the same always. */
#include "kernels/cuda/row_sort.h"
#include "kernels/cuda/host/work_space.h"
#include "kernels/cuda/language.h"

enum {
    DIGIT_BITS = 8,
    DIGITS = 1 << DIGIT_BITS,
    THREADS = DIGITS,
    WARPS = THREADS / WARP,
    ROUNDS = 8,
    TILE = THREADS * ROUNDS
};
enum { SCAN_THREADS = 1024 };
static constexpr int NO_DIGIT = DIGITS; // of a lane beyond the last item

struct Items {
    const int32_t *keys, *places; // places NULL: the first pass, where keys are the row numbers as they came
    int64_t m;
    int32_t count;
    int shift;
};

static __device__ __forceinline__ int32_t key_of(const Items &items, int64_t i) {
    int32_t key = items.keys[i];
    if (items.places) return key;
    if (key >= items.count) __trap();
    return key < 0 ? items.count : key;
}
static __device__ __forceinline__ int digit_of(int32_t key, int shift) { return key >> shift & (DIGITS - 1); }
// The item that a lane of a warp takes in a round.
static __device__ __forceinline__ int64_t item_of(int round) {
    return static_cast<int64_t>(blockIdx.x) * TILE + (warp_of_thread() * ROUNDS + round) * WARP + lane_of_thread();
}

// counts[warp][digit] of the block's tile; shared, (WARPS, DIGITS)
static __device__ __forceinline__ void count_tile(int *counts, const Items &items) {
    for (int w = 0; w < WARPS; w++) counts[w * DIGITS + static_cast<int>(threadIdx.x)] = 0;
    __syncthreads();
    for (int round = 0; round < ROUNDS; round++) {
        int64_t i = item_of(round);
        if (i < items.m) atomicAdd(&counts[warp_of_thread() * DIGITS + digit_of(key_of(items, i), items.shift)], 1);
    }
    __syncthreads();
}

// histogram: (DIGITS, tiles)
static __global__ void __launch_bounds__(THREADS) histogram_kernel(int32_t *histogram, Items items) {
    SHARED(int, counts, WARPS *DIGITS);
    count_tile(counts, items);
    const int digit = static_cast<int>(threadIdx.x);
    int sum = 0;
    for (int w = 0; w < WARPS; w++) sum += counts[w * DIGITS + digit];
    histogram[static_cast<int64_t>(digit) * gridDim.x + blockIdx.x] = sum;
}

// Each number becomes the sum of those before it. One block.
static __global__ void __launch_bounds__(SCAN_THREADS) scan_kernel(int32_t *x, int64_t n) {
    SHARED(int, sums, SCAN_THREADS / WARP);
    const int thread = static_cast<int>(threadIdx.x), lane = lane_of_thread(), warp = warp_of_thread();
    int before = 0; // all that came in earlier rounds
    for (int64_t first = 0; first < n; first += SCAN_THREADS) {
        int64_t i = first + thread;
        int own = i < n ? x[i] : 0, sum = own;
        for (int apart = 1; apart < WARP; apart *= 2) {
            int other = __shfl_up_sync(ALL_LANES, sum, static_cast<unsigned>(apart));
            if (lane >= apart) sum += other;
        }
        if (lane == WARP - 1) sums[warp] = sum;
        __syncthreads();
        int of_warps = 0, all = 0;
        for (int w = 0; w < SCAN_THREADS / WARP; w++) {
            if (w < warp) of_warps += sums[w];
            all += sums[w];
        }
        if (i < n) x[i] = before + of_warps + sum - own;
        before += all;
        __syncthreads();
    }
}

// histogram: as scan_kernel left it
static __global__ void __launch_bounds__(THREADS)
    move_kernel(int32_t *keys, int32_t *places, const int32_t *histogram, Items items) {
    SHARED(int, next, WARPS *DIGITS); // where the next item of a warp with a digit goes
    count_tile(next, items);
    const int digit_here = static_cast<int>(threadIdx.x), warp = warp_of_thread(), lane = lane_of_thread();
    int at = histogram[static_cast<int64_t>(digit_here) * gridDim.x + blockIdx.x];
    for (int w = 0; w < WARPS; w++) {
        int count = next[w * DIGITS + digit_here];
        next[w * DIGITS + digit_here] = at;
        at += count;
    }
    __syncthreads();
    for (int round = 0; round < ROUNDS; round++) {
        int64_t i = item_of(round);
        int32_t key = i < items.m ? key_of(items, i) : 0;
        int digit = i < items.m ? digit_of(key, items.shift) : NO_DIGIT;
        unsigned same = __match_any_sync(ALL_LANES, digit);
        int rank = __popc(same & ((1u << lane) - 1)), to = 0;
        if (digit != NO_DIGIT) to = next[warp * DIGITS + digit] + rank;
        __syncwarp();
        if (digit != NO_DIGIT) {
            keys[to] = key;
            places[to] = items.places ? items.places[i] : static_cast<int32_t>(i);
            if (rank == 0) next[warp * DIGITS + digit] = to + __popc(same);
        }
        __syncwarp();
    }
}

static int64_t tiles_of(int64_t m) { return divide_up<int64_t>(m, TILE); }
static int64_t row_of_items(int64_t m) { return divide_up<int64_t>(m, 4) * 4; }

static_assert(int{TILE} == int{WORK_SORT_TILE} && int{DIGITS} == int{WORK_SORT_DIGITS}, "what work_sort counts with");
size_t row_sort_bytes(int64_t m) { return work_sort(m); }

SortedRows row_sort(const CudaQueue *q, void *scratch, const int32_t *rows, int64_t m, int64_t count) {
    const int64_t tiles = tiles_of(m), step = row_of_items(m);
    int32_t *memory = static_cast<int32_t *>(scratch), *histogram = memory + 4 * step;
    Items items = {rows, nullptr, m, static_cast<int32_t>(count), 0};
    for (int pass = 0; pass == 0 || (count >> items.shift) > 0; pass++, items.shift += DIGIT_BITS) {
        int32_t *keys = memory + pass % 2 * 2 * step, *places = keys + step;
        dim3 grid(static_cast<unsigned>(tiles));
        launch<histogram_kernel>(grid, dim3(THREADS), 0, q, histogram, items);
        launch<scan_kernel>(dim3(1), dim3(SCAN_THREADS), 0, q, histogram, DIGITS * tiles);
        launch<move_kernel>(grid, dim3(THREADS), 0, q, keys, places, static_cast<const int32_t *>(histogram), items);
        items.keys = keys, items.places = places;
    }
    return SortedRows{items.keys, items.places};
}
