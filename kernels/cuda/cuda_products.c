/* Matrix products through cuBLASLt: f32 in full precision (no TF32), bf16 with f32 sums. Each shape, type and alignment
 * has a plan (cuda_product_plans.c), so the same shapes run the same kernels; each lane has one block of work space, so
 * that results have the same bits in every step and run. */
#include "kernels/cuda/cuda_products.h"
#include "base/error.h"
#include "kernels/cuda/cuda_list.h"
#include <cuda_runtime_api.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- opening and closing ----

// Where choices are kept from run to run; nothing is timed where the environment says so.
static ProductMemory *open_memory(const CudaState *s) {
    char path[PATH_MAX], name[256], whose[256];
    const char *wish = getenv("BIFOCAL_AUTOTUNE");
    if (wish && !strcmp(wish, "0")) return NULL;
    (void)snprintf(whose, sizeof whose, "%s, %s, %d multiprocessors, cuBLASLt %zu", s->gpu.name, s->architecture,
                   s->multiprocessors, cublasLtGetVersion());
    (void)snprintf(name, sizeof name, "products-%.80s-%d-%zu", s->gpu.name, s->multiprocessors, cublasLtGetVersion());
    bool place = product_memory_path(path, sizeof path, name);
    return product_memory_open(place ? path : NULL, whose, s->log);
}

bool cuda_products_open(CudaState *s, Error *error) {
    CudaProducts *p = calloc(1, sizeof *p);
    check(p);
    s->products = p;
    cublasStatus_t status = cublasLtCreate(&p->handle);
    if (status != CUBLAS_STATUS_SUCCESS)
        return error_set(error, ERROR_FAILED, "cuBLASLt does not start: %s", cublasLtGetStatusString(status));
    cudaError_t memory = cudaMalloc(&p->workspace[0], WORK_PRODUCTS);
    if (memory != cudaSuccess)
        return error_set(error, ERROR_FAILED, "no memory for matrix products: %s", cudaGetErrorString(memory));
    p->plans = shape_cache_new(sizeof(ProductKey), sizeof(ProductPlan *));
    p->memory = open_memory(s);
    return true;
}

void cuda_products_reach_lane(CudaState *s, int lane) {
    void **place = &s->products->workspace[lane];
    if (!*place) cuda_must(s, cudaMalloc(place, WORK_PRODUCTS), "work space of products");
}

static void drop_plan(void *place) { product_plan_free(*(ProductPlan **)place); }

void cuda_products_close(CudaState *s) {
    CudaProducts *p = s->products;
    if (!p) return;
    shape_cache_free(p->plans, drop_plan);
    product_memory_close(p->memory);
    for (int i = 0; i < BACKEND_LANES; i++) (void)cudaFree(p->workspace[i]);
    if (p->handle) (void)cublasLtDestroy(p->handle);
    free(p);
    s->products = NULL;
}

// ---- one product ----

ProductCall product_call(CudaState *s, const ProductPlan *plan, const Matmul *p) {
    const void *vector = plan->bias == BIAS_F32 || plan->bias == BIAS_ROUNDED ? p->bias : NULL;
    return (ProductCall){.state = s,
                         .plan = plan,
                         .left = p->b,
                         .right = p->a,
                         .out = p->c,
                         .vector = p->sums ? p->sums : vector,
                         .aux = p->aux,
                         .left_factor = p->b_factor,
                         .right_factor = p->a_factor,
                         .workspace = s->products->workspace[cuda_list_lane(s)],
                         .add = p->add};
}

static bool point(const ProductCall *c, cublasLtMatmulDescAttributes_t attribute, const void *to) {
    return !to ||
           cublasLtMatmulDescSetAttribute(c->plan->operation, attribute, &to, sizeof to) == CUBLAS_STATUS_SUCCESS;
}

bool product_point(const ProductCall *c) {
    return point(c, CUBLASLT_MATMUL_DESC_BIAS_POINTER, c->vector) &&
           point(c, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, c->aux) &&
           point(c, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, c->left_factor) &&
           point(c, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, c->right_factor);
}

cublasStatus_t product_start(const ProductCall *c, CudaStream stream) {
    const CudaProducts *own = c->state->products;
    const ProductPlan *plan = c->plan;
    const float one = 1, beta = c->add ? 1 : 0;
    if (!product_point(c)) return CUBLAS_STATUS_INVALID_VALUE;
    return cublasLtMatmul(own->handle, plan->operation, &one, c->left, plan->left, c->right, plan->right, &beta, c->out,
                          plan->out, c->out, plan->out, &plan->algorithm, c->workspace, WORK_PRODUCTS, stream);
}

static void start(const void *arguments, CudaStream stream) {
    const ProductCall *c = arguments;
    cublasStatus_t status = product_start(c, stream);
    if (status != CUBLAS_STATUS_SUCCESS && !cuda_list_capture_fails(c->state, cudaErrorUnknown))
        cuda_fail(c->state, "a matrix product", cublasLtGetStatusString(status));
}

// ---- a sum over nothing ----

typedef struct Rows { // of C
    CudaState *state;
    void *memory;
    size_t pitch, bytes, count;
} Rows;

static void start_zeroing(const void *arguments, CudaStream stream) {
    const Rows *r = arguments;
    cuda_must(r->state, cudaMemset2DAsync(r->memory, r->pitch, 0, r->bytes, r->count, stream), "zeroing");
}

static void no_terms(CudaState *s, const Matmul *p) {
    size_t size = dtype_size(p->out);
    check(!p->bias && p->epilogue == EPILOGUE_NONE && !p->sums);
    for (int64_t i = 0; i < p->batch && !p->add; i++) {
        Rows r = {s, (char *)p->c + (size_t)(i * p->c_batch) * size, (size_t)p->c_row * size, (size_t)p->n * size,
                  (size_t)p->m};
        cuda_list_call(s, start_zeroing, &r, sizeof r);
    }
}

// ---- the backend's functions ----

static void matmul(Backend *b, const Matmul *given) {
    CudaState *s = cuda_state(b);
    ProductLayout layout;
    Matmul p = *given;
    if (p.m == 0 || p.n == 0 || p.batch == 0) return;
    if (p.k == 0) {
        no_terms(s, &p);
        return;
    }
    check(product_layout(&p, &layout));
    const ProductPlan *plan = product_plan(s, &p, &layout);
    check(plan->operation && "matmul_wins said so");
    size_t mark = cuda_scratch_mark(s);
    if (plan->bias == BIAS_ROUNDED || (plan->bias == BIAS_BEHIND && p.out == BF16)) {
        void *rounded = cuda_scratch(s, (size_t)p.n * dtype_size(BF16));
        b->convert(b, rounded, BF16, p.bias, F32, p.n);
        p.bias = rounded;
    }
    if (p.sums && p.add_sums) p.sums = cuda_scratch(s, (size_t)p.m * sizeof *p.sums);
    ProductCall call = product_call(s, plan, &p);
    cuda_list_call(s, start, &call, sizeof call);
    if (plan->bias == BIAS_BEHIND) b->add(b, p.c, p.c, p.bias, p.m * p.n, p.n, p.out);
    if (p.sums && p.add_sums) b->add_in_place(b, given->sums, p.sums, p.m, F32, F32);
    cuda_scratch_rewind(s, mark);
    cuda_after(s, "matmul");
}

// Whole rows: the kernels that an epilogue takes the place of know no others.
static bool matmul_wins(Backend *b, const Matmul *p) {
    CudaState *s = cuda_state(b);
    ProductLayout layout;
    if (p->m == 0 || p->n == 0 || p->k == 0 || p->batch != 1 || p->in != BF16 || !s->products->memory) return false;
    if (p->epilogue != EPILOGUE_NONE && (p->out != BF16 || p->add || p->c_row != p->n || p->n % 8 || p->sums))
        return false;
    if (p->sums && (p->a_row != 1 || p->a_column != p->m || p->bias || p->out != F32)) return false;
    if (p->epilogue == EPILOGUE_GELU_BACKWARD && p->bias) return false;
    return product_layout(p, &layout) && product_plan(s, p, &layout)->operation != NULL;
}

void cuda_products_install(Backend *b) { b->matmul = matmul, b->matmul_wins = matmul_wins; }
