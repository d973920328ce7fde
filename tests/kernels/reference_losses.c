/* References of the losses. See reference.h. */
#include "tests/kernels/reference.h"
#include <math.h>
#include <stdlib.h>

static double dot(const double *a, const double *b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

static double log_sum_exp(const double *x, int64_t n, int64_t step) {
    double most = -INFINITY, sum = 0;
    for (int64_t i = 0; i < n; i++) most = fmax(most, x[i * step]);
    for (int64_t i = 0; i < n; i++) sum += exp(x[i * step] - most);
    return most + log(sum);
}

void reference_linear_cross_entropy(const Node *call, double *const in[], double *out) {
    int64_t rows = tensor_rows(call->in[0]), width = tensor_width(call->in[0]), vocab = call->in[1]->shape[0];
    double *logits = malloc((size_t)vocab * sizeof *logits);
    for (int64_t n = 0; n < rows; n++) {
        int64_t target = (int64_t)in[2][n];
        out[n] = 0;
        if (target < 0) continue;
        for (int64_t v = 0; v < vocab; v++) logits[v] = dot(in[0] + n * width, in[1] + v * width, width);
        out[n] = (in[3] ? in[3][n] : 1) * (log_sum_exp(logits, vocab, 1) - logits[target]);
    }
    free(logits);
}

void reference_cross_entropy_sum(const Node *call, double *const in[], double *out) {
    int64_t rows = tensor_rows(call->in[0]);
    double *losses = malloc((size_t)rows * sizeof *losses);
    reference_linear_cross_entropy(call, in, losses);
    out[0] = 0;
    for (int64_t n = 0; n < rows; n++) out[0] += losses[n];
    free(losses);
}

// a b^T of (B, D) both, times a factor, plus a bias; owned by the caller.
static double *pair_logits(const Node *call, double *const in[], double factor, double bias) {
    int64_t n = call->in[0]->shape[0], width = call->in[0]->shape[1];
    double *s = malloc((size_t)(n * n) * sizeof *s);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) s[i * n + j] = factor * dot(in[0] + i * width, in[1] + j * width, width) + bias;
    return s;
}

void reference_clip_loss(const Node *call, double *const in[], double *out) {
    int64_t n = call->in[0]->shape[0];
    double *s = pair_logits(call, in, exp(in[2][0] > log(100) ? log(100) : in[2][0]), 0); // fmin would lose NaN
    out[0] = 0;
    for (int64_t i = 0; i < n; i++)
        out[0] += 0.5 * (log_sum_exp(s + i * n, n, 1) + log_sum_exp(s + i, n, n)) - s[i * n + i];
    free(s);
}

void reference_siglip_loss(const Node *call, double *const in[], double *out) {
    int64_t n = call->in[0]->shape[0];
    double *s = pair_logits(call, in, exp(in[2][0]), in[3][0]);
    out[0] = 0;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) out[0] += log1p(exp(i == j ? -s[i * n + j] : s[i * n + j]));
    free(s);
}

// target (P P 3) = patch number `patch` of the pictures (B, 3, H, W).
static void patch_of(double *target, const double *images, int64_t patch, int64_t height, int64_t width, int64_t side) {
    int64_t across = width / side, image = patch / (across * (height / side)), down = patch / across % (height / side);
    for (int64_t y = 0; y < side; y++)
        for (int64_t x = 0; x < side; x++)
            for (int64_t c = 0; c < 3; c++)
                target[(y * side + x) * 3 + c] =
                    images[((image * 3 + c) * height + down * side + y) * width + patch % across * side + x];
}

static void normalize(double *x, int64_t n) {
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < n; i++) mean += x[i] / (double)n;
    for (int64_t i = 0; i < n; i++) variance += (x[i] - mean) * (x[i] - mean) / (double)(n - 1);
    for (int64_t i = 0; i < n; i++) x[i] = (x[i] - mean) / sqrt(variance + 1e-6);
}

void reference_masked_patch_mse(const Node *call, double *const in[], double *out) {
    int64_t side = call->attributes.i[0], n = 3 * side * side;
    const Tensor *images = call->in[1];
    double *target = malloc((size_t)n * sizeof *target);
    out[0] = 0;
    for (int64_t m = 0; m < tensor_rows(call->in[0]); m++) {
        patch_of(target, in[1], (int64_t)in[2][m], images->shape[2], images->shape[3], side);
        if (call->attributes.i[1]) normalize(target, n);
        for (int64_t i = 0; i < n; i++) {
            double difference = in[0][m * n + i] - target[i];
            out[0] += difference * difference / (double)n;
        }
    }
    free(target);
}
