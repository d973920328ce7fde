/* Attention forward in f32 arithmetic, for what the tensor cores do not take: a block keeps a tile of queries and walks
 * over the keys they see, tile by tile, with a running maximum and sum; scores never leave the block. See
 * attention_tiles.h. */
#include "kernels/cuda/attention_tiles.h"
#include "kernels/cuda/attention_decode.h"
#include "kernels/cuda/attention_mma.h"

template <int D> struct ForwardTiles {
    static constexpr int QUERIES = D > 128 ? 32 : 64, KEYS = D > 128 ? 16 : 32;
    static constexpr int I = QUERIES / GROUPS, J = KEYS / GROUP, ROW = D + TILE_PAD, WEIGHTS = KEYS + TILE_PAD;
    static constexpr size_t FLOATS = static_cast<size_t>((QUERIES + 2 * KEYS) * ROW + QUERIES * WEIGHTS);
};

// One tile of scores into weights exp(s - most), with the sums so far brought to the new maximum.
template <int D>
static __device__ __forceinline__ void weigh(float *weights, float (&score)[ForwardTiles<D>::I][ForwardTiles<D>::J],
                                             float (&most)[ForwardTiles<D>::I], float (&sum)[ForwardTiles<D>::I],
                                             Floats<4> (&out)[ForwardTiles<D>::I][D / 32], const Interval *keys,
                                             int64_t key, float factor) {
    typedef ForwardTiles<D> Tiles;
    const int g = static_cast<int>(threadIdx.x) / GROUP, column = static_cast<int>(threadIdx.x) % GROUP;
#pragma unroll
    for (int i = 0; i < Tiles::I; i++) {
        const Interval seen = keys[g + GROUPS * i];
        float highest = most[i], part = 0;
#pragma unroll
        for (int j = 0; j < Tiles::J; j++) {
            score[i][j] *= factor;
            if (sees(seen, key + column + GROUP * j) && score[i][j] > highest) highest = score[i][j];
        }
        highest = group_max(highest);
        // Nothing was seen yet: there is nothing to bring down, and -inf - -inf is no number.
        const float down = most[i] == highest ? 1 : exp2f(most[i] - highest);
#pragma unroll
        for (int j = 0; j < Tiles::J; j++) {
            float w = sees(seen, key + column + GROUP * j) ? exp2f(score[i][j] - highest) : 0;
            weights[(g + GROUPS * i) * Tiles::WEIGHTS + column + GROUP * j] = w;
            part += w;
        }
        most[i] = highest;
        sum[i] = sum[i] * down + group_sum(part);
#pragma unroll
        for (int k = 0; k < D / 32; k++)
#pragma unroll
            for (int e = 0; e < 4; e++) out[i][k].at[e] *= down;
    }
}

template <int D>
static __device__ __forceinline__ void write_rows(const AttentionCall &c, void *o, int64_t batch, int head,
                                                  int64_t query, const float (&most)[ForwardTiles<D>::I],
                                                  const float (&sum)[ForwardTiles<D>::I],
                                                  const Floats<4> (&out)[ForwardTiles<D>::I][D / 32]) {
    const AttentionShape &s = c.shape;
    const int g = static_cast<int>(threadIdx.x) / GROUP, column = static_cast<int>(threadIdx.x) % GROUP;
#pragma unroll
    for (int i = 0; i < ForwardTiles<D>::I; i++) {
        const int64_t row = query + g + GROUPS * i;
        if (row >= s.queries) continue;
        const bool nothing = sum[i] == 0;
        if (column == 0)
            c.lse[(batch * s.heads + head) * s.queries + row] = nothing ? -INFINITY : (most[i] + log2f(sum[i])) * LN_2;
        const float inverse = nothing ? 0 : 1 / sum[i];
#pragma unroll
        for (int k = 0; k < D / 32; k++) {
            const int d = column * 4 + 32 * k;
            Floats<4> f;
#pragma unroll
            for (int e = 0; e < 4; e++) f.at[e] = out[i][k].at[e] * inverse;
            if (d < s.head_size)
                write_four(c, o, (batch * s.queries + row) * s.o_stride + static_cast<int64_t>(head) * s.head_size + d,
                           f, s.head_size - d, false);
        }
    }
}

template <int D>
static __global__ void __launch_bounds__(ATTENTION_THREADS) attention_forward_kernel(AttentionCall c, void *o) {
    typedef ForwardTiles<D> Tiles;
    SHARED_DYNAMIC(float, memory);
    SHARED(Interval, keys, Tiles::QUERIES);
    float *queries = memory, *key_tile = queries + Tiles::QUERIES * Tiles::ROW,
          *value_tile = key_tile + Tiles::KEYS * Tiles::ROW, *weights = value_tile + Tiles::KEYS * Tiles::ROW;
    const AttentionShape &s = c.shape;
    const int64_t tiles = divide_up<int64_t>(s.queries, Tiles::QUERIES), which = blockIdx.x;
    const int64_t query = (tiles - 1 - which % tiles) * Tiles::QUERIES; // the last queries see most where it is causal
    const int head = static_cast<int>(which / tiles % s.heads), shared_head = head / (s.heads / s.kv_heads);
    const int64_t batch = which / tiles / s.heads;
    const HeadRows k = head_rows(c.k, batch, s.keys, s.k_stride, shared_head, s.head_size);
    const HeadRows v = head_rows(c.v, batch, s.keys, s.v_stride, shared_head, s.head_size);
    load_tile<Tiles::QUERIES, D>(queries, c, head_rows(c.q, batch, s.queries, s.q_stride, head, s.head_size), query,
                                 s.queries);
    const Interval all = tile_keys<Tiles::QUERIES>(keys, s, batch, query);
    float most[Tiles::I], sum[Tiles::I], score[Tiles::I][Tiles::J];
    Floats<4> out[Tiles::I][D / 32] = {};
#pragma unroll
    for (int i = 0; i < Tiles::I; i++) most[i] = -INFINITY, sum[i] = 0;
    for (int64_t key = all.first / Tiles::KEYS * Tiles::KEYS; key < all.end; key += Tiles::KEYS) {
        __syncthreads(); // the tiles of the round before have been read
        load_tile<Tiles::KEYS, D>(key_tile, c, k, key, s.keys);
        load_tile<Tiles::KEYS, D>(value_tile, c, v, key, s.keys);
        __syncthreads();
        dot_rows<Tiles::I, Tiles::J, D>(score, queries, key_tile);
        weigh<D>(weights, score, most, sum, out, keys, key, c.scale * LOG2_E);
        __syncwarp(); // a group reads the weights it wrote itself
        add_rows<Tiles::I, Tiles::KEYS, D>(out, weights, Tiles::WEIGHTS, 1, value_tile);
    }
    write_rows<D>(c, o, batch, head, query, most, sum, out);
}

void cuda_attention_forward(const CudaQueue *queue, void *o, float *lse, const void *q, const void *k, const void *v,
                            const AttentionShape *s, Dtype t) {
    if (cuda_attention_decode(queue, o, lse, q, k, v, s, t)) return;
    if (cuda_attention_forward_mma(queue, o, lse, q, k, v, s, t)) return;
    AttentionCall c = attention_call(q, k, v, s, t);
    c.lse = lse;
    c.packed = packed_at(c) && four_at(o, s->o_stride, dtype_size(t));
    with_head_size(s->head_size, [&](auto size) {
        constexpr int D = decltype(size)::value;
        typedef ForwardTiles<D> Tiles;
        int64_t blocks = divide_up<int64_t>(s->queries, Tiles::QUERIES) * s->heads * s->batch;
        launch_tiles<attention_forward_kernel<D>>(queue, blocks, Tiles::FLOATS * sizeof(float), c, o);
    });
}
