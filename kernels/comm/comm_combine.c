/* Sums, greatest and least of contributions, in blocks that stay in the first-level cache. See comm_internal.h. */
#include "kernels/comm/comm_internal.h"
#include "kernels/tensor.h"

enum { BLOCK = 512, WIDEST = 8 }; // elements; bytes of one

// out = x with y. U: in which sums are formed, so that integers wrap. A NaN passes: where x is one, it is taken; where
// y is one, no comparison holds and y is taken.
#define DEFINE_COMBINE(T, U, name, is_nan)                                                                             \
    static void name(T *restrict out, const T *restrict x, const T *restrict y, int64_t n, CommReduction reduction) {  \
        if (reduction == COMM_SUM)                                                                                     \
            for (int64_t i = 0; i < n; i++) out[i] = (T)((U)x[i] + (U)y[i]);                                           \
        else if (reduction == COMM_MAX)                                                                                \
            for (int64_t i = 0; i < n; i++) out[i] = x[i] > y[i] || is_nan(x[i]) ? x[i] : y[i];                        \
        else                                                                                                           \
            for (int64_t i = 0; i < n; i++) out[i] = x[i] < y[i] || is_nan(x[i]) ? x[i] : y[i];                        \
    }
#define NEVER_NAN(x) false
#define IS_NAN(x)    ((x) != (x))

DEFINE_COMBINE(uint8_t, uint8_t, combine_u8, NEVER_NAN)
DEFINE_COMBINE(int32_t, uint32_t, combine_i32, NEVER_NAN)
DEFINE_COMBINE(int64_t, uint64_t, combine_i64, NEVER_NAN)
DEFINE_COMBINE(float, float, combine_f32, IS_NAN)
DEFINE_COMBINE(double, double, combine_f64, IS_NAN)

// `out` is neither x nor y.
static void combine(void *out, const void *x, const void *y, int64_t n, CommType type, CommReduction reduction) {
    switch (type) {
    case COMM_U8:
        combine_u8(out, x, y, n, reduction);
        break;
    case COMM_I32:
        combine_i32(out, x, y, n, reduction);
        break;
    case COMM_I64:
        combine_i64(out, x, y, n, reduction);
        break;
    case COMM_F32:
        combine_f32(out, x, y, n, reduction);
        break;
    case COMM_F64:
        combine_f64(out, x, y, n, reduction);
        break;
    case COMM_BF16:
        check(type != COMM_BF16); // is combined in f32
    }
}

typedef struct Tree {
    const void *const *parts;
    CommType type, inside; // of the parts; of what is combined: bf16 in f32
    CommReduction reduction;
    int64_t at, n; // the block's elements
} Tree;

// Where the block of a part is, as `inside`: itself, or in `room`.
static const void *leaf(const Tree *tree, int part, float *room) {
    const char *from = (const char *)tree->parts[part] + tree->at * (int64_t)comm_type_size(tree->type);
    if (tree->type != COMM_BF16) return from;
    for (int64_t i = 0; i < tree->n; i++) room[i] = bf16_to_f32(((const uint16_t *)(const void *)from)[i]);
    return room;
}

// Where the block of parts [first, end), combined, is: in `room`, unless it is a part.
static const void *subtree(const Tree *tree, int first, int end, void *room) {
    _Alignas(64) char lower_room[BLOCK * WIDEST], upper_room[BLOCK * WIDEST];
    if (end - first == 1) return leaf(tree, first, room);
    int middle = first + (end - first) / 2;
    const void *lower = subtree(tree, first, middle, lower_room), *upper = subtree(tree, middle, end, upper_room);
    combine(room, lower, upper, tree->n, tree->inside, tree->reduction);
    return room;
}

void combine_tree(void *out, const void *const *parts, int count, int64_t n, CommType type, CommReduction reduction) {
    _Alignas(64) char room[BLOCK * WIDEST];
    Tree tree = {.parts = parts, .type = type, .inside = type == COMM_BF16 ? COMM_F32 : type, .reduction = reduction};
    int64_t size = (int64_t)comm_type_size(type);
    for (tree.at = 0; tree.at < n; tree.at += BLOCK) {
        tree.n = least(n - tree.at, BLOCK);
        const void *block = subtree(&tree, 0, count, room);
        if (type == COMM_BF16)
            for (int64_t i = 0; i < tree.n; i++)
                ((uint16_t *)out)[tree.at + i] = f32_to_bf16(((const float *)block)[i]);
        else
            copy_bytes((char *)out + tree.at * size, block, tree.n * size);
    }
}
