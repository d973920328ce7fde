/* Reference of attention: whole rows of scores, one query at a time. See reference.h. */
#include "tests/kernels/reference.h"
#include <math.h>
#include <stdlib.h>

typedef struct Shape {
    int64_t heads, kv_heads, size, queries, keys, q_width, kv_width, k_at, v_at; // k_at, v_at: in a row of keys
    bool causal;
} Shape;

static Shape shape_of(const Node *call) {
    const Tensor *q = call->in[0], *kv = call->in[1];
    Shape s = {.heads = call->attributes.i[0], .kv_heads = call->attributes.i[1], .causal = call->attributes.i[2] != 0};
    s.size = tensor_width(call->out) / s.heads;
    s.queries = q->shape[1];
    s.q_width = tensor_width(q);
    s.keys = kv ? kv->shape[1] : s.queries;
    s.kv_width = kv ? tensor_width(kv) : s.q_width;
    s.k_at = kv ? 0 : s.heads * s.size;
    s.v_at = s.k_at + s.kv_heads * s.size;
    return s;
}

// out (D) = the output of one query q (D) over keys [first, end); keys, values: key 0 of this head.
static void one_query(double *out, const double *q, const double *keys, const double *values, int64_t first,
                      int64_t end, const Shape *s) {
    double total = 0, most = -INFINITY;
    double *p = malloc((size_t)s->keys * sizeof *p);
    for (int64_t j = first; j < end; j++) {
        double dot = 0;
        for (int64_t d = 0; d < s->size; d++) dot += q[d] * keys[j * s->kv_width + d];
        p[j] = dot / sqrt((double)s->size);
        most = fmax(most, p[j]);
    }
    for (int64_t j = first; j < end; j++) total += p[j] = exp(p[j] - most);
    for (int64_t d = 0; d < s->size; d++) {
        out[d] = 0;
        for (int64_t j = first; j < end; j++) out[d] += p[j] / total * values[j * s->kv_width + d];
    }
    free(p);
}

void reference_attention(const Node *call, double *const in[], double *out) {
    Shape s = shape_of(call);
    const double *kv = in[1] ? in[1] : in[0], *range = in[2];
    for (int64_t b = 0; b < call->in[0]->shape[0]; b++)
        for (int64_t i = 0; i < s.queries; i++)
            for (int64_t h = 0; h < s.heads; h++) {
                int64_t row = b * s.queries + i, shared = h / (s.heads / s.kv_heads) * s.size;
                const double *keys = kv + b * s.keys * s.kv_width + s.k_at + shared, *values = keys + s.v_at - s.k_at;
                int64_t first = range ? (int64_t)range[2 * row] : 0;
                int64_t end = range ? (int64_t)range[2 * row + 1] : s.causal ? i + 1 + s.keys - s.queries : s.keys;
                one_query(out + (row * s.heads + h) * s.size, in[0] + row * s.q_width + h * s.size, keys, values, first,
                          end, &s);
            }
}
