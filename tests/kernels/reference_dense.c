/* References of linear maps, elementwise operators and norms. N rows, C width, F width out. */
#include "tests/kernels/reference.h"
#include "kernels/ops.h"
#include <math.h>
#include <string.h>

void reference_linear(const Node *call, double *const in[], double *out) {
    int64_t rows = tensor_rows(call->in[0]), width = tensor_width(call->in[0]), features = call->in[1]->shape[0];
    for (int64_t n = 0; n < rows; n++) {
        for (int64_t f = 0; f < features; f++) {
            double y = in[2] ? in[2][f] : 0;
            for (int64_t c = 0; c < width; c++) y += in[0][n * width + c] * in[1][f * width + c];
            out[n * features + f] = y;
        }
    }
}

void reference_batched_matmul(const Node *call, double *const in[], double *out) {
    bool transpose = call->attributes.i[0];
    int64_t rows = call->in[0]->shape[1], inner = call->in[0]->shape[2], columns = call->out->shape[2];
    for (int64_t b = 0; b < call->out->shape[0]; b++) {
        const double *left = in[0] + b * rows * inner, *right = in[1] + b * inner * columns;
        for (int64_t m = 0; m < rows; m++) {
            for (int64_t n = 0; n < columns; n++) {
                double y = 0;
                for (int64_t k = 0; k < inner; k++)
                    y += left[m * inner + k] * (transpose ? right[n * inner + k] : right[k * columns + n]);
                *out++ = y;
            }
        }
    }
}

static void layernorm_of(const Node *call, const double *in, const double *scale, const double *shift, double *out) {
    int64_t rows = tensor_rows(call->out), width = tensor_width(call->out);
    double count = (double)width;
    for (int64_t n = 0; n < rows; n++) {
        const double *x = in + n * width;
        double mean = 0, variance = 0;
        for (int64_t c = 0; c < width; c++) mean += x[c] / count;
        for (int64_t c = 0; c < width; c++) variance += (x[c] - mean) * (x[c] - mean) / count;
        for (int64_t c = 0; c < width; c++)
            *out++ = (x[c] - mean) / sqrt(variance + call->attributes.f[0]) * scale[c] + shift[c];
    }
}

void reference_layernorm(const Node *call, double *const in[], double *out) {
    layernorm_of(call, in[0], in[1], in[2], out);
}

static void rmsnorm_of(const Node *call, const double *in, const double *scale, double *out) {
    int64_t rows = tensor_rows(call->out), width = tensor_width(call->out);
    for (int64_t n = 0; n < rows; n++) {
        const double *x = in + n * width;
        double square = 0;
        for (int64_t c = 0; c < width; c++) square += x[c] * x[c] / (double)width;
        for (int64_t c = 0; c < width; c++) *out++ = x[c] / sqrt(square + call->attributes.f[0]) * scale[c];
    }
}

void reference_rmsnorm(const Node *call, double *const in[], double *out) { rmsnorm_of(call, in[0], in[1], out); }

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

static double gelu_of(double x, GeluKind kind) {
    if (kind == GELU_ERF) return x * 0.5 * erfc(-x * sqrt(0.5));
    if (kind == GELU_TANH) return x / 2 * (1 + tanh(sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x)));
    return x * sigmoid(1.702 * x);
}

void reference_gelu(const Node *call, double *const in[], double *out) {
    for (int64_t i = 0; i < tensor_count(call->out); i++) out[i] = gelu_of(in[0][i], (GeluKind)call->attributes.i[0]);
}

void reference_mlp(const Node *call, double *const in[], double *out) {
    int64_t rows = tensor_rows(call->in[0]), width = tensor_width(call->in[0]), hidden = call->in[1]->shape[0];
    int64_t features = call->in[3]->shape[0];
    for (int64_t n = 0; n < rows; n++) {
        for (int64_t o = 0; o < features; o++) out[n * features + o] = in[4] ? in[4][o] : 0;
        for (int64_t f = 0; f < hidden; f++) {
            double z = in[2] ? in[2][f] : 0;
            for (int64_t c = 0; c < width; c++) z += in[0][n * width + c] * in[1][f * width + c];
            double active = gelu_of(z, (GeluKind)call->attributes.i[0]);
            for (int64_t o = 0; o < features; o++) out[n * features + o] += active * in[3][o * hidden + f];
        }
    }
}

void reference_silu(const Node *call, double *const in[], double *out) {
    for (int64_t i = 0; i < tensor_count(call->out); i++) out[i] = in[0][i] * sigmoid(in[0][i]);
}

void reference_swiglu(const Node *call, double *const in[], double *out) {
    int64_t width = tensor_width(call->out);
    for (int64_t n = 0; n < tensor_rows(call->out); n++) {
        const double *gate = in[0] + 2 * n * width, *up = gate + width;
        for (int64_t c = 0; c < width; c++) *out++ = gate[c] * sigmoid(gate[c]) * up[c];
    }
}

void reference_add(const Node *call, double *const in[], double *out) {
    int64_t repeat = tensor_count(call->in[1]);
    for (int64_t i = 0; i < tensor_count(call->out); i++) out[i] = in[0][i] + in[1][i % repeat];
}

void reference_mul(const Node *call, double *const in[], double *out) {
    for (int64_t i = 0; i < tensor_count(call->out); i++) out[i] = in[0][i] * in[1][i];
}

void reference_scale(const Node *call, double *const in[], double *out) {
    for (int64_t i = 0; i < tensor_count(call->out); i++) out[i] = call->attributes.f[0] * in[0][i];
}

// The draws as kernels/cpu/simd/draws.h states them, one at a time.
static void dropout_of(const Node *call, double p, const double *in, const double *numbers, double *out) {
    uint64_t seed = call->attributes.key[0], site = call->attributes.key[1], first = (uint64_t)call->attributes.i[0];
    uint64_t row = (uint64_t)call->attributes.i[1];
    for (int64_t i = 0; i < tensor_count(call->out); i++) {
        uint64_t element = first + (uint64_t)i;
        if (numbers) element = (uint64_t)(numbers[element / row] * (double)row) + element % row;
        uint64_t block = element / 4;
        PhiloxBlock draw =
            philox_block(seed, (uint64_t)PURPOSE_DROPOUT << 32 | (uint32_t)block, site ^ (block >> 32 << 32));
        out[i] = in[i] * (draw.word[element % 4] >= floor(p * 4294967296.0) ? 1 / (1 - p) : 0);
    }
}

void reference_dropout(const Node *call, double *const in[], double *out) {
    dropout_of(call, call->attributes.f[0], in[0], in[1], out);
}

void reference_add_norm(const Node *call, double *const in[], double *out) {
    int64_t count = tensor_count(call->out);
    dropout_of(call, call->attributes.f[1], in[1], in[4], out);
    for (int64_t i = 0; i < count; i++) out[i] += in[0][i];
    if (in[3])
        layernorm_of(call, out, in[2], in[3], out + count);
    else
        rmsnorm_of(call, out, in[2], out + count);
}

void reference_rope(const Node *call, double *const in[], double *out) {
    int64_t width = tensor_width(call->out), heads = call->attributes.i[0], size = call->attributes.i[1];
    memcpy(out, in[0], sizeof(double) * (size_t)tensor_count(call->out));
    for (int64_t n = 0; n < tensor_rows(call->out); n++) {
        for (int64_t h = 0; h < heads; h++) {
            const double *x = in[0] + n * width + h * size;
            double *y = out + n * width + h * size;
            for (int64_t d = 0; d < size / 2; d++) {
                double angle = in[1][n] * pow(call->attributes.f[0], -2.0 * (double)d / (double)size);
                y[d] = x[d] * cos(angle) - x[d + size / 2] * sin(angle);
                y[d + size / 2] = x[d + size / 2] * cos(angle) + x[d] * sin(angle);
            }
        }
    }
}

void reference_l2_normalize(const Node *call, double *const in[], double *out) {
    int64_t width = tensor_width(call->out);
    for (int64_t n = 0; n < tensor_rows(call->out); n++) {
        double square = 0;
        for (int64_t c = 0; c < width; c++) square += in[0][n * width + c] * in[0][n * width + c];
        double length = sqrt(square);
        for (int64_t c = 0; c < width; c++) *out++ = in[0][n * width + c] / (length < 1e-12 ? 1e-12 : length);
    }
}

void reference_sum(const Node *call, double *const in[], double *out) {
    double y = 0;
    for (int64_t i = 0; i < tensor_count(call->in[0]); i++) y += in[0][i];
    *out = call->attributes.f[0] * y;
}
