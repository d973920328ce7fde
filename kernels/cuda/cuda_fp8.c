/* Products in fp8, for tensor cores that have it (Hopper and Ada on): both matrices are rounded into work space, each
 * so that the inner dimension lies together, which is all the library multiplies in fp8. */
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/host/work_space.h"

// Rounds a matrix whose inner dimension, k numbers, lies together or `outer` apart.
static const void *rounded(CudaState *s, const CudaQueue *queue, const void *x, int64_t outer, int64_t k, bool together,
                           Fp8Side side) {
    uint8_t *out = cuda_scratch(s, work_fp8(outer, k));
    cuda_fp8_quantise(queue, out, x, together ? outer : k, together ? k : outer, !together, side);
    return out;
}

static void matmul_fp8(Backend *b, const Matmul *given, Fp8Side left, Fp8Side right) {
    CudaState *s = cuda_state(b);
    CudaQueue queue = cuda_queue(s);
    size_t mark = cuda_scratch_mark(s);
    Matmul p = *given;
    p.a = rounded(s, &queue, p.a, p.m, p.k, p.a_column == 1, left);
    p.b = rounded(s, &queue, p.b, p.n, p.k, p.b_row == 1, right);
    cuda_after(s, "fp8");
    p.a_row = p.k, p.a_column = 1, p.b_row = 1, p.b_column = p.k;
    p.in = left.kind == FP8_E5M2 ? E5M2 : E4M3; // of A; B is E4M3
    p.a_factor = &left.scaling->inverse, p.b_factor = &right.scaling->inverse;
    b->matmul(b, &p);
    cuda_scratch_rewind(s, mark);
}

static void fp8_advance_all(Backend *b, Fp8Scaling *scaling, float *most, int margin) {
    CudaState *s = cuda_state(b);
    CudaQueue queue = cuda_queue(s);
    cuda_fp8_advance(&queue, scaling, most, margin);
    cuda_after(s, "fp8_advance");
}

void cuda_fp8_install(Backend *b) {
    const GpuFacts *gpu = &cuda_state(b)->gpu;
    bool has = gpu->major > 8 || (gpu->major == 8 && gpu->minor >= 9);
    if (has) b->matmul_fp8 = matmul_fp8, b->fp8_advance = fp8_advance_all;
}
