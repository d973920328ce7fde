/* Times of products: each runs some times in the stream, behind what is there, with its outputs in memory that is taken
 * for that and given back, so that it may happen at any point of a step and changes nothing. What is read may hold
 * anything: the time hardly depends on it. */
#include "base/error.h"
#include "kernels/cuda/cuda_list.h"
#include "kernels/cuda/cuda_products.h"
#include <cuda_runtime_api.h>
#include <math.h>
#include <stddef.h>

enum { REPEATS = 5, ALIGNMENT = 256 };

typedef struct Trial {
    CudaState *state;
    const ProductPlan *plan;
    Matmul product;      // whose outputs lie in `memory`
    const Matmul *whole; // of a trial of calls apart: with its epilogue and sums
    void *memory;
    cudaEvent_t begin, end;
} Trial;

Matmul product_alone(const Matmul *p) {
    Matmul alone = *p;
    alone.epilogue = EPILOGUE_NONE;
    alone.aux = NULL, alone.sums = NULL, alone.add_sums = false;
    return alone;
}

static size_t rounded(size_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

// Bytes from the first to the last element of C.
static size_t extent(const Matmul *p) {
    return rounded((size_t)((p->batch - 1) * p->c_batch + (p->m - 1) * p->c_row + p->n) * dtype_size(p->out));
}

// Room for C, aux and vectors, all of which may be written.
static bool trial_begin(Trial *t) {
    Matmul *p = &t->product;
    size_t size = extent(p), vector = rounded(sizeof(float) * (size_t)(p->m > p->n ? p->m : p->n));
    bool ok = cudaMalloc(&t->memory, 2 * size + 2 * vector) == cudaSuccess &&
              cudaEventCreate(&t->begin) == cudaSuccess && cudaEventCreate(&t->end) == cudaSuccess;
    (void)cudaGetLastError(); // no memory is no fault: what is not timed is not taken
    if (!ok) return false;
    char *at = t->memory;
    p->c = at;
    if (p->aux) p->aux = at + size;
    if (p->bias) p->bias = (float *)(void *)(at + 2 * size);
    if (p->sums) p->sums = (float *)(void *)(at + 2 * size + vector);
    return true;
}

static void trial_end(Trial *t) {
    if (t->begin) (void)cudaEventDestroy(t->begin);
    if (t->end) (void)cudaEventDestroy(t->end);
    (void)cudaFree(t->memory);
}

static bool run(const Trial *t) {
    ProductCall call = product_call(t->state, t->plan, &t->product);
    return product_start(&call, t->state->stream) == CUBLAS_STATUS_SUCCESS;
}

// The kernels that an epilogue takes the place of, over memory of the same size.
static void run_rest(const Trial *t) {
    const Matmul *p = &t->product, *whole = t->whole;
    CudaQueue queue = cuda_queue(t->state);
    queue.start = NULL; // at once
    size_t mark = cuda_scratch_mark(t->state);
    void *second = (char *)t->memory + extent(p);
    if (whole->epilogue == EPILOGUE_GELU) cuda_gelu_forward(&queue, second, p->c, p->m * p->n, 1, p->out);
    if (whole->epilogue == EPILOGUE_GELU_BACKWARD)
        cuda_gelu_backward(&queue, second, p->c, whole->aux, p->m * p->n, 1, p->out, false);
    if (whole->sums)
        cuda_sum_columns(&queue, (float *)second, whole->a, whole->k, whole->m, whole->in, whole->add_sums);
    cuda_scratch_rewind(t->state, mark);
}

static double measure(Trial *t) {
    float milliseconds = 0;
    bool ok = run(t);
    if (t->whole && ok) run_rest(t);
    cuda_must(t->state, cudaEventRecord(t->begin, t->state->stream), "timing a product");
    for (int i = 0; i < REPEATS && ok; i++) {
        ok = run(t);
        if (t->whole) run_rest(t);
    }
    cuda_must(t->state, cudaEventRecord(t->end, t->state->stream), "timing a product");
    cuda_must(t->state, cudaEventSynchronize(t->end), "timing a product");
    cuda_must(t->state, cudaEventElapsedTime(&milliseconds, t->begin, t->end), "timing a product");
    return ok ? 1e-3 * (double)milliseconds / REPEATS : INFINITY;
}

static double seconds_of(Trial *t) {
    double seconds = trial_begin(t) ? measure(t) : (double)NAN;
    trial_end(t);
    return seconds;
}

double product_seconds(CudaState *s, const ProductPlan *plan, const Matmul *p) {
    return seconds_of(&(Trial){.state = s, .plan = plan, .product = *p});
}

double product_seconds_apart(CudaState *s, const ProductPlan *plain, const Matmul *p) {
    return seconds_of(&(Trial){.state = s, .plan = plain, .product = product_alone(p), .whole = p});
}
