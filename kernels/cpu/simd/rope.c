/* Rotary positions (Su et al. 2021) in the halves layout. Angles are reduced in f64, so that large positions lose
 * nothing; sines and cosines are found once for each row and serve all its heads. */
#include "kernels/cpu/ranges.h"
#include "kernels/cpu/simd/vec.h"
#include <math.h>

typedef struct Rope {
    void *y;
    const void *x;            // (N, W)
    const int32_t *positions; // (N)
    const double *frequency;  // (D / 2), in quarter turns
    const Backend *backend;
    int64_t width;
    int heads, head_size;
    bool inverse, add;
    Dtype type;
} Rope;

// sine, cosine (D / 2): of position * frequency
static void angles(const Rope *j, int32_t position, float *sine, float *cosine) {
    double sign = j->inverse ? -1 : 1;
    int half = j->head_size / 2;
    for (int d = 0; d < half; d += LANES) {
        Vec r = {0};
        VecI quarter = {0};
        for (int k = 0; k < LANES && d + k < half; k++) {
            double turns = sign * position * j->frequency[d + k], whole = rint(turns);
            r[k] = (float)((turns - whole) * 1.57079632679489661923);
            quarter[k] = (int32_t)((int64_t)whole & 3);
        }
        Vec s, c;
        vec_sincos_reduced(r, quarter, &s, &c);
        memcpy(sine + d, &s, sizeof s);
        memcpy(cosine + d, &c, sizeof c);
    }
}

INLINE void rotate_pairs(char *y, const char *x, int64_t half, const float *sine, const float *cosine, Dtype t,
                         bool add) {
    for (int64_t d = 0; d < half; d += LANES) {
        int64_t left = half - d;
        bool whole = left >= LANES;
        Vec s, c, a, b;
        memcpy(&s, sine + d, sizeof s);
        memcpy(&c, cosine + d, sizeof c);
        a = whole ? vec_load(x, d, t) : vec_load_part(x, d, left, t);
        b = whole ? vec_load(x, half + d, t) : vec_load_part(x, half + d, left, t);
        Vec p = a * c - b * s, q = b * c + a * s;
        if (add) {
            p += whole ? vec_load(y, d, t) : vec_load_part(y, d, left, t);
            q += whole ? vec_load(y, half + d, t) : vec_load_part(y, half + d, left, t);
        }
        if (whole) {
            vec_store(y, d, p, t);
            vec_store(y, half + d, q, t);
        } else {
            vec_store_part(y, d, left, p, t);
            vec_store_part(y, half + d, left, q, t);
        }
    }
}

// What does not turn is passed on.
INLINE void pass(char *y, const char *x, int64_t first, int64_t end, Dtype t, bool add) {
    if (y == x && !add) return;
    if (!add) {
        int64_t size = (int64_t)dtype_size(t);
        memcpy(y + first * size, x + first * size, (size_t)((end - first) * size));
        return;
    }
    for (int64_t i = first; i < end; i++) element_store(y, i, element_load(y, i, t) + element_load(x, i, t), t);
}

INLINE void rope_rows(const Rope *j, int64_t first, int64_t end, float *scratch, Dtype t) {
    int64_t size = (int64_t)dtype_size(t), head_bytes = j->head_size * size;
    float *sine = scratch, *cosine = scratch + j->head_size + LANES;
    for (int64_t n = first; n < end; n++) {
        char *y = (char *)j->y + n * j->width * size;
        const char *x = (const char *)j->x + n * j->width * size;
        angles(j, j->positions[n], sine, cosine);
        for (int h = 0; h < j->heads; h++)
            rotate_pairs(y + h * head_bytes, x + h * head_bytes, j->head_size / 2, sine, cosine, t, j->add);
        pass(y, x, (int64_t)j->heads * j->head_size, j->width, t, j->add);
    }
}

static void rope_task(void *context, int64_t first, int64_t end, int worker) {
    const Rope *j = context;
    float *scratch = cpu_worker_scratch(j->backend, worker, 2 * sizeof(float) * (size_t)(j->head_size + LANES));
    if (j->type == F32)
        rope_rows(j, first, end, scratch, F32);
    else
        rope_rows(j, first, end, scratch, BF16);
}

static void rope(Backend *b, void *y, const void *x, const int32_t *positions, int64_t rows, int64_t width, int heads,
                 int head_size, double base, bool inverse, Dtype t, bool add) {
    double *frequency = cpu_shared_scratch(b, sizeof(double) * (size_t)head_size);
    for (int d = 0; d < head_size / 2; d++)
        frequency[d] = pow(base, -2.0 * d / head_size) * 0.63661977236758134308; // 2 / pi
    Rope j = {y, x, positions, frequency, b, width, heads, head_size, inverse, add, t};
    cpu_run_ranges(b, rows, range_rows(width, RANGE_HEAVY), rope_task, &j);
}

void SIMD_NAME(install_rope)(Backend *b) { b->rope = rope; }
