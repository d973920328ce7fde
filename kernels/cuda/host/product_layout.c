/* See product_layout.h. */
#include "kernels/cuda/host/product_layout.h"

// Element (r, c) of a column-major rows x columns matrix lies at r * row + c * column. A stride along an axis of one
// element says nothing and fits any.
static bool side(ProductSide *s, int64_t rows, int64_t columns, int64_t row, int64_t column) {
    if ((row == 1 || rows == 1) && (column >= rows || columns == 1)) {
        *s = (ProductSide){.rows = rows, .columns = columns, .leading = column > rows ? column : rows};
        return true;
    }
    if ((column == 1 || columns == 1) && (row >= columns || rows == 1)) {
        *s = (ProductSide){
            .rows = columns, .columns = rows, .leading = row > columns ? row : columns, .transposed = true};
        return true;
    }
    return false;
}

bool product_layout(const Matmul *p, ProductLayout *l) {
    *l = (ProductLayout){.out = {.rows = p->n, .columns = p->m, .leading = p->c_row > p->n ? p->c_row : p->n}};
    if (p->m > 1 && p->c_row < p->n) return false;
    if (!side(&l->left, p->n, p->k, p->b_column, p->b_row) || !side(&l->right, p->k, p->m, p->a_column, p->a_row))
        return false;
    l->left.batch = p->b_batch;
    l->right.batch = p->a_batch;
    l->out.batch = p->c_batch;
    return true;
}

int64_t pointer_alignment(const void *pointer) {
    uintptr_t address = (uintptr_t)pointer | 256;
    return (int64_t)(address & -address);
}

ProductKey product_key(const Matmul *p, const ProductLayout *l) {
    ProductKey key = {.m = p->m, .n = p->n, .k = p->k, .batch = p->batch};
    key.left_leading = l->left.leading, key.right_leading = l->right.leading, key.out_leading = l->out.leading;
    if (p->batch > 1) key.left_batch = l->left.batch, key.right_batch = l->right.batch, key.out_batch = l->out.batch;
    key.left_align = pointer_alignment(p->b);
    key.right_align = pointer_alignment(p->a);
    key.out_align = pointer_alignment(p->c);
    const float *vector = p->sums ? p->sums : p->bias;
    key.bias_align = vector ? pointer_alignment(vector) : 0;
    key.aux_align = p->aux ? pointer_alignment(p->aux) : 0;
    key.flags = (int64_t)l->left.transposed | (int64_t)l->right.transposed << 1 | (int64_t)p->add << 2 |
                (int64_t)p->in << 3 | (int64_t)p->out << 6 | (int64_t)p->epilogue << 9 |
                (int64_t)(p->sums != NULL) << 12;
    return key;
}
