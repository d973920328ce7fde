/* What every operator should give, in double, written from its formula in kernels/ops.h and from nothing in kernels/.
 * The slow and obvious way. Sizes and attributes are read from the call, in the order of the operator's prototype;
 * values come as doubles. A new operator adds reference_NAME in a file reference_*.c. */
#pragma once
#include "kernels/tape.h"

// in[i]: values of call->in[i], NULL where it is absent; out: room for tensor_count(call->out) values, and behind them
// for those of the second output where there is one.
typedef void ReferenceFunction(const Node *call, double *const in[], double *out);

#define DECLARE_REFERENCE(name) __attribute__((weak)) ReferenceFunction reference_##name;
OPERATORS(DECLARE_REFERENCE)
#undef DECLARE_REFERENCE

ReferenceFunction *reference_of(const Operator *); // NULL where nobody wrote one
