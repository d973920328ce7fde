/* What the files of matrix products share: the library's handle, plans, and the call of one. */
#pragma once
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/host/product_layout.h"
#include "kernels/cuda/host/product_memory.h"
#include "kernels/cuda/host/shape_cache.h"
#include "kernels/cuda/host/work_space.h"
#include "kernels/cuda/host/work_space.h"
#include <cublasLt.h>

// How a bias (f32) gets into a product: as it is or rounded to the result's type by the library, or added behind it.
typedef enum BiasWay { BIAS_NONE, BIAS_F32, BIAS_ROUNDED, BIAS_BEHIND, BIAS_WAYS } BiasWay;

typedef struct ProductPlan {
    cublasLtMatmulDesc_t operation; // NULL: not as one product, the calls apart are as fast
    cublasLtMatrixLayout_t left, right, out;
    cublasLtMatmulAlgo_t algorithm;
    BiasWay bias;
} ProductPlan;

struct CudaProducts {
    cublasLtHandle_t handle;
    void *workspace[BACKEND_LANES]; // NULL: the lane was never used
    ShapeCache *plans;              // ProductKey -> ProductPlan *
    ProductMemory *memory;          // NULL: nothing is timed, the library's first suggestion is taken
};

typedef struct ProductCall { // as bytes in a list
    CudaState *state;
    const ProductPlan *plan;
    const void *left, *right;
    void *out;
    const void *vector; // the bias as the plan takes it, or where sums go; NULL: none
    void *aux;
    const float *left_factor, *right_factor; // of fp8
    void *workspace;
    int64_t add;
} ProductCall;
// What becomes of p by `plan`, with its own bias.
ProductCall product_call(CudaState *, const ProductPlan *plan, const Matmul *p);
// Sets the pointers in the plan's description: of what is not NULL.
bool product_point(const ProductCall *);
// Enqueues one; what the library says. Sets pointers in the plan's description, which nobody else looks at meanwhile.
cublasStatus_t product_start(const ProductCall *, CudaStream);

// ---- plans (cuda_product_plans.c) ----

// The plan of a product's shape, made where there is none yet. It stays where it is until the products close.
const ProductPlan *product_plan(CudaState *, const Matmul *, const ProductLayout *);
void product_plan_free(ProductPlan *); // NULL is allowed

// ---- timing (cuda_product_tuning.c) ----

// Seconds that one run takes on this device. Outputs go to memory of its own, so that nothing of p changes; what p
// reads may hold anything. INFINITY: the library does not do it; NaN: there is no memory to try it in.
double product_seconds(CudaState *, const ProductPlan *, const Matmul *p);
// Likewise of a product with an epilogue or sums, as calls apart; `plain`: the plan of the product alone.
double product_seconds_apart(CudaState *, const ProductPlan *plain, const Matmul *p);
Matmul product_alone(const Matmul *); // without epilogue and sums
