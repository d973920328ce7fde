/* Attention backward on tensor cores, without atomics and so with the same bits in every run: one kernel holds a tile
 * of keys and values still while queries go by (dk, dv; the queries of all heads of a group in turn), one a tile of
 * queries while keys go by (dq). Both form the probabilities again from the kept logsumexp, p = exp(s - lse), and their
 * gradient ds = p (do v^T - delta) / sqrt(D), delta = sum of do o; both stay in registers: the first kernel forms them
 * transposed. The next rows are copied while these are computed with. See attention_mma.h. */
#include "kernels/cuda/attention_mma.h"

// MOVING: as many as a warp has lanes, which form the spans of as many queries.
template <int D, int SLABS> struct BackwardMma {
    static constexpr int STILL = ATTENTION_WARPS * SLABS * SLAB, MOVING = WARP;
    static constexpr int STILL_SIZE = STILL * MMA_ROW<D>, MOVING_SIZE = MOVING * MMA_ROW<D>;
    static constexpr size_t TILES = static_cast<size_t>(2 * STILL_SIZE + 4 * MOVING_SIZE) * sizeof(Bf16);
    static constexpr size_t BYTES = TILES + 2 * 2 * MOVING * sizeof(float); // and lse and delta of rows that go by
    static_assert(STILL_SIZE * sizeof(float) <= TILES, "results fit where tiles were");
};

struct BackwardCall {
    AttentionCall c;
    const Span *spans; // (B, tiles of MOVING queries) where the mask is by range, else NULL
    int64_t add;       // or 0
};

// ---- what comes first: delta, and the spans of tiles of queries ----

// LANES threads take a row of a head, eight elements each. Rows follow each other as they lie in memory.
template <int LANES>
static __global__ void __launch_bounds__(ATTENTION_THREADS) attention_delta_mma_kernel(AttentionCall c, const void *o) {
    const AttentionShape &s = c.shape;
    const int64_t row = (static_cast<int64_t>(blockIdx.x) * ATTENTION_THREADS + threadIdx.x) / LANES;
    const int d = static_cast<int>(threadIdx.x) % LANES * 8, head = static_cast<int>(row % s.heads);
    const int64_t position = row / s.heads; // batch * T + query
    const bool there = row < s.batch * s.queries * s.heads;
    float sum = 0;
    if (there && d < s.head_size) {
        const int64_t at = position * s.o_stride + static_cast<int64_t>(head) * s.head_size + d;
        const Floats<8> x = load<8>(static_cast<const Bf16 *>(o) + at),
                        y = load<8>(static_cast<const Bf16 *>(c.d_o) + at);
#pragma unroll
        for (int e = 0; e < 8; e++) sum += x.at[e] * y.at[e];
    }
#pragma unroll
    for (int apart = LANES / 2; apart > 0; apart /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, apart);
    if (there && d == 0) c.delta[(position / s.queries * s.heads + head) * s.queries + position % s.queries] = sum;
}

static __device__ __forceinline__ Span span_of_tile(const AttentionShape &s, int64_t batch, int64_t query) {
    return warp_joined(joined(no_span(), keys_of(s, batch, query + lane_of_thread())));
}

// A warp takes a tile.
static __global__ void __launch_bounds__(ATTENTION_THREADS)
    attention_spans_kernel(AttentionShape s, Span *spans, int64_t tiles) {
    const int64_t tile = static_cast<int64_t>(blockIdx.x) * ATTENTION_WARPS + warp_of_thread();
    if (tile >= s.batch * tiles) return;
    const Span span = span_of_tile(s, tile / tiles, tile % tiles * WARP);
    if (lane_of_thread() == 0) spans[tile] = span;
}

static __device__ __forceinline__ Span span_at(const BackwardCall &b, int64_t batch, int64_t tile, int64_t tiles) {
    if (b.spans) return b.spans[batch * tiles + tile];
    const AttentionShape &s = b.c.shape;
    const int64_t first = tile * WARP, last = smaller(first + WARP, s.queries) - 1;
    Span span = {keys_of(s, batch, last), keys_of(s, batch, first)}; // later queries see more
    if (first + WARP > s.queries) span.all.end = 0;                  // rows beyond the last see none
    return span;
}

// ---- products both kernels form ----

// Starts to copy both tiles that go by, from `row` on.
template <int D, int SLABS>
static __device__ __forceinline__ void copy_pair(Bf16 *tiles, HeadRows x, HeadRows y, int64_t row, int64_t rows,
                                                 int size) {
    typedef BackwardMma<D, SLABS> Tiles;
    copy_tile<Tiles::MOVING, D>(tiles, x, row, rows, size);
    copy_tile<Tiles::MOVING, D>(tiles + Tiles::MOVING_SIZE, y, row, rows, size);
}

// p or dp of a warp's rows from `own` on: rows that stand still times rows that go by.
template <int D, int SLABS>
static __device__ __forceinline__ void multiply(Fragments<SLABS, WARP> &out, const Bf16 *still, int own,
                                                const Bf16 *moving) {
    multiply_rows<SLABS, WARP, D, SLABS == 1 ? D / 16 : 1>(
        out, [&](uint32_t(&a)[4], int slab, int k) { left_operand<D>(a, still, own + slab * SLAB, 16 * k); }, moving);
}

static __device__ __forceinline__ float gradient_of_score(float p, float dp, float delta, float scale) {
    return p == 0 ? 0 : p * (dp - delta) * scale; // what is not seen passes nothing on, whatever it is
}

// ---- dq ----

template <int D, int SLABS>
static __global__ void __launch_bounds__(ATTENTION_THREADS, 2) attention_queries_mma_kernel(BackwardCall b, void *dq) {
    typedef BackwardMma<D, SLABS> Tiles;
    SHARED_DYNAMIC(Bf16, memory);
    SHARED(Interval, seen, Tiles::STILL + ATTENTION_WARPS);
    Bf16 *q_tile = memory, *d_o_tile = q_tile + Tiles::STILL_SIZE, *moving = d_o_tile + Tiles::STILL_SIZE;
    const AttentionCall &c = b.c;
    const AttentionShape &s = c.shape;
    const int64_t tiles = divide_up<int64_t>(s.queries, Tiles::STILL), which = blockIdx.x;
    const int64_t first = (tiles - 1 - which % tiles) * Tiles::STILL, batch = which / tiles / s.heads;
    const int head = static_cast<int>(which / tiles % s.heads), kv_head = head / (s.heads / s.kv_heads);
    const int own = warp_of_thread() * SLABS * SLAB;
    const HeadRows q = head_rows(c.q, batch, s.queries, s.q_stride, head, s.head_size);
    const HeadRows k = head_rows(c.k, batch, s.keys, s.k_stride, kv_head, s.head_size);
    const HeadRows v = head_rows(c.v, batch, s.keys, s.v_stride, kv_head, s.head_size);
    copy_tile<Tiles::STILL, D>(q_tile, q, first, s.queries, s.head_size);
    copy_tile<Tiles::STILL, D>(d_o_tile, head_rows(c.d_o, batch, s.queries, s.o_stride, head, s.head_size), first,
                               s.queries, s.head_size);
    const TileMask mask = mask_of<SLABS>(s, batch, first, seen);
    const int begin = mask.block.first / WARP * WARP;
    if (begin < mask.block.end) copy_pair<D, SLABS>(moving, k, v, begin, s.keys, s.head_size);
    copy_commit();
    float lse[SLABS][2], delta[SLABS][2];
#pragma unroll
    for (int i = 0; i < 2 * SLABS; i++) {
        const int64_t row = first + own + i / 2 * SLAB + lane_of_thread() / 4 + i % 2 * 8;
        const int64_t at = (batch * s.heads + head) * s.queries + smaller(row, s.queries - 1);
        lse[i / 2][i % 2] = c.lse[at] * LOG2_E, delta[i / 2][i % 2] = c.delta[at];
    }
    Fragments<SLABS, D> sum;
    clear(sum);
    int stage = 0;
    for (int key = begin; key < mask.block.end; key += WARP, stage ^= 1) {
        const Bf16 *k_tile = moving + stage * 2 * Tiles::MOVING_SIZE;
        copy_wait<0>();
        __syncthreads(); // these rows are there, those before have been read
        if (key + WARP < mask.block.end)
            copy_pair<D, SLABS>(moving + (stage ^ 1) * 2 * Tiles::MOVING_SIZE, k, v, key + WARP, s.keys, s.head_size);
        copy_commit();
        if (!overlap(mask.warp.any, key, key + WARP)) continue;
        const bool border = !holds(mask.warp.all, key, key + WARP);
        Fragments<SLABS, WARP> p, dp;
        multiply<D, SLABS>(p, q_tile, own, k_tile);
        multiply<D, SLABS>(dp, d_o_tile, own, k_tile + Tiles::MOVING_SIZE);
        const int column = key + lane_of_thread() % 4 * 2;
#pragma unroll
        for (int slab = 0; slab < SLABS; slab++)
#pragma unroll
            for (int j = 0; j < WARP / 8; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    float x = quick_exp2(p[slab][j][e] * (c.scale * LOG2_E) - lse[slab][e / 2]);
                    if (border && !sees(mask.rows[SLAB * slab + e / 2 * 8], column + 8 * j + e % 2)) x = 0;
                    p[slab][j][e] = gradient_of_score(x, dp[slab][j][e], delta[slab][e / 2], c.scale);
                }
        add_product<SLABS, WARP, D>(sum, p, k_tile);
    }
    copy_wait<0>();
    __syncthreads();
    write_slabs<SLABS, D>(reinterpret_cast<float *>(memory) + own * MMA_ROW<D>, dq, q, first + own, s.queries,
                          s.head_size, sum, b.add);
}

// ---- dk, dv ----

// Which tile of queries of which head of the group goes by: the heads of a tile follow each other.
struct Visit {
    int tile; // beyond the last: there are no more
    int head; // of the group
};

// From `v` on, the first that sees any of the keys [key, end).
static __device__ __forceinline__ Visit next_visit(const BackwardCall &b, int64_t batch, Visit v, int tiles,
                                                   int sharers, int key, int end) {
    if (v.head == sharers) v.head = 0, v.tile++;
    if (v.head == 0)
        while (v.tile < tiles && !overlap(span_at(b, batch, v.tile, tiles).any, key, end)) v.tile++;
    return v;
}

// What goes by: queries, gradients of outputs, and behind both stages' tiles lse and delta.
template <int D, int SLABS>
static __device__ __forceinline__ void copy_visit(Bf16 *moving, int stage, const AttentionCall &c, int64_t batch,
                                                  int head, int64_t query) {
    typedef BackwardMma<D, SLABS> Tiles;
    const AttentionShape &s = c.shape;
    copy_pair<D, SLABS>(
        moving + stage * 2 * Tiles::MOVING_SIZE, head_rows(c.q, batch, s.queries, s.q_stride, head, s.head_size),
        head_rows(c.d_o, batch, s.queries, s.o_stride, head, s.head_size), query, s.queries, s.head_size);
    float *rows = reinterpret_cast<float *>(moving + 4 * Tiles::MOVING_SIZE) + stage * 2 * WARP;
    const int i = static_cast<int>(threadIdx.x), lane = lane_of_thread();
    if (i < 2 * WARP) {
        const bool there = query + lane < s.queries;
        const int64_t at = (batch * s.heads + head) * s.queries + query + lane;
        copy_async<4>(rows + i, (i < WARP ? c.lse : c.delta) + (there ? at : 0), there);
    }
}

// Products of a warp's keys from `key` on and the queries from `query` on become probabilities, transposed.
template <int SLABS>
static __device__ __forceinline__ void form_probabilities(Fragments<SLABS, WARP> &p, const AttentionCall &c,
                                                          const float *rows, bool border, int64_t batch, int64_t query,
                                                          int key) {
    const int g = lane_of_thread() / 4, t = lane_of_thread() % 4;
#pragma unroll
    for (int j = 0; j < WARP / 8; j++) {
        const int column = 8 * j + 2 * t;
        const Floats<2> lse = load<2>(rows + column);
        Interval seen[2] = {};
        if (border) {
            seen[0] = keys_of(c.shape, batch, query + column);
            seen[1] = keys_of(c.shape, batch, query + column + 1);
        }
#pragma unroll
        for (int slab = 0; slab < SLABS; slab++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float x = quick_exp2(p[slab][j][e] * (c.scale * LOG2_E) - lse.at[e % 2] * LOG2_E);
                if (border && !sees(seen[e % 2], key + slab * SLAB + g + e / 2 * 8)) x = 0;
                p[slab][j][e] = x;
            }
    }
}

// dp becomes ds, transposed.
template <int SLABS>
static __device__ __forceinline__ void form_gradients(Fragments<SLABS, WARP> &dp, const Fragments<SLABS, WARP> &p,
                                                      const float *rows, float scale) {
#pragma unroll
    for (int j = 0; j < WARP / 8; j++) {
        const Floats<2> delta = load<2>(rows + WARP + 8 * j + lane_of_thread() % 4 * 2);
#pragma unroll
        for (int slab = 0; slab < SLABS; slab++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                dp[slab][j][e] = gradient_of_score(p[slab][j][e], dp[slab][j][e], delta.at[e % 2], scale);
    }
}

template <int D, int SLABS>
static __global__ void __launch_bounds__(ATTENTION_THREADS, 2)
    attention_keys_mma_kernel(BackwardCall b, void *dk, void *dv) {
    typedef BackwardMma<D, SLABS> Tiles;
    SHARED_DYNAMIC(Bf16, memory);
    Bf16 *k_tile = memory, *v_tile = k_tile + Tiles::STILL_SIZE, *moving = v_tile + Tiles::STILL_SIZE;
    const AttentionCall &c = b.c;
    const AttentionShape &s = c.shape;
    const int64_t tiles = divide_up<int64_t>(s.keys, Tiles::STILL), which = blockIdx.x,
                  batch = which / tiles / s.kv_heads;
    const int query_tiles = static_cast<int>(divide_up<int64_t>(s.queries, WARP));
    const int first = static_cast<int>(which % tiles) * Tiles::STILL,
              end = smaller(first + Tiles::STILL, static_cast<int>(s.keys));
    const int kv_head = static_cast<int>(which / tiles % s.kv_heads), sharers = s.heads / s.kv_heads;
    const int own = warp_of_thread() * SLABS * SLAB, own_end = smaller(first + own + SLABS * SLAB, end);
    const HeadRows k = head_rows(c.k, batch, s.keys, s.k_stride, kv_head, s.head_size);
    const HeadRows v = head_rows(c.v, batch, s.keys, s.v_stride, kv_head, s.head_size);
    copy_tile<Tiles::STILL, D>(k_tile, k, first, s.keys, s.head_size);
    copy_tile<Tiles::STILL, D>(v_tile, v, first, s.keys, s.head_size);
    Fragments<SLABS, D> k_sum, v_sum;
    clear(k_sum), clear(v_sum);
    Visit visit = next_visit(b, batch, Visit{0, 0}, query_tiles, sharers, first, end);
    if (visit.tile < query_tiles)
        copy_visit<D, SLABS>(moving, 0, c, batch, kv_head * sharers + visit.head,
                             static_cast<int64_t>(visit.tile) * WARP);
    copy_commit();
    for (int stage = 0; visit.tile < query_tiles; stage ^= 1) {
        const Bf16 *q_tile = moving + stage * 2 * Tiles::MOVING_SIZE, *d_o_tile = q_tile + Tiles::MOVING_SIZE;
        const Visit now = visit;
        copy_wait<0>();
        __syncthreads(); // these rows are there, those before have been read
        visit = next_visit(b, batch, Visit{now.tile, now.head + 1}, query_tiles, sharers, first, end);
        if (visit.tile < query_tiles)
            copy_visit<D, SLABS>(moving, stage ^ 1, c, batch, kv_head * sharers + visit.head,
                                 static_cast<int64_t>(visit.tile) * WARP);
        copy_commit();
        const Span span = span_at(b, batch, now.tile, query_tiles);
        if (!overlap(span.any, first + own, own_end)) continue;
        const float *rows = reinterpret_cast<const float *>(moving + 4 * Tiles::MOVING_SIZE) + stage * 2 * WARP;
        Fragments<SLABS, WARP> p, ds; // one after the other: both at once with the sums fill the registers
        multiply<D, SLABS>(p, k_tile, own, q_tile);
        form_probabilities<SLABS>(p, c, rows, !holds(span.all, first + own, own_end), batch,
                                  static_cast<int64_t>(now.tile) * WARP, first + own);
        add_product<SLABS, WARP, D>(v_sum, p, d_o_tile);
        multiply<D, SLABS>(ds, v_tile, own, d_o_tile);
        form_gradients<SLABS>(ds, p, rows, c.scale);
        add_product<SLABS, WARP, D>(k_sum, ds, q_tile);
    }
    copy_wait<0>();
    __syncthreads();
    float *rows = reinterpret_cast<float *>(memory) + own * MMA_ROW<D>;
    if (dk) write_slabs<SLABS, D>(rows, dk, k, first + own, s.keys, s.head_size, k_sum, b.add);
    if (dv) write_slabs<SLABS, D>(rows, dv, v, first + own, s.keys, s.head_size, v_sum, b.add);
}

// ---- launches ----

static void launch_delta(const CudaQueue *queue, const AttentionCall &c, const void *o) {
    const int64_t rows = c.shape.batch * c.shape.queries * c.shape.heads;
    with_bool(c.shape.head_size > 64, [&](auto wide) {
        constexpr int LANES = decltype(wide)::value ? 16 : 8;
        launch_tiles<attention_delta_mma_kernel<LANES>>(queue, divide_up<int64_t>(rows, ATTENTION_THREADS / LANES), 0,
                                                        c, o);
    });
}

// Two slabs to a warp where that leaves registers, and no block half empty.
template <int D, class F> static void with_slabs(int64_t rows, F f) {
    if constexpr (D <= 64) {
        if (rows > BackwardMma<D, 1>::STILL) return f(std::integral_constant<int, 2>{});
    }
    f(std::integral_constant<int, 1>{});
}

template <int D>
static void launch_backward(const CudaQueue *queue, const BackwardCall &b, void *dq, void *dk, void *dv) {
    const AttentionShape &s = b.c.shape;
    if (dk || dv)
        with_slabs<D>(s.keys, [&](auto slabs) {
            typedef BackwardMma<D, decltype(slabs)::value> Tiles;
            const int64_t blocks = divide_up<int64_t>(s.keys, Tiles::STILL) * s.kv_heads * s.batch;
            launch_tiles<attention_keys_mma_kernel<D, decltype(slabs)::value>>(queue, blocks, Tiles::BYTES, b, dk, dv);
        });
    if (dq)
        with_slabs<D>(s.queries, [&](auto slabs) {
            typedef BackwardMma<D, decltype(slabs)::value> Tiles;
            const int64_t blocks = divide_up<int64_t>(s.queries, Tiles::STILL) * s.heads * s.batch;
            launch_tiles<attention_queries_mma_kernel<D, decltype(slabs)::value>>(queue, blocks, Tiles::BYTES, b, dq);
        });
}

bool cuda_attention_backward_mma(const CudaQueue *queue, void *dq, void *dk, void *dv, const void *d_o, const void *o,
                                 const float *lse, const void *q, const void *k, const void *v, const AttentionShape *s,
                                 Dtype t, bool add) {
    if (!takes_mma(o, q, k, v, s, t) || !eight_at(d_o, s->o_stride) || !eight_at(dq, s->q_stride) ||
        !eight_at(dk, s->k_stride) || !eight_at(dv, s->v_stride))
        return false;
    if (s->batch == 0 || s->queries == 0 || s->keys == 0) return false;
    const int64_t rows = s->batch * s->heads * s->queries, tiles = divide_up<int64_t>(s->queries, WARP);
    const size_t spans = s->range ? static_cast<size_t>(s->batch * tiles) * sizeof(Span) : 0;
    char *memory = static_cast<char *>(queue->scratch(queue->owner, spans + static_cast<size_t>(rows) * sizeof(float)));
    BackwardCall b = {attention_call(q, k, v, s, t), spans ? reinterpret_cast<Span *>(memory) : nullptr, add};
    b.c.d_o = d_o;
    b.c.lse = const_cast<float *>(lse);
    b.c.delta = reinterpret_cast<float *>(memory + spans);
    launch_delta(queue, b.c, o);
    if (spans)
        launch_tiles<attention_spans_kernel>(queue, divide_up<int64_t>(s->batch * tiles, ATTENTION_WARPS), 0, *s,
                                             reinterpret_cast<Span *>(memory), tiles);
    with_mma_head_size(s->head_size, [&](auto size) { launch_backward<decltype(size)::value>(queue, b, dq, dk, dv); });
    return true;
}
