#include "tests/simt/planted.h"
#include "kernels/cuda/mma.h"

enum { THREADS = 256 };

static __global__ void reverse_kernel(float *out, const float *x, bool without_barrier) {
    SHARED(float, turned, THREADS);
    int i = static_cast<int>(threadIdx.x), first = static_cast<int>(blockIdx.x) * THREADS;
    turned[i] = x[first + i];
    if (!without_barrier) __syncthreads();
    out[first + i] = turned[THREADS - 1 - i];
}
void planted_reverse(float *out, const float *x, int n, bool without_barrier) {
    launch<reverse_kernel>(dim3(static_cast<unsigned>(n / THREADS)), dim3(THREADS), 0, nullptr, out, x,
                           without_barrier);
}

static __global__ void block_race_kernel(int *out, bool atomic) {
    if (threadIdx.x != 7) return;
    if (atomic)
        atomicAdd(out, 1);
    else
        out[0] += 1;
}
void planted_block_race(int *out, int blocks, bool atomic) {
    launch<block_race_kernel>(dim3(static_cast<unsigned>(blocks)), dim3(THREADS), 0, nullptr, out, atomic);
}

static __global__ void copy_kernel(float *out, const float *x, int n, int excess) {
    int i = static_cast<int>(blockIdx.x) * THREADS + static_cast<int>(threadIdx.x);
    if (i >= n + excess) return;
    float value = x[i];
    if (i < n)
        out[i] = value;
    else if (value == 42)
        out[0] = value;
}
void planted_copy(float *out, const float *x, int n, int excess) {
    launch<copy_kernel>(dim3(static_cast<unsigned>(n / THREADS + 1)), dim3(THREADS), 0, nullptr, out, x, n, excess);
}

static __global__ void write_kernel(float *out, int n) {
    int i = static_cast<int>(blockIdx.x) * THREADS + static_cast<int>(threadIdx.x);
    if (i < n) out[i] = 1;
}
void planted_write(float *out, int n, int excess) {
    launch<write_kernel>(dim3(static_cast<unsigned>(n / THREADS + 1)), dim3(THREADS), 0, nullptr, out, n + excess);
}

static __global__ void shared_kernel(float *out, int index) {
    SHARED(float, small, 64);
    float *p = small;
    if (threadIdx.x == 0) {
        p[index] = 3;
        out[0] = p[index];
    }
}
void planted_shared(float *out, int index) { launch<shared_kernel>(dim3(1), dim3(THREADS), 0, nullptr, out, index); }

static __global__ void unwritten_kernel(float *out) {
    SHARED_DYNAMIC(float, numbers);
    out[threadIdx.x] = numbers[threadIdx.x];
}
void planted_unwritten(float *out) {
    launch<unwritten_kernel>(dim3(1), dim3(THREADS), THREADS * sizeof(float), nullptr, out);
}

static __global__ void divergent_kernel(float *out, bool early_exit) {
    if (threadIdx.x >= THREADS / 2) {
        if (early_exit) return;
    } else {
        __syncthreads();
    }
    out[threadIdx.x] = 1;
}
void planted_divergent(float *out, bool early_exit) {
    launch<divergent_kernel>(dim3(1), dim3(THREADS), 0, nullptr, out, early_exit);
}

static __global__ void two_barriers_kernel(float *out) {
    if (threadIdx.x % 2) {
        __syncthreads();
        out[threadIdx.x] = 1;
    } else {
        __syncthreads();
        out[threadIdx.x] = 2;
    }
}
void planted_two_barriers(float *out) { launch<two_barriers_kernel>(dim3(1), dim3(THREADS), 0, nullptr, out); }

static __global__ void shuffle_kernel(float *out, unsigned mask, int lanes) {
    if (lane_of_thread() >= lanes) return;
    out[threadIdx.x] = __shfl_down_sync(mask, static_cast<float>(threadIdx.x), 1);
}
void planted_shuffle(float *out, unsigned mask, int lanes) {
    launch<shuffle_kernel>(dim3(1), dim3(THREADS), 0, nullptr, out, mask, lanes);
}

static __global__ void warp_kernel(float *out, bool without_barrier) {
    SHARED(float, passed, THREADS);
    passed[threadIdx.x] = static_cast<float>(threadIdx.x);
    if (!without_barrier) __syncwarp();
    out[threadIdx.x] = passed[threadIdx.x ^ 1];
}
void planted_warp(float *out, bool without_barrier) {
    launch<warp_kernel>(dim3(1), dim3(THREADS), 0, nullptr, out, without_barrier);
}

static __global__ void misaligned_kernel(float *out, const float *x) {
    if (threadIdx.x == 0) store<4>(out, load<4>(x));
}
void planted_misaligned(float *out, const float *x) {
    launch<misaligned_kernel>(dim3(1), dim3(THREADS), 0, nullptr, out, x);
}

static __global__ void trap_kernel(float *out) {
    if (threadIdx.x == 33) __trap();
    out[threadIdx.x] = 0;
}
void planted_trap(float *out) { launch<trap_kernel>(dim3(2), dim3(THREADS), 0, nullptr, out); }

static __global__ void votes_kernel(unsigned *out) {
    int lane = lane_of_thread();
    out[lane] = __ballot_sync(ALL_LANES, lane % 2);
    out[WARP + lane] = static_cast<unsigned>(__any_sync(ALL_LANES, lane == 31));
    out[2 * WARP + lane] = static_cast<unsigned>(__all_sync(ALL_LANES, lane != 31));
    out[3 * WARP + lane] = __match_any_sync(ALL_LANES, lane / 4);
}
void planted_votes(unsigned *out) { launch<votes_kernel>(dim3(1), dim3(WARP), 0, nullptr, out); }

static __global__ void reuse_kernel(float *out, const float *x, int rounds, bool without_barrier) {
    SHARED(float, sums, THREADS / WARP);
    float total = 0;
    for (int round = 0; round < rounds; round++) {
        float sum = warp_sum(x[round * THREADS + static_cast<int>(threadIdx.x)]);
        if (lane_of_thread() == 0) sums[warp_of_thread()] = sum;
        __syncthreads();
        for (int w = 0; w < THREADS / WARP; w++) total += sums[w];
        if (!without_barrier) __syncthreads();
    }
    if (threadIdx.x == 0) out[0] = total;
}
void planted_reuse(float *out, const float *x, int rounds, bool without_barrier) {
    launch<reuse_kernel>(dim3(1), dim3(THREADS), 0, nullptr, out, x, rounds, without_barrier);
}

// All fragments of a product of 16 x 16 by 16 x 16, by their definition in the manual of PTX.
static __global__ void matrices_kernel(float *out, const Bf16 *x, const Bf16 *y, bool transposed,
                                       PlantedMatrices fault) {
    typedef Pack<Bf16, 8> Eight; // 16 bytes, aligned to as many
    SHARED(Eight, left_memory, 32 + 1);
    SHARED(Eight, right_memory, 32);
    Bf16 *left = left_memory->at, *right = right_memory->at;
    const int lane = lane_of_thread(), g = lane / 4, t = lane % 4;
    for (int i = lane * 8; i < 256; i += WARP * 8) {
        copy_async<16>(left + i, x + i, true);
        copy_async<16>(right + i, y + i, true);
    }
    copy_commit();
    copy_wait<0>();
    __syncwarp();
    uint32_t a[4], b[4];
    const Bf16 *from = fault == MATRICES_GLOBAL ? x : left;
    load_matrices(a, from + lane % 16 * 16 + lane / 16 * 8 + (fault == MATRICES_MISALIGNED));
    if (transposed) // y (columns, inner)
        load_matrices(b, right + (lane % 8 + lane / 16 * 8) * 16 + lane / 8 % 2 * 8);
    else
        load_matrices_turned(b, right + lane % 16 * 16 + lane / 16 * 8);
    const uint32_t kept[4] = {a[0], a[fault == MATRICES_SWAPPED ? 2 : 1], a[fault == MATRICES_SWAPPED ? 1 : 2], a[3]};
    for (int half = 0; half < 2; half++) {
        const uint32_t columns[2] = {b[2 * half], b[2 * half + 1]};
        float c[4] = {1, 1, 1, 1};
        mma_bf16(c, kept, columns);
        for (int i = 0; i < 4; i++) out[(g + i / 2 * 8) * 16 + half * 8 + 2 * t + i % 2] = c[i] - 1;
    }
}
void planted_matrices(float *out, const uint16_t *x, const uint16_t *y, bool transposed, PlantedMatrices fault) {
    launch<matrices_kernel>(dim3(1), dim3(WARP), 0, nullptr, out, reinterpret_cast<const Bf16 *>(x),
                            reinterpret_cast<const Bf16 *>(y), transposed, fault);
}

static __global__ void copies_kernel(float *out, const float *x, PlantedCopies fault) {
    SHARED(uint64_t, pairs, 2 * THREADS);
    float *tile = reinterpret_cast<float *>(pairs);
    const int i = static_cast<int>(threadIdx.x), first = static_cast<int>(blockIdx.x) * 4 * THREADS;
    for (int part = 0; part < 2; part++) { // 8 bytes each
        copy_async<8>(tile + 2 * (i + part * THREADS), x + first + 2 * (i + part * THREADS), true);
        copy_commit();
    }
    if (fault == COPIES_TOO_EARLY)
        copy_wait<1>(); // the second group is still under way
    else if (fault != COPIES_NOT_WAITED)
        copy_wait<0>();
    if (fault != COPIES_NO_BARRIER) __syncthreads();
    for (int k = 0; k < 4; k++) out[first + i + k * THREADS] = tile[4 * THREADS - 1 - i - k * THREADS];
    if (fault == COPIES_TOO_EARLY) copy_wait<0>();
}
void planted_copies(float *out, const float *x, int n, PlantedCopies fault) {
    launch<copies_kernel>(dim3(static_cast<unsigned>(n / THREADS / 4)), dim3(THREADS), 0, nullptr, out, x, fault);
}
