/* Kernels that move whole rows: embedding, gather, scatter and copies. Where rows are added by number and may meet
 * (gradients), the work is cut over the rows of the result, each of which adds what comes to it in order. */
#include "base/error.h"
#include "kernels/cpu/ranges.h"
#include "kernels/cpu/simd/vec.h"
#include <math.h>

enum { COLUMNS = 256 }; // of a piece, where a row is cut so that one that meets many does not hold up the others

typedef struct Rows {
    void *y;       // (count, C)
    const void *x; // (m, C) or what rows are taken from
    const int32_t *rows;
    int64_t m, width;
    int64_t count; // rows that may be named
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
        check(row < j->count);
        if (row >= 0)
            move_row_of(y, row_of(j->x, row, j->width, j->from), j->width, j->to, j->from, j->add);
        else if (!j->add)
            memset(y, 0, (size_t)j->width * dtype_size(j->to));
    }
}

static void gather(Backend *b, Rows j) { cpu_run_ranges(b, j.m, range_rows(j.width, RANGE_ELEMENTS), gather_task, &j); }

static void gather_rows(Backend *b, void *y, const void *x, const int32_t *rows, int64_t m, int64_t width,
                        int64_t count, Dtype t, bool add) {
    gather(b, (Rows){y, x, rows, m, width, count, t, t, add});
}

static void embedding_forward(Backend *b, void *y, const int32_t *ids, const void *table, int64_t n, int64_t width,
                              int64_t vocab, Dtype t) {
    gather(b, (Rows){y, table, ids, n, width, vocab, t, t, false});
}

// Words beyond the whole vocabulary are nobody's.
static void local_ids(Backend *b, int32_t *local, const int32_t *ids, int64_t n, Vocabulary v) {
    (void)b;
    for (int64_t i = 0; i < n; i++) {
        check(ids[i] < v.all);
        bool held = ids[i] >= v.first && ids[i] < v.first + v.held;
        local[i] = held ? ids[i] - (int32_t)v.first : -1;
    }
}

// ---- y[rows[m]] = x[m] ----

static void put_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    const Rows *j = context;
    for (int64_t m = first; m < end; m++) {
        check(j->rows[m] >= 0 && j->rows[m] < j->count);
        move_row_of(row_at(j->y, j->rows[m], j->width, j->to), row_of(j->x, m, j->width, j->from), j->width, j->to,
                    j->from, false);
    }
}

static void put_rows(Backend *b, void *y, const void *x, const int32_t *rows, int64_t m, int64_t width, int64_t count,
                     Dtype t) {
    Rows j = {y, x, rows, m, width, count, t, t, false};
    cpu_run_ranges(b, m, range_rows(width, RANGE_ELEMENTS), put_task, &j);
}

// ---- y[rows[m]] += x[m], in the order of m ----

// The rows of x that go to each row of y, as chains in order: first[r], then next[.]; -1 ends one.
typedef struct Chains {
    void *y;       // (count, C)
    const void *x; // (m, C)
    const int32_t *first, *next;
    int64_t width, pieces; // pieces: of the columns
    Dtype to, from;
    bool add; // false: rows without a chain become zero
} Chains;

// Sums are f32 and enter y once, however many rows meet there.
INLINE void chain_columns(const Chains *j, int64_t row, int64_t first, int64_t end, Dtype to, Dtype from) {
    void *y = row_at(j->y, row, j->width, to);
    for (int64_t i = first; i < end; i += LANES) {
        Vec sum = {0};
        for (int32_t m = j->first[row]; m >= 0; m = j->next[m])
            sum += vec_load_within(row_of(j->x, m, j->width, from), i, end, from);
        vec_write_within(y, i, end, sum, to, j->add);
    }
}

static void chain_piece(const Chains *j, int64_t row, int64_t first, int64_t end) {
    if (j->first[row] < 0) {
        if (!j->add)
            memset(row_at(j->y, row * j->width + first, 1, j->to), 0, (size_t)(end - first) * dtype_size(j->to));
    } else if (j->to == F32 && j->from == F32) {
        chain_columns(j, row, first, end, F32, F32);
    } else if (j->to == F32) {
        chain_columns(j, row, first, end, F32, BF16);
    } else if (j->from == F32) {
        chain_columns(j, row, first, end, BF16, F32);
    } else {
        chain_columns(j, row, first, end, BF16, BF16);
    }
}

static void chain_task(void *context, int64_t task, int64_t stop, int worker) {
    (void)worker;
    const Chains *j = context;
    for (; task < stop; task++) {
        int64_t first = task % j->pieces * COLUMNS, end = first + COLUMNS;
        chain_piece(j, task / j->pieces, first, end < j->width ? end : j->width);
    }
}

static void scatter_chains(Backend *b, Chains j, const int32_t *rows, int64_t m, int64_t count) {
    int32_t *first = cpu_shared_scratch(b, sizeof(int32_t) * (size_t)(count + m + 1)), *next = first + count;
    memset(first, -1, sizeof(int32_t) * (size_t)count);
    for (int64_t i = m - 1; i >= 0; i--) {
        if (rows[i] < 0) continue;
        check(rows[i] < count);
        next[i] = first[rows[i]];
        first[rows[i]] = (int32_t)i;
    }
    j.first = first, j.next = next, j.pieces = range_blocks(j.width, COLUMNS);
    cpu_run_ranges(b, count * j.pieces, range_rows(COLUMNS, RANGE_ELEMENTS), chain_task, &j);
}

static void scatter_add_rows(Backend *b, void *y, Dtype to, const void *x, Dtype from, const int32_t *rows, int64_t m,
                             int64_t width, int64_t count) {
    scatter_chains(b, (Chains){.y = y, .x = x, .width = width, .to = to, .from = from, .add = true}, rows, m, count);
}

static void embedding_backward(Backend *b, float *dtable, const void *dy, const int32_t *ids, int64_t n, int64_t width,
                               int64_t vocab, Dtype t, bool add) {
    scatter_chains(b, (Chains){.y = dtable, .x = dy, .width = width, .to = F32, .from = t, .add = add}, ids, n, vocab);
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
    for (int64_t m = first; m < end; m++) {
        check(j->rows[m] < j->count);
        if (j->rows[m] >= 0)
            move_row_of(row_at(j->y, j->rows[m], j->width, j->to), row_of(j->x, m, j->width, j->from), j->width, j->to,
                        j->from, false);
    }
}

static void scatter_rows(Backend *b, void *y, const void *base, int64_t base_rows, const void *x, const int32_t *rows,
                         int64_t m, int64_t width, int64_t count, Dtype t) {
    int64_t block = range_rows(width, RANGE_ELEMENTS);
    Rows whole = {.y = y, .x = base, .m = base ? base_rows : 0, .width = width, .to = t, .from = t};
    Rows named = {.y = y, .x = x, .rows = rows, .m = m, .width = width, .count = count, .to = t, .from = t};
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
    b->copy_rows = copy_rows, b->local_ids = local_ids, b->put_rows = put_rows;
}
