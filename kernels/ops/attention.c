/* Attention with interval masks and grouped queries, in tiles (Dao et al. 2022; Ainslie et al. 2023). Forward keeps the
 * logsumexp of each query's scores; backward forms the probabilities again from it, tile by tile. The arithmetic is
 * the backend's; here are shapes, strides and who gets which gradient.
 * B batch, T queries, S keys, H heads, K key-value heads, D head size. */
#include "base/error.h"
#include "kernels/example.h"
#include "kernels/ops.h"

enum { Q, KV, RANGE };                  // inputs
enum { A_HEADS, A_KV_HEADS, A_CAUSAL }; // attributes
enum { LSE };                           // saved: (B, H, T) F32

typedef struct Parts { // where q, k and v start in their tensors, in elements
    AttentionShape shape;
    int64_t k_at, v_at;
} Parts;

static Parts parts_of(const Node *n) {
    const Tensor *q = n->in[Q], *kv = n->in[KV];
    int64_t heads = n->attributes.i[A_HEADS], kv_heads = n->attributes.i[A_KV_HEADS];
    int64_t packed = kv ? 0 : 2 * kv_heads; // heads of q's row that are keys and values
    int64_t size = tensor_width(q) / (heads + packed);
    Parts p = {.shape = {.batch = q->shape[0],
                         .queries = q->shape[1],
                         .keys = kv ? kv->shape[1] : q->shape[1],
                         .heads = (int)heads,
                         .kv_heads = (int)kv_heads,
                         .head_size = (int)size,
                         .q_stride = tensor_width(q),
                         .k_stride = tensor_width(kv ? kv : q),
                         .v_stride = tensor_width(kv ? kv : q),
                         .o_stride = heads * size,
                         .causal = n->attributes.i[A_CAUSAL] != 0,
                         .range = n->in[RANGE] ? n->in[RANGE]->data : NULL}};
    p.k_at = kv ? 0 : heads * size;
    p.v_at = p.k_at + kv_heads * size;
    return p;
}

static void *element(void *data, int64_t index, Dtype t) {
    return data ? (char *)data + (size_t)index * dtype_size(t) : NULL;
}

static const char *attention_infer(Node *n) {
    Tensor *q = n->in[Q], *kv = n->in[KV], *range = n->in[RANGE];
    int64_t heads = n->attributes.i[A_HEADS], kv_heads = n->attributes.i[A_KV_HEADS];
    if (heads < 1 || kv_heads < 1 || heads % kv_heads) return "attention: kv_heads must divide heads";
    if (q->rank != 3 || (q->dtype != F32 && q->dtype != BF16)) return "attention: q must be F32 or BF16, (B, T, ..)";
    int64_t packed = kv ? 0 : 2 * kv_heads;
    if (tensor_width(q) % (heads + packed)) return "attention: q's width must be H D, or (H + 2 K) D where packed";
    int64_t size = tensor_width(q) / (heads + packed);
    if (kv &&
        (kv->rank != 3 || kv->dtype != q->dtype || kv->shape[0] != q->shape[0] || kv->shape[2] != 2 * kv_heads * size))
        return "attention: kv must be (B, S, 2 K D) of q's type";
    if (range && (range->dtype != I32 || range->rank != 3 || range->shape[0] != q->shape[0] ||
                  range->shape[1] != q->shape[1] || range->shape[2] != 2))
        return "attention: range must be I32, (B, T, 2)";
    tape_output(n, q->dtype, SHAPE(q->shape[0], q->shape[1], heads * size));
    tape_keep(n, LSE, F32, SHAPE(q->shape[0], heads, q->shape[1]));
    return NULL;
}

static void attention_forward(Node *n) {
    Backend *be = tape_backend(n->tape);
    Parts p = parts_of(n);
    Tensor *q = n->in[Q], *kv = n->in[KV] ? n->in[KV] : q;
    be->attention_forward(be, n->out->data, n->saved[LSE]->data, q->data, element(kv->data, p.k_at, q->dtype),
                          element(kv->data, p.v_at, q->dtype), &p.shape, q->dtype);
}

// dq, dkv: the gradients of whole tensors, either may be NULL.
static void run_backward(Node *n, void *dq, void *dkv, bool add) {
    Backend *be = tape_backend(n->tape);
    Parts p = parts_of(n);
    Dtype t = n->in[Q]->dtype;
    Tensor *kv = n->in[KV] ? n->in[KV] : n->in[Q];
    be->attention_backward(be, dq, element(dkv, p.k_at, t), element(dkv, p.v_at, t), n->out->grad, n->out->data,
                           n->saved[LSE]->data, n->in[Q]->data, element(kv->data, p.k_at, t),
                           element(kv->data, p.v_at, t), &p.shape, t, add);
}

static void attention_backward(Node *n, unsigned wanted) {
    Destination q = WANTS(wanted, Q) ? grad_of(n, Q) : (Destination){0};
    if (!n->in[KV]) {
        if (q.data) run_backward(n, q.data, q.data, q.add);
        return;
    }
    Destination kv = WANTS(wanted, KV) ? grad_of(n, KV) : (Destination){0};
    if (q.data && kv.data && q.add == kv.add) {
        run_backward(n, q.data, kv.data, q.add);
        return;
    }
    if (q.data) run_backward(n, q.data, NULL, q.add);
    if (kv.data) run_backward(n, NULL, kv.data, kv.add);
}

static unsigned attention_reads(const Node *n) {
    (void)n;
    return 1u << Q | 1u << KV | 1u << RANGE | READS_OUTPUT;
}

// Masks by range count as full: how many keys they leave is known only on the device.
static Cost attention_cost(const Node *n) {
    AttentionShape s = parts_of(n).shape;
    double queries = (double)s.queries, pairs = queries * (double)s.keys;
    if (s.causal && !s.range) pairs = queries * ((double)(s.keys - s.queries) + (queries + 1) / 2);
    double size = (double)dtype_size(n->in[Q]->dtype) * (double)s.batch * s.head_size;
    double q_bytes = size * queries * s.heads, kv_bytes = size * (double)s.keys * s.kv_heads * 2;
    double products = 2 * (double)s.batch * s.heads * s.head_size * pairs; // one of q k^T, p v, ..
    return (Cost){.flop = 2 * products,
                  .bytes = 2 * q_bytes + kv_bytes,
                  .backward_flop = 5 * products,
                  .backward_bytes = 4 * q_bytes + 2 * kv_bytes};
}

static void example_range(Example *e, int64_t batch, int64_t queries, int64_t keys) {
    int32_t range[1024];
    check(batch * queries * 2 <= 1024);
    for (int64_t i = 0; i < batch * queries; i++) {
        range[2 * i] = (int32_t)rng_below(&e->rng, (uint64_t)keys);
        range[2 * i + 1] =
            range[2 * i] + (int32_t)rng_below(&e->rng, (uint64_t)(keys - range[2 * i] + 1)); // may be empty
    }
    example_constant(e, RANGE, I32, SHAPE(batch, queries, 2), range);
}

static void attention_example(Example *e) {
    e->variants = 5; // packed full, packed causal, grouped cross, packed with ranges, grouped causal with more keys
    bool large = e->size != EXAMPLE_SMALL, cross = e->variant == 2 || e->variant == 4;
    int64_t batch = large ? example_many(e, 4) : example_pick(e, 1, 3), queries = large ? 256 : example_pick(e, 1, 37);
    int64_t keys = !cross ? queries : large ? 512 : queries + example_pick(e, 0, 40);
    int kv_heads = large ? 4 : (int)example_pick(e, 1, 2), heads = kv_heads * (cross ? 2 : 1);
    int64_t size = large ? 64 : 4 * example_pick(e, 1, 9);
    double std = e->size != EXAMPLE_SMALL ? 1.0 : 0.7;
    int64_t width = (cross ? heads : heads + 2 * kv_heads) * size;
    Tensor *q = example_tensor(e, Q, false, std, SHAPE(batch, queries, width));
    Tensor *kv = cross ? example_tensor(e, KV, false, std, SHAPE(batch, keys, 2 * kv_heads * size)) : NULL;
    if (e->variant == 3 && !large) example_range(e, batch, queries, keys);
    Heads how = {.heads = heads, .kv_heads = kv_heads, .causal = e->variant == 1 || e->variant == 4};
    e->out = attention(e->tape, q, kv, e->in[RANGE], how);
}

const Operator op_attention = {
    .name = "attention",
    .formula = "o[i] = sum over j of softmax_j(q[i] . k[j] / sqrt(D)) v[j]",
    .infer = attention_infer,
    .forward = attention_forward,
    .backward = attention_backward,
    .cost = attention_cost,
    .reads = attention_reads,
    .example = attention_example,
};

Tensor *attention(Tape *tape, Tensor *q, Tensor *kv, Tensor *range, Heads how) {
    Attributes a = {.i = {[A_HEADS] = how.heads, [A_KV_HEADS] = how.kv_heads, [A_CAUSAL] = how.causal}};
    return tape_apply(tape, &op_attention, &a, 3, (Tensor *[]){q, kv, range});
}
