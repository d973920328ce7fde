/* Initial values of parameters: element i of the whole tensor depends on (seed, name, i) alone, so any piece of it, on
 * any rank, can be drawn without the rest. */
#pragma once
#include "kernels/nn/parameters.h"

// Local elements [first, first + count) of a parameter: host, (count).
void parameter_initial(const Parameter *, const Parallel *, uint64_t seed, int64_t first, int64_t count, float *out);
