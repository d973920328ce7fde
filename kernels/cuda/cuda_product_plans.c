/* Plans of products: what cuBLASLt is told about a shape, and which of its kernels is taken. The library suggests some;
 * each is timed once on this device, outputs aside, and the fastest is kept, in a file too, so that later runs have the
 * same kernels and the same bits. Kernels that cut the inner dimension are taken only where partial sums are f32 and
 * combine in a fixed order. With BIFOCAL_AUTOTUNE=0 the first suggestion is taken. */
#include "base/error.h"
#include "kernels/cuda/cuda_products.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CANDIDATES = 16 };
static const double CLEARLY = 0.98; // of the time of what is taken otherwise: below it is no noise

_Static_assert(sizeof(cublasLtMatmulAlgo_t) == PRODUCT_ALGORITHM * sizeof(uint64_t), "the file holds it whole");

static _Noreturn void no_plan(const CudaState *s, const Matmul *p, const char *reason) {
    char what[192];
    snprintf(what, sizeof what, "product (%lld, %lld, %lld) x %lld, %s to %s%s%s", (long long)p->m, (long long)p->n,
             (long long)p->k, (long long)p->batch,
             dtype_size(p->in) == 1 ? "fp8"
             : p->in == BF16        ? "bf16"
                                    : "f32",
             p->out == BF16 ? "bf16" : "f32", p->bias ? ", with bias" : "", p->add ? ", added" : "");
    cuda_fail(s, what, reason);
}

// ---- a description ----

static cudaDataType type_of(Dtype t) {
    static const cudaDataType types[] = {
        [F32] = CUDA_R_32F, [BF16] = CUDA_R_16BF, [E4M3] = CUDA_R_8F_E4M3, [E5M2] = CUDA_R_8F_E5M2};
    return types[t];
}

static bool set(const ProductPlan *plan, cublasLtMatmulDescAttributes_t attribute, const void *value, size_t bytes) {
    return cublasLtMatmulDescSetAttribute(plan->operation, attribute, value, bytes) == CUBLAS_STATUS_SUCCESS;
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

static cublasLtEpilogue_t epilogue_of(const ProductPlan *plan, const Matmul *p) {
    bool bias = plan->bias == BIAS_F32 || plan->bias == BIAS_ROUNDED;
    if (p->sums) return CUBLASLT_EPILOGUE_BGRADB; // over k of the right side, which is A
    if (p->epilogue == EPILOGUE_GELU) return bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
    if (p->epilogue == EPILOGUE_GELU_BACKWARD) return CUBLASLT_EPILOGUE_DGELU;
    return bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
}

// Types of vectors and of aux stay unset: the library takes the result's, and knows no others in f32 and bf16.
static bool describe_epilogue(const ProductPlan *plan, const Matmul *p, const ProductLayout *l) {
    cublasLtEpilogue_t epilogue = epilogue_of(plan, p);
    return set(plan, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue) &&
           (p->epilogue == EPILOGUE_NONE ||
            set(plan, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &l->out.leading, sizeof l->out.leading));
}

// The library looks at how these pointers are aligned when it is asked for kernels.
static bool point_as(CudaState *s, const ProductPlan *plan, const Matmul *p) {
    ProductCall call = product_call(s, plan, p);
    return product_point(&call);
}

static bool describe_operation(ProductPlan *plan, const Matmul *p, const ProductLayout *l) {
    cublasOperation_t left = l->left.transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasOperation_t right = l->right.transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    return cublasLtMatmulDescCreate(&plan->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS &&
           set(plan, CUBLASLT_MATMUL_DESC_TRANSA, &left, sizeof left) &&
           set(plan, CUBLASLT_MATMUL_DESC_TRANSB, &right, sizeof right) && describe_epilogue(plan, p, l);
}

void product_plan_free(ProductPlan *plan) {
    if (!plan) return;
    if (plan->operation) (void)cublasLtMatmulDescDestroy(plan->operation);
    if (plan->left) (void)cublasLtMatrixLayoutDestroy(plan->left);
    if (plan->right) (void)cublasLtMatrixLayoutDestroy(plan->right);
    if (plan->out) (void)cublasLtMatrixLayoutDestroy(plan->out);
    free(plan);
}

static ProductPlan *plan_new(CudaState *s, const Matmul *p, const ProductLayout *l, BiasWay way) {
    ProductPlan *plan = calloc(1, sizeof *plan);
    check(plan);
    plan->bias = way;
    if (describe_operation(plan, p, l) && point_as(s, plan, p) &&
        describe(&plan->left, &l->left, p->in == E5M2 ? E4M3 : p->in, p->batch) &&
        describe(&plan->right, &l->right, p->in, p->batch) && describe(&plan->out, &l->out, p->out, p->batch))
        return plan;
    product_plan_free(plan);
    return NULL;
}

// ---- what the library suggests ----

static bool prefer(cublasLtMatmulPreference_t wish, cublasLtMatmulPreferenceAttributes_t attribute, int64_t number) {
    uint32_t value = (uint32_t)number;
    return cublasLtMatmulPreferenceSetAttribute(wish, attribute, &value, sizeof value) == CUBLAS_STATUS_SUCCESS;
}

// The kernels the library expects to be fast, best first; returns how many.
static int ask(const CudaProducts *c, const ProductPlan *plan, const ProductKey *key,
               cublasLtMatmulHeuristicResult_t *found) {
    cublasLtMatmulPreference_t wish = NULL;
    uint64_t workspace = WORK_PRODUCTS;
    int count = 0, kept = 0;
    if (cublasLtMatmulPreferenceCreate(&wish) == CUBLAS_STATUS_SUCCESS &&
        cublasLtMatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                             sizeof workspace) == CUBLAS_STATUS_SUCCESS &&
        prefer(wish, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE) &&
        prefer(wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, key->left_align) &&
        prefer(wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, key->right_align) &&
        prefer(wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, key->out_align) &&
        prefer(wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, key->out_align) &&
        cublasLtMatmulAlgoGetHeuristic(c->handle, plan->operation, plan->left, plan->right, plan->out, plan->out, wish,
                                       CANDIDATES, found, &count) != CUBLAS_STATUS_SUCCESS)
        count = 0;
    if (wish) (void)cublasLtMatmulPreferenceDestroy(wish);
    for (int i = 0; i < count; i++)
        if (found[i].state == CUBLAS_STATUS_SUCCESS && found[i].workspaceSize <= WORK_PRODUCTS)
            found[kept++] = found[i];
    return kept;
}

// The first, or another one that is clearly faster; false where the library suggested what it does not do. *seconds:
// its time.
static bool choose(CudaState *s, ProductPlan *plan, const Matmul *p, const cublasLtMatmulHeuristicResult_t *found,
                   int count, double *seconds) {
    int best = 0, refused = 0;
    *seconds = INFINITY;
    for (int i = 0; i < count && s->products->memory; i++) {
        plan->algorithm = found[i].algo;
        double time = product_seconds(s, plan, p);
        if (time == INFINITY) refused++;
        if (time < *seconds * (best || i ? CLEARLY : 1)) *seconds = time, best = i;
    }
    plan->algorithm = found[best].algo;
    return refused < count;
}

// The library adds a bias of the result's type.
static bool way_fits(BiasWay way, const Matmul *p) {
    if (!p->bias) return way == BIAS_NONE;
    return (way == BIAS_F32 && p->in != E4M3 && p->in != E5M2 && p->out == F32) ||
           (way == BIAS_ROUNDED && p->out == BF16) ||
           (way == BIAS_BEHIND && p->batch == 1 && p->c_row == p->n && p->epilogue == EPILOGUE_NONE);
}

// By the first way that the library has kernels for; NULL: none.
static ProductPlan *make(CudaState *s, const Matmul *p, const ProductLayout *l, const ProductKey *key,
                         double *seconds) {
    cublasLtMatmulHeuristicResult_t found[CANDIDATES];
    for (BiasWay way = BIAS_NONE; way < BIAS_WAYS; way++) {
        ProductPlan *plan = way_fits(way, p) ? plan_new(s, p, l, way) : NULL;
        int count = plan ? ask(s->products, plan, key, found) : 0;
        if (count > 0 && choose(s, plan, p, found, count, seconds)) return plan;
        product_plan_free(plan);
    }
    return NULL;
}

// ---- what was settled before ----

enum { APART = BIAS_WAYS }; // ProductChoice.way

// NULL: nothing was, or the library does not know that kernel.
static ProductPlan *recall(CudaState *s, const Matmul *p, const ProductLayout *l, const ProductChoice *choice) {
    cublasLtMatmulHeuristicResult_t found;
    if (choice->way == APART) {
        ProductPlan *nothing = calloc(1, sizeof *nothing);
        check(nothing);
        return nothing;
    }
    ProductPlan *plan =
        choice->way < APART && way_fits((BiasWay)choice->way, p) ? plan_new(s, p, l, (BiasWay)choice->way) : NULL;
    if (!plan) return NULL;
    memcpy(&plan->algorithm, choice->algorithm, sizeof plan->algorithm);
    if (cublasLtMatmulAlgoCheck(s->products->handle, plan->operation, plan->left, plan->right, plan->out, plan->out,
                                &plan->algorithm, &found) == CUBLAS_STATUS_SUCCESS &&
        found.workspaceSize <= WORK_PRODUCTS)
        return plan;
    product_plan_free(plan);
    return NULL;
}

// Of a product that is more than one: is it faster than its parts?
static bool wins(CudaState *s, const Matmul *p, double seconds) {
    ProductLayout layout;
    Matmul alone = product_alone(p);
    check(product_layout(&alone, &layout));
    return seconds < CLEARLY * product_seconds_apart(s, product_plan(s, &alone, &layout), p);
}

// Timed here, unless another process has been faster at it.
static ProductPlan *settle(CudaState *s, const Matmul *p, const ProductLayout *l, const ProductKey *key) {
    bool more = p->sums || p->epilogue != EPILOGUE_NONE;
    double seconds = INFINITY;
    ProductChoice mine = {.way = APART}, choice;
    ProductPlan *plan = more && !s->products->memory ? NULL : make(s, p, l, key, &seconds);
    if (plan && (!more || wins(s, p, seconds))) {
        mine.way = (uint64_t)plan->bias;
        memcpy(mine.algorithm, &plan->algorithm, sizeof mine.algorithm);
    }
    if (!plan && !more) no_plan(s, p, "cuBLASLt has no kernel for it");
    choice = mine;
    if (s->products->memory) product_memory_settle(s->products->memory, key, &choice);
    if (plan && memcmp(&choice, &mine, sizeof mine) == 0 && mine.way != APART) return plan;
    ProductPlan *theirs = recall(s, p, l, &choice);
    if (!theirs) return plan;
    product_plan_free(plan);
    return theirs;
}

const ProductPlan *product_plan(CudaState *s, const Matmul *p, const ProductLayout *l) {
    ProductKey key = product_key(p, l);
    ProductChoice choice;
    bool found;
    ProductPlan **place = shape_cache_get(s->products->plans, &key, &found);
    if (found) return *place;
    ProductMemory *memory = s->products->memory;
    ProductPlan *plan = memory && product_memory_find(memory, &key, &choice) ? recall(s, p, l, &choice) : NULL;
    if (!plan) plan = settle(s, p, l, &key);
    place = shape_cache_get(s->products->plans, &key, &found); // settling may have moved it
    *place = plan;
    return plan;
}
