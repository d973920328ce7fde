/* The next word of each row of text (Backend.choose_words): the likeliest, or by lot among the top k and the top p.
 * First blocks look for the largest of a piece of a row each. Then a block takes a row: it draws the lot without
 * sorting, by counting and weighing what lies in 1,024 intervals of scores, and again within the interval that is
 * wanted, until one score is left (radix selection). Weights are integers, each formed by single operations as on the
 * CPU (kernels/cpu/words.c): all sums are exact, in any order, and the choice is the CPU's. */
#include "kernels/cuda/draws.h"
#include <math.h>

enum { LOOK_THREADS = 256, CHOOSE_THREADS = 1024, BINS = CHOOSE_THREADS };
enum { MOST_PIECES = WARP /* which joins them */, PIECE = 4 * LOOK_THREADS /* scores at the least */ };

// ---- the largest ----

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

// best (rows, pieces)
template <class T>
static __global__ void __launch_bounds__(LOOK_THREADS)
    look_kernel(Best *best, const T *x, int64_t width, int64_t pieces) {
    SHARED(Best, found, LOOK_THREADS / WARP);
    const int64_t row = blockIdx.x / pieces, piece = blockIdx.x % pieces, each = divide_up<int64_t>(width, pieces);
    let_next_begin();
    wait_for_earlier();
    const int64_t end = smaller(width, (piece + 1) * each);
    Best b = {-INFINITY, -1, 0};
    for (int64_t i = piece * each + threadIdx.x; i < end; i += LOOK_THREADS)
        take(&b, to_float(x[row * width + i]), static_cast<int32_t>(i));
    b = warp_best(b);
    if (lane_of_thread() == 0) found[warp_of_thread()] = b;
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (int w = 1; w < LOOK_THREADS / WARP; w++) {
        if (found[w].at >= 0) take(&b, found[w].value, found[w].at);
        b.nan |= found[w].nan;
    }
    best[blockIdx.x] = b;
}

// ---- what is drawn from ----

template <class T> struct Scores { // of a row
    const T *x;
    int64_t width;
    float most, factor;
};

// 2^((score - most) factor) as an integer: see kernels/cpu/words.c, which it follows operation by operation.
static __device__ __forceinline__ float behind(float score, float most, float factor) {
    return __fmul_rn(__fadd_rn(score, -most), factor);
}
static __device__ __forceinline__ uint64_t weight_of(float y) {
    if (!(y > -40)) return 0;
    const int whole = static_cast<int>(__fadd_rn(y, -0.5f));
    const float f = __fadd_rn(y, -static_cast<float>(whole));
    float p = 0.00015403530f;
    p = __fadd_rn(__fmul_rn(p, f), 0.0013333558f);
    p = __fadd_rn(__fmul_rn(p, f), 0.0096181291f);
    p = __fadd_rn(__fmul_rn(p, f), 0.055504109f);
    p = __fadd_rn(__fmul_rn(p, f), 0.24022651f);
    p = __fadd_rn(__fmul_rn(p, f), 0.69314718f);
    p = __fadd_rn(__fmul_rn(p, f), 1.0f);
    return static_cast<uint64_t>(static_cast<uint32_t>(__fmul_rn(p, 8388608.0f))) << 17 >> -whole;
}

// Grows with the score; of bf16 only its upper half differs. Both zeros are one.
static __device__ __forceinline__ uint32_t key_of(float score) {
    const uint32_t bits = __float_as_uint(__fadd_rn(score, 0.0f));
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}
template <class T> constexpr int KEY_SHIFT = sizeof(T) == 2 ? 16 : 0; // (the zeros below a negative number are ones)

// Intervals of equal width, from the largest score down; the last one also has all whose weight is 0.
static __device__ __forceinline__ int bin_of(float y) {
    return y > -42 ? static_cast<int>(y * (-BINS / 43.0f)) : BINS - 1;
}

// ---- a selection ----

typedef unsigned long long Weight; // of atomicAdd
struct Bins {
    Weight *weight;  // (BINS)
    unsigned *count; // (BINS)
};

struct Found {       // an interval of falling scores that holds what is looked for
    uint64_t before; // weight, or number, of all in front of it
    int bin;
};

// All threads, one for each bin: the bin whose sums first exceed `at`.
static __device__ __forceinline__ Found find_bin(uint64_t mine, uint64_t at, uint64_t *sums, Found *found) {
    uint64_t upto = mine;
#pragma unroll
    for (int by = 1; by < WARP; by *= 2) {
        const uint64_t other = __shfl_up_sync(ALL_LANES, upto, by);
        if (lane_of_thread() >= by) upto += other;
    }
    if (lane_of_thread() == WARP - 1) sums[warp_of_thread()] = upto;
    __syncthreads();
    for (int w = 0; w < warp_of_thread(); w++) upto += sums[w];
    if (upto > at && upto - mine <= at) *found = Found{upto - mine, static_cast<int>(threadIdx.x)};
    __syncthreads();
    const Found result = *found;
    __syncthreads();
    return result;
}

struct Shared { // memory of a block
    Bins first, narrow;
    uint64_t *sums; // (warps)
    Found *found;
    unsigned *low, *high; // keys
};

struct Selected {
    uint32_t key;    // of the score
    uint64_t before; // weight, or number, of all with a greater one
    uint64_t each;   // weight of one of that score
};

// Weighs and counts all scores by intervals.
template <class T> static __device__ __forceinline__ void fill_first(const Scores<T> &s, const Shared &m) {
    m.first.weight[threadIdx.x] = 0;
    m.first.count[threadIdx.x] = 0;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < s.width; i += CHOOSE_THREADS) {
        const float y = behind(to_float(s.x[i]), s.most, s.factor);
        const uint64_t weight = weight_of(y);
        atomicAdd(&m.first.count[bin_of(y)], 1u);
        if (weight) atomicAdd(&m.first.weight[bin_of(y)], static_cast<Weight>(weight));
    }
    __syncthreads();
}

// The least and the greatest key in a bin, which is not empty.
template <class T> static __device__ __forceinline__ void bounds_of(const Scores<T> &s, int bin, const Shared &m) {
    uint32_t low = ~0u, high = 0;
    for (int64_t i = threadIdx.x; i < s.width; i += CHOOSE_THREADS) {
        const float score = to_float(s.x[i]);
        const uint32_t key = key_of(score) >> KEY_SHIFT<T>;
        if (bin_of(behind(score, s.most, s.factor)) == bin) low = smaller(low, key), high = larger(high, key);
    }
#pragma unroll
    for (int apart = WARP / 2; apart > 0; apart /= 2) {
        low = smaller(low, __shfl_xor_sync(ALL_LANES, low, apart));
        high = larger(high, __shfl_xor_sync(ALL_LANES, high, apart));
    }
    if (lane_of_thread() == 0) m.low[warp_of_thread()] = low, m.high[warp_of_thread()] = high;
    __syncthreads();
}

// The score at which the sums of weights (or of numbers, BY_COUNT) over falling scores first exceed `at`, which they
// do.
template <bool BY_COUNT, class T>
static __device__ __forceinline__ Selected select(const Scores<T> &s, uint64_t at, const Shared &m) {
    Found found = find_bin(BY_COUNT ? m.first.count[threadIdx.x] : m.first.weight[threadIdx.x], at, m.sums, m.found);
    uint64_t before = found.before;
    bounds_of(s, found.bin, m);
    uint32_t low = m.low[0], high = m.high[0];
    for (int w = 1; w < CHOOSE_THREADS / WARP; w++) low = smaller(low, m.low[w]), high = larger(high, m.high[w]);
    int shift;
    do {
        for (shift = 0; (high - low) >> shift >= BINS;) shift++;
        m.narrow.weight[threadIdx.x] = 0;
        m.narrow.count[threadIdx.x] = 0;
        __syncthreads();
        for (int64_t i = threadIdx.x; i < s.width; i += CHOOSE_THREADS) {
            const float score = to_float(s.x[i]);
            const uint32_t key = key_of(score) >> KEY_SHIFT<T>;
            if (key < low || key > high) continue;
            const uint32_t bin = (high - key) >> shift;
            if (BY_COUNT)
                atomicAdd(&m.narrow.count[bin], 1u);
            else
                atomicAdd(&m.narrow.weight[bin], static_cast<Weight>(weight_of(behind(score, s.most, s.factor))));
        }
        __syncthreads();
        found = find_bin(BY_COUNT ? m.narrow.count[threadIdx.x] : m.narrow.weight[threadIdx.x], at - before, m.sums,
                         m.found);
        before += found.before;
        high -= static_cast<uint32_t>(found.bin) << shift;
        if ((high - low) >> shift) low = high - ((1u << shift) - 1);
    } while (shift);
    const uint32_t key = (high << KEY_SHIFT<T>) | (high << KEY_SHIFT<T> >> 31 ? 0 : (1u << KEY_SHIFT<T>)-1);
    const float score = __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
    return Selected{high, before, weight_of(behind(score, s.most, s.factor))};
}

// Number `rank` of the words with this key, in their order. A warp takes a stretch of the row.
template <class T>
static __device__ __forceinline__ int32_t word_of(const Scores<T> &s, uint32_t key, uint64_t rank, const Shared &m) {
    const int64_t each = divide_up<int64_t>(s.width, CHOOSE_THREADS) * WARP, first = warp_of_thread() * each;
    unsigned count = 0, before = 0;
    for (int64_t i = first + lane_of_thread(); i < first + each; i += WARP) {
        const bool is = i < s.width && key_of(to_float(s.x[i])) >> KEY_SHIFT<T> == key;
        count += static_cast<unsigned>(__popc(__ballot_sync(ALL_LANES, is)));
    }
    if (lane_of_thread() == 0) m.narrow.count[warp_of_thread()] = count;
    __syncthreads();
    for (int w = 0; w < warp_of_thread(); w++) before += m.narrow.count[w];
    if (rank >= before && rank < before + count) {
        for (int64_t i = first + lane_of_thread(); i < first + each; i += WARP) {
            const bool is = i < s.width && key_of(to_float(s.x[i])) >> KEY_SHIFT<T> == key;
            const unsigned lanes = __ballot_sync(ALL_LANES, is);
            const unsigned in_front = static_cast<unsigned>(__popc(lanes & ((1u << lane_of_thread()) - 1)));
            if (is && before + in_front == rank) m.found->bin = static_cast<int>(i);
            before += static_cast<unsigned>(__popc(lanes));
        }
    }
    __syncthreads();
    return m.found->bin;
}

// ---- a row ----

// What all that stays weighs together.
template <class T>
static __device__ __forceinline__ uint64_t weight_kept(const Scores<T> &s, const WordDraw &draw, const Shared &m) {
    uint64_t all = 0;
    if (draw.top_k > 0 && draw.top_k < s.width) {
        const uint64_t last = static_cast<uint64_t>(draw.top_k) - 1;
        const Selected k = select<true>(s, last, m); // weights in front of it: those of the intervals, and of its own
        for (int64_t i = threadIdx.x; i < s.width; i += CHOOSE_THREADS) {
            const float score = to_float(s.x[i]);
            if (key_of(score) >> KEY_SHIFT < T >> k.key) all += weight_of(behind(score, s.most, s.factor));
        }
        all = block_sum<CHOOSE_THREADS>(all, m.sums) + (last - k.before + 1) * k.each;
    } else {
        all = block_sum<CHOOSE_THREADS>(static_cast<uint64_t>(m.first.weight[threadIdx.x]), m.sums);
    }
    if (draw.top_p >= 1) return all;
    const uint64_t wanted = static_cast<uint64_t>(ceil(draw.top_p * static_cast<double>(all)));
    const Selected p = select<false>(s, wanted - 1, m);
    return p.before + ((wanted - 1 - p.before) / p.each + 1) * p.each;
}

template <class T>
static __device__ __forceinline__ int32_t by_lot(const Scores<T> &s, const WordDraw &draw, int32_t step,
                                                 const Shared &m) {
    fill_first(s, m);
    const uint64_t kept = weight_kept(s, draw, m);
    const Words w = philox_words(draw.seed, static_cast<uint32_t>(step) / 2, PURPOSE_SAMPLING,
                                 static_cast<uint32_t>(draw.number), static_cast<uint32_t>(draw.number >> 32));
    const uint64_t drawn =
        step % 2 ? w.at[2] | static_cast<uint64_t>(w.at[3]) << 32 : w.at[0] | static_cast<uint64_t>(w.at[1]) << 32;
    uint64_t lot = static_cast<uint64_t>(static_cast<double>(drawn >> 11) * 0x1p-53 * static_cast<double>(kept));
    if (lot >= kept) lot = kept - 1;
    const Selected at = select<false>(s, lot, m);
    return word_of(s, at.key, (lot - at.before) / at.each, m);
}

static __device__ __forceinline__ void move_on(const WordRows &s, int64_t row, int64_t rows, int32_t word) {
    int32_t *range = s.range + 2 * row;
    const int32_t step = s.step[row];
    const bool ended = range[1] == 0;
    if (ended) word = s.end;
    s.step[row] = step + 1;
    s.said[step % s.kept * rows + row] = word;
    s.next[row] = word;
    if (ended || word == s.end || word < 0 || step + 1 >= s.draws[row].most) {
        range[0] = range[1] = 0;
        return;
    }
    s.positions[row]++;
    s.slots[row]++;
    range[1]++;
}

template <class T>
static __global__ void __launch_bounds__(CHOOSE_THREADS)
    choose_kernel(WordRows speech, const Best *best, const T *x, int64_t width, int64_t pieces) {
    SHARED(Weight, weights, 2 * BINS);
    SHARED(unsigned, counts, 2 * BINS);
    SHARED(uint64_t, sums, CHOOSE_THREADS / WARP);
    SHARED(Found, found, 1);
    SHARED(unsigned, keys, 2 * (CHOOSE_THREADS / WARP));
    const Shared memory = {{weights, counts},           {weights + BINS, counts + BINS}, sums, found, keys,
                           keys + CHOOSE_THREADS / WARP};
    const int64_t row = blockIdx.x;
    wait_for_earlier();
    const bool there = lane_of_thread() < pieces;
    const Best b = warp_best(there ? best[row * pieces + lane_of_thread()] : Best{-INFINITY, -1, 0});
    const bool finite = b.value > -INFINITY && b.value < INFINITY;
    const bool ended = speech.range[2 * row + 1] == 0;
    int32_t word = b.nan || !finite ? -1 : b.at;
    const WordDraw draw = speech.draws[row];
    __syncthreads(); // all have read the row's state before it moves on
    if (word >= 0 && draw.factor != 0 && !ended)
        word = by_lot(Scores<T>{x + row * width, width, b.value, draw.factor}, draw, speech.step[row], memory);
    if (threadIdx.x == 0) move_on(speech, row, gridDim.x, word);
}

void cuda_choose_words(const CudaQueue *q, const WordRows *speech, const void *x, int64_t rows, int64_t width,
                       Dtype t) {
    if (rows <= 0) return;
    const int64_t pieces = smaller<int64_t>(divide_up<int64_t>(width, PIECE), MOST_PIECES);
    const size_t bytes = static_cast<size_t>(rows * pieces) * sizeof(Best);
    Best *best = static_cast<Best *>(q->scratch(q->owner, bytes));
    with_type(t, [&](auto zero) {
        typedef decltype(zero) T;
        const T *scores = static_cast<const T *>(x);
        launch_early<look_kernel<T>>(dim3(static_cast<unsigned>(rows * pieces)), dim3(LOOK_THREADS), 0, q, best, scores,
                                     width, pieces);
        launch_early<choose_kernel<T>>(dim3(static_cast<unsigned>(rows)), dim3(CHOOSE_THREADS), 0, q, *speech,
                                       static_cast<const Best *>(best), scores, width, pieces);
    });
}
