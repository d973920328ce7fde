/* What all attention kernels share: a call's arguments, where a head's rows lie, and the interval of keys that each
 * query sees. B batch, T queries, S keys, H heads, K key-value heads, D head size. */
#pragma once
#include "kernels/cuda/attention.h"
#include "kernels/cuda/language.h"
#include <math.h>

enum { ATTENTION_THREADS = 128 };

static constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

struct AttentionCall {
    AttentionShape shape;
    const void *q, *k, *v, *d_o;
    float *lse, *delta; // (B, H, T); delta: the sum of d_o o over a head
    float scale;        // 1 / sqrt(D)
    bool bf16, packed;  // packed: four elements at a time may be read and written everywhere (f32 kernels)
    bool none[2] = {};
};

// Where one head's rows of one batch element lie.
struct HeadRows {
    const void *data;
    int64_t first, stride; // elements
};

__device__ __forceinline__ HeadRows head_rows(const void *data, int64_t batch, int64_t rows, int64_t stride, int head,
                                              int size) {
    return HeadRows{data, batch * rows * stride + static_cast<int64_t>(head) * size, stride};
}

struct Interval { // of keys: [first, end)
    int first, end;
};

// The keys that a query sees; none for a query beyond the last.
__device__ __forceinline__ Interval keys_of(const AttentionShape &s, int64_t batch, int64_t query) {
    Interval all = {0, static_cast<int>(s.keys)};
    if (query >= s.queries) return Interval{0, 0};
    if (s.range) {
        const int32_t *range = s.range + (batch * s.queries + query) * 2;
        all.first = larger(range[0], 0);
        all.end = smaller(range[1], all.end);
    } else if (s.causal) {
        all.end = static_cast<int>(smaller(s.keys, query + 1 + s.keys - s.queries));
    }
    return all.first < all.end ? all : Interval{0, 0};
}

__device__ __forceinline__ bool sees(Interval keys, int64_t key) { return key >= keys.first && key < keys.end; }

// A launch with more shared memory than a kernel gets unasked.
template <auto Kernel, class... A>
static void launch_tiles(const CudaQueue *q, int64_t blocks, size_t shared, const A &...arguments) {
    if (blocks <= 0) return;
    allow_shared<Kernel>(shared); // which is the kernel's own
    launch<Kernel>(dim3(static_cast<unsigned>(blocks)), dim3(ATTENTION_THREADS), shared, q, arguments...);
}

static inline AttentionCall attention_call(const void *q, const void *k, const void *v, const AttentionShape *s,
                                           Dtype t) {
    AttentionCall c = {};
    c.shape = *s;
    c.q = q, c.k = k, c.v = v;
    c.scale = 1 / sqrtf(static_cast<float>(s->head_size));
    c.bf16 = t == BF16;
    return c;
}
