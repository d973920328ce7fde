/* The norm of a model's gradients over all data, tensor and pipeline ranks, formed where the gradients lie: sums of
 * squares in f64 and a fixed order, exchanged from device to device, so that every rank comes to the same bits and no
 * host waits for them (Backend.gate). */
#pragma once
#include "kernels/nn/parameters.h"

typedef struct GradientNorm GradientNorm;

// Of finished parameters, which are borrowed. Work space is taken with the first call.
GradientNorm *gradient_norm_new(Parameters *);
void gradient_norm_free(GradientNorm *); // NULL is allowed

// How squares are added. BY_PARAMETER: each parameter's blocks, then parameters in the order of declaration: bits do
// not depend on who holds what of them. AS_HELD: each rank's share at once.
typedef enum NormOrder { NORM_BY_PARAMETER, NORM_AS_HELD } NormOrder;

// All of those ranks call it once gradients are summed. Returns what Backend.gate takes, device: (*count) parts of the
// norm's square, the same on all ranks; not finite where an element of a gradient, or of finite (n), device, of any
// rank is not.
const double *gradient_norm_parts(GradientNorm *, NormOrder, const float *finite, int64_t n, int64_t *count);

// The norm by parameter, for a host that waits for it; the second without any place of its own.
double gradient_norm(GradientNorm *);
double parameters_gradient_norm(Parameters *);
