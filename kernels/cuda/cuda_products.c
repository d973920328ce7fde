/* Matrix products through cuBLASLt: f32 in full precision (no TF32), bf16 with f32 sums. For each shape, type and
 * alignment the library's heuristic is asked once and its answer kept; so the same shapes run the same kernels, and the
 * work space is one block, so that results have the same bits in every step and run. */
#include "base/error.h"
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/host/product_layout.h"
#include "kernels/cuda/host/shape_cache.h"
#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>

enum { WORKSPACE = 64 << 20, CANDIDATES = 8 };

// How a bias (f32) gets into a product: as it is or rounded to the result's type by the library, or added behind it.
typedef enum BiasWay { BIAS_NONE, BIAS_F32, BIAS_ROUNDED, BIAS_BEHIND, BIAS_WAYS } BiasWay;

typedef struct Plan {
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t left, right, out;
    cublasLtMatmulAlgo_t algorithm;
    BiasWay bias;
} Plan;

struct CudaProducts {
    cublasLtHandle_t handle;
    void *workspace;
    ShapeCache *plans; // ProductKey -> Plan
};

bool cuda_products_open(CudaState *s, Error *error) {
    CudaProducts *p = calloc(1, sizeof *p);
    check(p);
    s->products = p;
    cublasStatus_t status = cublasLtCreate(&p->handle);
    if (status != CUBLAS_STATUS_SUCCESS)
        return error_set(error, ERROR_FAILED, "cuBLASLt does not start: %s", cublasLtGetStatusString(status));
    cudaError_t memory = cudaMalloc(&p->workspace, WORKSPACE);
    if (memory != cudaSuccess)
        return error_set(error, ERROR_FAILED, "no memory for matrix products: %s", cudaGetErrorString(memory));
    p->plans = shape_cache_new(sizeof(ProductKey), sizeof(Plan));
    return true;
}

static void plan_drop(void *value) {
    Plan *plan = value;
    if (plan->operation) (void)cublasLtMatmulDescDestroy(plan->operation);
    if (plan->left) (void)cublasLtMatrixLayoutDestroy(plan->left);
    if (plan->right) (void)cublasLtMatrixLayoutDestroy(plan->right);
    if (plan->out) (void)cublasLtMatrixLayoutDestroy(plan->out);
    *plan = (Plan){0};
}

void cuda_products_close(CudaState *s) {
    CudaProducts *p = s->products;
    if (!p) return;
    shape_cache_free(p->plans, plan_drop);
    (void)cudaFree(p->workspace);
    if (p->handle) (void)cublasLtDestroy(p->handle);
    free(p);
    s->products = NULL;
}

// ---- a plan ----

static cudaDataType type_of(Dtype t) { return t == BF16 ? CUDA_R_16BF : CUDA_R_32F; }

static bool set(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t attribute, const void *value, size_t bytes) {
    return cublasLtMatmulDescSetAttribute(d, attribute, value, bytes) == CUBLAS_STATUS_SUCCESS;
}

static bool describe(cublasLtMatrixLayout_t *layout, const ProductSide *side, Dtype t, int64_t batch) {
    int32_t count = (int32_t)batch;
    return cublasLtMatrixLayoutCreate(layout, type_of(t), (uint64_t)side->rows, (uint64_t)side->columns,
                                      side->leading) == CUBLAS_STATUS_SUCCESS &&
           cublasLtMatrixLayoutSetAttribute(*layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count) ==
               CUBLAS_STATUS_SUCCESS &&
           cublasLtMatrixLayoutSetAttribute(*layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &side->batch,
                                            sizeof side->batch) == CUBLAS_STATUS_SUCCESS;
}

static bool describe_operation(Plan *plan, const Matmul *p, const ProductLayout *l) {
    cublasOperation_t left = l->left.transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasOperation_t right = l->right.transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    if (cublasLtMatmulDescCreate(&plan->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F) != CUBLAS_STATUS_SUCCESS)
        return false;
    if (!set(plan->operation, CUBLASLT_MATMUL_DESC_TRANSA, &left, sizeof left) ||
        !set(plan->operation, CUBLASLT_MATMUL_DESC_TRANSB, &right, sizeof right))
        return false;
    if (plan->bias != BIAS_F32 && plan->bias != BIAS_ROUNDED) return true;
    cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    cudaDataType type = plan->bias == BIAS_F32 ? CUDA_R_32F : type_of(p->out);
    return set(plan->operation, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue) &&
           set(plan->operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &type, sizeof type);
}

static bool prefer(cublasLtMatmulPreference_t wish, cublasLtMatmulPreferenceAttributes_t attribute, int64_t bytes) {
    uint32_t value = (uint32_t)bytes;
    return cublasLtMatmulPreferenceSetAttribute(wish, attribute, &value, sizeof value) == CUBLAS_STATUS_SUCCESS;
}

// The kernels the library expects to be fast, best first; returns how many.
static int ask(const CudaProducts *c, const Plan *plan, const ProductKey *key, cublasLtMatmulHeuristicResult_t *found) {
    cublasLtMatmulPreference_t wish = NULL;
    uint64_t workspace = WORKSPACE;
    int count = 0;
    if (cublasLtMatmulPreferenceCreate(&wish) == CUBLAS_STATUS_SUCCESS &&
        cublasLtMatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                             sizeof workspace) == CUBLAS_STATUS_SUCCESS &&
        prefer(wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, key->left_align) &&
        prefer(wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, key->right_align) &&
        prefer(wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, key->out_align) &&
        prefer(wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, key->out_align) &&
        cublasLtMatmulAlgoGetHeuristic(c->handle, plan->operation, plan->left, plan->right, plan->out, plan->out, wish,
                                       CANDIDATES, found, &count) != CUBLAS_STATUS_SUCCESS)
        count = 0;
    if (wish) (void)cublasLtMatmulPreferenceDestroy(wish);
    return count;
}

static bool try_way(const CudaProducts *c, Plan *plan, const Matmul *p, const ProductLayout *l, const ProductKey *key) {
    cublasLtMatmulHeuristicResult_t found[CANDIDATES];
    if (!describe_operation(plan, p, l) || !describe(&plan->left, &l->left, p->in, p->batch) ||
        !describe(&plan->right, &l->right, p->in, p->batch) || !describe(&plan->out, &l->out, p->out, p->batch))
        return false;
    int count = ask(c, plan, key, found);
    for (int i = 0; i < count; i++) {
        if (found[i].state != CUBLAS_STATUS_SUCCESS || found[i].workspaceSize > WORKSPACE) continue;
        plan->algorithm = found[i].algo;
        return true;
    }
    return false;
}

static bool way_fits(BiasWay way, const Matmul *p) {
    if (!p->bias) return way == BIAS_NONE;
    return way == BIAS_F32 || (way == BIAS_ROUNDED && p->out == BF16) ||
           (way == BIAS_BEHIND && p->batch == 1 && p->c_row == p->n);
}

static _Noreturn void no_plan(const CudaState *s, const Matmul *p, const char *reason) {
    char what[192];
    snprintf(what, sizeof what, "product (%lld, %lld, %lld) x %lld, %s to %s%s%s", (long long)p->m, (long long)p->n,
             (long long)p->k, (long long)p->batch, p->in == BF16 ? "bf16" : "f32", p->out == BF16 ? "bf16" : "f32",
             p->bias ? ", with bias" : "", p->add ? ", added" : "");
    cuda_fail(s, what, reason);
}

static const Plan *plan_for(CudaState *s, const Matmul *p, const ProductLayout *l) {
    ProductKey key = product_key(p, l);
    bool found;
    Plan *plan = shape_cache_get(s->products->plans, &key, &found);
    if (found) return plan;
    for (BiasWay way = BIAS_NONE; way < BIAS_WAYS; way++) {
        if (!way_fits(way, p)) continue;
        *plan = (Plan){.bias = way};
        if (try_way(s->products, plan, p, l, &key)) return plan;
        plan_drop(plan);
    }
    no_plan(s, p, "cuBLASLt has no kernel for it");
}

// ---- running ----

// A sum over nothing.
static void no_terms(Backend *b, const Matmul *p) {
    size_t size = dtype_size(p->out);
    check(!p->bias);
    for (int64_t i = 0; i < p->batch && !p->add; i++)
        cuda_must(cuda_state(b),
                  cudaMemset2DAsync((char *)p->c + (size_t)(i * p->c_batch) * size, (size_t)p->c_row * size, 0,
                                    (size_t)p->n * size, (size_t)p->m, cuda_state(b)->stream),
                  "zeroing");
}

static void matmul(Backend *b, const Matmul *p) {
    CudaState *s = cuda_state(b);
    ProductLayout layout;
    if (p->m == 0 || p->n == 0 || p->batch == 0) return;
    if (p->k == 0) {
        no_terms(b, p);
        return;
    }
    check(product_layout(p, &layout));
    const Plan *plan = plan_for(s, p, &layout);
    size_t mark = cuda_scratch_mark(s);
    const void *bias = p->bias;
    if (plan->bias == BIAS_ROUNDED || (plan->bias == BIAS_BEHIND && p->out == BF16)) {
        void *rounded = cuda_scratch(s, (size_t)p->n * dtype_size(BF16));
        b->convert(b, rounded, BF16, bias, F32, p->n);
        bias = rounded;
    }
    if (plan->bias == BIAS_F32 || plan->bias == BIAS_ROUNDED)
        check(set(plan->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias));
    float one = 1, zero = 0;
    cublasStatus_t status = cublasLtMatmul(s->products->handle, plan->operation, &one, p->b, plan->left, p->a,
                                           plan->right, p->add ? &one : &zero, p->c, plan->out, p->c, plan->out,
                                           &plan->algorithm, s->products->workspace, WORKSPACE, s->stream);
    if (status != CUBLAS_STATUS_SUCCESS) no_plan(s, p, cublasLtGetStatusString(status));
    if (plan->bias == BIAS_BEHIND) b->add(b, p->c, p->c, bias, p->m * p->n, p->n, p->out);
    cuda_scratch_rewind(s, mark);
    cuda_after(s, "matmul");
}

void cuda_products_install(Backend *b) { b->matmul = matmul; }
