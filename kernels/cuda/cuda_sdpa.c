/* See cuda_sdpa.h. Forward: S = scale Q K^T, masked; M = max S; E = exp(S - M); L = sum E; O = (E / L) V; stats = M +
 * log L. Backward: P = exp(S - stats); dV = P^T dO; dS = scale P (dO V^T - sum dO O); dQ = dS K; dK = dS^T Q. B batch,
 * T queries, S keys, H heads, K key-value heads, D head size. */
#include "kernels/cuda/cuda_sdpa.h"
#include "base/error.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/cudnn_graph.h"
#include "kernels/cuda/host/product_layout.h"
#include "kernels/cuda/host/shape_cache.h"
#include <math.h>
#include <stdlib.h>

enum { Q = 1, K, V, O, STATS, SCALE, HIDDEN, K_TURNED, V_TURNED, D_O, DQ, DK, DV }; // names of tensors
enum { MOST_HEAD_SIZE = 128, UNIT = 8, MOST_MEMORY = 16 };

typedef struct Key {
    int64_t batch, queries, keys, heads, kv_heads, size, q_stride, k_stride, v_stride, causal, backward;
} Key;

typedef struct Plan {
    CudnnPlan *plan; // NULL: there is none, or its results were wrong
    bool believed;
} Plan;

struct CudaSdpa {
    Cudnn *cudnn;
    ShapeCache *plans; // Key -> Plan
};

static void plan_drop(void *value) { cudnn_plan_free(((Plan *)value)->plan); }

CudaSdpa *cuda_sdpa_new(CudaState *s) {
    Cudnn *cudnn = cudnn_open(s);
    if (!cudnn) return NULL;
    CudaSdpa *a = calloc(1, sizeof *a);
    check(a);
    *a = (CudaSdpa){cudnn, shape_cache_new(sizeof(Key), sizeof(Plan))};
    return a;
}

void cuda_sdpa_free(CudaSdpa *a) {
    if (!a) return;
    shape_cache_free(a->plans, plan_drop);
    cudnn_close(a->cudnn);
    free(a);
}

// ---- graphs ----

typedef struct Graph {
    CudnnGraph *g;
    Key k;
} Graph;

static CudnnTensor heads(const Graph *x, int64_t name, int64_t rows, int64_t heads_here, int64_t stride, bool turned) {
    int64_t dim[4] = {x->k.batch, heads_here, turned ? x->k.size : rows, turned ? rows : x->k.size};
    int64_t strides[4] = {rows * stride, x->k.size, turned ? 1 : stride, turned ? stride : 1};
    return cudnn_tensor(x->g, name, CUDNN_DATA_BFLOAT16, dim, strides);
}
static CudnnTensor queries(const Graph *x, int64_t name, int64_t stride) {
    return heads(x, name, x->k.queries, x->k.heads, stride, false);
}
static CudnnTensor key_rows(const Graph *x, int64_t name, int64_t stride, bool turned) {
    return heads(x, name, x->k.keys, x->k.kv_heads, stride, turned);
}
static CudnnTensor row_numbers(const Graph *x, int64_t name) { // (B, H, T, 1) in memory
    int64_t dim[4] = {x->k.batch, x->k.heads, x->k.queries, 1};
    int64_t strides[4] = {x->k.heads * x->k.queries, x->k.queries, 1, 1};
    return cudnn_tensor(x->g, name, CUDNN_DATA_FLOAT, dim, strides);
}
static CudnnTensor between(const Graph *x, cudnnDataType_t type, int64_t columns) { // (B, H, T, columns)
    int64_t dim[4] = {x->k.batch, x->k.heads, x->k.queries, columns};
    return cudnn_between(x->g, type, dim, false);
}
static CudnnTensor of_pairs(const Graph *x, cudnnDataType_t type) { return between(x, type, x->k.keys); }
static CudnnTensor turned(const Graph *x, CudnnTensor pairs) { // (B, H, S, T) bf16
    int64_t dim[4] = {x->k.batch, x->k.heads, x->k.keys, x->k.queries};
    return cudnn_reshape(x->g, pairs, cudnn_between(x->g, CUDNN_DATA_BFLOAT16, dim, true));
}
static CudnnTensor pairwise(const Graph *x, cudnnPointwiseMode_t mode, CudnnTensor a, CudnnTensor b) {
    return cudnn_pointwise(x->g, mode, a, b, NULL, of_pairs(x, CUDNN_DATA_FLOAT), 0);
}
static CudnnTensor numbers(const Graph *x, CudnnTensor scores, int64_t axis) { // of each pair's query or key
    return cudnn_pointwise(x->g, CUDNN_POINTWISE_GEN_INDEX, scores, NULL, NULL, of_pairs(x, CUDNN_DATA_INT32), axis);
}

static CudnnTensor scores(const Graph *x, CudnnTensor q, CudnnTensor scale) {
    CudnnTensor k = key_rows(x, K_TURNED, x->k.k_stride, true);
    CudnnTensor s = cudnn_matmul(x->g, q, k, of_pairs(x, CUDNN_DATA_FLOAT));
    s = pairwise(x, CUDNN_POINTWISE_MUL, s, scale);
    if (!x->k.causal) return s;
    CudnnTensor seen = cudnn_pointwise(x->g, CUDNN_POINTWISE_CMP_GE, numbers(x, s, 2), numbers(x, s, 3), NULL,
                                       of_pairs(x, CUDNN_DATA_BOOLEAN), 0);
    return cudnn_pointwise(x->g, CUDNN_POINTWISE_BINARY_SELECT, s, cudnn_value(x->g, HIDDEN), seen,
                           of_pairs(x, CUDNN_DATA_FLOAT), 0);
}

static CudnnPlan *plan_forward(CudaSdpa *a, const Key *key, size_t most_workspace) {
    Graph x = {cudnn_graph_new(a->cudnn), *key};
    CudnnTensor s = scores(&x, queries(&x, Q, key->q_stride), cudnn_value(x.g, SCALE));
    CudnnTensor most = cudnn_reduce(x.g, CUDNN_REDUCE_TENSOR_MAX, s, between(&x, CUDNN_DATA_FLOAT, 1));
    CudnnTensor e = pairwise(&x, CUDNN_POINTWISE_EXP, pairwise(&x, CUDNN_POINTWISE_SUB, s, most), NULL);
    CudnnTensor sum = cudnn_reduce(x.g, CUDNN_REDUCE_TENSOR_ADD, e, between(&x, CUDNN_DATA_FLOAT, 1));
    CudnnTensor log_sum =
        cudnn_pointwise(x.g, CUDNN_POINTWISE_LOG, sum, NULL, NULL, between(&x, CUDNN_DATA_FLOAT, 1), 0);
    cudnn_pointwise(x.g, CUDNN_POINTWISE_ADD, most, log_sum, NULL, row_numbers(&x, STATS), 0);
    CudnnTensor p = cudnn_pointwise(x.g, CUDNN_POINTWISE_DIV, e, sum, NULL, of_pairs(&x, CUDNN_DATA_BFLOAT16), 0);
    cudnn_matmul(x.g, p, key_rows(&x, V, key->v_stride, false), queries(&x, O, key->heads * key->size));
    return cudnn_plan_new(x.g, most_workspace);
}

static CudnnPlan *plan_backward(CudaSdpa *a, const Key *key, size_t most_workspace) {
    Graph x = {cudnn_graph_new(a->cudnn), *key};
    int64_t width = key->heads * key->size;
    CudnnTensor q = queries(&x, Q, key->q_stride), d_o = queries(&x, D_O, width), scale = cudnn_value(x.g, SCALE);
    CudnnTensor products = cudnn_pointwise(x.g, CUDNN_POINTWISE_MUL, d_o, queries(&x, O, width), NULL,
                                           between(&x, CUDNN_DATA_FLOAT, key->size), 0);
    CudnnTensor delta = cudnn_reduce(x.g, CUDNN_REDUCE_TENSOR_ADD, products, between(&x, CUDNN_DATA_FLOAT, 1));
    CudnnTensor s = pairwise(&x, CUDNN_POINTWISE_SUB, scores(&x, q, scale), row_numbers(&x, STATS));
    CudnnTensor p = pairwise(&x, CUDNN_POINTWISE_EXP, s, NULL);
    cudnn_matmul(x.g, turned(&x, p), d_o, key_rows(&x, DV, key->v_stride, false));
    CudnnTensor dp =
        cudnn_matmul(x.g, d_o, key_rows(&x, V_TURNED, key->v_stride, true), of_pairs(&x, CUDNN_DATA_FLOAT));
    CudnnTensor ds = pairwise(&x, CUDNN_POINTWISE_MUL, pairwise(&x, CUDNN_POINTWISE_SUB, dp, delta), p);
    ds = cudnn_pointwise(x.g, CUDNN_POINTWISE_MUL, ds, scale, NULL, of_pairs(&x, CUDNN_DATA_BFLOAT16), 0);
    cudnn_matmul(x.g, ds, key_rows(&x, K, key->k_stride, false), queries(&x, DQ, key->q_stride));
    cudnn_matmul(x.g, turned(&x, ds), q, key_rows(&x, DK, key->k_stride, false));
    return cudnn_plan_new(x.g, most_workspace);
}

// ---- what it can do ----

static bool aligned(const void *x, int64_t stride) { return pointer_alignment(x) >= 16 && stride % UNIT == 0; }

static bool fits(const AttentionShape *s, Dtype t, const void *q, const void *k, const void *v) {
    return t == BF16 && !s->range && s->head_size % UNIT == 0 && s->head_size <= MOST_HEAD_SIZE && s->batch > 0 &&
           s->queries > 0 && s->keys > 0 && (!s->causal || s->queries == s->keys) &&
           s->o_stride == (int64_t)s->heads * s->head_size && aligned(q, s->q_stride) && aligned(k, s->k_stride) &&
           aligned(v, s->v_stride);
}

static Key key_of(const AttentionShape *s, bool backward) {
    return (Key){.batch = s->batch,
                 .queries = s->queries,
                 .keys = s->keys,
                 .heads = s->heads,
                 .kv_heads = s->kv_heads,
                 .size = s->head_size,
                 .q_stride = s->q_stride,
                 .k_stride = s->k_stride,
                 .v_stride = s->v_stride,
                 .causal = s->causal,
                 .backward = backward};
}

static Plan *find_plan(CudaSdpa *a, Backend *b, const Key *key) {
    bool found;
    Plan *p = shape_cache_get(a->plans, key, &found);
    enum { MOST_WORKSPACE = 1 << 30 };
    if (!found) p->plan = key->backward ? plan_backward(a, key, MOST_WORKSPACE) : plan_forward(a, key, MOST_WORKSPACE);
    if (!found && !p->plan)
        log_info(cuda_state(b)->log,
                 "cuDNN has no plan for attention %s of %lld queries, %lld keys, heads of %lld: ours runs",
                 key->backward ? "backward" : "forward", (long long)key->queries, (long long)key->keys,
                 (long long)key->size);
    return p->plan ? p : NULL;
}

typedef struct Memory { // what a plan is given
    int count;
    int64_t name[MOST_MEMORY];
    void *at[MOST_MEMORY];
} Memory;

static void give(Memory *m, int64_t name, const void *at) {
    check(m->count < MOST_MEMORY);
    m->name[m->count] = name;
    m->at[m->count++] = (void *)at;
}

static bool run(CudaState *s, const Plan *p, Memory *m, const AttentionShape *shape) {
    float scale = 1 / sqrtf((float)shape->head_size), hidden = -INFINITY;
    give(m, SCALE, &scale);
    if (shape->causal) give(m, HIDDEN, &hidden);
    return cudnn_plan_run(p->plan, m->count, m->name, m->at, cuda_scratch(s, cudnn_plan_workspace(p->plan)));
}

// ---- whether it is to be believed ----

// Rows of `width` numbers, `stride` apart, in bf16: within the roundings of that type, taken over all of them.
static bool alike(Backend *b, const void *got, const void *want, int64_t rows, int64_t width, int64_t stride) {
    size_t count = (size_t)((rows - 1) * stride + width), bytes = count * sizeof(uint16_t);
    uint16_t *host = malloc(2 * bytes);
    double square = 0, difference = 0;
    check(host);
    b->download(b, host, got, bytes);
    b->download(b, host + count, want, bytes);
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t i = row * stride; i < row * stride + width; i++) {
            double x = (double)bf16_to_f32(host[i]), y = (double)bf16_to_f32(host[count + (size_t)i]);
            square += y * y, difference += (x - y) * (x - y);
        }
    }
    free(host);
    return difference <= 4e-4 * square + 1e-12; // 2 % of the root mean square
}

static bool settle(CudaState *s, Plan *p, bool right, const char *what) {
    p->believed = right;
    if (right) return true;
    log_warning(s->log, "cuDNN's attention %s differs from ours for a shape: ours runs", what);
    cudnn_plan_free(p->plan);
    p->plan = NULL;
    return false;
}

static void *space(CudaState *s, int64_t rows, int64_t stride) {
    return cuda_scratch(s, (size_t)(rows * stride) * sizeof(uint16_t));
}

bool cuda_sdpa_forward(CudaSdpa *a, Backend *b, void *o, float *lse, const void *q, const void *k, const void *v,
                       const AttentionShape *shape, Dtype t) {
    CudaState *s = cuda_state(b);
    if (!a || !fits(shape, t, q, k, v) || !aligned(o, shape->o_stride)) return false;
    Key key = key_of(shape, false);
    Plan *p = find_plan(a, b, &key);
    if (!p) return false;
    size_t mark = cuda_scratch_mark(s);
    Memory m = {0};
    give(&m, Q, q), give(&m, K_TURNED, k), give(&m, V, v), give(&m, O, o), give(&m, STATS, lse);
    bool ok = run(s, p, &m, shape);
    if (!p->believed) {
        int64_t rows = shape->batch * shape->queries;
        void *own = space(s, rows, shape->o_stride);
        CudaQueue queue = cuda_queue(s);
        cuda_attention_forward(&queue, own, cuda_scratch(s, (size_t)(rows * shape->heads) * sizeof(float)), q, k, v,
                               shape, t);
        ok = settle(s, p, ok && alike(b, o, own, rows, shape->o_stride, shape->o_stride), "forward");
    }
    cuda_scratch_rewind(s, mark);
    return ok;
}

bool cuda_sdpa_backward(CudaSdpa *a, Backend *b, void *dq, void *dk, void *dv, const void *d_o, const void *o,
                        const float *lse, const void *q, const void *k, const void *v, const AttentionShape *shape,
                        Dtype t) {
    CudaState *s = cuda_state(b);
    if (!a || !dq || !dk || !dv || !fits(shape, t, q, k, v) || shape->heads != shape->kv_heads ||
        !aligned(o, shape->o_stride) || !aligned(d_o, shape->o_stride) || !aligned(dq, shape->q_stride) ||
        !aligned(dk, shape->k_stride) || !aligned(dv, shape->v_stride))
        return false;
    Key key = key_of(shape, true);
    Plan *p = find_plan(a, b, &key);
    if (!p) return false;
    size_t mark = cuda_scratch_mark(s);
    Memory m = {0};
    give(&m, Q, q), give(&m, K, k), give(&m, K_TURNED, k), give(&m, V_TURNED, v), give(&m, O, o), give(&m, STATS, lse);
    give(&m, D_O, d_o), give(&m, DQ, dq), give(&m, DK, dk), give(&m, DV, dv);
    bool ok = run(s, p, &m, shape);
    if (!p->believed) {
        int64_t rows = shape->batch * shape->queries, key_count = shape->batch * shape->keys, width = shape->o_stride;
        void *own_q = space(s, rows, shape->q_stride), *own_k = space(s, key_count, shape->k_stride);
        void *own_v = space(s, key_count, shape->v_stride);
        CudaQueue queue = cuda_queue(s);
        cuda_attention_backward(&queue, own_q, own_k, own_v, d_o, o, lse, q, k, v, shape, t, false);
        ok = settle(s, p,
                    ok && alike(b, dq, own_q, rows, width, shape->q_stride) &&
                        alike(b, dk, own_k, key_count, width, shape->k_stride) &&
                        alike(b, dv, own_v, key_count, width, shape->v_stride),
                    "backward");
    }
    cuda_scratch_rewind(s, mark);
    return ok;
}
