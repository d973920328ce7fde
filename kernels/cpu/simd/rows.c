/* Kernels that move whole rows: embedding, gather, scatter and copies. What writes rows by index and may meet one twice
 * (gradients) cuts the columns, not the rows: every column adds in the order of the indices. */
#include "kernels/cpu/ranges.h"
#include "kernels/cpu/simd/vec.h"

enum { COLUMNS = 64 }; // of a piece, where columns are cut

typedef struct Rows {
    void *y;       // (count, C)
    const void *x; // (m, C) or what rows are taken from
    const int32_t *rows;
    int64_t m, width, count;
    Dtype to, from;
    bool add;
} Rows;

INLINE void move_row(void *y, const void *x, int64_t width, Dtype to, Dtype from, bool add) {
    for (int64_t i = 0; i < width; i += LANES)
        vec_write_within(y, i, width, vec_load_within(x, i, width, from), to, add);
}

static void move_row_of(void *y, const void *x, int64_t width, Dtype to, Dtype from, bool add) {
    if (to == from && !add)
        memcpy(y, x, (size_t)width * dtype_size(to));
    else if (to == F32 && from == F32)
        move_row(y, x, width, F32, F32, add);
    else if (to == F32)
        move_row(y, x, width, F32, BF16, add);
    else if (from == F32)
        move_row(y, x, width, BF16, F32, add);
    else
        move_row(y, x, width, BF16, BF16, add);
}

// ---- y[m] (+)= x[rows[m]] ----

static void gather_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    const Rows *j = context;
    for (int64_t m = first; m < end; m++) {
        void *y = row_at(j->y, m, j->width, j->to);
        int32_t row = j->rows[m];
        if (row >= 0)
            move_row_of(y, row_of(j->x, row, j->width, j->from), j->width, j->to, j->from, j->add);
        else if (!j->add)
            memset(y, 0, (size_t)j->width * dtype_size(j->to));
    }
}

static void gather_rows(Backend *b, void *y, const void *x, const int32_t *rows, int64_t m, int64_t width, Dtype t,
                        bool add) {
    Rows j = {.y = y, .x = x, .rows = rows, .m = m, .width = width, .to = t, .from = t, .add = add};
    cpu_run_ranges(b, m, range_rows(width, RANGE_ELEMENTS), gather_task, &j);
}

static void embedding_forward(Backend *b, void *y, const int32_t *ids, const void *table, int64_t n, int64_t width,
                              int64_t vocab, Dtype t) {
    (void)vocab;
    gather_rows(b, y, table, ids, n, width, t, false);
}

// ---- y[rows[m]] += x[m], in the order of m ----

INLINE void scatter_columns(const Rows *j, int64_t first, int64_t end, Dtype to, Dtype from) {
    for (int64_t m = 0; m < j->m; m++) {
        if (j->rows[m] < 0) continue;
        void *y = row_at(j->y, j->rows[m], j->width, to);
        const void *x = row_of(j->x, m, j->width, from);
        for (int64_t i = first; i < end; i += LANES)
            vec_write_within(y, i, end, vec_load_within(x, i, end, from), to, true);
    }
}

static void scatter_add_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    const Rows *j = context;
    if (j->to == F32 && j->from == F32)
        scatter_columns(j, first, end, F32, F32);
    else if (j->to == F32)
        scatter_columns(j, first, end, F32, BF16);
    else if (j->from == F32)
        scatter_columns(j, first, end, BF16, F32);
    else
        scatter_columns(j, first, end, BF16, BF16);
}

// A piece of columns is not less than COLUMNS, nor than what makes it worth a thread.
static int64_t column_block(int64_t rows) {
    int64_t worth = range_rows(rows, RANGE_HEAVY);
    return worth > COLUMNS ? worth : COLUMNS;
}

static void scatter_add_rows(Backend *b, void *y, Dtype to, const void *x, Dtype from, const int32_t *rows, int64_t m,
                             int64_t width, int64_t count) {
    Rows j = {.y = y, .x = x, .rows = rows, .m = m, .width = width, .count = count, .to = to, .from = from};
    cpu_run_ranges(b, width, column_block(m), scatter_add_task, &j);
}

static void zero_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    memset((char *)context + first * (int64_t)sizeof(float), 0, (size_t)(end - first) * sizeof(float));
}

static void embedding_backward(Backend *b, float *dtable, const void *dy, const int32_t *ids, int64_t n, int64_t width,
                               int64_t vocab, Dtype t, bool add) {
    if (!add) cpu_run_ranges(b, vocab * width, 4 * RANGE_ELEMENTS, zero_task, dtable);
    scatter_add_rows(b, dtable, F32, dy, t, ids, n, width, vocab);
}

// ---- y = base, then y[rows[m]] = x[m] ----

static void base_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    const Rows *j = context; // x: base; m: its rows, 0, 1 or count
    for (int64_t r = first; r < end; r++) {
        void *y = row_at(j->y, r, j->width, j->to);
        if (j->m == 0)
            memset(y, 0, (size_t)j->width * dtype_size(j->to));
        else
            move_row_of(y, row_of(j->x, j->m == 1 ? 0 : r, j->width, j->from), j->width, j->to, j->from, false);
    }
}

static void place_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    const Rows *j = context;
    for (int64_t m = first; m < end; m++)
        if (j->rows[m] >= 0)
            move_row_of(row_at(j->y, j->rows[m], j->width, j->to), row_of(j->x, m, j->width, j->from), j->width, j->to,
                        j->from, false);
}

static void scatter_rows(Backend *b, void *y, const void *base, int64_t base_rows, const void *x, const int32_t *rows,
                         int64_t m, int64_t width, int64_t count, Dtype t) {
    int64_t block = range_rows(width, RANGE_ELEMENTS);
    Rows whole = {.y = y, .x = base, .m = base ? base_rows : 0, .width = width, .to = t, .from = t};
    Rows named = {.y = y, .x = x, .rows = rows, .m = m, .width = width, .to = t, .from = t};
    cpu_run_ranges(b, count, block, base_task, &whole);
    cpu_run_ranges(b, m, block, place_task, &named);
}

// ---- copies of runs of rows ----

typedef struct Copy {
    void *out;
    const void *in;
    int64_t out_stride, out_first, in_stride, in_first, count, width;
    Dtype to, from;
    bool add;
} Copy;

static void copy_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    const Copy *j = context;
    for (int64_t r = first; r < end; r++) {
        int64_t batch = r / j->count, i = r % j->count;
        move_row_of(row_at(j->out, batch * j->out_stride + j->out_first + i, j->width, j->to),
                    row_of(j->in, batch * j->in_stride + j->in_first + i, j->width, j->from), j->width, j->to, j->from,
                    j->add);
    }
}

static void copy_rows(Backend *b, void *out, Dtype to, int64_t out_stride, int64_t out_first, const void *in,
                      Dtype from, int64_t in_stride, int64_t in_first, int64_t batch, int64_t count, int64_t width,
                      bool add) {
    Copy j = {out, in, out_stride, out_first, in_stride, in_first, count, width, to, from, add};
    cpu_run_ranges(b, batch * count, range_rows(width, RANGE_ELEMENTS), copy_task, &j);
}

void SIMD_NAME(install_rows)(Backend *b) {
    b->gather_rows = gather_rows, b->scatter_rows = scatter_rows, b->scatter_add_rows = scatter_add_rows;
    b->embedding_forward = embedding_forward, b->embedding_backward = embedding_backward;
    b->copy_rows = copy_rows;
}
