/* A stand-in for cuBLASLt: it computes in f64 what is asked for, by the rules of the library's documentation, and notes
 * calls that break one of them: shapes and leading dimensions that do not go together, pointers less aligned than was
 * promised, an algorithm found for another description, epilogues without their pointers, too little work space. Its
 * kernels differ in the time they pretend to take, the work space they spoil and how they add up. */
#include "tests/simt/cublaslt.h"
#include "kernels/fp8.h"
#include "kernels/tensor.h"
#include "tests/simt/runtime.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

StandIn stand_in = {.kernels = 3, .seconds = {3e-6, 2e-6, 1e-6}};

// ---- descriptions ----

struct StandInHandle {
    int open;
};
struct StandInOperation {
    int32_t left, right; // transposed
    cublasLtEpilogue_t epilogue;
    cudaDataType bias_type, aux_type;
    void *bias, *aux;
    const float *left_scale, *right_scale;
    int64_t aux_leading;
};
struct StandInLayout {
    cudaDataType type;
    int64_t rows, columns, leading, stride;
    int32_t batch;
};
struct StandInWish {
    uint64_t workspace;
    uint32_t schemes, align[4];
};

size_t cublasLtGetVersion(void) { return 139900; }
const char *cublasLtGetStatusString(cublasStatus_t s) { return s == CUBLAS_STATUS_SUCCESS ? "success" : "refused"; }

static cublasStatus_t made(void *memory) { return memory ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED; }

cublasStatus_t cublasLtCreate(cublasLtHandle_t *h) { return made(*h = calloc(1, sizeof **h)); }
cublasStatus_t cublasLtDestroy(cublasLtHandle_t h) {
    free(h);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *d, cublasComputeType_t compute, cudaDataType scale) {
    *d = calloc(1, sizeof **d);
    if (*d) (*d)->epilogue = CUBLASLT_EPILOGUE_DEFAULT, (*d)->bias_type = (*d)->aux_type = (cudaDataType)-1;
    return compute == CUBLAS_COMPUTE_32F && scale == CUDA_R_32F ? made(*d) : CUBLAS_STATUS_NOT_SUPPORTED;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d) {
    free(d);
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t take(void *place, size_t size, const void *value, size_t bytes) {
    if (size != bytes) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(place, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t attribute,
                                              const void *value, size_t bytes) {
    switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
        return take(&d->left, sizeof d->left, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB:
        return take(&d->right, sizeof d->right, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
        return take(&d->epilogue, sizeof d->epilogue, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
        return take(&d->bias, sizeof d->bias, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
        return take(&d->bias_type, sizeof d->bias_type, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER:
        return take(&d->aux, sizeof d->aux, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD:
        return take(&d->aux_leading, sizeof d->aux_leading, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE:
        return take(&d->aux_type, sizeof d->aux_type, value, bytes);
    case CUBLASLT_MATMUL_DESC_A_SCALE_POINTER:
        return take(&d->left_scale, sizeof d->left_scale, value, bytes);
    case CUBLASLT_MATMUL_DESC_B_SCALE_POINTER:
        return take(&d->right_scale, sizeof d->right_scale, value, bytes);
    default:
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *l, cudaDataType type, uint64_t rows, uint64_t columns,
                                          int64_t leading) {
    *l = calloc(1, sizeof **l);
    if (*l) **l = (struct StandInLayout){type, (int64_t)rows, (int64_t)columns, leading, 0, 1};
    return made(*l);
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l) {
    free(l);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t l, cublasLtMatrixLayoutAttribute_t attribute,
                                                const void *value, size_t bytes) {
    if (attribute == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT) return take(&l->batch, sizeof l->batch, value, bytes);
    return take(&l->stride, sizeof l->stride, value, bytes);
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *w) {
    *w = calloc(1, sizeof **w);
    if (*w) (*w)->schemes = 7;
    return made(*w);
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t w) {
    free(w);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t w,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void *value,
                                                    size_t bytes) {
    if (attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES)
        return take(&w->workspace, sizeof w->workspace, value, bytes);
    if (attribute == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK)
        return take(&w->schemes, sizeof w->schemes, value, bytes);
    return take(&w->align[attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES], sizeof(uint32_t), value, bytes);
}

// ---- rules ----

static cublasStatus_t mistaken(const char *rule) {
    if (!stand_in.mistakes++) stand_in.mistake = rule;
    return CUBLAS_STATUS_INVALID_VALUE;
}

static int64_t rows_of(cublasLtMatrixLayout_t l, int32_t transposed) { return transposed ? l->columns : l->rows; }
static int64_t columns_of(cublasLtMatrixLayout_t l, int32_t transposed) { return transposed ? l->rows : l->columns; }

static bool eight_bits(cublasLtMatrixLayout_t l) { return l->type == CUDA_R_8F_E4M3 || l->type == CUDA_R_8F_E5M2; }

static const char *layouts_broken(cublasLtMatmulDesc_t o, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                  cublasLtMatrixLayout_t d) {
    if (rows_of(a, o->left) != d->rows || columns_of(b, o->right) != d->columns) return "sizes of the result";
    if (columns_of(a, o->left) != rows_of(b, o->right)) return "inner sizes";
    if (a->leading < a->rows || b->leading < b->rows || d->leading < d->rows) return "leading dimensions";
    if (a->batch != b->batch || a->batch != d->batch) return "counts of batches";
    if (a->type != b->type && !(eight_bits(a) && eight_bits(b))) return "types of factors";
    if (a->type == CUDA_R_8F_E5M2 && b->type == CUDA_R_8F_E5M2) return "two factors of e5m2";
    if (eight_bits(a) && (!o->left || o->right)) return "fp8: rows of the left by columns of the right alone";
    if (eight_bits(a) && (a->rows % 16 || d->rows % 16 || d->columns % 16)) return "fp8: multiples of 16";
    return NULL;
}

static bool has_bias(cublasLtEpilogue_t e) {
    return e == CUBLASLT_EPILOGUE_BIAS || e == CUBLASLT_EPILOGUE_GELU_AUX_BIAS || e == CUBLASLT_EPILOGUE_BGRADB;
}
static bool has_aux(cublasLtEpilogue_t e) {
    return e == CUBLASLT_EPILOGUE_GELU_AUX || e == CUBLASLT_EPILOGUE_GELU_AUX_BIAS || e == CUBLASLT_EPILOGUE_DGELU;
}

// Of the library's table of types: a bias, sums and aux have the result's, and in fp8 with a result in f32 bf16.
static cudaDataType vector_type(cublasLtMatmulDesc_t o, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t d) {
    if (o->bias_type != (cudaDataType)-1) return o->bias_type;
    return eight_bits(a) && d->type == CUDA_R_32F ? CUDA_R_16BF : d->type;
}

static bool known(cublasLtMatmulDesc_t o, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t d) {
    cudaDataType vector = vector_type(o, a, d);
    struct StandInOperation unset = *o;
    unset.bias_type = (cudaDataType)-1;
    if (has_bias(o->epilogue) && vector != vector_type(&unset, a, d)) return false;
    if (has_aux(o->epilogue) && o->aux_type != (cudaDataType)-1 && o->aux_type != d->type) return false;
    return !stand_in.supports || stand_in.supports(o->epilogue, has_bias(o->epilogue) ? vector : CUDA_R_32F);
}

// How a vector is aligned that a kernel was asked for with; what is not set counts as the best.
static uint64_t alignment(const void *pointer) { return ((uintptr_t)pointer | 16) & -((uintptr_t)pointer | 16); }

static uint64_t mixed(uint64_t h, int64_t x) { return (h ^ (uint64_t)x) * 1099511628211u; }

// Of what an algorithm is found for.
static uint64_t print_of(cublasLtMatmulDesc_t o, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                         cublasLtMatrixLayout_t d) {
    uint64_t h = mixed(mixed(mixed(1469598103934665603u, o->left), o->right), o->epilogue);
    cublasLtMatrixLayout_t all[] = {a, b, d};
    for (int i = 0; i < 3; i++) {
        h = mixed(mixed(mixed(h, all[i]->rows), all[i]->columns), all[i]->leading);
        h = mixed(mixed(mixed(h, all[i]->type), all[i]->batch), all[i]->batch > 1 ? all[i]->stride : 0);
    }
    return h ^ h >> 31;
}

enum { PRINT, KERNEL, SPACE, SCHEME, ALIGN, SEAL = 7 }; // words of an algorithm; alignments a byte each

static const uint32_t schemes[] = {0, 2, 1, 0, 4, 0, 2, 0}; // of each kernel

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t h, cublasLtMatmulDesc_t o, cublasLtMatrixLayout_t a,
                                              cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                                              cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t w, int wanted,
                                              cublasLtMatmulHeuristicResult_t *result, int *found) {
    (void)h, (void)c;
    *found = 0;
    if (layouts_broken(o, a, b, d)) return mistaken(layouts_broken(o, a, b, d));
    if (!known(o, a, d)) return CUBLAS_STATUS_NOT_SUPPORTED;
    if ((has_bias(o->epilogue) && !o->bias) || (has_aux(o->epilogue) && !o->aux))
        return mistaken("pointers are there when kernels are asked for");
    for (int i = 0; i < stand_in.kernels && *found < wanted; i++) {
        if (schemes[i] & ~w->schemes) continue;
        cublasLtMatmulHeuristicResult_t *r = &result[(*found)++];
        *r = (cublasLtMatmulHeuristicResult_t){.workspaceSize = (size_t)i << 12};
        uint64_t align = (alignment(o->bias) - 1) << 32 | (alignment(o->aux) - 1) << 40;
        for (int k = 0; k < 4; k++) align |= (uint64_t)(w->align[k] - 1) << (8 * k);
        r->algo = (cublasLtMatmulAlgo_t){{[PRINT] = print_of(o, a, b, d),
                                          [KERNEL] = (uint64_t)i,
                                          [SPACE] = r->workspaceSize,
                                          [SCHEME] = schemes[i],
                                          [ALIGN] = align,
                                          [SEAL] = 7}};
        if (r->workspaceSize > w->workspace) r->state = CUBLAS_STATUS_NOT_SUPPORTED;
    }
    return *found ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t h, cublasLtMatmulDesc_t o, cublasLtMatrixLayout_t a,
                                       cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t *algo, cublasLtMatmulHeuristicResult_t *result) {
    (void)h, (void)c;
    *result = (cublasLtMatmulHeuristicResult_t){.algo = *algo, .workspaceSize = (size_t)algo->data[SPACE]};
    bool fits = known(o, a, d) && algo->data[SEAL] == 7 && algo->data[PRINT] == print_of(o, a, b, d);
    return fits ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

static bool aligned(const void *pointer, const cublasLtMatmulAlgo_t *algo, int which) {
    uint64_t mask = algo->data[ALIGN] >> (8 * which) & 0xff;
    return ((uintptr_t)pointer & mask) == 0;
}

// ---- computing ----

static double number(const void *memory, cudaDataType type, int64_t at) {
    if (type == CUDA_R_8F_E4M3) return (double)fp8_decode(((const uint8_t *)memory)[at], FP8_E4M3);
    if (type == CUDA_R_8F_E5M2) return (double)fp8_decode(((const uint8_t *)memory)[at], FP8_E5M2);
    return type == CUDA_R_16BF ? bf16_to_f32(((const uint16_t *)memory)[at]) : ((const float *)memory)[at];
}
static void put(void *memory, cudaDataType type, int64_t at, double value) {
    if (type == CUDA_R_16BF)
        ((uint16_t *)memory)[at] = f32_to_bf16((float)value);
    else
        ((float *)memory)[at] = (float)value;
}
static int64_t place(cublasLtMatrixLayout_t l, int32_t transposed, int64_t row, int64_t column, int64_t batch) {
    return batch * l->stride + (transposed ? row * l->leading + column : column * l->leading + row);
}

static const double SQRT_2_PI = 0.7978845608028654, CUBIC = 0.044715;
static double gelu(double x) { return 0.5 * x * (1 + tanh(SQRT_2_PI * (x + CUBIC * x * x * x))); }
static double gelu_slope(double x) {
    double t = tanh(SQRT_2_PI * (x + CUBIC * x * x * x));
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * SQRT_2_PI * (1 + 3 * CUBIC * x * x);
}

// What is stored for the product's sum z in row r and column c of D.
static double finish(struct StandInOperation *o, double z, int64_t r, int64_t c) {
    int64_t at = c * o->aux_leading + r;
    if (o->epilogue == CUBLASLT_EPILOGUE_BIAS || o->epilogue == CUBLASLT_EPILOGUE_GELU_AUX_BIAS)
        z += number(o->bias, o->bias_type, r);
    if (o->epilogue == CUBLASLT_EPILOGUE_DGELU) return z * gelu_slope(number(o->aux, o->aux_type, at));
    if (!has_aux(o->epilogue)) return z;
    put(o->aux, o->aux_type, at, z);
    return gelu(z);
}

static void sum_right(struct StandInOperation *o, const void *b, cublasLtMatrixLayout_t lb) {
    for (int64_t c = 0; c < columns_of(lb, o->right); c++) {
        double sum = 0;
        for (int64_t k = 0; k < rows_of(lb, o->right); k++) sum += number(b, lb->type, place(lb, o->right, k, c, 0));
        put(o->bias, o->bias_type, c, sum);
    }
}

typedef struct Job { // a call, as it was when it was made
    struct StandInOperation operation;
    struct StandInLayout left, right, out;
    const void *a, *b;
    void *d, *workspace;
    size_t spoiled; // bytes of work space
    double beta, seconds;
} Job;

// (count, inner) numbers, in the order of the sums.
static double *gather(const void *memory, struct StandInLayout *l, int32_t transposed, bool by_row, int64_t count,
                      int64_t inner, int64_t batch) {
    double *x = malloc((size_t)(count * inner + 1) * sizeof *x);
    if (!x) abort();
    for (int64_t i = 0; i < count; i++)
        for (int64_t k = 0; k < inner; k++)
            x[i * inner + k] = number(memory, l->type, place(l, transposed, by_row ? i : k, by_row ? k : i, batch));
    return x;
}

static void compute(Job *j, int64_t batch) {
    int64_t inner = columns_of(&j->left, j->operation.left), rows = j->out.rows, columns = j->out.columns;
    const float *left = j->operation.left_scale, *right = j->operation.right_scale;
    double factor = (left ? (double)*left : 1) * (right ? (double)*right : 1);
    double *a = gather(j->a, &j->left, j->operation.left, true, rows, inner, batch);
    double *b = gather(j->b, &j->right, j->operation.right, false, columns, inner, batch);
    for (int64_t c = 0; c < columns; c++)
        for (int64_t r = 0; r < rows; r++) {
            int64_t at = place(&j->out, 0, r, c, batch);
            double z = 0;
            for (int64_t k = 0; k < inner; k++) z += a[r * inner + k] * b[c * inner + k];
            z *= factor;
            if (j->beta != 0) z += j->beta * number(j->d, j->out.type, at); // not read where it is 0
            put(j->d, j->out.type, at, finish(&j->operation, z, r, c));
        }
    free(a);
    free(b);
}

static void run_job(const void *arguments) {
    Job j;
    memcpy(&j, arguments, sizeof j);
    memset(j.workspace, 0xff, j.spoiled);
    for (int64_t batch = 0; batch < j.out.batch; batch++) compute(&j, batch);
    if (j.operation.epilogue == CUBLASLT_EPILOGUE_BGRADB) sum_right(&j.operation, j.b, &j.right);
    runtime_spend(j.seconds);
}

static const char *call_broken(cublasLtMatmulDesc_t o, const void *a, cublasLtMatrixLayout_t la, const void *b,
                               cublasLtMatrixLayout_t lb, const void *d, cublasLtMatrixLayout_t ld,
                               const cublasLtMatmulAlgo_t *algo, size_t bytes) {
    if (layouts_broken(o, la, lb, ld)) return layouts_broken(o, la, lb, ld);
    if (algo->data[SEAL] != 7 || algo->data[PRINT] != print_of(o, la, lb, ld)) return "an algorithm of something else";
    if (algo->data[SPACE] > bytes) return "too little work space";
    if (!aligned(a, algo, 0) || !aligned(b, algo, 1) || !aligned(d, algo, 3)) return "alignment as promised";
    if (has_bias(o->epilogue) && !aligned(o->bias, algo, 4)) return "a bias as aligned as the one asked with";
    if (eight_bits(la) != (o->left_scale && o->right_scale)) return "scales of fp8, and of nothing else";
    if (has_bias(o->epilogue) && !o->bias) return "no pointer for a bias";
    if (has_aux(o->epilogue) && (!o->aux || o->aux_leading < ld->rows || o->aux_leading % 8)) return "no place for aux";
    if (has_aux(o->epilogue) && (ld->batch != 1 || (uintptr_t)o->aux % 16)) return "aux: one, of 16 bytes";
    return NULL;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t h, cublasLtMatmulDesc_t o, const void *alpha, const void *a,
                              cublasLtMatrixLayout_t la, const void *b, cublasLtMatrixLayout_t lb, const void *beta,
                              const void *c, cublasLtMatrixLayout_t lc, void *d, cublasLtMatrixLayout_t ld,
                              const cublasLtMatmulAlgo_t *algo, void *workspace, size_t bytes, cudaStream_t s) {
    (void)h;
    const char *broken = call_broken(o, a, la, b, lb, d, ld, algo, bytes);
    if (!broken && (*(const float *)alpha != 1 || c != d || lc != ld)) broken = "in place, not scaled";
    if (broken) return mistaken(broken);
    bool more = o->epilogue != CUBLASLT_EPILOGUE_DEFAULT && o->epilogue != CUBLASLT_EPILOGUE_BIAS;
    double seconds = stand_in.seconds[algo->data[KERNEL]] + (more ? stand_in.epilogue_seconds : 0);
    Job job = {*o, *la, *lb, *ld, a, b, d, workspace, (size_t)algo->data[SPACE], (double)*(const float *)beta, seconds};
    job.operation.bias_type = vector_type(o, la, ld), job.operation.aux_type = ld->type;
    stand_in.calls++;
    stand_in.last = (int)algo->data[KERNEL];
    stand_in_enqueue(s, run_job, &job, sizeof job);
    return CUBLAS_STATUS_SUCCESS;
}
