/* Attention backward in f32 arithmetic, for what the tensor cores do not take, without atomics and so with the same
 * bits in every run: one kernel walks over the queries for a tile of keys (dk, dv), one over the keys for a tile of
 * queries (dq). Both form the probabilities again from the kept logsumexp: p = exp(s - lse), ds = p (do v^T - delta) /
 * sqrt(D), delta = sum of do o. See attention_tiles.h. */
#include "kernels/cuda/attention_tiles.h"
#include "kernels/cuda/attention_mma.h"

template <int D> struct BackwardTiles {
    static constexpr int QUERIES = D > 128 ? 16 : 32, KEYS = D > 128 ? 16 : 32;
    static constexpr int I = QUERIES / GROUPS, J = KEYS / GROUP, KEY_I = KEYS / GROUPS;
    static constexpr int ROW = D + TILE_PAD, WEIGHTS = KEYS + TILE_PAD;
    static constexpr size_t FLOATS = static_cast<size_t>(2 * (QUERIES + KEYS) * ROW + 2 * QUERIES * WEIGHTS);
};

// Shared memory of a block.
template <int D> struct BackwardMemory {
    typedef BackwardTiles<D> Tiles;
    float *q, *d_o, *k, *v, *p, *ds;
    __device__ explicit BackwardMemory(float *memory)
        : q(memory), d_o(q + Tiles::QUERIES * Tiles::ROW), k(d_o + Tiles::QUERIES * Tiles::ROW),
          v(k + Tiles::KEYS * Tiles::ROW), p(v + Tiles::KEYS * Tiles::ROW), ds(p + Tiles::QUERIES * Tiles::WEIGHTS) {}
};

// delta (B, H, T): a warp takes a row of a head.
static __global__ void __launch_bounds__(ATTENTION_THREADS) attention_delta_kernel(AttentionCall c, const void *o) {
    const AttentionShape &s = c.shape;
    const int64_t row = static_cast<int64_t>(blockIdx.x) * (ATTENTION_THREADS / WARP) + warp_of_thread();
    if (row >= s.batch * s.heads * s.queries) return;
    const int64_t query = row % s.queries, batch = row / s.queries / s.heads;
    const int64_t at = (batch * s.queries + query) * s.o_stride + row / s.queries % s.heads * s.head_size;
    float sum = 0;
    for (int d = lane_of_thread() * 4; d < s.head_size; d += WARP * 4) {
        Floats<4> x = read_four(c, o, at + d, s.head_size - d), y = read_four(c, c.d_o, at + d, s.head_size - d);
#pragma unroll
        for (int e = 0; e < 4; e++) sum += x.at[e] * y.at[e];
    }
    sum = warp_sum(sum);
    if (lane_of_thread() == 0) c.delta[row] = sum;
}

// p and ds (QUERIES, KEYS) of a tile, from the tiles of q, k, v and d_o.
template <int D>
static __device__ __forceinline__ void differentiate(const AttentionCall &c, const BackwardMemory<D> &m,
                                                     const Interval *keys, int64_t head_row, int64_t query,
                                                     int64_t key) {
    typedef BackwardTiles<D> Tiles;
    const int g = static_cast<int>(threadIdx.x) / GROUP, column = static_cast<int>(threadIdx.x) % GROUP;
    float score[Tiles::I][Tiles::J], dp[Tiles::I][Tiles::J];
    dot_rows<Tiles::I, Tiles::J, D>(score, m.q, m.k);
    dot_rows<Tiles::I, Tiles::J, D>(dp, m.d_o, m.v);
#pragma unroll
    for (int i = 0; i < Tiles::I; i++) {
        const int row = g + GROUPS * i;
        const Interval seen = keys[row];
        const bool there = query + row < c.shape.queries;
        const float lse = there ? c.lse[head_row + query + row] * LOG2_E : 0,
                    delta = there ? c.delta[head_row + query + row] : 0;
#pragma unroll
        for (int j = 0; j < Tiles::J; j++) {
            const int at = row * Tiles::WEIGHTS + column + GROUP * j;
            const float p = sees(seen, key + column + GROUP * j) ? exp2f(score[i][j] * (c.scale * LOG2_E) - lse) : 0;
            m.p[at] = p;
            m.ds[at] = p == 0 ? 0 : p * (dp[i][j] - delta) * c.scale;
        }
    }
}

// x (I x 16, D) (+)= sums, rows [row, ..) of a head.
template <int I, int D>
static __device__ __forceinline__ void write_tile(const AttentionCall &c, void *x, HeadRows at, int64_t row,
                                                  int64_t rows, const Floats<4> (&sum)[I][D / 32], bool add) {
    const int g = static_cast<int>(threadIdx.x) / GROUP, column = static_cast<int>(threadIdx.x) % GROUP * 4;
#pragma unroll
    for (int i = 0; i < I; i++) {
        const int64_t r = row + g + GROUPS * i;
#pragma unroll
        for (int k = 0; k < D / 32; k++) {
            const int d = column + 32 * k;
            if (r < rows && d < c.shape.head_size)
                write_four(c, x, at.first + r * at.stride + d, sum[i][k], c.shape.head_size - d, add);
        }
    }
}

template <int D>
static __global__ void __launch_bounds__(ATTENTION_THREADS)
    attention_keys_kernel(AttentionCall c, void *dk, void *dv, bool add) {
    typedef BackwardTiles<D> Tiles;
    SHARED_DYNAMIC(float, memory);
    SHARED(Interval, keys, Tiles::QUERIES);
    const BackwardMemory<D> m(memory);
    const AttentionShape &s = c.shape;
    const int64_t tiles = divide_up<int64_t>(s.keys, Tiles::KEYS), which = blockIdx.x;
    const int64_t key = which % tiles * Tiles::KEYS, batch = which / tiles / s.kv_heads;
    const int kv_head = static_cast<int>(which / tiles % s.kv_heads), sharers = s.heads / s.kv_heads;
    const HeadRows k = head_rows(c.k, batch, s.keys, s.k_stride, kv_head, s.head_size);
    const HeadRows v = head_rows(c.v, batch, s.keys, s.v_stride, kv_head, s.head_size);
    Floats<4> k_sum[Tiles::KEY_I][D / 32] = {}, v_sum[Tiles::KEY_I][D / 32] = {};
    load_tile<Tiles::KEYS, D>(m.k, c, k, key, s.keys);
    load_tile<Tiles::KEYS, D>(m.v, c, v, key, s.keys);
    for (int64_t query = 0; query < s.queries; query += Tiles::QUERIES) {
        const Interval all = tile_keys<Tiles::QUERIES>(keys, s, batch, query);
        if (all.first >= key + Tiles::KEYS || all.end <= key) continue;
        for (int head = kv_head * sharers; head < (kv_head + 1) * sharers; head++) {
            __syncthreads(); // the tiles of the round before have been read
            load_tile<Tiles::QUERIES, D>(m.q, c, head_rows(c.q, batch, s.queries, s.q_stride, head, s.head_size), query,
                                         s.queries);
            load_tile<Tiles::QUERIES, D>(m.d_o, c, head_rows(c.d_o, batch, s.queries, s.o_stride, head, s.head_size),
                                         query, s.queries);
            __syncthreads();
            differentiate<D>(c, m, keys, (batch * s.heads + head) * s.queries, query, key);
            __syncthreads();
            add_rows<Tiles::KEY_I, Tiles::QUERIES, D>(v_sum, m.p, 1, Tiles::WEIGHTS, m.d_o);
            add_rows<Tiles::KEY_I, Tiles::QUERIES, D>(k_sum, m.ds, 1, Tiles::WEIGHTS, m.q);
        }
    }
    if (dk) write_tile<Tiles::KEY_I, D>(c, dk, k, key, s.keys, k_sum, add);
    if (dv) write_tile<Tiles::KEY_I, D>(c, dv, v, key, s.keys, v_sum, add);
}

template <int D>
static __global__ void __launch_bounds__(ATTENTION_THREADS)
    attention_queries_kernel(AttentionCall c, void *dq, bool add) {
    typedef BackwardTiles<D> Tiles;
    SHARED_DYNAMIC(float, memory);
    SHARED(Interval, keys, Tiles::QUERIES);
    const BackwardMemory<D> m(memory);
    const AttentionShape &s = c.shape;
    const int64_t tiles = divide_up<int64_t>(s.queries, Tiles::QUERIES), which = blockIdx.x;
    const int64_t query = (tiles - 1 - which % tiles) * Tiles::QUERIES, batch = which / tiles / s.heads;
    const int head = static_cast<int>(which / tiles % s.heads), kv_head = head / (s.heads / s.kv_heads);
    const HeadRows q = head_rows(c.q, batch, s.queries, s.q_stride, head, s.head_size);
    const HeadRows k = head_rows(c.k, batch, s.keys, s.k_stride, kv_head, s.head_size);
    const HeadRows v = head_rows(c.v, batch, s.keys, s.v_stride, kv_head, s.head_size);
    Floats<4> sum[Tiles::I][D / 32] = {};
    load_tile<Tiles::QUERIES, D>(m.q, c, q, query, s.queries);
    load_tile<Tiles::QUERIES, D>(m.d_o, c, head_rows(c.d_o, batch, s.queries, s.o_stride, head, s.head_size), query,
                                 s.queries);
    const Interval all = tile_keys<Tiles::QUERIES>(keys, s, batch, query);
    for (int64_t key = all.first / Tiles::KEYS * Tiles::KEYS; key < all.end; key += Tiles::KEYS) {
        __syncthreads(); // the tiles of the round before have been read
        load_tile<Tiles::KEYS, D>(m.k, c, k, key, s.keys);
        load_tile<Tiles::KEYS, D>(m.v, c, v, key, s.keys);
        __syncthreads();
        differentiate<D>(c, m, keys, (batch * s.heads + head) * s.queries, query, key);
        __syncwarp(); // a group reads the rows it wrote itself
        add_rows<Tiles::I, Tiles::KEYS, D>(sum, m.ds, Tiles::WEIGHTS, 1, m.k);
    }
    write_tile<Tiles::I, D>(c, dq, q, query, s.queries, sum, add);
}

static bool fits(const void *x, int64_t stride, size_t size) { return !x || four_at(x, stride, size); }

void cuda_attention_backward(const CudaQueue *queue, void *dq, void *dk, void *dv, const void *d_o, const void *o,
                             const float *lse, const void *q, const void *k, const void *v, const AttentionShape *s,
                             Dtype t, bool add) {
    if (cuda_attention_backward_mma(queue, dq, dk, dv, d_o, o, lse, q, k, v, s, t, add)) return;
    const size_t size = dtype_size(t);
    const int64_t rows = s->batch * s->heads * s->queries;
    AttentionCall c = attention_call(q, k, v, s, t);
    c.d_o = d_o;
    c.lse = const_cast<float *>(lse);
    c.delta = static_cast<float *>(queue->scratch(queue->owner, static_cast<size_t>(rows) * sizeof(float)));
    c.packed = packed_at(c) && fits(dq, s->q_stride, size) && fits(dk, s->k_stride, size) &&
               fits(dv, s->v_stride, size) && fits(d_o, s->o_stride, size) && fits(o, s->o_stride, size);
    launch_tiles<attention_delta_kernel>(queue, divide_up<int64_t>(rows, ATTENTION_THREADS / WARP), 0, c, o);
    with_head_size(s->head_size, [&](auto head_size) {
        constexpr int D = decltype(head_size)::value;
        typedef BackwardTiles<D> Tiles;
        const size_t shared = Tiles::FLOATS * sizeof(float);
        int64_t key_blocks = divide_up<int64_t>(s->keys, Tiles::KEYS) * s->kv_heads * s->batch;
        int64_t query_blocks = divide_up<int64_t>(s->queries, Tiles::QUERIES) * s->heads * s->batch;
        if (dk || dv) launch_tiles<attention_keys_kernel<D>>(queue, key_blocks, shared, c, dk, dv, add);
        if (dq) launch_tiles<attention_queries_kernel<D>>(queue, query_blocks, shared, c, dq, add);
    });
}
