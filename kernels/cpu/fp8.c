/* Products in fp8 on the CPU, for trying out and checking what GPUs do: both matrices are rounded to fp8 and brought
 * back to bf16, which holds every such number, and multiplied as ever. */
#include "base/error.h"
#include "kernels/cpu/cpu.h"
#include <stdlib.h>

// Numbers that lie together, in any order; the caller frees them.
static uint16_t *rounded(const uint16_t *x, int64_t count, Fp8Side side) {
    uint16_t *out = malloc((size_t)(count ? count : 1) * sizeof *out);
    float scale = side.scaling->scale, inverse = side.scaling->inverse, most = side.most ? *side.most : 0;
    check(out);
    for (int64_t i = 0; i < count; i++) {
        float value = bf16_to_f32(x[i]);
        out[i] = f32_to_bf16(fp8_decode(fp8_encode(value * scale, side.kind), side.kind) * inverse);
        if (!(fabsf(value) <= most)) most = fabsf(value); // NaN stays
    }
    if (side.most) *side.most = most;
    return out;
}

static void matmul_fp8(Backend *b, const Matmul *given, Fp8Side left, Fp8Side right) {
    Matmul p = *given;
    check(p.in == BF16 && p.batch == 1);
    uint16_t *first = rounded(p.a, p.m * p.k, left), *second = rounded(p.b, p.k * p.n, right);
    p.a = first, p.b = second;
    b->matmul(b, &p);
    free(first);
    free(second);
}

static void fp8_advance_all(Backend *b, Fp8Scaling *scaling, float *most, int margin) {
    (void)b;
    for (int i = 0; i < FP8_SIDES; i++) {
        fp8_advance(&scaling[i], most[i], i == FP8_SIDES - 1 ? FP8_E5M2 : FP8_E4M3, margin);
        most[i] = 0;
    }
}

void cpu_install_fp8(Backend *b) { b->matmul_fp8 = matmul_fp8, b->fp8_advance = fp8_advance_all; }
