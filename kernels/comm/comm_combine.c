/* Sums, greatest and least of contributions, in blocks that stay in the first-level cache. See comm_internal.h. */
#include "kernels/comm/comm_internal.h"
#include "kernels/tensor.h"
#include <string.h>

enum { BLOCK = 1024, WIDEST = 8 }; // elements; bytes of one

// U: in which sums are formed, so that integers wrap. A NaN passes: where x is one, it stays; where y is one, no
// comparison holds and y is taken.
#define DEFINE_COMBINE(T, U, name, is_nan)                                                                             \
    static void name(T *restrict x, const T *restrict y, int64_t n, CommReduction reduction) {                         \
        if (reduction == COMM_SUM)                                                                                     \
            for (int64_t i = 0; i < n; i++) x[i] = (T)((U)x[i] + (U)y[i]);                                             \
        else if (reduction == COMM_MAX)                                                                                \
            for (int64_t i = 0; i < n; i++) x[i] = x[i] > y[i] || is_nan(x[i]) ? x[i] : y[i];                          \
        else                                                                                                           \
            for (int64_t i = 0; i < n; i++) x[i] = x[i] < y[i] || is_nan(x[i]) ? x[i] : y[i];                          \
    }
#define NEVER_NAN(x) false
#define IS_NAN(x)    ((x) != (x))

DEFINE_COMBINE(uint8_t, uint8_t, combine_u8, NEVER_NAN)
DEFINE_COMBINE(int32_t, uint32_t, combine_i32, NEVER_NAN)
DEFINE_COMBINE(int64_t, uint64_t, combine_i64, NEVER_NAN)
DEFINE_COMBINE(float, float, combine_f32, IS_NAN)
DEFINE_COMBINE(double, double, combine_f64, IS_NAN)

void combine(void *into, const void *from, int64_t n, CommType type, CommReduction reduction) {
    switch (type) {
    case COMM_U8:
        combine_u8(into, from, n, reduction);
        break;
    case COMM_I32:
        combine_i32(into, from, n, reduction);
        break;
    case COMM_I64:
        combine_i64(into, from, n, reduction);
        break;
    case COMM_F32:
        combine_f32(into, from, n, reduction);
        break;
    case COMM_F64:
        combine_f64(into, from, n, reduction);
        break;
    case COMM_BF16:
        check(type != COMM_BF16); // is combined in f32
    }
}

typedef struct Tree {
    const void *const *parts;
    CommType type, inside; // of the parts; of what is combined: bf16 in f32
    CommReduction reduction;
} Tree;

static void leaf(const Tree *tree, int part, int64_t at, int64_t n, void *out) {
    const char *from = (const char *)tree->parts[part] + at * (int64_t)comm_type_size(tree->type);
    if (tree->type != COMM_BF16) {
        memcpy(out, from, (size_t)n * comm_type_size(tree->type));
        return;
    }
    for (int64_t i = 0; i < n; i++) ((float *)out)[i] = bf16_to_f32(((const uint16_t *)from)[i]);
}

// out = parts [first, end) combined, elements [at, at + n)
static void subtree(const Tree *tree, int first, int end, int64_t at, int64_t n, void *out) {
    _Alignas(64) char upper[BLOCK * WIDEST];
    if (end - first == 1) {
        leaf(tree, first, at, n, out);
        return;
    }
    int middle = first + (end - first) / 2;
    subtree(tree, first, middle, at, n, out);
    subtree(tree, middle, end, at, n, upper);
    combine(out, upper, n, tree->inside, tree->reduction);
}

void combine_tree(void *out, const void *const *parts, int count, int64_t n, CommType type, CommReduction reduction) {
    _Alignas(64) char block[BLOCK * WIDEST];
    Tree tree = {parts, type, type == COMM_BF16 ? COMM_F32 : type, reduction};
    int64_t size = (int64_t)comm_type_size(type);
    for (int64_t at = 0; at < n; at += BLOCK) {
        int64_t here = n - at < BLOCK ? n - at : BLOCK;
        subtree(&tree, 0, count, at, here, block);
        if (type == COMM_BF16)
            for (int64_t i = 0; i < here; i++) ((uint16_t *)out)[at + i] = f32_to_bf16(((float *)block)[i]);
        else
            memcpy((char *)out + at * size, block, (size_t)(here * size));
    }
}
