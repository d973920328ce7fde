/* Cross-entropy over a projection: for a chunk of rows at a time a product makes the logits, in the activations' own
 * type, a pass over them finds the logsumexps (forward) or turns them into their gradient where they lie (backward),
 * and two more products make dx and dw of it. In training both happen in one go, while the logits are there: then the
 * loss costs three products, not four. So neither all logits nor any f32 copy of them are ever stored. N rows, C width,
 * V words held. */
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/host/work_space.h"
#include "kernels/cuda/kernels.h"

typedef struct Projection {
    Backend *backend;
    const void *x, *w; // (N, C), (V, C)
    void *logits;      // (chunk, stride)
    int64_t n, width, stride, chunk;
    int64_t words; // columns of the products: those held, or all of the stride where the table goes on that far
    Dtype t;
} Projection;

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static Projection projection(Backend *b, const void *x, const void *w, int64_t n, int64_t width, Vocabulary v,
                             Dtype t) {
    Projection p = {.backend = b, .x = x, .w = w, .n = n, .width = width, .t = t};
    LogitsChunk logits = work_logits(n, v.held, t);
    p.stride = logits.stride, p.chunk = logits.rows;
    p.words = v.held > 0 && v.held + v.spare >= p.stride ? p.stride : v.held;
    p.logits = cuda_scratch(cuda_state(b), logits.bytes);
    return p;
}

static const void *row_at(const void *x, int64_t row, int64_t width, Dtype t) {
    return (const char *)x + (size_t)(row * width) * dtype_size(t);
}

static void form_logits(const Projection *p, int64_t row, int64_t rows) {
    p->backend->matmul(p->backend, &(Matmul){.m = rows,
                                             .n = p->words,
                                             .k = p->width,
                                             .batch = 1,
                                             .a = row_at(p->x, row, p->width, p->t),
                                             .a_row = p->width,
                                             .a_column = 1,
                                             .b = p->w,
                                             .b_row = 1,
                                             .b_column = p->width,
                                             .c = p->logits,
                                             .c_row = p->stride,
                                             .in = p->t,
                                             .out = p->t});
}

// dx (+)= g W
static void gradient_rows(const Projection *p, void *dx, bool add, int64_t row, int64_t rows) {
    p->backend->matmul(p->backend, &(Matmul){.m = rows,
                                             .n = p->width,
                                             .k = p->words,
                                             .batch = 1,
                                             .a = p->logits,
                                             .a_row = p->stride,
                                             .a_column = 1,
                                             .b = p->w,
                                             .b_row = p->width,
                                             .b_column = 1,
                                             .c = (void *)row_at(dx, row, p->width, p->t),
                                             .c_row = p->width,
                                             .in = p->t,
                                             .out = p->t,
                                             .add = add});
}

// dw (+)= g^T x
static void gradient_table(const Projection *p, float *dw, bool add, int64_t row, int64_t rows) {
    p->backend->matmul(p->backend, &(Matmul){.m = p->words,
                                             .n = p->width,
                                             .k = rows,
                                             .batch = 1,
                                             .a = p->logits,
                                             .a_row = 1,
                                             .a_column = p->stride,
                                             .b = row_at(p->x, row, p->width, p->t),
                                             .b_row = p->width,
                                             .b_column = 1,
                                             .c = dw,
                                             .c_row = p->width,
                                             .in = p->t,
                                             .out = F32,
                                             .add = add});
}

static void forward(Backend *b, float *lse, float *picked, const void *x, const void *w, const int32_t *targets,
                    int64_t n, int64_t width, Vocabulary v, Dtype t) {
    CudaState *s = cuda_state(b);
    CudaQueue queue = cuda_queue(s);
    size_t mark = cuda_scratch_mark(s);
    if (n == 0) return;
    Projection p = projection(b, x, w, n, width, v, t);
    for (int64_t row = 0; row < n; row += p.chunk) {
        int64_t rows = least(p.chunk, n - row);
        form_logits(&p, row, rows);
        cuda_cross_entropy_rows(&queue, lse + row, picked + row, p.logits, t, p.stride, targets + row, rows, v);
        cuda_after(s, "cross_entropy_forward");
    }
    cuda_scratch_rewind(s, mark);
}

// The factors that are missing are put in when they are known: all rows have the same one.
static void both(Backend *b, float *lse, float *picked, void *dx, float *dw, const void *x, const void *w,
                 const int32_t *targets, const float *weight, int64_t n, int64_t width, Vocabulary v, Dtype t) {
    CudaState *s = cuda_state(b);
    CudaQueue queue = cuda_queue(s);
    size_t mark = cuda_scratch_mark(s);
    if (n == 0) {
        if (dw) b->zero(b, dw, (size_t)(v.held * width) * sizeof *dw);
        return;
    }
    Projection p = projection(b, x, w, n, width, v, t);
    for (int64_t row = 0; row < n; row += p.chunk) {
        int64_t rows = least(p.chunk, n - row);
        form_logits(&p, row, rows);
        cuda_cross_entropy_both(&queue, lse + row, picked + row, p.logits, t, p.stride, targets + row,
                                weight ? weight + row : NULL, rows, v);
        cuda_after(s, "cross_entropy_both");
        if (dx) gradient_rows(&p, dx, false, row, rows);
        if (dw) gradient_table(&p, dw, row > 0, row, rows);
    }
    cuda_scratch_rewind(s, mark);
}

static void backward(Backend *b, void *dx, bool add_x, float *dw, bool add_w, const float *d_loss, const float *lse,
                     const void *x, const void *w, const int32_t *targets, const float *weight, int64_t n,
                     int64_t width, Vocabulary v, Dtype t) {
    CudaState *s = cuda_state(b);
    CudaQueue queue = cuda_queue(s);
    size_t mark = cuda_scratch_mark(s);
    if (n == 0) {
        if (dw && !add_w) b->zero(b, dw, (size_t)(v.held * width) * sizeof *dw);
        return;
    }
    Projection p = projection(b, x, w, n, width, v, t);
    for (int64_t row = 0; row < n; row += p.chunk) {
        int64_t rows = least(p.chunk, n - row);
        form_logits(&p, row, rows);
        cuda_cross_entropy_gradient(&queue, p.logits, t, p.stride, d_loss + row, lse + row, targets + row,
                                    weight ? weight + row : NULL, rows, v);
        cuda_after(s, "cross_entropy_backward");
        if (dx) gradient_rows(&p, dx, add_x, row, rows);
        if (dw) gradient_table(&p, dw, add_w || row > 0, row, rows);
    }
    cuda_scratch_rewind(s, mark);
}

void cuda_cross_entropy_install(Backend *b) {
    b->words_unit = WORK_LOGITS_PADDING;
    b->cross_entropy_forward = forward, b->cross_entropy_backward = backward, b->cross_entropy_both = both;
}
