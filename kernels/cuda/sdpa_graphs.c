/* See sdpa_graphs.h. Forward: s = scale q k^T, masked; m = max s; e = exp(s - m); l = sum e; o = (e / l) v; stats = m +
 * log l. Backward: delta = sum do o; p = exp(s - stats); dv = p^T do; ds = scale p (do v^T - delta); dk = ds^T q; dq =
 * ds k. With grouped heads dk and dv are formed for every head and summed. dq goes through a sum in f32 where its order
 * may change, and is one product where it may not: this is what tells the library's two ways of doing it apart. */
#include "kernels/cuda/sdpa_graphs.h"

typedef struct Graph {
    CudnnGraph *g;
    SdpaKey k;
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
static CudnnTensor of_queries(const Graph *x, int64_t name, int64_t columns) { // (B, H, T, columns) f32 in memory
    int64_t dim[4] = {x->k.batch, x->k.heads, x->k.queries, columns};
    int64_t strides[4] = {x->k.heads * x->k.queries * columns, x->k.queries * columns, columns, 1};
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

static CudnnTensor products(const Graph *x, CudnnTensor q, CudnnTensor k_turned, CudnnTensor scale) {
    CudnnTensor s = cudnn_matmul(x->g, q, k_turned, of_pairs(x, CUDNN_DATA_FLOAT));
    return pairwise(x, CUDNN_POINTWISE_MUL, s, scale);
}
static CudnnTensor masked(const Graph *x, CudnnTensor s) {
    if (!x->k.causal) return s;
    CudnnTensor seen = cudnn_pointwise(x->g, CUDNN_POINTWISE_CMP_GE, numbers(x, s, 2), numbers(x, s, 3), NULL,
                                       of_pairs(x, CUDNN_DATA_BOOLEAN), 0);
    return cudnn_pointwise(x->g, CUDNN_POINTWISE_BINARY_SELECT, s, cudnn_value(x->g, SDPA_HIDDEN), seen,
                           of_pairs(x, CUDNN_DATA_FLOAT), 0);
}

static void forward(const Graph *x) {
    const SdpaKey *k = &x->k;
    CudnnTensor s = products(x, queries(x, SDPA_Q, k->q_stride), key_rows(x, SDPA_K, k->k_stride, true),
                             cudnn_value(x->g, SDPA_SCALE));
    s = masked(x, s);
    CudnnTensor most = cudnn_reduce(x->g, CUDNN_REDUCE_TENSOR_MAX, s, between(x, CUDNN_DATA_FLOAT, 1));
    CudnnTensor e = pairwise(x, CUDNN_POINTWISE_EXP, pairwise(x, CUDNN_POINTWISE_SUB, s, most), NULL);
    CudnnTensor sum = cudnn_reduce(x->g, CUDNN_REDUCE_TENSOR_ADD, e, between(x, CUDNN_DATA_FLOAT, 1));
    CudnnTensor log_sum =
        cudnn_pointwise(x->g, CUDNN_POINTWISE_LOG, sum, NULL, NULL, between(x, CUDNN_DATA_FLOAT, 1), 0);
    cudnn_pointwise(x->g, CUDNN_POINTWISE_ADD, most, log_sum, NULL, of_queries(x, SDPA_STATS, 1), 0);
    CudnnTensor p = cudnn_pointwise(x->g, CUDNN_POINTWISE_DIV, e, sum, NULL, of_pairs(x, CUDNN_DATA_BFLOAT16), 0);
    cudnn_matmul(x->g, p, key_rows(x, SDPA_V, k->v_stride, false), queries(x, SDPA_O, k->heads * k->size));
}

// dk or dv: weights (B, H, S, T) times rows (B, H, T, D), summed over the heads of a group.
static void over_queries(const Graph *x, CudnnTensor weights, CudnnTensor rows, int64_t name, int64_t stride) {
    const SdpaKey *k = &x->k;
    CudnnTensor out = key_rows(x, name, stride, false);
    if (k->heads == k->kv_heads) {
        cudnn_matmul(x->g, weights, rows, out);
        return;
    }
    int64_t dim[4] = {k->batch, k->heads, k->keys, k->size};
    CudnnTensor of_heads = cudnn_matmul(x->g, weights, rows, cudnn_between(x->g, CUDNN_DATA_BFLOAT16, dim, false));
    cudnn_reduce(x->g, CUDNN_REDUCE_TENSOR_ADD, of_heads, out);
}

static void write_dq(const Graph *x, CudnnTensor ds, CudnnTensor k_turned) {
    const SdpaKey *k = &x->k;
    int64_t dim[4] = {k->batch, k->kv_heads, k->keys, k->size};
    int64_t strides[4] = {k->keys * k->k_stride, k->size, k->k_stride, 1};
    CudnnTensor keys = cudnn_reshape(x->g, k_turned, cudnn_between_at(x->g, CUDNN_DATA_BFLOAT16, dim, strides));
    CudnnTensor dq = queries(x, SDPA_DQ, k->q_stride);
    if (k->steady) {
        cudnn_matmul(x->g, ds, keys, dq);
        return;
    }
    CudnnTensor sum = cudnn_matmul(x->g, ds, keys, of_queries(x, SDPA_DQ_SUM, k->size));
    cudnn_pointwise(x->g, CUDNN_POINTWISE_IDENTITY, sum, NULL, NULL, dq, 0);
}

static void backward(const Graph *x) {
    const SdpaKey *k = &x->k;
    int64_t width = k->heads * k->size;
    CudnnTensor q = queries(x, SDPA_Q, k->q_stride), k_turned = key_rows(x, SDPA_K, k->k_stride, true);
    CudnnTensor d_o = queries(x, SDPA_D_O, width), scale = cudnn_value(x->g, SDPA_SCALE);
    CudnnTensor delta = cudnn_pointwise(x->g, CUDNN_POINTWISE_MUL, d_o, queries(x, SDPA_O, width), NULL,
                                        between(x, CUDNN_DATA_FLOAT, k->size), 0);
    delta = cudnn_reduce(x->g, CUDNN_REDUCE_TENSOR_ADD, delta, between(x, CUDNN_DATA_FLOAT, 1));
    delta = cudnn_pointwise(x->g, CUDNN_POINTWISE_MUL, delta, cudnn_value(x->g, SDPA_ONE), NULL,
                            of_queries(x, SDPA_DELTA, 1), 0);
    CudnnTensor s = products(x, q, k_turned, scale);
    s = masked(x, pairwise(x, CUDNN_POINTWISE_SUB, s, of_queries(x, SDPA_STATS, 1)));
    CudnnTensor p = pairwise(x, CUDNN_POINTWISE_EXP, s, NULL);
    over_queries(x, turned(x, p), d_o, SDPA_DV, k->v_stride);
    CudnnTensor dp = cudnn_matmul(x->g, d_o, key_rows(x, SDPA_V, k->v_stride, true), of_pairs(x, CUDNN_DATA_FLOAT));
    CudnnTensor ds = pairwise(x, CUDNN_POINTWISE_MUL, pairwise(x, CUDNN_POINTWISE_SUB, dp, delta), p);
    ds = pairwise(x, CUDNN_POINTWISE_MUL, ds, scale);
    over_queries(x, turned(x, ds), q, SDPA_DK, k->k_stride);
    write_dq(x, ds, k_turned);
}

CudnnGraph *sdpa_graph(Cudnn *cudnn, const SdpaKey *key) {
    Graph x = {cudnn_graph_new(cudnn), *key};
    if (key->backward)
        backward(&x);
    else
        forward(&x);
    return x.g;
}
