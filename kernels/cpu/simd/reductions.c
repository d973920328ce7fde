/* Sums over whole buffers and over repeats, and the search for numbers that are not finite. Fixed blocks are summed in
 * f64 and combined in order. */
#include "kernels/cpu/ranges.h"
#include "kernels/cpu/simd/vec.h"

typedef struct Reduction {
    const void *x;
    double *partial; // one for each block
    int64_t block;
    Dtype type;
} Reduction;

typedef float Half __attribute__((vector_size(2 * LANES)));
typedef double Wide __attribute__((vector_size(4 * LANES))); // as many as in Half

INLINE void add_wide(Wide total[2], Vec x, bool squares) {
    Half half[2];
    memcpy(half, &x, sizeof half);
    for (int i = 0; i < 2; i++) {
        Wide w = __builtin_convertvector(half[i], Wide);
        total[i] += squares ? w * w : w;
    }
}

INLINE double sum_span(const void *x, int64_t first, int64_t end, Dtype t, bool squares) {
    Wide total[8] = {0}; // of four vectors: additions wait for each other in each
    int64_t i = first;
    for (; i + 4 * LANES <= end; i += 4 * LANES)
        for (int k = 0; k < 4; k++) add_wide(total + 2 * k, vec_load(x, i + k * LANES, t), squares);
    for (; i < end; i += LANES) add_wide(total, vec_load_within(x, i, end, t), squares);
    double sum = 0;
    for (int apart = 4; apart; apart /= 2)
        for (int k = 0; k < apart; k++) total[k] += total[k + apart];
    for (int lane = 0; lane < LANES / 2; lane++) sum += total[0][lane];
    return sum;
}

static void sum_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    const Reduction *j = context;
    double *out = j->partial + first / j->block;
    *out = j->type == F32 ? sum_span(j->x, first, end, F32, false) : sum_span(j->x, first, end, BF16, false);
}

static double total(Backend *b, const void *x, int64_t n, Dtype t) {
    int64_t blocks = range_blocks(n, RANGE_ELEMENTS);
    double *partial = cpu_shared_scratch(b, sizeof(double) * (size_t)(blocks + 1)), result = 0;
    Reduction j = {x, partial, RANGE_ELEMENTS, t};
    cpu_run_ranges(b, n, RANGE_ELEMENTS, sum_task, &j);
    for (int64_t i = 0; i < blocks; i++) result += partial[i];
    return result;
}

static void sum_into(Backend *b, float *out, const void *x, int64_t n, double factor, Dtype t) {
    *out = (float)(factor * total(b, x, n, t));
}

typedef struct BlockSquares {
    const float *x;
    double *out;
    int64_t block;
} BlockSquares;

static void squares_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    const BlockSquares *j = context;
    for (int64_t i = first; i < end; i++) j->out[i] = sum_span(j->x, i * j->block, (i + 1) * j->block, F32, true);
}

static void block_squares(Backend *b, double *out, const float *x, int64_t blocks, int64_t block) {
    BlockSquares j = {x, out, block};
    cpu_run_ranges(b, blocks, range_rows(block, RANGE_ELEMENTS), squares_task, &j);
}

// ---- the first number that is not finite ----

typedef struct Search {
    const void *x;
    int64_t found; // the least index so far
    Dtype type;
} Search;

// The exponent of a number that is not finite is all ones; in bf16's bits as in f32's.
INLINE VecI is_bad(Vec x) { return ((VecI)x & 0x7f800000) == 0x7f800000; }

INLINE int64_t find(const void *x, int64_t first, int64_t end, Dtype t) {
    enum { STRIDE = 8 * LANES }; // looked at together
    for (int64_t i = first; i < end; i += STRIDE) {
        int64_t stop = i + STRIDE < end ? i + STRIDE : end;
        VecI any = {0};
        if (i + STRIDE <= end) {
            for (int k = 0; k < 8; k++) any |= is_bad(vec_load(x, i + k * LANES, t));
            int64_t word[sizeof any / sizeof(int64_t)], seen = 0;
            memcpy(word, &any, sizeof any);
            for (size_t k = 0; k < sizeof word / sizeof *word; k++) seen |= word[k];
            if (!seen) continue;
        }
        for (int64_t k = i; k < stop; k++)
            if (!__builtin_isfinite(element_load(x, k, t))) return k;
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
    Fold j = {db, dy, n_b ? n / n_b : 0, n_b, tb, t, add};
    cpu_run_ranges(b, n_b, range_rows(j.repeats, RANGE_ELEMENTS / LANES) * LANES, fold_task, &j);
}

void SIMD_NAME(install_reductions)(Backend *b) {
    b->sum_into = sum_into, b->block_squares = block_squares;
    b->first_nonfinite = first_nonfinite, b->fold_add = fold_add;
}
