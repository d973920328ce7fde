/* Sums over whole buffers and over repeats, and the search for numbers that are not finite. Fixed blocks are summed in
 * f64 and combined in order. */
#include "kernels/cpu/ranges.h"
#include "kernels/cpu/simd/vec.h"

typedef struct Reduction {
    const void *x;
    double *partial; // one for each block
    int64_t block;
    Dtype type;
    bool squares;
} Reduction;

typedef double Wide __attribute__((vector_size(8 * LANES)));

INLINE double sum_span(const void *x, int64_t first, int64_t end, Dtype t, bool squares) {
    Wide total = {0};
    int64_t i = first;
    for (; i < end; i += LANES) {
        Wide w = __builtin_convertvector(vec_load_within(x, i, end, t), Wide);
        total += squares ? w * w : w;
    }
    double sum = 0;
    for (int k = 0; k < LANES; k++) sum += total[k];
    return sum;
}

static void sum_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    const Reduction *j = context;
    double *out = j->partial + first / j->block;
    if (j->type == F32)
        *out = j->squares ? sum_span(j->x, first, end, F32, true) : sum_span(j->x, first, end, F32, false);
    else
        *out = j->squares ? sum_span(j->x, first, end, BF16, true) : sum_span(j->x, first, end, BF16, false);
}

static double total(Backend *b, const void *x, int64_t n, Dtype t, bool squares) {
    int64_t blocks = range_blocks(n, RANGE_ELEMENTS);
    double *partial = cpu_shared_scratch(b, sizeof(double) * (size_t)(blocks + 1)), result = 0;
    Reduction j = {x, partial, RANGE_ELEMENTS, t, squares};
    cpu_run_ranges(b, n, RANGE_ELEMENTS, sum_task, &j);
    for (int64_t i = 0; i < blocks; i++) result += partial[i];
    return result;
}

static double sum(Backend *b, const void *x, int64_t n, Dtype t) { return total(b, x, n, t, false); }
static double sum_squares(Backend *b, const void *x, int64_t n, Dtype t) { return total(b, x, n, t, true); }
static void sum_into(Backend *b, float *out, const void *x, int64_t n, double factor, Dtype t) {
    *out = (float)(factor * total(b, x, n, t, false));
}

// ---- the first number that is not finite ----

typedef struct Search {
    const void *x;
    int64_t found; // the least index so far
    Dtype type;
} Search;

// x - x is 0 for a finite x, else NaN.
INLINE int64_t find(const void *x, int64_t first, int64_t end, Dtype t) {
    for (int64_t i = first; i < end; i += LANES) {
        Vec v = end - i < LANES ? vec_load_part(x, i, end - i, t) : vec_load(x, i, t);
        VecI bad = (v - v) != 0.0f;
        VecI any = bad;
        for (int half = LANES / 2; half; half /= 2)
            for (int k = 0; k < half; k++) any[k] |= any[k + half];
        for (int k = 0; any[0] && k < LANES; k++)
            if (bad[k]) return i + k;
    }
    return INT64_MAX;
}

static void search_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    Search *j = context;
    if (first > __atomic_load_n(&j->found, __ATOMIC_RELAXED)) return;
    int64_t at = j->type == F32 ? find(j->x, first, end, F32) : find(j->x, first, end, BF16);
    int64_t least = __atomic_load_n(&j->found, __ATOMIC_RELAXED);
    while (at < least && !__atomic_compare_exchange_n(&j->found, &least, at, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        continue;
}

static int64_t first_nonfinite(Backend *b, const void *x, int64_t n, Dtype t) {
    Search j = {x, INT64_MAX, t};
    cpu_run_ranges(b, n, RANGE_ELEMENTS, search_task, &j);
    return j.found == INT64_MAX ? -1 : j.found;
}

// ---- sums over repeats: db[i] (+)= sum over k of dy[k n_b + i] ----

typedef struct Fold {
    void *db;       // (n_b)
    const void *dy; // (repeats, n_b)
    int64_t repeats, period;
    Dtype to, type;
    bool add;
} Fold;

INLINE void fold_span(const Fold *j, int64_t first, int64_t end, Dtype to, Dtype t) {
    for (int64_t i = first; i < end; i += LANES) {
        int64_t left = end - i;
        bool whole = left >= LANES;
        Vec y = {0};
        for (int64_t k = 0, at = i; k < j->repeats; k++, at += j->period)
            y += whole ? vec_load(j->dy, at, t) : vec_load_part(j->dy, at, left, t);
        if (j->add) y += whole ? vec_load(j->db, i, to) : vec_load_part(j->db, i, left, to);
        if (whole)
            vec_store(j->db, i, y, to);
        else
            vec_store_part(j->db, i, left, y, to);
    }
}

static void fold_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    const Fold *j = context;
    if (j->to == F32 && j->type == F32)
        fold_span(j, first, end, F32, F32);
    else if (j->to == F32)
        fold_span(j, first, end, F32, BF16);
    else if (j->type == F32)
        fold_span(j, first, end, BF16, F32);
    else
        fold_span(j, first, end, BF16, BF16);
}

static void fold_add(Backend *b, void *db, Dtype tb, const void *dy, Dtype t, int64_t n, int64_t n_b, bool add) {
    Fold j = {db, dy, n / n_b, n_b, tb, t, add};
    cpu_run_ranges(b, n_b, range_rows(j.repeats, RANGE_ELEMENTS / LANES) * LANES, fold_task, &j);
}

void SIMD_NAME(install_reductions)(Backend *b) {
    b->sum = sum, b->sum_squares = sum_squares, b->sum_into = sum_into;
    b->first_nonfinite = first_nonfinite, b->fold_add = fold_add;
}
