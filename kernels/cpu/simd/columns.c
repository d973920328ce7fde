/* Sums over the rows of a matrix (gradients of biases). Rows are cut into fixed chunks whose sums combine in order. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/sizes.h"
#include <string.h>

enum { CHUNK_ROWS = 128, BLOCK_COLUMNS = 256 };

typedef struct Job {
    float *out, *partial; // (width), (chunks, width)
    const void *x;        // (rows, width)
    int64_t rows, width, chunks, blocks;
    Dtype type;
    bool add;
} Job;

// A chunk of rows of a block of columns.
static void chunk_task(void *context, int64_t task, int worker) {
    (void)worker;
    const Job *j = context;
    int64_t chunk = task / j->blocks, first = task % j->blocks * BLOCK_COLUMNS;
    int64_t count = least(BLOCK_COLUMNS, j->width - first);
    int64_t end = least((chunk + 1) * CHUNK_ROWS, j->rows);
    float sum[BLOCK_COLUMNS] = {0};
    for (int64_t r = chunk * CHUNK_ROWS; r < end; r++) {
        if (j->type == F32) {
            const float *x = (const float *)j->x + r * j->width + first;
            for (int64_t c = 0; c < count; c++) sum[c] += x[c];
        } else {
            const uint16_t *x = (const uint16_t *)j->x + r * j->width + first;
            for (int64_t c = 0; c < count; c++) sum[c] += bf16_to_f32(x[c]);
        }
    }
    memcpy(j->partial + chunk * j->width + first, sum, (size_t)count * sizeof *sum);
}

static void combine_task(void *context, int64_t task, int worker) {
    (void)worker;
    const Job *j = context;
    int64_t first = task * BLOCK_COLUMNS, count = least(BLOCK_COLUMNS, j->width - first);
    float sum[BLOCK_COLUMNS] = {0};
    for (int64_t k = 0; k < j->chunks; k++) {
        const float *x = j->partial + k * j->width + first;
        for (int64_t c = 0; c < count; c++) sum[c] += x[c];
    }
    float *out = j->out + first;
    for (int64_t c = 0; c < count; c++) out[c] = j->add ? out[c] + sum[c] : sum[c];
}

static void sum_columns(Backend *b, float *out, const void *x, int64_t rows, int64_t width, Dtype t, bool add) {
    int64_t chunks = divide_up(rows, CHUNK_ROWS), blocks = divide_up(width, BLOCK_COLUMNS);
    float *partial = cpu_shared_scratch(b, (size_t)(chunks * width) * sizeof *partial + 1);
    Job job = {out, partial, x, rows, width, chunks, blocks, t, add};
    threads_run(cpu_threads(b), chunks * blocks, chunk_task, &job);
    threads_run(cpu_threads(b), blocks, combine_task, &job);
}

void SIMD_NAME(install_columns)(Backend *b) { b->sum_columns = sum_columns; }
