/* See work_space.h. */
#include "kernels/cuda/host/work_space.h"

static int64_t up(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

LogitsChunk work_logits(int64_t n, int64_t words, Dtype t) {
    int64_t size = (int64_t)dtype_size(t),
            stride = up(words > 0 ? words : 1, WORK_LOGITS_PADDING) * WORK_LOGITS_PADDING;
    int64_t rows = WORK_LOGITS / (stride * size) / WORK_LOGITS_ROWS_UNIT * WORK_LOGITS_ROWS_UNIT;
    rows = least(n, rows > WORK_LOGITS_ROWS_UNIT ? rows : WORK_LOGITS_ROWS_UNIT);
    return (LogitsChunk){rows, stride, (size_t)(rows * stride * size)};
}

size_t work_fp8(int64_t outer, int64_t k) {
    return (size_t)(up(outer * k, WORK_SCRATCH_ALIGNMENT) * WORK_SCRATCH_ALIGNMENT);
}

size_t work_sort(int64_t rows) {
    return (size_t)(4 * up(rows, 4) * 4 + WORK_SORT_DIGITS * up(rows, WORK_SORT_TILE)) * sizeof(int32_t);
}

size_t work_scatter(int64_t rows, int64_t width) {
    size_t sums = (size_t)up(up(rows, WORK_SCATTER_CHUNK) * width * (int64_t)sizeof(float), 16) * 16;
    return (work_sort(rows) + 15) / 16 * 16 + 2 * sums;
}

// What cuDNN takes for one element of the batch, in bytes.
static int64_t pairs_of(int64_t queries, int64_t keys, int64_t heads, int64_t kv_heads, int64_t head_size) {
    enum { QUERIES = 64, KEYS = 128 };
    int64_t pairs = heads * up(queries, QUERIES) * QUERIES * up(keys, KEYS) * KEYS * 2;
    return pairs + (heads == kv_heads ? 0 : 2 * heads * keys * head_size * 2);
}

int64_t work_attention_slice(int64_t batch, int64_t queries, int64_t keys, int64_t heads, int64_t kv_heads,
                             int64_t head_size) {
    int64_t most = WORK_SDPA / pairs_of(queries, keys, heads, kv_heads, head_size);
    return most > 0 ? up(batch, up(batch, most)) : batch; // slices as equal as may be
}

size_t work_attention_backward(int64_t batch, int64_t queries, int64_t keys, int64_t heads, int64_t kv_heads,
                               int64_t head_size, bool cudnn) {
    enum { SPAN = 16, TILE = 32 };
    int64_t own = batch * (heads * queries * (int64_t)sizeof(float) + up(queries, TILE) * SPAN);
    int64_t slice = work_attention_slice(batch, queries, keys, heads, kv_heads, head_size);
    int64_t pairs = slice * pairs_of(queries, keys, heads, kv_heads, head_size);
    return (size_t)(cudnn && pairs <= WORK_SDPA ? own + pairs : own);
}
