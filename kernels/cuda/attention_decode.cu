/* Attention of one query in each batch element, as generation asks for it: keys are split into chunks of a fixed size,
 * a block takes one, and a second launch joins what they found (flash-decoding, Dao et al. 2023). The heads of a group
 * share what a block reads. Which keys are seen may stand in `range`, in device memory: so the launches stay the same
 * while a cache fills up to its capacity, and chunks that nobody sees end at once. B batch, H heads, D head size. */
#include "kernels/cuda/attention_decode.h"

static constexpr int CHUNK = ATTENTION_CHUNK;

// A key's row is shared out over LANES lanes, a pack of 16 bytes each. HEADS queries at a time.
template <class T, int LANES, int HEADS> struct Decode {
    static constexpr int N = PACK<T>, AT_ONCE = ATTENTION_THREADS / LANES; // keys
    static constexpr int STEPS = CHUNK / AT_ONCE, WIDTH = LANES * N;
};

struct DecodeCall {
    AttentionCall c;
    int chunks, groups; // groups of HEADS heads that share a key-value head
    float *parts; // (B, H, chunks, D + 2): the sum of weights times values; the greatest score, base 2; sum of weights
};

static __device__ __forceinline__ bool chunk_is_seen(Interval keys, int chunk) {
    return keys.first < (chunk + 1) * CHUNK && keys.end > chunk * CHUNK;
}

// score (HEADS, CHUNK), base 2: of keys from `first` on; -Inf where they are not seen.
template <class T, int LANES, int HEADS>
static __device__ __forceinline__ void form_scores(float *score, const Floats<PACK<T>> (&q)[HEADS], const T *k,
                                                   int64_t stride, int first, Interval seen, bool part_there,
                                                   float factor) {
    typedef Decode<T, LANES, HEADS> Form;
    const int which = static_cast<int>(threadIdx.x) / LANES;
#pragma unroll 4
    for (int step = 0; step < Form::STEPS; step++) {
        const int key = step * Form::AT_ONCE + which;
        const bool there = sees(seen, first + key);
        Floats<Form::N> x = {};
        if (there && part_there) x = load<Form::N>(k + key * stride);
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            float sum = 0;
#pragma unroll
            for (int e = 0; e < Form::N; e++) sum += q[h].at[e] * x.at[e];
#pragma unroll
            for (int apart = LANES / 2; apart > 0; apart /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, apart);
            if (static_cast<int>(threadIdx.x) % LANES == 0) score[h * CHUNK + key] = there ? sum * factor : -INFINITY;
        }
    }
}

// Scores become weights; most_and_sum (HEADS, 2). A warp takes a head.
template <int HEADS> static __device__ __forceinline__ void form_weights(float *score, float *most_and_sum) {
    for (int h = warp_of_thread(); h < HEADS; h += ATTENTION_THREADS / WARP) {
        float most = -INFINITY, sum = 0;
        for (int i = lane_of_thread(); i < CHUNK; i += WARP)
            most = score[h * CHUNK + i] > most ? score[h * CHUNK + i] : most;
        most = warp_max(most);
        const float base = most == -INFINITY ? 0 : most;
        for (int i = lane_of_thread(); i < CHUNK; i += WARP) {
            const float weight = exp2f(score[h * CHUNK + i] - base);
            score[h * CHUNK + i] = weight;
            sum += weight;
        }
        sum = warp_sum(sum);
        if (lane_of_thread() == 0) most_and_sum[2 * h] = most, most_and_sum[2 * h + 1] = sum;
    }
}

// out (HEADS, warps, WIDTH): each warp's part of the sum of weights times values.
template <class T, int LANES, int HEADS>
static __device__ __forceinline__ void add_values(float *out, const float *weight, const T *v, int64_t stride,
                                                  int first, Interval seen, bool part_there) {
    typedef Decode<T, LANES, HEADS> Form;
    const int which = static_cast<int>(threadIdx.x) / LANES;
    Floats<Form::N> sum[HEADS] = {};
#pragma unroll 4
    for (int step = 0; step < Form::STEPS; step++) {
        const int key = step * Form::AT_ONCE + which;
        Floats<Form::N> x = {};
        if (sees(seen, first + key) && part_there) x = load<Form::N>(v + key * stride);
#pragma unroll
        for (int h = 0; h < HEADS; h++)
#pragma unroll
            for (int e = 0; e < Form::N; e++) sum[h].at[e] += weight[h * CHUNK + key] * x.at[e];
    }
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
#pragma unroll
        for (int apart = LANES; apart < WARP; apart *= 2)
#pragma unroll
            for (int e = 0; e < Form::N; e++) sum[h].at[e] += __shfl_xor_sync(ALL_LANES, sum[h].at[e], apart);
        if (lane_of_thread() < LANES)
            store_shared<Form::N>(out + (h * (ATTENTION_THREADS / WARP) + warp_of_thread()) * Form::WIDTH +
                                      lane_of_thread() * Form::N,
                                  sum[h]);
    }
}

template <class T, int LANES, int HEADS>
static __global__ void __launch_bounds__(ATTENTION_THREADS) attention_decode_kernel(DecodeCall d) {
    typedef Decode<T, LANES, HEADS> Form;
    constexpr int WARPS = ATTENTION_THREADS / WARP;
    typedef Pack<float, 4> Four;
    SHARED(float, score, HEADS *CHUNK);
    SHARED(float, most_and_sum, HEADS * 2);
    SHARED(Four, sums, HEADS * WARPS * Form::WIDTH / 4);
    const AttentionShape &s = d.c.shape;
    const int chunk = static_cast<int>(blockIdx.x) % d.chunks, rest = static_cast<int>(blockIdx.x) / d.chunks;
    const int group = rest % d.groups, kv_head = rest / d.groups % s.kv_heads, sharers = s.heads / s.kv_heads;
    const int64_t batch = rest / d.groups / s.kv_heads;
    const int first_head = kv_head * sharers + group * HEADS, end_head = (kv_head + 1) * sharers;
    let_next_begin();
    wait_for_earlier();
    const Interval seen = keys_of(s, batch, 0);
    if (!chunk_is_seen(seen, chunk)) return;
    const int element = static_cast<int>(threadIdx.x) % LANES * Form::N, first = chunk * CHUNK;
    const bool part_there = element < s.head_size;
    Floats<Form::N> q[HEADS] = {};
#pragma unroll
    for (int h = 0; h < HEADS; h++)
        if (part_there && first_head + h < end_head)
            q[h] = load<Form::N>(static_cast<const T *>(d.c.q) + batch * s.q_stride +
                                 static_cast<int64_t>(first_head + h) * s.head_size + element);
    const int64_t head_at = static_cast<int64_t>(kv_head) * s.head_size + element;
    form_scores<T, LANES, HEADS>(score, q,
                                 static_cast<const T *>(d.c.k) + (batch * s.keys + first) * s.k_stride + head_at,
                                 s.k_stride, first, seen, part_there, d.c.scale * LOG2_E);
    __syncthreads();
    form_weights<HEADS>(score, most_and_sum);
    __syncthreads();
    add_values<T, LANES, HEADS>(sums->at, score,
                                static_cast<const T *>(d.c.v) + (batch * s.keys + first) * s.v_stride + head_at,
                                s.v_stride, first, seen, part_there);
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < HEADS * (s.head_size + 2); i += ATTENTION_THREADS) {
        const int h = i / (s.head_size + 2), e = i % (s.head_size + 2);
        if (first_head + h >= end_head) continue;
        float sum = 0;
        if (e < s.head_size) {
#pragma unroll
            for (int w = 0; w < WARPS; w++) sum += sums->at[(h * WARPS + w) * Form::WIDTH + e];
        } else {
            sum = most_and_sum[2 * h + e - s.head_size];
        }
        d.parts[((batch * s.heads + first_head + h) * d.chunks + chunk) * (s.head_size + 2) + e] = sum;
    }
}

// A block takes a head.
template <class T>
static __global__ void __launch_bounds__(ATTENTION_THREADS) attention_decode_join_kernel(DecodeCall d, T *o) {
    const AttentionShape &s = d.c.shape;
    const int64_t row = blockIdx.x, batch = row / s.heads, head = row % s.heads;
    const int width = s.head_size + 2;
    const float *part = d.parts + row * d.chunks * width;
    let_next_begin();
    wait_for_earlier();
    const Interval seen = keys_of(s, batch, 0);
    const int begin = seen.first / CHUNK, end = seen.first < seen.end ? divide_up(seen.end, CHUNK) : begin;
    float most = -INFINITY;
    for (int i = begin; i < end; i++) {
        const float m = part[i * width + s.head_size];
        most = m > most ? m : most;
    }
    const float base = most == -INFINITY ? 0 : most;
    for (int e = static_cast<int>(threadIdx.x); e < s.head_size; e += ATTENTION_THREADS) {
        float out = 0, sum = 0;
        for (int i = begin; i < end; i++) {
            const float weight = exp2f(part[i * width + s.head_size] - base);
            out += weight * part[i * width + e];
            sum += weight * part[i * width + s.head_size + 1];
        }
        const bool nothing = sum == 0;
        Floats<1> result = {{nothing ? 0 : out / sum}};
        store<1>(o + batch * s.o_stride + head * s.head_size + e, result);
        if (e == 0) d.c.lse[row] = nothing ? -INFINITY : (most + log2f(sum)) * LN_2;
    }
}

template <class T> static bool takes(const AttentionCall &c) {
    const AttentionShape &s = c.shape;
    constexpr int N = PACK<T>;
    return s.queries == 1 && s.head_size % N == 0 && s.head_size <= WARP * N && s.keys < INT32_MAX / 2 &&
           packs_at(static_cast<const T *>(c.q), N) && packs_at(static_cast<const T *>(c.k), N) &&
           packs_at(static_cast<const T *>(c.v), N) && s.q_stride % N == 0 && s.k_stride % N == 0 &&
           s.v_stride % N == 0;
}

template <class F> static void with_count(int count, F f) { // the least of 1, 2 and 4 that holds it, or 4
    if (count == 1)
        f(std::integral_constant<int, 1>{});
    else if (count == 2)
        f(std::integral_constant<int, 2>{});
    else
        f(std::integral_constant<int, 4>{});
}

static dim3 blocks_of(int64_t count) { return dim3(static_cast<unsigned>(count)); }

template <class T> static void find_parts(const CudaQueue *queue, DecodeCall d) {
    const AttentionShape &s = d.c.shape;
    const int packs = divide_up(s.head_size, PACK<T>);
    with_count(s.heads / s.kv_heads, [&](auto heads) {
        with_count(packs <= 8    ? 1
                   : packs <= 16 ? 2
                                 : 4,
                   [&](auto eights) {
                       constexpr int HEADS = decltype(heads)::value, LANES = 8 * decltype(eights)::value;
                       d.groups = divide_up(s.heads / s.kv_heads, HEADS);
                       launch_early<attention_decode_kernel<T, LANES, HEADS>>(
                           blocks_of(s.batch * s.kv_heads * d.groups * d.chunks), dim3(ATTENTION_THREADS), 0, queue, d);
                   });
    });
}

static bool takes_call(const DecodeCall &d, Dtype t) {
    return (t == F32 ? takes<float>(d.c) : takes<Bf16>(d.c)) && d.c.shape.batch > 0 && d.c.shape.keys > 0;
}

static DecodeCall decode_call(const void *q, const void *k, const void *v, const AttentionShape *s, Dtype t) {
    DecodeCall d = {};
    d.c = attention_call(q, k, v, s, t);
    d.chunks = static_cast<int>(divide_up<int64_t>(s->keys, CHUNK));
    return d;
}

bool cuda_attention_parts(const CudaQueue *queue, float *parts, const void *q, const void *k, const void *v,
                          const AttentionShape *s, Dtype t) {
    DecodeCall d = decode_call(q, k, v, s, t);
    if (!takes_call(d, t)) return false;
    d.parts = parts;
    with_type(t, [&](auto type) { find_parts<decltype(type)>(queue, d); });
    return true;
}

bool cuda_attention_decode(const CudaQueue *queue, void *o, float *lse, const void *q, const void *k, const void *v,
                           const AttentionShape *s, Dtype t) {
    DecodeCall d = decode_call(q, k, v, s, t);
    d.c.lse = lse;
    if (!takes_call(d, t)) return false;
    const int64_t numbers = s->batch * s->heads * d.chunks * (s->head_size + 2);
    d.parts = static_cast<float *>(queue->scratch(queue->owner, static_cast<size_t>(numbers) * sizeof(float)));
    with_type(t, [&](auto type) {
        typedef decltype(type) T;
        find_parts<T>(queue, d);
        launch_early<attention_decode_join_kernel<T>>(blocks_of(s->batch * s->heads), dim3(ATTENTION_THREADS), 0, queue,
                                                      d, static_cast<T *>(o));
    });
    return true;
}
