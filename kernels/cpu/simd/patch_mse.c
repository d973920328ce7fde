/* The masked patch loss of MAE: one task for a fixed block of patches, whose losses add up in order.
 * M patches, P patch side; a patch is flattened (y, x, c). */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd/vec.h"
#include <math.h>

enum { BLOCK = 16 }; // patches a task

typedef struct Job {
    const Backend *backend;
    double *partial; // (blocks), or NULL in backward
    void *dx;
    const void *x, *images;
    const int32_t *patches;
    int64_t m, height, width;
    int patch;
    bool normalize, add;
    float factor;
    Dtype t;
} Job;

// The target of one patch as it is.
static void load_target(float *target, const Job *job, int64_t patch) {
    int64_t P = job->patch, across = job->width / P, down = job->height / P, plane = job->height * job->width;
    int64_t image = patch / (across * down), row = patch / across % down, column = patch % across;
    int64_t at = image * 3 * plane + row * P * job->width + column * P;
    for (int64_t c = 0; c < 3; c++)
        for (int64_t y = 0; y < P; y++)
            for (int64_t x = 0; x < P; x++)
                target[(y * P + x) * 3 + c] = element_load(job->images, at + c * plane + y * job->width + x, job->t);
}

// x to mean 0 and variance 1; x has room for whole vectors.
static void normalize(float *x, int64_t n) {
    Vec sum = {0}, squares = {0};
    for (int64_t i = 0; i < n; i += LANES) sum += vec_load_within(x, i, n, F32);
    float mean = vec_sum(sum) / (float)n;
    for (int64_t i = n; i % LANES; i++) x[i] = mean;
    for (int64_t i = 0; i < n; i += LANES) {
        Vec d = vec_load(x, i, F32) - mean;
        squares += d * d;
    }
    float scale = 1 / sqrtf(vec_sum(squares) / (float)(n - 1) + 1e-6f);
    for (int64_t i = 0; i < n; i += LANES) vec_store(x, i, (vec_load(x, i, F32) - mean) * scale, F32);
}

static float squared_error(const void *x, const float *target, int64_t n, Dtype t) {
    Vec sum = {0};
    for (int64_t i = 0; i < n; i += LANES) {
        Vec d = vec_load_within(x, i, n, t) - vec_load_within(target, i, n, F32);
        sum += d * d;
    }
    return vec_sum(sum);
}

static void task(void *context, int64_t block, int worker) {
    const Job *job = context;
    int64_t n = 3 * (int64_t)job->patch * job->patch, end = (block + 1) * BLOCK < job->m ? (block + 1) * BLOCK : job->m;
    float *target = cpu_worker_scratch(job->backend, worker, (size_t)(n + LANES) * sizeof *target);
    double total = 0;
    for (int64_t m = block * BLOCK; m < end; m++) {
        const void *x = row_of(job->x, m, n, job->t);
        load_target(target, job, job->patches[m]);
        if (job->normalize) normalize(target, n);
        if (job->partial) {
            total += squared_error(x, target, n, job->t) / (double)n;
            continue;
        }
        void *dx = row_at(job->dx, m, n, job->t);
        for (int64_t i = 0; i < n; i += LANES) {
            Vec d = vec_load_within(x, i, n, job->t) - vec_load_within(target, i, n, F32);
            vec_write_within(dx, i, n, d * job->factor, job->t, job->add);
        }
    }
    if (job->partial) job->partial[block] = total;
}

static void masked_patch_mse_forward(Backend *b, float *out, const void *x, const void *images, const int32_t *patches,
                                     int64_t m, int64_t batch, int64_t height, int64_t width, int patch, bool normalize,
                                     Dtype t) {
    (void)batch;
    int64_t blocks = (m + BLOCK - 1) / BLOCK;
    Job job = {.backend = b,
               .x = x,
               .images = images,
               .patches = patches,
               .m = m,
               .height = height,
               .width = width,
               .patch = patch,
               .normalize = normalize,
               .t = t};
    job.partial = cpu_shared_scratch(b, (size_t)blocks * sizeof(double));
    threads_run(cpu_threads(b), blocks, task, &job);
    double sum = 0;
    for (int64_t i = 0; i < blocks; i++) sum += job.partial[i];
    out[0] = (float)sum;
}

static void masked_patch_mse_backward(Backend *b, void *dx, const float *factor, const void *x, const void *images,
                                      const int32_t *patches, int64_t m, int64_t batch, int64_t height, int64_t width,
                                      int patch, bool normalize, Dtype t, bool add) {
    (void)batch;
    Job job = {.backend = b,
               .dx = dx,
               .x = x,
               .images = images,
               .patches = patches,
               .m = m,
               .height = height,
               .width = width,
               .patch = patch,
               .normalize = normalize,
               .add = add,
               .t = t,
               .factor = 2 * factor[0] / (float)(3 * patch * patch)};
    threads_run(cpu_threads(b), (m + BLOCK - 1) / BLOCK, task, &job);
}

void SIMD_NAME(install_patch_mse)(Backend *b) {
    b->masked_patch_mse_forward = masked_patch_mse_forward;
    b->masked_patch_mse_backward = masked_patch_mse_backward;
}
