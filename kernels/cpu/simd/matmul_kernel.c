/* See matmul_kernel.h. For each unit of the inner dimension: two vectors of B, and for each row one broadcast of A and
 * two multiply-adds. The multiply-adds are inline assembly where the machine has them: from intrinsics gcc 12 makes
 * moves and spills. */
#include "kernels/cpu/simd/matmul_kernel.h"
#include "kernels/cpu/simd/vec.h"

// The number at base + row * a_row + offset, where row is at most 4; by_three = 3 * a_row. The address is spelled out
// because gcc would keep one register for each of the rows. (It is not told that memory is read: nothing that A points
// to is written in these functions.)
INLINE Vec broadcast(const char *base, int64_t a_row, int64_t by_three, const int row, const int offset) {
#if defined(__AVX2__) && !defined(__clang__)
    Vec v;
#define BROADCAST(place, ...) __asm__("vbroadcastss %c1" place ", %0" : "=v"(v) : "i"(offset), "r"(base), __VA_ARGS__)
    if (row == 0)
        BROADCAST("(%2)", "r"(a_row));
    else if (row == 1)
        BROADCAST("(%2,%3)", "r"(a_row));
    else if (row == 2)
        BROADCAST("(%2,%3,2)", "r"(a_row));
    else if (row == 3)
        BROADCAST("(%2,%3)", "r"(by_three));
    else
        BROADCAST("(%2,%3,4)", "r"(a_row));
    return v;
#else
    float f;
    memcpy(&f, base + (row == 3 ? by_three : row * a_row) + offset, sizeof f);
    return vec_set(f);
#endif
}

INLINE void multiply_add(Vec *sum, Vec a, Vec b, const MatmulUnit unit) {
#if defined(__AVX512BF16__)
    if (unit == UNIT_PAIR) {
        __asm__("vdpbf16ps %2, %1, %0" : "+v"(*sum) : "v"(a), "v"(b));
        return;
    }
#endif
    (void)unit;
#if defined(__AVX2__)
    __asm__("vfmadd231ps %2, %1, %0" : "+v"(*sum) : "v"(a), "v"(b));
#else
    *sum += a * b;
#if defined(__SSE2__)
    __asm__ volatile("" : "+x"(*sum)); // in this order: else four units are mixed and the sums spill
#endif
#endif
}

// One unit, the `ahead`th from where the pointers stand. Rows of A are reached from every fifth one.
INLINE void step(Vec (*sum)[2], const char *const *a, int64_t a_row, int64_t by_three, const float *b, const int ahead,
                 const int rows, const bool by_row, const MatmulUnit unit) {
    Vec b0 = vec_load(b, 0, F32), b1 = vec_load(b, LANES, F32);
#pragma GCC unroll 14
    for (int r = 0; r < rows; r++) {
        Vec x = by_row ? broadcast(a[r / 5], a_row, by_three, r % 5, 4 * ahead) : broadcast(a[0], 0, 0, 0, 4 * r);
        multiply_add(&sum[r][0], x, b0, unit);
        multiply_add(&sum[r][1], x, b1, unit);
    }
}

INLINE void advance(const char **a, int64_t bytes, const int rows) {
    a[0] += bytes;
    if (rows > 5) a[1] += bytes;
    if (rows > 10) a[2] += bytes;
}

INLINE void store_row(void *to, Vec low, Vec high, const Dtype type) {
#if defined(__AVX512BF16__)
    if (type == BF16) {
        __m512bh both = _mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
        memcpy(to, &both, sizeof both);
        return;
    }
#endif
    vec_store(to, 0, low, type);
    vec_store(to, LANES, high, type);
}

// A whole tile that comes from and goes to memory of one type.
INLINE void store_whole(const Tile *t, Vec (*sum)[2], const int rows, const Dtype type) {
    int64_t size = (int64_t)dtype_size(type), from_row = t->from_row * size, to_row = t->to_row * size;
    if (t->bias) {
        Vec b0 = vec_load(t->bias, 0, F32), b1 = vec_load(t->bias, LANES, F32);
#pragma GCC unroll 14
        for (int r = 0; r < rows; r++) sum[r][0] += b0, sum[r][1] += b1;
    }
    if (t->from) {
        const char *from = t->from;
#pragma GCC unroll 14
        for (int r = 0; r < rows; r++, from += from_row)
            sum[r][0] += vec_load(from, 0, type), sum[r][1] += vec_load(from, LANES, type);
    }
    char *to = t->to;
#pragma GCC unroll 14
    for (int r = 0; r < rows; r++, to += to_row) store_row(to, sum[r][0], sum[r][1], type);
}

// Any other: the sums (rows, MATMUL_PANEL) have gone through memory.
static __attribute__((noinline)) void store_any(const Tile *t, const Vec (*sum)[2], int rows) {
    for (int r = 0; r < rows; r++) {
        for (int64_t c = 0; c < t->columns; c += LANES) {
            Vec v = sum[r][c / LANES];
            if (t->bias) v += vec_load_within(t->bias, c, t->columns, F32);
            const void *from = t->from ? row_of(t->from, r, t->from_row, t->from_type) : NULL;
            if (from && t->from_type == F32) v += vec_load_within(from, c, t->columns, F32);
            if (from && t->from_type == BF16) v += vec_load_within(from, c, t->columns, BF16);
            void *to = row_at(t->to, r, t->to_row, t->to_type);
            if (t->to_type == F32)
                vec_store_within(to, c, t->columns, v, F32);
            else
                vec_store_within(to, c, t->columns, v, BF16);
        }
    }
}

INLINE void store(const Tile *t, Vec (*sum)[2], const int rows, const MatmulUnit unit) {
    bool whole = t->columns == MATMUL_PANEL && (!t->from || t->from_type == t->to_type);
    if (whole && t->to_type == F32) {
        store_whole(t, sum, rows, F32);
    } else if (whole && unit == UNIT_PAIR) {
        store_whole(t, sum, rows, BF16);
    } else {
        Vec copy[MATMUL_ROWS][2];
#pragma GCC unroll 14
        for (int r = 0; r < rows; r++) copy[r][0] = sum[r][0], copy[r][1] = sum[r][1];
        store_any(t, copy, rows);
    }
}

INLINE void tile(const Tile *t, const int rows, const bool by_row, const MatmulUnit unit) {
    Vec sum[MATMUL_ROWS][2];
#pragma GCC unroll 14
    for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = (Vec){0};
    int64_t a_row = t->a_row, by_three = 3 * a_row, a_unit = by_row ? 4 : t->a_unit, b_unit = t->b_unit, u = t->units;
    const char *a[3] = {t->a, rows > 5 ? t->a + 5 * a_row : NULL, rows > 10 ? t->a + 10 * a_row : NULL};
    const float *b = t->b;
    const char *to = t->to;
    int64_t to_row = t->to_row * (int64_t)dtype_size(t->to_type);
#pragma GCC unroll 14
    for (int r = 0; r < rows; r++, to += to_row) __builtin_prefetch(to, 1), __builtin_prefetch(to + 64, 1);
    for (; u >= 4; u -= 4) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            step(sum, a, a_row, by_three, b, i, rows, by_row, unit);
            b += b_unit;
            if (!by_row) advance(a, a_unit, 1);
        }
        if (by_row) advance(a, 16, rows);
    }
    for (; u > 0; u--) {
        step(sum, a, a_row, by_three, b, 0, rows, by_row, unit);
        b += b_unit;
        advance(a, a_unit, rows);
    }
    store(t, sum, rows, unit);
}

// One function for each number of rows, order of A and kind of unit.
#define TILE_FUNCTION(rows, name, by_row, unit)                                                                        \
    static void name##_##rows(const Tile *t) { tile(t, rows, by_row, unit); }
#define ALL_ROWS_4(X, ...) X(1, __VA_ARGS__) X(2, __VA_ARGS__) X(3, __VA_ARGS__) X(4, __VA_ARGS__)
#if defined(__AVX512F__)
#define ALL_ROWS(X, ...)                                                                                               \
    ALL_ROWS_4(X, __VA_ARGS__)                                                                                         \
    X(5, __VA_ARGS__)                                                                                                  \
    X(6, __VA_ARGS__)                                                                                                  \
    X(7, __VA_ARGS__)                                                                                                  \
    X(8, __VA_ARGS__)                                                                                                  \
    X(9, __VA_ARGS__) X(10, __VA_ARGS__) X(11, __VA_ARGS__) X(12, __VA_ARGS__) X(13, __VA_ARGS__) X(14, __VA_ARGS__)
#elif defined(__AVX2__)
#define ALL_ROWS(X, ...) ALL_ROWS_4(X, __VA_ARGS__) X(5, __VA_ARGS__) X(6, __VA_ARGS__)
#else
#define ALL_ROWS(X, ...) ALL_ROWS_4(X, __VA_ARGS__)
#endif
#define TILE_ENTRY(rows, name) name##_##rows,

typedef void TileFunction(const Tile *);
ALL_ROWS(TILE_FUNCTION, f32_by_column, false, UNIT_F32)
ALL_ROWS(TILE_FUNCTION, f32_by_row, true, UNIT_F32)
#if defined(__AVX512BF16__)
ALL_ROWS(TILE_FUNCTION, pair_by_column, false, UNIT_PAIR)
ALL_ROWS(TILE_FUNCTION, pair_by_row, true, UNIT_PAIR)
#endif
static TileFunction *const TILES[][2][MATMUL_ROWS] = {
    [UNIT_F32] = {{ALL_ROWS(TILE_ENTRY, f32_by_column)}, {ALL_ROWS(TILE_ENTRY, f32_by_row)}},
#if defined(__AVX512BF16__)
    [UNIT_PAIR] = {{ALL_ROWS(TILE_ENTRY, pair_by_column)}, {ALL_ROWS(TILE_ENTRY, pair_by_row)}},
#endif
};

void SIMD_NAME(matmul_tile)(const Tile *t, MatmulUnit unit) { TILES[unit][t->a_unit == 4][t->rows - 1](t); }
