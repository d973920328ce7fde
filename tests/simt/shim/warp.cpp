/* Instructions of a whole warp, as PTX defines them lane by lane: products of small matrices on tensor cores, and
 * matrices from shared memory. Sums of a product are formed in f32, in the order of the inner dimension; a GPU's order
 * is its own. */
#include "tests/simt/shim/engine.h"

enum { WARP = 32 };

static float bf16_of(uint32_t word, int half) { return __uint_as_float(word >> 16 * half << 16); }

// ---- mma.m16n8k16, row by column ----

struct Product {
    float *c;
    const uint32_t *a, *b;
};

static void multiply(void *const *lanes) {
    float a[16][16], b[16][8];
    for (int lane = 0; lane < WARP; lane++) {
        const Product *p = static_cast<const Product *>(lanes[lane]);
        const int g = lane / 4, t = lane % 4;
        for (int word = 0; word < 4; word++)
            for (int half = 0; half < 2; half++)
                a[g + word % 2 * 8][2 * t + half + word / 2 * 8] = bf16_of(p->a[word], half);
        for (int word = 0; word < 2; word++)
            for (int half = 0; half < 2; half++) b[2 * t + half + word * 8][g] = bf16_of(p->b[word], half);
    }
    for (int lane = 0; lane < WARP; lane++) {
        const Product *p = static_cast<const Product *>(lanes[lane]);
        for (int i = 0; i < 4; i++) {
            const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
            for (int k = 0; k < 16; k++) p->c[i] += a[row][k] * b[k][column];
        }
    }
}

void simt_mma_bf16(float *c, const uint32_t *a, const uint32_t *b, const char *file, int line) {
    Product mine = {c, a, b};
    simt_together(multiply, &mine, file, line);
}

// ---- ldmatrix.m8n8.x4 ----

struct Matrices {
    uint32_t *to;
    const void *row;
    bool turned;
};

static void hand_out(void *const *lanes) {
    uint16_t row[WARP][8];
    for (int lane = 0; lane < WARP; lane++) memcpy(row[lane], static_cast<Matrices *>(lanes[lane])->row, sizeof row[0]);
    for (int lane = 0; lane < WARP; lane++) {
        const Matrices *m = static_cast<const Matrices *>(lanes[lane]);
        const int g = lane / 4, t = lane % 4;
        for (int matrix = 0; matrix < 4; matrix++) {
            const uint16_t(*x)[8] = row + matrix * 8;
            const uint32_t low = m->turned ? x[2 * t][g] : x[g][2 * t],
                           high = m->turned ? x[2 * t + 1][g] : x[g][2 * t + 1];
            m->to[matrix] = low | high << 16;
        }
    }
}

void simt_load_matrices(uint32_t *to, const void *row, bool turned, const char *file, int line) {
    Matrices mine = {to, row, turned};
    simt_check_vector(row, 16);
    memory_access(row, 16, ACCESS_READ);
    if (!memory_is_shared(row)) simt_fault("%s:%d: matrices from memory that is not shared", file, line);
    simt_together(hand_out, &mine, file, line);
}
