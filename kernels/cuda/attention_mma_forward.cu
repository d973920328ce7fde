/* Attention forward on tensor cores: a block keeps a tile of queries, and the tiles of keys and values that they see go
 * by. Values are copied while scores are formed, the next keys while they are weighed; scores, weights and sums stay in
 * registers, and sums are brought down only where a row's maximum moved. See attention_mma.h. */
#include "kernels/cuda/attention_mma.h"

template <int D, int SLABS> struct ForwardMma {
    static constexpr int QUERIES = ATTENTION_WARPS * SLABS * SLAB, KEYS = 64;
    static constexpr bool KEEPS_QUERIES = SLABS * D <= 128; // in registers
    // Results pass through the same memory as f32.
    static constexpr size_t BYTES = static_cast<size_t>(QUERIES + 2 * KEYS) * MMA_ROW<D> * sizeof(Bf16);
    static_assert(QUERIES * MMA_ROW<D> * sizeof(float) <= BYTES, "results fit where tiles were");
};

// Of a warp's rows: the greatest score so far, and this lane's part of the sum of exp2(factor (s - most)).
template <int SLABS> struct Running { float most[SLABS][2], sum[SLABS][2]; };

// Takes in the scores' maxima; brings the sums so far down to them.
template <int SLABS, int KEYS, int D>
static __device__ __forceinline__ void raise(Running<SLABS> *r, Fragments<SLABS, D> &out,
                                             const Fragments<SLABS, KEYS> &score, float factor) {
    float most[SLABS][2];
    bool moved = false;
#pragma unroll
    for (int slab = 0; slab < SLABS; slab++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float m = r->most[slab][half];
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; e++) m = score[slab][j][e] > m ? score[slab][j][e] : m;
#pragma unroll
            for (int apart = 1; apart <= 2; apart *= 2) {
                const float other = __shfl_xor_sync(ALL_LANES, m, apart);
                m = other > m ? other : m;
            }
            moved = moved || m != r->most[slab][half];
            most[slab][half] = m;
        }
    if (!__any_sync(ALL_LANES, moved)) return;
#pragma unroll
    for (int slab = 0; slab < SLABS; slab++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            // Nothing was seen yet: there is nothing to bring down, and -inf - -inf is no number.
            const bool same = r->most[slab][half] == most[slab][half];
            const float down = same ? 1 : quick_exp2((r->most[slab][half] - most[slab][half]) * factor);
            r->most[slab][half] = most[slab][half];
            r->sum[slab][half] *= down;
#pragma unroll
            for (int j = 0; j < D / 8; j++)
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; e++) out[slab][j][e] *= down;
        }
}

// Scores become weights.
template <int SLABS, int KEYS>
static __device__ __forceinline__ void weigh(Running<SLABS> *r, Fragments<SLABS, KEYS> &score, float factor) {
#pragma unroll
    for (int slab = 0; slab < SLABS; slab++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float base = r->most[slab][half] == -INFINITY ? 0 : r->most[slab][half] * factor;
            float part = 0;
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; e++) {
                    score[slab][j][e] = quick_exp2(score[slab][j][e] * factor - base);
                    part += score[slab][j][e];
                }
            r->sum[slab][half] += part;
        }
}

template <int SLABS, int KEYS>
static __device__ __forceinline__ void hide(Fragments<SLABS, KEYS> &score, const Interval *rows, int key) {
    const int column = key + lane_of_thread() % 4 * 2;
#pragma unroll
    for (int slab = 0; slab < SLABS; slab++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const Interval keys = rows[SLAB * slab + 8 * half];
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (int e = 0; e < 2; e++)
                    if (!sees(keys, column + 8 * j + e)) score[slab][j][2 * half + e] = -INFINITY;
        }
}

// out becomes the result, and lse is written: (T) of one head, from this warp's first row on.
template <int SLABS, int D>
static __device__ __forceinline__ void divide_by_sums(Fragments<SLABS, D> &out, float *lse, const Running<SLABS> &r,
                                                      int64_t row, int64_t rows, float factor) {
    const int g = lane_of_thread() / 4;
#pragma unroll
    for (int slab = 0; slab < SLABS; slab++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = r.sum[slab][half];
#pragma unroll
            for (int apart = 1; apart <= 2; apart *= 2) sum += __shfl_xor_sync(ALL_LANES, sum, apart);
            const bool nothing = sum == 0;
            const int64_t at = row + slab * SLAB + g + 8 * half;
            if (at < rows && lane_of_thread() % 4 == 0)
                lse[at] = nothing ? -INFINITY : (r.most[slab][half] * factor + log2f(sum)) * LN_2;
            const float inverse = nothing ? 0 : 1 / sum;
#pragma unroll
            for (int j = 0; j < D / 8; j++)
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; e++) out[slab][j][e] *= inverse;
        }
}

template <int D, int SLABS>
static __global__ void __launch_bounds__(ATTENTION_THREADS, 2) attention_forward_mma_kernel(AttentionCall c, void *o) {
    typedef ForwardMma<D, SLABS> Tiles;
    SHARED_DYNAMIC(Bf16, memory);
    SHARED(Interval, seen, Tiles::QUERIES + ATTENTION_WARPS);
    Bf16 *queries = memory, *key_tile = queries + Tiles::QUERIES * MMA_ROW<D>,
         *value_tile = key_tile + Tiles::KEYS * MMA_ROW<D>;
    const AttentionShape &s = c.shape;
    const int64_t tiles = divide_up<int64_t>(s.queries, Tiles::QUERIES), which = blockIdx.x;
    const int64_t first = (tiles - 1 - which % tiles) * Tiles::QUERIES; // the last queries see most where it is causal
    const int head = static_cast<int>(which / tiles % s.heads), shared_head = head / (s.heads / s.kv_heads);
    const int64_t batch = which / tiles / s.heads;
    const int own = warp_of_thread() * SLABS * SLAB; // this warp's first row
    const float factor = c.scale * LOG2_E;
    const HeadRows k = head_rows(c.k, batch, s.keys, s.k_stride, shared_head, s.head_size);
    const HeadRows v = head_rows(c.v, batch, s.keys, s.v_stride, shared_head, s.head_size);
    copy_tile<Tiles::QUERIES, D>(queries, head_rows(c.q, batch, s.queries, s.q_stride, head, s.head_size), first,
                                 s.queries, s.head_size);
    const TileMask mask = mask_of<SLABS>(s, batch, first, seen);
    const int begin = mask.block.first / Tiles::KEYS * Tiles::KEYS;
    if (begin < mask.block.end) copy_tile<Tiles::KEYS, D>(key_tile, k, begin, s.keys, s.head_size);
    copy_commit();
    copy_wait<0>();
    __syncthreads();
    uint32_t kept[Tiles::KEEPS_QUERIES ? SLABS : 1][Tiles::KEEPS_QUERIES ? D / 16 : 1][4];
    if constexpr (Tiles::KEEPS_QUERIES) {
#pragma unroll
        for (int i = 0; i < SLABS * (D / 16); i++)
            left_operand<D>(kept[i / (D / 16)][i % (D / 16)], queries, own + i / (D / 16) * SLAB, i % (D / 16) * 16);
    }
    Running<SLABS> running;
    Fragments<SLABS, D> out;
    clear(out);
#pragma unroll
    for (int i = 0; i < 2 * SLABS; i++) running.most[i / 2][i % 2] = -INFINITY, running.sum[i / 2][i % 2] = 0;
    for (int key = begin; key < mask.block.end; key += Tiles::KEYS) {
        const bool mine = overlap(mask.warp.any, key, key + Tiles::KEYS);
        Fragments<SLABS, Tiles::KEYS> score;
        copy_tile<Tiles::KEYS, D>(value_tile, v, key, s.keys, s.head_size);
        copy_commit();
        if (mine)
            multiply_rows<SLABS, Tiles::KEYS, D>(
                score,
                [&](uint32_t(&a)[4], int slab, int i) {
                    if constexpr (Tiles::KEEPS_QUERIES)
                        for (int word = 0; word < 4; word++) a[word] = kept[slab][i][word];
                    else
                        left_operand<D>(a, queries, own + slab * SLAB, 16 * i);
                },
                key_tile);
        copy_wait<0>();
        __syncthreads(); // the values are there, the keys have been read
        if (key + Tiles::KEYS < mask.block.end)
            copy_tile<Tiles::KEYS, D>(key_tile, k, key + Tiles::KEYS, s.keys, s.head_size);
        copy_commit();
        if (mine) {
            if (!holds(mask.warp.all, key, key + Tiles::KEYS)) hide<SLABS, Tiles::KEYS>(score, mask.rows, key);
            raise<SLABS, Tiles::KEYS, D>(&running, out, score, factor);
            weigh<SLABS, Tiles::KEYS>(&running, score, factor);
            add_product<SLABS, Tiles::KEYS, D>(out, score, value_tile);
        }
        copy_wait<0>();
        __syncthreads(); // the next keys are there, the values have been read
    }
    divide_by_sums<SLABS, D>(out, c.lse + (batch * s.heads + head) * s.queries, running, first + own, s.queries,
                             factor);
    write_slabs<SLABS, D>(reinterpret_cast<float *>(memory) + own * MMA_ROW<D>, o,
                          head_rows(o, batch, s.queries, s.o_stride, head, s.head_size), first + own, s.queries,
                          s.head_size, out, false);
}

bool cuda_attention_forward_mma(const CudaQueue *queue, void *o, float *lse, const void *q, const void *k,
                                const void *v, const AttentionShape *s, Dtype t) {
    if (!takes_mma(o, q, k, v, s, t)) return false;
    AttentionCall c = attention_call(q, k, v, s, t);
    c.lse = lse;
    with_mma_head_size(s->head_size, [&](auto size) {
        constexpr int D = decltype(size)::value;
        with_bool(s->queries > ForwardMma<D, 1>::QUERIES, [&](auto large) {
            constexpr int SLABS = decltype(large)::value ? 2 : 1;
            typedef ForwardMma<D, SLABS> Tiles;
            const int64_t blocks = divide_up<int64_t>(s->queries, Tiles::QUERIES) * s->heads * s->batch;
            launch_tiles<attention_forward_mma_kernel<D, SLABS>>(queue, blocks, Tiles::BYTES, c, o);
        });
    });
    return true;
}
