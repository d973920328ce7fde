/* The masked patch loss of MAE: one task for a fixed block of patches, whose losses add up in order.
 * M patches, P patch side; a patch is flattened (y, x, c). */
#include "base/error.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd/vec.h"
#include "kernels/cpu/sizes.h"
#include <math.h>

enum { BLOCK = 16, SUMS = 4 }; // patches a task; sums side by side, since additions to one wait for each other

typedef struct Job {
    const Backend *backend;
    double *partial; // (blocks), or NULL in backward
    void *dx;
    const void *x, *images;
    const int32_t *patches;
    int64_t m, batch, height, width;
    int patch;
    bool normalize, add;
    float factor;
    Dtype t;
} Job;

// A line of P pixels from three planes to (x, c).
INLINE void interleave(float *restrict out, const void *restrict pixels, int64_t plane, int64_t count, Dtype t) {
    for (int64_t x = 0; x < count; x++) {
        out[3 * x] = element_load(pixels, x, t);
        out[3 * x + 1] = element_load(pixels, plane + x, t);
        out[3 * x + 2] = element_load(pixels, 2 * plane + x, t);
    }
}

// The target of one patch as it is.
INLINE void load_target(float *target, const Job *job, int64_t patch, Dtype t) {
    int64_t P = job->patch, across = job->width / P, down = job->height / P, plane = job->height * job->width;
    check(patch >= 0 && patch < job->batch * down * across);
    int64_t image = patch / (across * down), row = patch / across % down, column = patch % across;
    int64_t at = image * 3 * plane + row * P * job->width + column * P;
    for (int64_t y = 0; y < P; y++)
        interleave(target + 3 * y * P, row_of(job->images, at + y * job->width, 1, t), plane, P, t);
}

INLINE float sum_all(const Vec sum[SUMS]) { return vec_sum((sum[0] + sum[1]) + (sum[2] + sum[3])); }

// x to mean 0 and variance 1; x has room for SUMS whole vectors.
static void normalize(float *x, int64_t n) {
    Vec sum[SUMS] = {{0}}, squares[SUMS] = {{0}};
    for (int64_t i = n; i % (SUMS * LANES); i++) x[i] = 0;
    for (int64_t i = 0; i < n; i += SUMS * LANES)
        for (int k = 0; k < SUMS; k++) sum[k] += vec_load(x, i + k * LANES, F32);
    float mean = sum_all(sum) / (float)n;
    for (int64_t i = n; i % (SUMS * LANES); i++) x[i] = mean;
    for (int64_t i = 0; i < n; i += SUMS * LANES)
        for (int k = 0; k < SUMS; k++) {
            Vec d = vec_load(x, i + k * LANES, F32) - mean;
            squares[k] += d * d;
        }
    float scale = 1 / sqrtf(sum_all(squares) / (float)(n - 1) + 1e-6f);
    for (int64_t i = 0; i < n; i += LANES) vec_store(x, i, (vec_load(x, i, F32) - mean) * scale, F32);
}

INLINE float squared_error(const void *x, const float *target, int64_t n, Dtype t) {
    Vec sum[SUMS] = {{0}};
    int64_t i = 0;
    for (; i + SUMS * LANES <= n; i += SUMS * LANES)
        for (int k = 0; k < SUMS; k++) {
            Vec d = vec_load(x, i + k * LANES, t) - vec_load(target, i + k * LANES, F32);
            sum[k] += d * d;
        }
    for (; i < n; i += LANES) {
        Vec d = vec_load_within(x, i, n, t) - vec_load_within(target, i, n, F32);
        sum[0] += d * d;
    }
    return sum_all(sum);
}

INLINE void run_block(const Job *job, int64_t block, float *target, Dtype t) {
    int64_t n = 3 * (int64_t)job->patch * job->patch, end = least((block + 1) * BLOCK, job->m);
    double total = 0;
    for (int64_t m = block * BLOCK; m < end; m++) {
        const void *x = row_of(job->x, m, n, t);
        load_target(target, job, job->patches[m], t);
        if (job->normalize) normalize(target, n);
        if (job->partial) {
            total += (double)squared_error(x, target, n, t) / (double)n;
            continue;
        }
        void *dx = row_at(job->dx, m, n, t);
        for (int64_t i = 0; i < n; i += LANES) {
            Vec d = vec_load_within(x, i, n, t) - vec_load_within(target, i, n, F32);
            vec_write_within(dx, i, n, d * job->factor, t, job->add);
        }
    }
    if (job->partial) job->partial[block] = total;
}

static void task(void *context, int64_t block, int worker) {
    const Job *job = context;
    size_t room = 3 * (size_t)job->patch * (size_t)job->patch + SUMS * LANES;
    float *target = cpu_worker_scratch(job->backend, worker, room * sizeof *target);
    if (job->t == F32)
        run_block(job, block, target, F32);
    else
        run_block(job, block, target, BF16);
}

static Job job_new(const Backend *b, const void *x, const void *images, const int32_t *patches, int64_t m,
                   int64_t batch, int64_t height, int64_t width, int patch, bool normalize, Dtype t) {
    return (Job){.backend = b,
                 .x = x,
                 .images = images,
                 .patches = patches,
                 .m = m,
                 .batch = batch,
                 .height = height,
                 .width = width,
                 .patch = patch,
                 .normalize = normalize,
                 .t = t};
}

static void masked_patch_mse_forward(Backend *b, float *out, const void *x, const void *images, const int32_t *patches,
                                     int64_t m, int64_t batch, int64_t height, int64_t width, int patch, bool normalize,
                                     Dtype t) {
    Job job = job_new(b, x, images, patches, m, batch, height, width, patch, normalize, t);
    int64_t blocks = divide_up(m, BLOCK);
    job.partial = cpu_shared_scratch(b, (size_t)blocks * sizeof(double));
    threads_run(cpu_threads(b), blocks, task, &job);
    double sum = 0;
    for (int64_t i = 0; i < blocks; i++) sum += job.partial[i];
    out[0] = (float)sum;
}

static void masked_patch_mse_backward(Backend *b, void *dx, const float *factor, const void *x, const void *images,
                                      const int32_t *patches, int64_t m, int64_t batch, int64_t height, int64_t width,
                                      int patch, bool normalize, Dtype t, bool add) {
    Job job = job_new(b, x, images, patches, m, batch, height, width, patch, normalize, t);
    job.dx = dx;
    job.add = add;
    job.factor = 2 * factor[0] / (float)(3 * patch * patch);
    threads_run(cpu_threads(b), divide_up(m, BLOCK), task, &job);
}

void SIMD_NAME(install_patch_mse)(Backend *b) {
    b->masked_patch_mse_forward = masked_patch_mse_forward;
    b->masked_patch_mse_backward = masked_patch_mse_backward;
}
