/* References of operators that move rows, and of pictures. B batch, T rows, C width, P patch side. */
#include "tests/kernels/reference.h"
#include <string.h>

static void copy(double *to, const double *from, int64_t count) { memcpy(to, from, sizeof(double) * (size_t)count); }

void reference_embedding(const Node *call, double *const in[], double *out) {
    int64_t held = call->in[1]->shape[0], width = call->in[1]->shape[1], first = call->attributes.i[0];
    for (int64_t n = 0; n < tensor_count(call->in[0]); n++) {
        int64_t id = (int64_t)in[0][n], row = id - first;
        for (int64_t c = 0; c < width; c++) *out++ = id < 0 || row < 0 || row >= held ? 0 : in[1][row * width + c];
    }
}

void reference_gather_rows(const Node *call, double *const in[], double *out) {
    int64_t width = tensor_width(call->in[0]);
    for (int64_t m = 0; m < tensor_count(call->in[1]); m++)
        for (int64_t c = 0; c < width; c++) *out++ = in[1][m] < 0 ? 0 : in[0][(int64_t)in[1][m] * width + c];
}

void reference_scatter_rows(const Node *call, double *const in[], double *out) {
    int64_t width = tensor_width(call->out), count = tensor_rows(call->out);
    bool vector = call->in[0] && call->in[0]->rank == 1;
    for (int64_t r = 0; r < count; r++)
        for (int64_t c = 0; c < width; c++) out[r * width + c] = in[0] ? in[0][vector ? c : r * width + c] : 0;
    for (int64_t m = 0; m < tensor_count(call->in[2]); m++)
        if (in[2][m] >= 0) copy(out + (int64_t)in[2][m] * width, in[1] + m * width, width);
}

void reference_concat_rows(const Node *call, double *const in[], double *out) {
    for (int64_t b = 0; b < call->out->shape[0]; b++) {
        for (int side = 0; side < 2; side++) {
            const Tensor *x = call->in[side];
            int64_t count = x->rank == 3 ? x->shape[1] * x->shape[2] : tensor_count(x);
            copy(out, in[side] + (x->rank == 3 ? b * count : 0), count);
            out += count;
        }
    }
}

void reference_slice_rows(const Node *call, double *const in[], double *out) {
    int64_t width = tensor_width(call->out), all = call->in[0]->shape[1], count = call->attributes.i[1];
    for (int64_t b = 0; b < call->out->shape[0]; b++)
        copy(out + b * count * width, in[0] + (b * all + call->attributes.i[0]) * width, count * width);
}

void reference_mean_rows(const Node *call, double *const in[], double *out) {
    int64_t rows = call->in[0]->shape[1], width = call->in[0]->shape[2];
    for (int64_t b = 0; b < call->in[0]->shape[0]; b++) {
        for (int64_t c = 0; c < width; c++) {
            double sum = 0, total = 0;
            for (int64_t t = b * rows; t < (b + 1) * rows; t++) {
                double mask = in[1] ? in[1][t] : 1;
                sum += mask * in[0][t * width + c];
                total += mask;
            }
            *out++ = total != 0 ? sum / total : 0 * sum;
        }
    }
}

void reference_pixels(const Node *call, double *const in[], double *out) {
    const Tensor *x = call->in[0];
    int64_t plane = x->shape[1] * x->shape[2], width = x->shape[2];
    double std[3];
    memcpy(std, call->attributes.i + 1, sizeof std);
    for (int64_t b = 0; b < x->shape[0]; b++)
        for (int64_t c = 0; c < 3; c++)
            for (int64_t i = 0; i < plane; i++) {
                int64_t from = in[1] && in[1][b] != 0 ? i / width * width + (width - 1 - i % width) : i;
                *out++ = (in[0][(b * plane + from) * 3 + c] / 255 - call->attributes.f[c]) / std[c];
            }
}

void reference_patch_embedding(const Node *call, double *const in[], double *out) {
    const Tensor *images = call->in[0];
    int64_t patch = call->attributes.i[0], height = images->shape[2], width = images->shape[3];
    int64_t kept = call->out->shape[1], features = call->out->shape[2];
    for (int64_t n = 0; n < call->out->shape[0] * kept; n++) {
        int64_t number = in[3] ? (int64_t)in[3][n] : n % kept;
        int64_t top = number / (width / patch) * patch, left = number % (width / patch) * patch;
        for (int64_t f = 0; f < features; f++) {
            double y = in[2] ? in[2][f] : 0;
            const double *w = in[1] + f * 3 * patch * patch;
            for (int64_t c = 0; c < 3; c++)
                for (int64_t v = 0; v < patch; v++)
                    for (int64_t u = 0; u < patch; u++)
                        y += *w++ * in[0][((n / kept * 3 + c) * height + top + v) * width + left + u];
            *out++ = y;
        }
    }
}
